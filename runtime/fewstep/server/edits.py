"""Edits: the fields of a form, and the files with it, as arguments of ``Generator.edit``.

``image``: the picture. ``mask``: transparent where it is painted anew, as OpenAI has it, or white
there if it has no transparency. ``strength``: how much of it is made anew, 0 … 1. ``outpaint``:
``left:64,top:32``, how many pixels it grows. ``fit``: crop, pad, stretch. ``blend``: keeps the
pixels that were not painted.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from typing import Any

from fewstep.server.errors import FieldError, UneditableError
from fewstep.server.models import is_editable
from fewstep.server.openai_fields import truth
from fewstep.server.pictures import painted_anew, picture_of
from fewstep.server.worker import Worker

FITS = ("crop", "pad", "stretch")
_SIDES = ("left", "top", "right", "bottom")
_MOST_GROWN = 1024


def edit_of(
    worker: Worker, fields: MutableMapping[str, Any], files: Mapping[str, bytes]
) -> dict[str, Any]:
    """Arguments of ``Generator.edit`` about the picture; their fields are taken out of ``fields``.

    Raises:
        FieldError: the model cannot edit, or a field or file does not fit.
    """
    require_editable(worker)
    for name in files:
        if name not in ("image", "mask"):
            raise FieldError(name, f"unknown file '{name}'; expected image, or mask")
    if "image" not in files:
        raise FieldError("image", "image is missing: the picture to edit, as a file")
    found: dict[str, Any] = {"image": picture_of(files["image"], "image")}
    if "mask" in files:
        found["mask"] = painted_anew(picture_of(files["mask"], "mask"))
    if (strength := fields.pop("strength", None)) is not None:
        found["strength"] = share("strength", strength)
    if outpaint := fields.pop("outpaint", None):
        found["outpaint"] = _sides(outpaint)
    if (fit := fields.pop("fit", None)) is not None:
        if fit not in FITS:
            raise FieldError("fit", f"fit must be {', '.join(FITS)}, got {fit!r}")
        found["fit"] = fit
    if (blend := fields.pop("blend", None)) is not None:
        found["blend"] = truth({"blend": blend}, "blend")
    return found


def require_editable(worker: Worker) -> None:
    """Raise ``UneditableError`` where the bundle has no encoder."""
    if not is_editable(worker):
        raise UneditableError(
            "model",
            f"{worker.name} cannot edit pictures: its bundle has no encoder; export it with "
            "--encoder",
        )


def share(field: str, value: Any) -> float:
    """A part of everything, 0 … 1.

    Raises:
        FieldError: it is none.
    """
    try:
        found = float(value)
    except (TypeError, ValueError):
        found = -1.0
    if isinstance(value, bool) or not 0 <= found <= 1:
        raise FieldError(field, f"{field} must be a number, 0 … 1, got {value!r}")
    return found


def _sides(text: str) -> dict[str, int]:
    """``left:64,top:32`` as numbers by side."""
    found: dict[str, int] = {}
    for part in text.split(","):
        side, _, pixels = part.strip().partition(":")
        if side not in _SIDES or not pixels.isdecimal() or int(pixels) > _MOST_GROWN:
            raise FieldError(
                "outpaint",
                f"outpaint must be pixels by side, as left:64,top:32, each at most {_MOST_GROWN}, "
                f"got {text[:60]!r}",
            )
        found[side] = int(pixels)
    return found
