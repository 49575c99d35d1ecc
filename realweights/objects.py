"""What the clips are made of: named pictures with their synonyms, photographs, and how people ask about them.

In: the folder in which packages.py laid out the packages. Out: ``Thing`` s in a fixed order, each with its picture, and
which of them no training clip shows; photographs as arrays; wordings, of which some are never trained on. It draws
nothing and knows no clip.
"""

import json
import re
import zlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

from videollm.common.config import need

# Categories of the data set's own whose pictures are single things; in None all of them.
KINDS = {
    "Animals & Nature": None,
    "Food & Drink": None,
    "Travel & Places": ("transport-ground", "transport-air", "transport-water", "place-building", "place-other"),
    "Activities": ("sport", "game", "arts & crafts", "award-medal", "event"),
    "Objects": (
        "clothing", "tool", "household", "office", "musical-instrument", "book-paper", "light & video", "computer",
        "phone", "medical", "science", "writing", "money", "other-object", "lock", "mail", "sound",
    ),
}  # fmt: skip
UNSEEN_EVERY = 5  # one object in so many is in no training clip, by a checksum of its name
MOST_WORDS = 3  # of a name

# Questions, as people might ask. Those of HELD_OUT are asked only in the split `wording`.
GROUNDING = (
    "When can you see the {}?", "When is the {} in the picture?", "At what time does the {} show up?",
    "Find the part with the {}.", "In which part of the video is the {} visible?",
    "During which seconds is the {} there?", "Locate the moment with the {}.", "From when to when is there a {}?",
    "When does the {} appear, and when is it gone?", "Show me when the {} is on screen.",
)  # fmt: skip
GROUNDING_HELD_OUT = (
    "I am looking for the {}. Where in the clip is it?", "What stretch of time contains the {}?",
    "Tell me the start and the end of the scene with a {}.", "Could you point out when a {} was filmed?",
    "Which interval shows the {}?",
)  # fmt: skip
ANSWERS = ("The {} is there at <span>.", "You can see the {} at <span>.", "The {} is visible at <span>.")
DENSE = (
    "What happens in this video, and when?", "List everything that appears, with times.",
    "Describe all events with their times.", "Give a timeline of the video.",
)  # fmt: skip
DENSE_HELD_OUT = ("Write down, in order, what shows up and when.", "Summarise the clip as a list of timed events.")
CHOICE = ("Which of these is in the video?", "Which one can be seen?", "What does the video show?")
CHOICE_HELD_OUT = ("One of these things was filmed. Which?", "Pick the thing that shows up.")
ACTIONS = {
    "appear": "appears", "left": "moves to the left", "right": "moves to the right", "up": "rises", "down": "sinks",
    "grow": "gets bigger", "shrink": "gets smaller", "fade": "fades away",
}  # fmt: skip


@dataclass(frozen=True)
class Thing:
    """A named picture. ``names``: what the data set calls it first, then its synonyms."""

    names: tuple[str, ...]
    picture: Path

    @property
    def name(self) -> str:
        """What it is called in answers."""
        return self.names[0]

    @property
    def trained_names(self) -> tuple[str, ...]:
        """What training asks for it by: one synonym, where there is one, is kept for the split of wordings."""
        return self.names[:-1] or self.names

    @property
    def unseen(self) -> bool:
        """Whether no training clip shows it."""
        return zlib.crc32(self.name.encode()) % UNSEEN_EVERY == 0


@cache
def read_things(packages: Path) -> tuple[Thing, ...]:
    """All things with a picture and a plain name, in the order of the data set; no name twice."""
    file = packages / "emoji/emoji.json"
    need(file.is_file(), f"no {file}; run bash scripts/realweights.sh, which fetches it")
    found, known = [], set()
    for entry in json.loads(file.read_text(encoding="utf-8")):
        kinds = KINDS.get(entry["category"], ())
        picture = packages / "emoji/img/google/64" / entry["image"]
        if (kinds is not None and entry["subcategory"] not in kinds) or not picture.is_file():
            continue
        names = dict.fromkeys(map(plain, (entry["name"], *entry["short_names"])))
        names = tuple(n for n in names if re.fullmatch(r"[a-z ]+", n) and len(n.split()) <= MOST_WORDS)
        if names and not known & set(names):
            known |= set(names)
            found.append(Thing(names, picture))
    return tuple(found)


def plain(name: str) -> str:
    """A name as one says it: ``FOX FACE`` and ``fox_face`` are a fox."""
    return re.sub(r" face$", "", name.lower().replace("_", " ").replace("-", " ").strip())


@cache
def read_picture(thing: Thing) -> np.ndarray:
    """RGBA uint8 [h, w, 4], without the empty border."""
    image = Image.open(thing.picture).convert("RGBA")
    return np.asarray(image.crop(image.getchannel("A").getbbox()))


@cache
def read_photos(packages: Path, side: int) -> tuple[np.ndarray, ...]:
    """The photographs, RGB uint8, their shorter edge ``side`` pixels, in the order of their names."""
    files = sorted(f for f in (packages / "photos").rglob("*") if f.suffix in (".png", ".jpg"))
    need(files, f"no photographs in {packages / 'photos'}; run bash scripts/realweights.sh, which fetches them")
    found = []
    for file in files:
        image = Image.open(file).convert("RGB")
        scale = side / min(image.size)
        found.append(np.asarray(image.resize([max(side, round(scale * edge)) for edge in image.size])))
    return tuple(found)
