"""Turns the bytes of a picture file into an upright 8-bit RGB picture, or says what is wrong with them."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image, ImageOps

from registry.errors import BadItem

MAX_PIXELS = 89_478_485
"""Pictures with more are refused: a small file can unpack into gigabytes."""

_ALPHA = {"RGBA", "RGBa", "LA", "La", "PA"}


def decode(key: str, data: bytes) -> Image.Image:
    """The picture as RGB: turned as its EXIF data says, transparency on white, 16 bits scaled to 8.

    Of an animation, the first frame. Raises `BadItem` with the key if the bytes are empty, corrupt,
    truncated, larger than `MAX_PIXELS`, or of a kind whose range of values is not known (floating point,
    32-bit integers).
    """
    if not data:
        raise BadItem(key, "its picture is empty")
    try:
        with Image.open(io.BytesIO(data)) as opened:
            if opened.width * opened.height > MAX_PIXELS:
                raise BadItem(key, f"its picture has {opened.width} x {opened.height} pixels, too many to open")
            return _rgb(key, ImageOps.exif_transpose(opened))
    except BadItem:
        raise
    except Image.DecompressionBombError as error:
        raise BadItem(key, "its picture has too many pixels to open") from error
    except Image.UnidentifiedImageError as error:
        raise BadItem(key, "it is not a picture of a known format") from error
    # Decoders of corrupt bytes raise nearly anything: SyntaxError, struct.error, zlib.error, IndexError ...
    except Exception as error:
        raise BadItem(key, f"its picture cannot be decoded ({error})") from error


def _rgb(key: str, picture: Image.Image) -> Image.Image:
    if picture.mode == "F":
        raise BadItem(key, "its picture holds floating-point values of no known range")
    if picture.mode.startswith("I"):
        values = np.asarray(picture)
        if values.min() < 0 or values.max() > 65535:
            raise BadItem(key, "its picture holds 32-bit values of no known range")
        # Pillow would clip these modes at 255 and leave a white picture.
        return Image.fromarray((values // 257).astype(np.uint8)).convert("RGB")
    if picture.mode in _ALPHA or "transparency" in picture.info:
        rgba = picture.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return picture.convert("RGB")
