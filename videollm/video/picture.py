"""A still picture of any kind -> upright RGB of 8 bits, as people see it.

In: what Pillow has opened. Out: uint8 [H, W, 3]. Levels are scaled by the range of their type, which Pillow's own
conversion cuts off; transparent parts are shown on white. Knows no tensors and no preprocessing.
"""

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

BITS_PER_SAMPLE, PHOTOMETRIC, SAMPLE_FORMAT = 258, 262, 339  # tags of TIFF
WHITE_IS_ZERO, SIGNED = 0, 2  # their values
TRANSPARENT = ("RGBA", "LA", "PA")  # modes; a picture of another one may name a level or colour that is
FILMS = ("GIF", "PNG", "WEBP", "AVIF")  # formats whose further pictures are a film, not pages or a thumbnail


def upright_rgb(image: Image.Image) -> np.ndarray:
    """uint8 [H, W, 3], turned as its EXIF says; of several pictures the one that is open, which is the first.

    Raises:
        ValueError: levels whose white is not known (floating point, negative, or 32 bits that use no more than 24).
    """
    bits, signed, inverted = levels_of(image)
    image = ImageOps.exif_transpose(image)
    if image.mode == "F":
        raise ValueError("its levels are floating-point numbers, and nothing says which one is white")
    if image.mode.startswith("I"):
        grey = in_eight_bits(np.asarray(image), bits, signed)
        return np.repeat((255 - grey if inverted else grey)[..., None], 3, axis=2)
    if image.mode in TRANSPARENT or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.array(image.convert("RGB"))


def levels_of(image: Image.Image) -> tuple[int, bool, bool]:
    """Bits of a grey level, whether it has a sign, and whether 0 is white: TIFF has its tags, all others 16 bits."""
    tags = getattr(image, "tag_v2", {})
    bits = tags.get(BITS_PER_SAMPLE, (16,))[0]
    return bits, tags.get(SAMPLE_FORMAT, (1,))[0] == SIGNED, tags.get(PHOTOMETRIC) == WHITE_IS_ZERO


def in_eight_bits(levels: np.ndarray, bits: int, signed: bool) -> np.ndarray:
    """Grey levels [H, W] of more than 8 bits -> the upper 8, as Pillow has them of colours of 16 bits."""
    if signed and levels.min() < 0:
        raise ValueError(f"its levels are negative down to {levels.min()}, and nothing says which one is black")
    levels = levels.astype(np.int64) & ((1 << bits) - 1)  # 32 bits without a sign come with one
    shift = bits - signed - 8
    if shift > 8 and 0 < levels.max() < 1 << shift:
        raise ValueError(f"its levels end at {levels.max()} of {(1 << (bits - signed)) - 1}: all of it would be black")
    return (levels >> shift).astype(np.uint8)


def is_picture(path: str | Path) -> bool:
    """Whether a file is a still picture; a film of pictures (GIF and its like) is none."""
    try:
        with Image.open(path) as image:  # Pillow also names MPEG files, without reading them
            return image.format != "MPEG" and not (image.format in FILMS and getattr(image, "is_animated", False))
    except Image.DecompressionBombError:
        return True
    except (OSError, ValueError, SyntaxError):
        return False
