"""What other projects write in place of our keys and marks of visuals: told apart from keys that are nobody's business.

In: a line's object, or the text of a turn. Out: the text with our own marks; or one complaint that names the right key
or mark, where a record would train without its video. Knows no file and no tokenizer.
"""

import difflib
import re
from collections.abc import Collection, Mapping
from typing import Any

from videollm.common.files import Bad
from videollm.data.published import EVIDENCE_END, SPAN_MARKS

VISUAL_MARKS = ("<video>", "<image>")
# As other projects call what a record cannot do without; compared as ``_plain`` gives it.
NAMES = {
    "video": "vid vidio vidpath videopath videopaths videofile videofiles videoname videourl clippath",
    "image": "img imgs imgpath imagepath imagepaths imagefile imagefiles imagename imageurl picture pictures",
    "conversations": "conv convs dialog dialogs dialogue dialogues message messages chat",
    "duration": "videoduration durationsec",
    "tgt": "timestamp timestamps gttimestamp gttimestamps",
    "rejected": "reject rejects rejectedanswer rejectedanswers",
}
MEANT = {name: key for key, names in NAMES.items() for name in names.split()}
ALONE = {"videoid": "video", "imageid": "image"}  # names of a visual where it has no other; else anyone's
NOTHING = (None, "", [], {})  # says no more than a key that is left out
NEAR = 0.85  # difflib's likeness from which a longer word is taken for a slip of the pen

_FOREIGN = (
    r"<video>(?:\s*<videohere>)?\s*</video>|<\|vision_start\|>\s*<\|video_pad\|>\s*<\|vision_end\|>|<\|video(?:_pad)?\|>"
    r"|<videohere>|<video_placeholder>|<video>|<vid>",
    r"<(image|img)>(?:\s*<imagehere>)?\s*</\1>|<\|vision_start\|>\s*<\|image_pad\|>\s*<\|vision_end\|>"
    r"|<\|image(?:_pad)?\|>|<imagehere>|<image_placeholder>|<image>|<img>",
)
_OURS = [(re.compile(pattern, re.IGNORECASE), mark) for pattern, mark in zip(_FOREIGN, VISUAL_MARKS, strict=True)]
_SPANS = re.compile("|".join((*SPAN_MARKS, EVIDENCE_END)), re.IGNORECASE)
_AS_OURS = {mark.lower(): mark for mark in (*SPAN_MARKS, EVIDENCE_END)}
_LIKE_A_MARK = re.compile(
    r"</?\|?(?:[^<>\s]{0,40}[^<>\sa-z])?(?:videos?|images?|vid|img|vision)(?![a-z])[^<>\s]{0,40}>", re.IGNORECASE
)


def check_keys(item: Mapping[str, Any], known: Collection[str]) -> None:
    """Refuse a key that stands for one of ``known`` which the record lacks. Other unknown keys may stand there.

    Raises:
        Bad: with the right key.
    """
    for key, value in item.items():
        if key in known or value in NOTHING:
            continue
        meant = _meant(key, known)
        if meant is None and not any(item.get(visual) for visual in ALONE.values()):
            meant = ALONE.get(_plain(key))
        held = [item.get(meant)] + [item.get("src")] * (meant == "tgt")  # the times of a question alone stand there
        if meant is not None and all(one in NOTHING for one in held):
            raise Bad("unknown key, and the record would be read without it", key, f"did you mean {meant}?")


def _meant(key: str, known: Collection[str]) -> str | None:
    """The known key that ``key`` stands for: written otherwise, by another name, or misspelt."""
    plain = _plain(key)
    for own in known:
        letters = _plain(own)
        if plain in (letters, f"{letters}s") or (len(own) >= len("task") and sorted(plain) == sorted(letters)):
            return own
    near = [name for name in difflib.get_close_matches(plain, NAMES, cutoff=NEAR) if name[0] == plain[0]]
    return MEANT.get(plain) or next(iter(near), None)


def _plain(key: str) -> str:
    """The letters of a key: ``Video-Path``, ``video_path`` and ``videoPath`` are one."""
    return re.sub(r"[\s_-]+", "", key.casefold())


def own_span_marks(text: str) -> str:
    """The text of any turn with span marks in the letters that we write them in: ``<SPAN>`` is ``<span>``."""
    return _SPANS.sub(lambda mark: _AS_OURS[mark[0].lower()], text)


def own_visual_marks(text: str, name: str) -> str:
    """The text of a user's turn, whose name is ``name``, with our own marks of visuals in place of others whose meaning
    is clear.

    Raises:
        Bad: something that looks like a mark of a video or an image, and is none that is known.
    """
    for pattern, mark in _OURS:
        text = pattern.sub(mark, text)
    odd = next((mark for mark in _LIKE_A_MARK.findall(text) if mark not in VISUAL_MARKS), None)
    if odd is not None:
        raise Bad(f"unknown mark {odd:.40}", name, "write <video> or <image> where it stands")
    return text
