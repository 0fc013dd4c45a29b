"""Fields of OpenAI's image requests, and of ours beside them.

Taken: ``prompt``, ``model``, ``n``, ``size`` (the model's own, or ``auto``), ``output_format``,
``output_compression``, ``stream``, ``partial_images``. Ours are ``seed``, ``negative_prompt``,
every setting of the model's family by its own name, and by diffusers' ``num_inference_steps`` and
``guidance_scale``. Some have one meaning here (``ONE_MEANING``), some none (``WITHOUT_EFFECT``).
All others are refused by name. In a form values are text.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from fewstep.runtime.edit.given import Box
from fewstep.runtime.errors import choose
from fewstep.runtime.families import family_of
from fewstep.server.errors import FieldError
from fewstep.server.order import MAX_IMAGES, Order
from fewstep.server.pictures import FORMATS, Format
from fewstep.server.worker import Worker

ONE_MEANING: Mapping[str, tuple[str, ...]] = {
    "response_format": ("b64_json",),
    "quality": ("auto", "standard"),
    "background": ("auto", "opaque"),
    "moderation": ("auto", "low"),
}

WITHOUT_EFFECT = ("user", "safety_identifier", "input_fidelity")

EDIT = ("mask", "box", "strength", "outpaint", "fit", "blend")
"""Of edits, beside ``image``: see :mod:`fewstep.server.edits`, which takes them out."""

_OWN = (
    *("prompt", "model", "n", "size", "output_format", "output_compression", "stream"),
    *("partial_images", "seed", "negative_prompt"),
)
_MOST_PARTIAL = 1_000
_SHOWN = 60  # characters of what was given


@dataclass(frozen=True)
class Asked:
    """A request for images: of what, and how they are sent.

    ``box``: where the picture of an edit lies in its images, if it was padded. ``notes``: what to
    know of it.
    """

    order: Order
    stream: bool
    format: Format
    quality: int | None
    box: Box | None = None
    notes: tuple[str, ...] = ()


def asked_of(
    worker: Worker,
    fields: Mapping[str, Any],
    edit: Mapping[str, Any] | None = None,
    box: Box | None = None,
) -> Asked:
    """What the fields of a request ask for.

    Args:
        worker: of the model.
        fields: of JSON or of a form.
        edit: of an edit, what is about its picture.
        box: where that lies in the images, if it was padded.

    Raises:
        FieldError: an unknown field, or one that does not fit.
    """
    given = {name: value for name, value in fields.items() if value is not None}
    kind = family_of(worker.model.info.kind).Settings
    settings = (kind.model_fields.keys() | kind.diffusers.keys()) - set(_OWN)
    known = {*_OWN, *ONE_MEANING, *WITHOUT_EFFECT, *settings}
    for name in given:
        if name not in known:
            others = () if edit is None else ("image", *EDIT)
            raise FieldError(name, choose("parameter", name[:_SHOWN], {*known, *others}))
    for name, meanings in ONE_MEANING.items():
        _choice(given, name, meanings)
    height, width = worker.model.info.image_size
    _choice(given, "size", ("auto", f"{width}x{height}"))
    order = Order(
        prompt=_text(given, "prompt", required=True),
        count=whole(given, "n", 1, MAX_IMAGES) or 1,
        seed=whole(given, "seed", 0, 2**64 - 1),
        negative=_text(given, "negative_prompt"),
        settings={name: value for name, value in given.items() if name in settings},
        edit=edit,
        partial_images=whole(given, "partial_images", 0, _MOST_PARTIAL) or 0,
    )
    output = cast(Format, _choice(given, "output_format", FORMATS) or "png")
    quality = whole(given, "output_compression", 0, 100)
    return Asked(order, truth(given, "stream"), output, quality, box)


def whole(given: Mapping[str, Any], name: str, least: int, most: int) -> int | None:
    """A whole number of the fields, if it is given.

    Raises:
        FieldError: it is none, or out of range.
    """
    value = given.get(name)
    if isinstance(value, str) and value.strip().isdecimal() and len(value) < 25:
        value = int(value)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        said = f"{least} … {most}" if most < 2**53 else f"at least {least} and below 2^64"
        raise FieldError(name, f"{name} must be a whole number, {said}, got {_brief(value)}")
    return value


def truth(given: Mapping[str, Any], name: str) -> bool:
    """True or false, false where it is not given.

    Raises:
        FieldError: it is neither.
    """
    value = given.get(name, False)
    if isinstance(value, str) and value.lower() in ("true", "false"):
        return value.lower() == "true"
    if not isinstance(value, bool):
        raise FieldError(name, f"{name} must be true or false, got {_brief(value)}")
    return value


def _choice(given: Mapping[str, Any], name: str, choices: tuple[str, ...]) -> str | None:
    value = given.get(name)
    if value is not None and value not in choices:
        raise FieldError(name, f"{name} must be {' or '.join(choices)} here, got {_brief(value)}")
    return value


def _text(given: Mapping[str, Any], name: str, *, required: bool = False) -> str:
    value = given.get(name, "")
    if not isinstance(value, str) or (required and not value.strip()):
        what = "a class or a text" if required else "a text"
        raise FieldError(name, f"{name} must be {what}, got {_brief(value)}")
    return value


def _brief(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 1]}…"
