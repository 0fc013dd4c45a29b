"""Edits: the fields of a form, and the files with it, as arguments of ``Generator.edit``.

``image``: the picture. ``mask``: transparent where it is painted anew, as OpenAI has it, or white
there if it has no transparency. ``box``: ``left,top,right,bottom`` in pixels, in the place of a
mask. ``strength``: how much of it is made anew, above 0 and at most 1. ``outpaint``:
``left:64,top:32``, how many pixels it grows. ``fit``: crop, pad, stretch, none. ``blend``: keeps
the pixels that were not painted.

Pictures are checked and fitted before they wait for their turn, so that what cannot be edited is
told at once, and no more is held than what is painted.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from fewstep.runtime.edit.edit import edit_of as planned_edit
from fewstep.runtime.edit.fit import FITS
from fewstep.runtime.edit.given import Box
from fewstep.runtime.edit.windows import SIDES
from fewstep.runtime.errors import RequestError, brief
from fewstep.server.errors import FieldError, UneditableError, blamed
from fewstep.server.models import is_editable
from fewstep.server.openai_fields import EDIT, truth, whole
from fewstep.server.order import MAX_IMAGES, MAX_WINDOWS
from fewstep.server.pictures import picture_of
from fewstep.server.worker import Worker

MOST_PAINTED = 2**24
"""Pixels of all images of an edit together."""

_MOST_GROWN = 1024
_DIGITS = 9  # of numbers that are read
_BOX = re.compile(r"\s*,\s*".join([r"(\d{1,9})"] * 4), re.ASCII)


@dataclass(frozen=True)
class Planned:
    """An edit that was checked: ``about``, arguments of ``Generator.edit`` about the picture, which
    is fitted already. ``box``: where it lies in the result, if it was padded. ``notes``: what to
    know of it."""

    about: Mapping[str, Any]
    box: Box | None
    notes: tuple[str, ...]


def edit_of(
    worker: Worker, fields: MutableMapping[str, Any], files: Mapping[str, bytes]
) -> Planned:
    """An edit by a form; fields about its picture are taken out of ``fields``.

    Raises:
        FieldError: the model cannot edit, or a field or file does not fit.
        RequestError: fields that do not go together.
    """
    require_editable(worker)
    for name in files:
        if name not in ("image", "mask"):
            raise FieldError(name, f"unknown file '{name}'; expected image, or mask")
    for name in ("image", "mask"):
        if name in fields:
            raise FieldError(name, f"{name} must be a file of the form")
    if "image" not in files:
        raise FieldError("image", "image is missing: the picture to edit, as a file")
    found: dict[str, Any] = {"image": picture_of(files["image"], "image")}
    if "mask" in files:
        found["mask"] = picture_of(files["mask"], "mask")
    if (box := fields.pop("box", None)) is not None:
        if "mask" in found:
            raise FieldError("box", "a box is a mask: give one of them")
        found["mask"] = _box(box)
    if (strength := fields.pop("strength", None)) is not None:
        found["strength"] = share("strength", strength)
    if outpaint := fields.pop("outpaint", None):
        found["outpaint"] = _sides(outpaint)
    if (fit := fields.pop("fit", None)) is not None:
        if fit not in FITS:
            raise FieldError("fit", f"fit must be {', '.join(FITS)}, got {brief(fit)}")
        found["fit"] = fit
    if (blend := fields.pop("blend", None)) is not None:
        found["blend"] = truth({"blend": blend}, "blend")
    return planned(worker, found, whole(fields, "n", 1, MAX_IMAGES) or 1)


def planned(worker: Worker, given: Mapping[str, Any], count: int) -> Planned:
    """An edit by arguments of ``Generator.edit`` about the picture, checked and fitted.

    Raises:
        FieldError: ``count`` such images have too many pixels.
        RequestError: arguments that do not fit, or do not go together.
    """
    try:
        edit = planned_edit(worker.model, **given)
    except RequestError as error:
        raise blamed(error, ("image", *EDIT)) from error
    height, width = edit.size
    if count * height * width > MOST_PAINTED:
        raise FieldError(
            "n",
            f"{count} × {width} × {height} pixels are too many, at most {MOST_PAINTED:,} are "
            "painted at once",
        )
    rows, columns = worker.model.info.image_size
    if edit.anew is not None and edit.anew.sum() > MAX_WINDOWS // count * rows * columns:
        raise FieldError(
            "n",
            f"what is painted anew would take more than {MAX_WINDOWS} windows of {columns}x{rows} "
            "in all: paint less, or ask for fewer images",
        )
    left, top, right, bottom = (edit.growth or dict.fromkeys(SIDES, 0)).values()
    inside = slice(top, height - bottom), slice(left, width - right)
    about: dict[str, Any] = {"image": np.ascontiguousarray(edit.pixels[inside]), "fit": "none"}
    if edit.anew is not None and edit.anew[inside].any():  # what it grows by, it knows of itself
        about["mask"] = np.ascontiguousarray(edit.anew[inside])
    if edit.growth is not None:
        about["outpaint"] = edit.growth
    if edit.strength is not None:
        about["strength"] = edit.strength
    return Planned({**about, "blend": edit.blend}, edit.box, edit.notes)


def require_editable(worker: Worker) -> None:
    """Raise ``UneditableError`` where the bundle has no encoder."""
    if not is_editable(worker):
        raise UneditableError(
            "model",
            f"{worker.name} cannot edit pictures: its bundle has no encoder; export it with "
            "--encoder",
        )


def share(field: str, value: Any) -> float:
    """A part of everything, above 0 and at most 1.

    Raises:
        FieldError: it is none.
    """
    try:
        found = float(value)
    except (TypeError, ValueError, OverflowError):
        found = -1.0
    if isinstance(value, bool) or not 0 < found <= 1:
        raise FieldError(
            field, f"{field} must be a number above 0 and at most 1, got {brief(value)}"
        )
    return found


def _box(text: str) -> Box:
    """``left,top,right,bottom`` as numbers."""
    found = _BOX.fullmatch(text.strip())
    if found is None:
        raise FieldError("box", f"box must be left,top,right,bottom in pixels, got {brief(text)}")
    left, top, right, bottom = map(int, found.groups())
    return left, top, right, bottom


def _sides(text: str) -> dict[str, int]:
    """``left:64,top:32`` as numbers by side."""
    found: dict[str, int] = {}
    for part in text.split(","):
        side, _, pixels = part.strip().partition(":")
        number = int(pixels) if pixels.isdecimal() and len(pixels) < _DIGITS else _MOST_GROWN + 1
        if side not in SIDES or number > _MOST_GROWN:
            raise FieldError(
                "outpaint",
                f"outpaint must be pixels by side, as left:64,top:32, each at most {_MOST_GROWN}, "
                f"got {text[:60]!r}",
            )
        found[side] = number
    return found
