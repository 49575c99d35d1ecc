"""How vision-language models without a head of their own are asked for times and write them: data of the text head.

Published words to the letter: ``moment`` asks for one event, with a place for ``{query}`` or, without its final period,
``{sentence}``; ``events`` asks for all with captions. ``span`` is how training writes seconds in an answer. What
models answer is read by videollm/reading, which takes any form; so a style decides nothing in it.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Style:
    """A model's own words for times."""

    moment: str
    events: str
    span: str


_TIMELENS = (
    "Please find the visual event described by the sentence '{sentence}', determining its starting and ending times. "
    "The format should be: 'The event happens in <start time> - <end time> seconds'."
)
_EVENTS = (  # of Qwen's cookbooks; for TimeLens none is published
    "Localize a series of activity events in the video, output the start and end timestamp for each event, and "
    "describe each event with sentences. Provide the result in json format with 'mm:ss.ff' format for time depiction."
)
STYLES = {
    "qwen2_5_vl": Style(
        "Give the query: '{query}', when does the described content occur in the video? Use 'ss.ff' as time format.",
        _EVENTS,
        "{start:.2f} - {end:.2f} seconds",
    ),
    # Qwen published no question for a moment; TimeLens' README has numbers of Qwen3-VL with its own.
    "qwen3_vl": Style(_TIMELENS, _EVENTS, "{start:.1f} - {end:.1f} seconds"),
    "timelens": Style(_TIMELENS, _EVENTS, "{start:.1f} - {end:.1f} seconds"),
}
