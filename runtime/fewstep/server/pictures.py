"""Pictures that come in, never from a path or an address, and those that go out."""

from __future__ import annotations

import asyncio
import base64
import binascii
import io
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, TypeVar, get_args

import numpy as np
import numpy.typing as npt
from PIL import Image, PngImagePlugin

from fewstep.cli.record import save_options
from fewstep.runtime.edit.given import UNREADABLE
from fewstep.server.errors import FieldError

Format = Literal["png", "jpeg", "webp"]
FORMATS: tuple[Format, ...] = get_args(Format)

MAX_PIXELS = 4096 * 4096
"""Of an uploaded picture, once it is unpacked."""

_MOST_SCANS = 32
"""Of a JPEG: each is decoded over the whole picture, and may be a few bytes. Encoders make about
ten."""

_DECODING = ThreadPoolExecutor(2, "pictures")
"""Threads of their own, so that pictures that are slow to decode hold up none that go out."""

Given = TypeVar("Given")

_TAKEN = ("PNG", "JPEG", "WEBP")
_JPEG, _SCAN = b"\xff\xd8", b"\xff\xda"  # how one and its scans begin; no data has the second
_QUALITY = 90
_UNREADABLE = (*UNREADABLE, OverflowError, MemoryError)


async def decoding(read: Callable[[], Given]) -> Given:
    """What a function gives that decodes pictures, of which two run at a time."""
    return await asyncio.get_running_loop().run_in_executor(_DECODING, read)


def picture_of(data: bytes, field: str) -> Image.Image:
    """A picture from the bytes of its file.

    Args:
        data: of a PNG, JPEG or WebP.
        field: that they came in.

    Raises:
        FieldError: they are none, or it has too many pixels or scans.
    """
    try:
        picture = Image.open(io.BytesIO(data), formats=_TAKEN)
        width, height = picture.size
        if width * height > MAX_PIXELS:
            raise FieldError(
                field, f"{field} has {width}x{height} pixels, at most {MAX_PIXELS:,} are taken"
            )
        if data[:2] == _JPEG and data.count(_SCAN) > _MOST_SCANS:
            raise FieldError(
                field, f"{field} is a JPEG of more than {_MOST_SCANS} scans: save it again"
            )
        picture.load()
    except FieldError:
        raise
    except _UNREADABLE as error:
        raise FieldError(field, f"{field} is no PNG, JPEG or WebP that can be read") from error
    return picture


def picture_of_base64(text: object, field: str) -> Image.Image:
    """A picture from base64, which may be a ``data:`` address; others are not opened.

    Raises:
        FieldError: as :func:`picture_of`, or it is no base64.
    """
    if not isinstance(text, str):
        raise FieldError(field, f"{field} must be a picture in base64")
    if text.startswith(("http:", "https:", "file:")):
        raise FieldError(field, f"{field} must be a picture in base64: addresses are not opened")
    if text.startswith("data:"):
        text = text.partition(",")[2]
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise FieldError(field, f"{field} must be a picture in base64") from error
    return picture_of(data, field)


def encoded(
    pixels: npt.NDArray[np.uint8],
    kind: Format = "png",
    *,
    quality: int | None = None,
    text: str | None = None,
    record: dict[str, Any] | None = None,
) -> str:
    """An image's file in base64.

    Args:
        pixels: ``[H, W, 3]``.
        kind: of the file.
        quality: of a JPEG or WebP, 0 … 100.
        text: ``parameters`` of a PNG, where AUTOMATIC1111 has what an image was made of.
        record: the same where fewstep has it (:mod:`fewstep.cli.record`).
    """
    options: dict[str, Any] = {"quality": _QUALITY if quality is None else quality}
    if kind == "png":
        options = {"compress_level": 1}  # a tenth of the time, for a few more bytes
    if text is not None:
        info = PngImagePlugin.PngInfo()
        info.add_text("parameters", text)
        options["pnginfo"] = info
    if record is not None:
        options |= save_options(record, f".{kind}")
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **options)
    return base64.b64encode(file.getvalue()).decode("ascii")
