"""Pictures and masks as they are given: any kind of Pillow image, or an array.

A picture becomes 8-bit RGB, upright, with what of it is transparent. A mask becomes the pixels that
are painted anew. Both are of the picture's own size; :mod:`fewstep.runtime.edit.fit` brings them to
the bundle's.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from fewstep.runtime.errors import RequestError, brief

Bools = npt.NDArray[np.bool_]

Box = tuple[int, int, int, int]
"""Left, top, right, bottom in pixels; right and bottom are not in it."""

UNREADABLE = (  # what Pillow raises of files that are damaged, or far too large
    *(OSError, Image.DecompressionBombError, SyntaxError, struct.error),
    *(ValueError, KeyError, TypeError, EOFError, IndexError),
)

_HALF = 128
_WHITE = (255, 255, 255, 255)
_CHANNELS = {2: "L", 3: "RGB", 4: "RGBA"}
_WHOLE = 2**16 - 1  # the largest number of a 16-bit picture
_NO_RANGE = ("F", "LAB")


@dataclass(frozen=True)
class Picture:
    """``rgb``: upright, in 8 bits. ``transparent [H, W]``: where it is, if it is anywhere."""

    rgb: Image.Image
    transparent: Bools | None

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self.rgb.height, self.rgb.width


def picture_of(image: object, name: str = "image") -> Picture:
    """A picture that was given.

    Args:
        image: Pillow's, of any mode but ``F`` and ``LAB``, or uint8 ``[H, W]``, ``[H, W, 3]`` or
            ``[H, W, 4]``. An EXIF orientation is applied. Numbers of 16 bits become 8. Transparent
            is what is opaque by less than half; what lies under it is drawn on white.
        name: what to call it.

    Raises:
        RequestError: something else, no pixels, or a file that Pillow cannot read.
    """
    plain = _in_8_bits(_upright(image, name), name)
    if not plain.has_transparency_data:
        return Picture(plain.convert("RGB"), None)
    with_alpha = plain.convert("RGBA")
    transparent = np.asarray(with_alpha.getchannel("A")) < _HALF
    white = Image.new("RGBA", with_alpha.size, _WHITE)
    rgb = Image.alpha_composite(white, with_alpha).convert("RGB")
    return Picture(rgb, transparent if transparent.any() else None)


def mask_of(mask: object, size: tuple[int, int]) -> Bools:
    """What of a picture of ``size`` (height, width) is painted anew, ``[H, W]``.

    Args:
        mask: a box (left, top, right, bottom); an array ``[H, W]``, not 0 where it is painted anew;
            or an image as of :func:`picture_of`, painted anew where it is lighter than mid-grey. An
            image with transparency is painted anew where it is transparent, as OpenAI's masks are.
        size: of the picture, upright.

    Raises:
        RequestError: something else, another size than the picture's, a box that leaves it, or
            nothing to paint anew.
    """
    if isinstance(mask, Sequence) and not isinstance(mask, (str, bytes)):
        return _box(mask, size)
    if isinstance(mask, np.ndarray) and mask.ndim == 2 and mask.dtype.kind in "biu":
        found: Bools = mask != 0
        said = "it is 0 everywhere"
    else:
        picture = picture_of(mask, "mask")
        found = picture.transparent if picture.transparent is not None else _light(picture.rgb)
        said = (
            "what is lighter than mid-grey (127 of 255) is painted anew, or, of a mask with "
            "transparency, what is transparent"
        )
    if found.shape != size:
        raise RequestError(
            f"the mask must be as large as the image, {_size(size)}, got {_size(found.shape)}"
        )
    if not found.any():
        raise RequestError(f"the mask covers nothing: {said}")
    return found


def _box(box: Sequence[Any], size: tuple[int, int]) -> Bools:
    height, width = size
    whole = len(box) == 4 and all(isinstance(each, (int, np.integer)) for each in box)
    left, top, right, bottom = box if whole else (0, 0, 0, 0)
    if not (0 <= left < right <= width and 0 <= top < bottom <= height):
        raise RequestError(
            f"a box is left, top, right, bottom inside of the image, {_size(size)}, with right "
            f"and bottom beyond left and top; got {brief(', '.join(map(str, box)))}"
        )
    found = np.zeros(size, np.bool_)
    found[top:bottom, left:right] = True
    return found


def _upright(image: object, name: str) -> Image.Image:
    """Pillow's image, read to the end and turned as its EXIF says."""
    if isinstance(image, np.ndarray):
        return _of_array(image, name)
    if not isinstance(image, Image.Image):
        raise RequestError(
            f"{name} must be Pillow's image or an array of uint8, got {brief(image)}"
        )
    if not (image.width and image.height):
        raise RequestError(f"{name} has no pixels: it is {image.width} × {image.height}")
    try:
        image.load()
    except UNREADABLE as error:
        raise RequestError(f"{name} is damaged: its pixels cannot be read") from error
    try:
        return ImageOps.exif_transpose(image)
    except UNREADABLE:  # damaged EXIF, which viewers pass over too
        return image


def _of_array(array: npt.NDArray[Any], name: str) -> Image.Image:
    channels = array.shape[2:] in ((), (3,), (4,)) and array.ndim in (2, 3)
    if array.dtype != np.uint8 or not channels or not array.size:
        raise RequestError(
            f"{name} must be uint8 [H, W], [H, W, 3] or [H, W, 4], got {array.dtype} "
            f"{list(array.shape)}"
        )
    return Image.fromarray(np.ascontiguousarray(array))


def _in_8_bits(image: Image.Image, name: str) -> Image.Image:
    """The same with 8 bits a channel, in a mode that Pillow makes RGB and RGBA of."""
    if image.mode in _NO_RANGE:
        raise RequestError(
            f"{name} is of Pillow's mode {image.mode}, whose numbers say no colours here: convert "
            "it to RGB"
        )
    if image.mode.startswith("I"):  # I of 32 bits is how some versions open 16-bit files
        numbers = np.asarray(image).astype(np.int64).clip(0, _WHOLE)
        return Image.fromarray(((numbers * 255 + _WHOLE // 2) // _WHOLE).astype(np.uint8))
    return image.convert("LA") if image.mode == "La" else image


def _light(image: Image.Image) -> Bools:
    found: Bools = np.asarray(image.convert("L")) >= _HALF
    return found


def _size(size: tuple[int, ...]) -> str:
    """Width × height, as people say it."""
    return f"{size[1]} × {size[0]}"
