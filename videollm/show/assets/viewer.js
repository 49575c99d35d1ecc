// The page of answers: filters, an order, a list of which only the visible part is in the document, and one answer.
// In: VIEW of answers.js, as videollm/show/viewer.py writes it. The state is in the address, so that a link leads back.
"use strict";

(() => {
  const { names, videos, rows } = VIEW;
  const HEIGHT = 60; // of a row of the list, in pixels; the style sheet has it from here
  const byId = (id) => document.getElementById(id);
  const list = byId("list"), space = byId("space"), player = byId("player"), detail = byId("detail");
  const fields = ["search", "order", "kind", "task", "iou_low", "iou_high", "span_low", "span_high", "video_low",
    "video_high"].map(byId);
  const two = names.length > 1, judged = rows.some((row) => row.truth.length);
  let shown = [], chosen = -1;

  // ---- what is known of a row, once ------------------------------------------------------------------------------------

  const iouOf = (row, place) => row.answers[place]?.iou ?? null;

  rows.forEach((row, place) => {
    row.place = place;
    const said = row.answers.flatMap((answer) => (answer ? [...answer.pieces, answer.error || ""] : []));
    row.words = [row.id, row.question, videos[row.video]?.name, row.task, ...said].join(" ").toLowerCase();
    const spans = row.truth.length ? row.truth : (row.answers.find(Boolean)?.spans || []).filter(Show.usable);
    row.worst = Math.min(...names.map((_, k) => iouOf(row, k) ?? -1));
    row.f1 = Math.min(...row.answers.map((answer) => answer?.f1 ?? 1));
    row.change = (iouOf(row, 1) ?? 0) - (iouOf(row, 0) ?? 0);
    row.lengths = spans.map((span) => span[1] - span[0]);
    row.shortest = Math.min(...row.lengths, Number.MAX_VALUE);
    row.kinds = new Set(row.answers.map((answer) => (answer ? answer.kind : "missing")));
    row.answers.forEach((answer, k) => answer && (answer.name = names[k]));
  });

  const ORDERS = [["", "as in the file", null]];
  if (judged) ORDERS.push(["worst", "worst first", (a, b) => a.worst - b.worst || a.f1 - b.f1],
    ["best", "best first", (a, b) => b.worst - a.worst || b.f1 - a.f1]);
  if (two && judged) ORDERS.push(["lost", `${names[1]} lost most`, (a, b) => a.change - b.change],
    ["gained", `${names[1]} gained most`, (a, b) => b.change - a.change]);
  ORDERS.push(["short", "shortest span first", (a, b) => a.shortest - b.shortest]);
  const KINDS = [["", "all answers"], ["span", "with a span"], ["none", "without a span"], ["odd", "spans that are none"],
    ["cut", "cut off"], ["error", "not asked (error)"], ["missing", "without an answer"]];

  function options(select, pairs) {
    select.append(...pairs.map(([value, text]) => Show.make("option", { value, textContent: text })));
  }

  // ---- filters ---------------------------------------------------------------------------------------------------------

  // Whether one of the values is in the range of two inputs; an empty input is no bound.
  function inside(name, values) {
    const [low, high] = [byId(`${name}_low`).value, byId(`${name}_high`).value];
    if (low === "" && high === "") return true;
    return values.some((value) => value !== null && (low === "" || value >= low) && (high === "" || value <= high));
  }

  function filter() {
    const words = byId("search").value.toLowerCase().split(/\s+/).filter(Boolean);
    const [kind, task, order] = ["kind", "task", "order"].map((id) => byId(id).value);
    shown = rows.filter((row) =>
      words.every((word) => row.words.includes(word)) && (!kind || row.kinds.has(kind)) && (!task || row.task === task) &&
      inside("iou", names.map((_, place) => iouOf(row, place))) && inside("span", row.lengths) &&
      inside("video", [row.duration]));
    const rule = ORDERS.find(([name]) => name === order)?.[2];
    if (rule) shown.sort((a, b) => rule(a, b) || a.place - b.place);
    space.style.height = `${shown.length * HEIGHT}px`;
    list.scrollTop = 0;
    paint();
    summary();
  }

  function summary() {
    const means = names.map((name, place) => {
      const known = shown.filter((row) => row.truth.length && row.answers[place]);
      const sum = known.reduce((total, row) => total + (iouOf(row, place) ?? 0), 0);
      return known.length ? `${two ? `${name}: ` : ""}mean IoU ${(sum / known.length).toFixed(3)}` : "";
    });
    const count = `${shown.length.toLocaleString("en")} of ${rows.length.toLocaleString("en")} answers`;
    byId("summary").textContent = [count, ...means.filter(Boolean)].join(" · ");
  }

  // ---- the list --------------------------------------------------------------------------------------------------------

  function badge(row, place) {
    const answer = row.answers[place], iou = iouOf(row, place);
    if (iou !== null)
      return Show.make("span", { class: `badge tone${place}`, style: `--part:${100 * iou}%` }, iou.toFixed(2));
    const text = { none: "no span", odd: "no span", cut: "cut off", error: "error", span: "" }[answer?.kind ?? ""] ?? "missing";
    return text ? Show.make("span", { class: "badge failed" }, text) : null;
  }

  function item(row, place) {
    const line = Show.make("div", { role: "option", id: `item${place}`, class: "item", style: `top:${place * HEIGHT}px`,
      "aria-selected": String(row === rows[chosen]) });
    const marks = names.map((_, k) => badge(row, k));
    line.append(Show.make("div", { class: "line" }, row.question || row.id),
      Show.make("div", { class: "under" }, ...marks.filter(Boolean), Show.make("span", {}, row.id)));
    line.addEventListener("click", () => choose(row, true));
    return line;
  }

  function paint() {
    const first = Math.max(0, Math.floor(list.scrollTop / HEIGHT) - 5);
    const last = Math.min(shown.length, Math.ceil((list.scrollTop + list.clientHeight) / HEIGHT) + 5);
    space.replaceChildren(...shown.slice(first, last).map((row, k) => item(row, first + k)));
    if (!shown.length) space.append(Show.make("p", { class: "nothing" }, "No answer passes these filters."));
    const place = shown.indexOf(rows[chosen]);
    list.setAttribute("aria-activedescendant", place >= first && place < last ? `item${place}` : "");
  }

  function reveal(place) {
    if (place < 0) return;
    const top = place * HEIGHT, bottom = top + HEIGHT;
    if (top < list.scrollTop) list.scrollTop = top;
    else if (bottom > list.scrollTop + list.clientHeight) list.scrollTop = bottom - list.clientHeight;
  }

  // ---- one answer ------------------------------------------------------------------------------------------------------

  function choose(row, open) {
    chosen = row.place;
    const video = videos[row.video];
    byId("question").textContent = row.question || row.id;
    const facts = [row.id, row.task, video?.name, row.duration ? `${Number(row.duration.toFixed(2))} s` : ""];
    byId("facts").textContent = facts.filter(Boolean).join(" · ");
    player.hidden = !video;
    complain(video ? "" : "This answer names no video.");
    if (!video) player.removeAttribute("src");
    else if (player.getAttribute("src") !== video.url) player.setAttribute("src", video.url);
    byId("prompt").lastElementChild.textContent = row.prompt;
    byId("prompt").hidden = !row.prompt;
    redraw();
    if (open) document.body.classList.add("open");
    detail.scrollTop = 0;
    reveal(shown.indexOf(row));
    paint();
    remember();
  }

  const redraw = () => chosen >= 0 && Show.draw(byId("shown"), rows[chosen], () => (player.hidden ? null : player));
  const complain = (text) => ((byId("unplayable").textContent = text), (byId("unplayable").hidden = !text));

  function step(by) {
    const place = shown.indexOf(rows[chosen]);
    const next = shown[Math.min(shown.length - 1, Math.max(0, place + by))];
    if (next) choose(next, false);
  }

  // ---- the address -----------------------------------------------------------------------------------------------------

  function remember() {
    const state = new URLSearchParams();
    for (const field of fields) if (field.value) state.set(field.id, field.value);
    if (chosen >= 0) state.set("id", rows[chosen].id);
    history.replaceState(null, "", `#${state}`);
  }

  function recall() {
    const state = new URLSearchParams(location.hash.slice(1));
    for (const field of fields) field.value = state.get(field.id) ?? "";
    filter();
    const named = rows.find((row) => row.id === state.get("id"));
    if (named || shown.length) choose(named || shown[0], Boolean(named));
  }

  // ---- events ----------------------------------------------------------------------------------------------------------

  function keys(event) {
    const inField = event.target.closest("input, select, textarea");
    if (event.key === "Escape") {
      document.body.classList.remove("open");
      list.focus();
    }
    if (inField || event.ctrlKey || event.metaKey || event.altKey) return;
    const number = Number(event.key), onButton = event.target.closest("button, summary, video");
    if (event.key === "/") byId("search").focus();
    else if (event.key === "ArrowDown" || event.key === "j") step(1);
    else if (event.key === "ArrowUp" || event.key === "k") step(-1);
    else if (event.key === "PageDown") step(10);
    else if (event.key === "PageUp") step(-10);
    else if (event.key === "Enter" && !onButton) document.body.classList.add("open");
    else if (event.key === " " && !onButton) player.paused ? player.play() : player.pause();
    else if (event.key === "ArrowLeft" && !event.target.closest("video")) player.currentTime -= 1;
    else if (event.key === "ArrowRight" && !event.target.closest("video")) player.currentTime += 1;
    else if (number >= 1) byId("shown").querySelectorAll(".answer .spoken .chip")[number - 1]?.click();
    else return;
    event.preventDefault();
  }

  function begin() {
    document.title = byId("title").textContent = names.join(" and ");
    document.documentElement.style.setProperty("--height", `${HEIGHT}px`);
    options(byId("order"), ORDERS);
    options(byId("kind"), KINDS.filter(([kind]) => !kind || rows.some((row) => row.kinds.has(kind))));
    const tasks = [...new Set(rows.map((row) => row.task).filter(Boolean))].sort();
    options(byId("task"), [["", "all"], ...tasks.map((task) => [task, task])]);
    byId("task").parentElement.hidden = tasks.length < 2;
    for (const id of ["iou_low", "iou_high"]) byId(id).disabled = !judged;
    byId("filters").addEventListener("input", () => (filter(), remember()));
    byId("filters").addEventListener("reset", () => setTimeout(() => (filter(), remember())));
    byId("filters").addEventListener("submit", (event) => event.preventDefault());
    byId("back").addEventListener("click", () => (document.body.classList.remove("open"), player.pause()));
    list.addEventListener("scroll", paint, { passive: true });
    new ResizeObserver(paint).observe(list);
    document.addEventListener("keydown", keys);
    window.addEventListener("hashchange", recall);
    for (const name of ["timeupdate", "seeking"]) player.addEventListener(name, () => byId("shown").follow?.());
    player.addEventListener("loadedmetadata", () => rows[chosen].duration || redraw());
    player.addEventListener("error", () => player.getAttribute("src") &&
      complain(`${videos[rows[chosen].video].name}: this browser cannot play it (not there, or a codec it lacks).`));
    recall();
  }

  begin();
})();
