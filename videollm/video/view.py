"""What of a video is looked at, and how it is stored. Seconds; plain values that annotations carry to the reader."""

from dataclasses import dataclass


@dataclass(frozen=True)
class FrameFolder:
    """A video that is stored as a folder of pictures named by number, ``fps`` a second, the lowest number ``first``."""

    fps: float
    first: int = 1


@dataclass(frozen=True)
class View:
    """What of a video is looked at: frames inside ``bound_s`` (start, end in seconds; None: of all of it).

    Frame times and duration stay those of the whole video. ``frames``: how it is stored, None for a video file.
    ``jpeg``: its frames go through JPEG of random quality first; set by a list of data sets (mixture.py).
    """

    bound_s: tuple[float, float] | None = None
    frames: FrameFolder | None = None
    jpeg: bool = False


WHOLE = View()
