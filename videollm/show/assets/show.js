// Answers with their spans: a player's timeline, chips in the text, a click seeks. The viewer and the demo share it.
// In: a row as videollm/show/answers.py makes it. All text goes in as text, so no answer can add markup to the page.
"use strict";

const Show = (() => {
  const STEPS = [0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200];

  // An element; properties whose names hold a dash, and `class`, become attributes.
  function make(tag, properties = {}, ...children) {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(properties)) {
      if (name === "class" || name.includes("-")) element.setAttribute(name, value);
      else if (name === "style") element.style.cssText = value;
      else element[name] = value;
    }
    element.append(...children.filter((child) => child !== null && child !== undefined));
    return element;
  }

  const usable = (span) => span.every(Number.isFinite) && span[0] <= span[1];
  const written = (span) => `${span[0].toFixed(1)} – ${span[1].toFixed(1)} s`;

  function clock(time) {
    const whole = Math.round(time), two = (value) => String(value).padStart(2, "0");
    const hours = Math.floor(whole / 3600), minutes = Math.floor(whole / 60) % 60;
    return hours ? `${hours}:${two(minutes)}:${two(whole % 60)}` : `${minutes}:${two(whole % 60)}`;
  }

  // The lanes of a timeline: what is true, then of every answer its spans and its evidence.
  function lanesOf(row) {
    const lanes = row.truth && row.truth.length ? [{ name: "truth", tone: "truth", spans: row.truth, scores: [] }] : [];
    row.answers.forEach((answer, place) => {
      if (!answer) return;
      lanes.push({ name: answer.name, tone: `tone${place}`, spans: answer.spans, scores: answer.scores });
      if (answer.evidence.length)
        lanes.push({ name: "evidence", tone: `tone${place} evidence`, spans: answer.evidence, scores: [] });
    });
    return lanes;
  }

  // Seconds that the timeline shows: of the video, else as far as the spans go.
  function lengthOf(row, lanes, player) {
    const ends = lanes.flatMap((lane) => lane.spans.filter(usable).map((span) => span[1]));
    const known = row.duration || (player && Number.isFinite(player.duration) ? player.duration : 0);
    return Math.max(known, ...ends) || 1;
  }

  // Seek, and mark every bar and chip of the span.
  function seek(root, playerOf, span) {
    const player = playerOf();
    if (player) player.currentTime = span[0];
    for (const mark of root.querySelectorAll("[data-span]"))
      mark.classList.toggle("current", mark.dataset.span === String(span));
  }

  function spanButton(root, playerOf, span, label, properties) {
    const button = make("button", { type: "button", title: label, "aria-label": label, ...properties });
    button.dataset.span = String(span);
    button.addEventListener("click", () => seek(root, playerOf, span));
    return button;
  }

  // Bars that overlap go below each other: [level of every span], as few levels as it takes.
  function levelsOf(spans) {
    const ends = [], levels = Array(spans.length).fill(0);
    const order = spans.map((_, k) => k).sort((a, b) => spans[a][0] - spans[b][0]);
    for (const k of order) {
      const free = ends.findIndex((end) => end <= spans[k][0]);
      levels[k] = free < 0 ? ends.length : free;
      ends[levels[k]] = spans[k][1];
    }
    return levels;
  }

  function laneTrack(root, playerOf, lane, seconds) {
    const good = lane.spans.map((span, k) => [span, k]).filter(([span]) => usable(span));
    const levels = levelsOf(good.map(([span]) => span));
    const track = make("div", { class: "track", style: `--levels:${Math.max(1, ...levels.map((level) => level + 1))}` });
    track.addEventListener("click", (event) => {
      const player = playerOf(), box = track.getBoundingClientRect();
      if (event.target === track && player) player.currentTime = ((event.clientX - box.left) / box.width) * seconds;
    });
    good.forEach(([span, k], place) => {
      const score = lane.scores[k] === undefined ? "" : `, score ${lane.scores[k].toFixed(2)}`;
      const left = (100 * Math.max(0, span[0])) / seconds, wide = (100 * (span[1] - Math.max(0, span[0]))) / seconds;
      const label = `${lane.name}, event ${k + 1}: ${written(span)}${score}`;
      const box = `left:${left}%;width:${Math.max(0, wide)}%;--level:${levels[place]}`;
      const bar = spanButton(root, playerOf, span, label, { class: `bar ${lane.tone}`, style: box });
      bar.append(make("span", {}, String(k + 1)));
      track.append(bar);
    });
    if (!good.length) track.append(make("i", {}, "no span"));
    return track;
  }

  function axis(seconds, width) {
    const most = Math.max(2, Math.min(8, width / 85)); // times that fit
    const step = STEPS.find((one) => seconds / one <= most) || seconds;
    const line = make("div", { class: "axis" });
    for (let time = 0; time <= seconds * 1.0001; time += step) {
      const text = seconds > 180 ? clock(time) : `${Number(time.toFixed(1))} s`;
      const left = (100 * time) / seconds, side = left === 0 ? "begin" : left > 95 ? "end" : "";
      line.append(make("span", { class: side, style: `left:${left}%` }, text));
    }
    return line;
  }

  // The timeline of a row; playerOf() gives the video element, or null.
  function timeline(root, row, playerOf) {
    const lanes = lanesOf(row), seconds = lengthOf(row, lanes, playerOf());
    const body = make("div", { class: "timeline", role: "group", "aria-label": "timeline" });
    for (const lane of lanes)
      body.append(make("span", { class: "lane", title: lane.name }, lane.name), laneTrack(root, playerOf, lane, seconds));
    const head = make("div", { class: "head" });
    const over = make("div", { class: "over" }, head);
    const follow = () => {
      const player = playerOf();
      head.style.left = `${player ? Math.min(100, (100 * player.currentTime) / seconds) : 0}%`;
    };
    body.append(make("span", {}), axis(seconds, root.clientWidth || 500), over);
    body.follow = follow;
    follow();
    return body;
  }

  // The text of an answer, its spans as chips in their places; those that it does not spell come behind it.
  function spoken(root, answer, playerOf, tone) {
    const chip = (span, k) =>
      usable(span)
        ? spanButton(root, playerOf, span, `event ${k + 1}: ${written(span)}`, { class: `chip ${tone}` })
        : make("span", { class: "refused", title: "not a span: it ends before it starts, or is no number" });
    const text = make("p", { class: "spoken" });
    const labelled = (span, k) => {
      const mark = chip(span, k);
      mark.append(make("b", {}, String(k + 1)), usable(span) ? written(span) : `[${span.join(", ")}]`);
      return mark;
    };
    answer.pieces.forEach((piece, k) => {
      text.append(piece);
      if (k < answer.pieces.length - 1) text.append(labelled(answer.spans[k], k));
    });
    if (answer.pieces.length - 1 < answer.spans.length)
      text.append(" ", ...answer.spans.flatMap((span, k) => [labelled(span, k), " "]));
    if (!text.textContent.trim()) text.append(make("i", {}, answer.going ? "…" : "(empty answer)"));
    return text;
  }

  function answerCard(root, answer, playerOf, place) {
    const tone = `tone${place}`;
    const scores = [["IoU", answer.iou], ["F1 at 0.5", answer.f1]].filter(([, value]) => Number.isFinite(value));
    const told = scores.map(([name, value]) => `${name} ${value.toFixed(2)}`).join(" · ");
    const title = "IoU of the first span with the true span that it matches best; F1 of all spans";
    const card = make("article", { class: `answer ${tone}` });
    card.append(make("h3", {}, make("span", { class: "name" }, answer.name), make("span", { class: "iou", title }, told)));
    if (answer.note) card.append(make("p", { class: "note" }, answer.note));
    if (!answer.error) card.append(spoken(root, answer, playerOf, tone));
    if (answer.evidence.length)
      card.append(make("p", { class: "small" }, "evidence: ", ...answer.evidence.flatMap((span, k) => {
        if (!usable(span)) return [`[${span.join(", ")}] `];
        const label = `evidence ${k + 1}: ${written(span)}`;
        const mark = spanButton(root, playerOf, span, label, { class: `chip evidence ${tone}` });
        mark.append(make("b", {}, String(k + 1)), written(span));
        return [mark, " "];
      })));
    if (answer.scores.length)
      card.append(make("p", { class: "small" }, `scores: ${answer.scores.map((score) => score.toFixed(2)).join(", ")}`));
    if (answer.raw)
      card.append(make("details", {}, make("summary", {}, "raw text"), make("pre", {}, answer.raw)));
    return card;
  }

  // Timeline and answers of a row into `root`; what was there goes.
  function draw(root, row, playerOf) {
    const line = timeline(root, row, playerOf);
    const cards = row.answers.map((answer, place) => answer && answerCard(root, answer, playerOf, place));
    root.replaceChildren(line, make("div", { class: "answers" }, ...cards));
    root.follow = line.follow;
  }

  return { make, draw, usable, written, clock };
})();
