"""Image files to pixels: what training's sources and serving share, so that both see the same."""

import io
import struct
from collections.abc import Sequence
from typing import Any

import numpy as np

from lepton_ray.core.extras import require
from lepton_ray.core.text import cut
from lepton_ray.spec.data import ImageColumn

MAX_IMAGE_BYTES = 64 << 20
_UNREADABLE = (OSError, SyntaxError, EOFError, TypeError, AttributeError, LookupError, ArithmeticError, struct.error)
"""What Pillow lets through from its readers, by kind of file and damage; also ``ValueError``."""
SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff")
FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF")
"""Of files with these endings, whatever their bytes are: of others Pillow would start programs, such as Ghostscript."""
# a progressive JPEG has about ten scans, each over all pixels
_JPEG_BEGIN, _SCAN, _MOST_SCANS = b"\xff\xd8", b"\xff\xda", 100


def read_pixels(content: bytes, column: ImageColumn) -> bytes:
    """Return the pixels of a cell: an image file, or the pixels themselves where it has just their number of bytes.

    Raises:
        ValueError: If it is neither.
    """
    if len(content) == num_pixel_bytes(column):
        return content
    return decode_image(content, column)


def num_pixel_bytes(column: ImageColumn) -> int:
    """Return the bytes of an image's pixels."""
    return column.height * column.width * column.channels


def decode_image(content: bytes, column: ImageColumn, formats: Sequence[str] = FORMATS) -> bytes:
    """Return the pixels of an image file, rows x columns x channels of uint8.

    Args:
        content: The file.
        column: What it must be.
        formats: Pillow's names of those that are read.

    Raises:
        ValueError: If it is no image, or of another size than the column's; an image of another size is never decoded.
    """
    image_module = require("PIL.Image", "reading images")
    if len(content) > MAX_IMAGE_BYTES:
        raise ValueError(f"must be at most {MAX_IMAGE_BYTES} bytes, got {len(content)}")
    if content.startswith(_JPEG_BEGIN) and (scans := content.count(_SCAN)) > _MOST_SCANS:
        raise ValueError(f"must be a JPEG of at most {_MOST_SCANS} scans, got {scans}")
    try:
        with image_module.open(io.BytesIO(content), formats=formats) as image:
            if image.size != (column.width, column.height):
                raise ValueError(f"must be {column.width}x{column.height} pixels, got {image.size[0]}x{image.size[1]}")
            return bytes(_to_8_bits(image).convert("L" if column.channels == 1 else "RGB").tobytes())
    except (*_UNREADABLE, image_module.DecompressionBombError) as error:
        raise ValueError(f"must be an image file that can be read: {_why(error, content, formats)}") from error


def _why(error: Exception, content: bytes, formats: Sequence[str]) -> str:
    """Return what is wrong with a file; what Pillow says where it says it for people."""
    if type(error).__name__ == "UnidentifiedImageError":
        return f"{len(content)} bytes that begin as no {' or '.join(formats)} does"
    return cut(str(error)) if isinstance(error, OSError | SyntaxError) else type(error).__name__


def _to_8_bits(image: Any) -> Any:
    """Return the image with 8 bits a channel; Pillow would cut brighter values off."""
    if image.mode.startswith("I;16"):
        return require("PIL.Image", "reading images").fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError(f"must have 8 or 16 bits a channel, got Pillow's mode {image.mode!r}")
    image.info.pop("transparency", None)  # a background to blend with is not known
    return image
