"""What pictures say of themselves: enough to make them again.

It is one JSON object: in a PNG the text ``fewstep``, in JPEG and WebP the EXIF description, in a
GIF its comment.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image, PngImagePlugin, UnidentifiedImageError

from fewstep import __version__
from fewstep.cli.common import say_note
from fewstep.cli.order import Order
from fewstep.runtime.errors import RequestError

if TYPE_CHECKING:
    from fewstep.runtime.bundle import Bundle
    from fewstep.runtime.devices import Array
    from fewstep.runtime.generator import Generator

Record = dict[str, Any]

KEY = "fewstep"
_DESCRIPTION = 0x010E  # of EXIF
_MOST_EXIF = 60_000  # a JPEG's segment has 65,533 bytes
_DECIDES = ("bundle", "settings", "precision", "backend", "class_ids", "texts", "text", "seeds")


def record_of(
    generator: Generator, settings: Mapping[str, Any], order: Order, wanted: Sequence[int]
) -> Record:
    """What to write into a picture of some images of an order.

    Args:
        generator: that makes them.
        settings: complete ones.
        order: all images.
        wanted: those in the picture.
    """
    conditions = [order.conditions[k] for k in wanted]
    if order.text is None:
        asked: Record = {"class_ids": conditions, "classes": [order.labels[k] for k in wanted]}
    else:
        asked = {"texts": conditions, "text": _digest(order.text)}
    return {
        "fewstep": __version__,
        "bundle": bundle_record(generator.bundle),
        **asked,
        "seeds": [order.seeds[k] for k in wanted],
        "settings": dict(settings),
        "precision": generator.precision,
        "backend": generator.backend,
        "device": generator.device.name,
    }


def bundle_record(bundle: Bundle) -> Record:
    """Which bundle it is: its name, and a hash over those of its fp32 graphs."""
    manifest = bundle.manifest
    files = sorted(file for g in manifest.graphs.values() for file in (g.file, *g.external))
    hashes = "".join(manifest.files[file].sha256 for file in files)
    return {"name": manifest.name, "sha256": hashlib.sha256(hashes.encode()).hexdigest()}


def same(one: Record, other: Record) -> bool:
    """Whether two records are of the same images, up to the device and the version."""
    return all(_plain(one.get(name)) == _plain(other.get(name)) for name in _DECIDES)


def difference(one: Record, other: Record) -> str:
    """What two records do not agree on, for people."""
    found = []
    for name in (name for name in _DECIDES if _plain(one.get(name)) != _plain(other.get(name))):
        mine, theirs = one.get(name), other.get(name)
        if isinstance(mine, Mapping) and isinstance(theirs, Mapping):
            keys = [key for key in mine if _plain(mine[key]) != _plain(theirs.get(key))]
            found += [f"{key} {theirs.get(key)} there, {mine[key]} here" for key in keys]
        else:
            found.append(f"{name} {theirs} there, {mine} here")
    return ", ".join(each if len(each) < 200 else f"{each[:200]}…" for each in found)


def text_of(record: Record) -> str:
    """A record as ASCII."""
    return json.dumps(record, default=list)


def save_options(record: Record | None, suffix: str) -> dict[str, Any]:
    """Arguments of Pillow's ``save`` that put a record into a picture."""
    if record is None:
        return {}
    text = text_of(record)
    if suffix == ".png":
        info = PngImagePlugin.PngInfo()
        info.add_text(KEY, text)
        return {"pnginfo": info}
    if suffix == ".gif":
        return {"comment": text}
    if len(text) > _MOST_EXIF:
        say_note("too many images for a JPEG or WebP to say what they are; a PNG can")
        return {}
    exif = Image.Exif()
    exif[_DESCRIPTION] = text
    return {"exif": exif}


def read_record(path: Path) -> Record:
    """What a picture says of itself.

    Raises:
        RequestError: it is no picture, or says nothing.
    """
    try:
        with Image.open(path) as image:
            text = image.info.get(KEY) or image.getexif().get(_DESCRIPTION)
            text = text or image.info.get("comment") or ""
    except (OSError, UnidentifiedImageError, SyntaxError, ValueError) as error:
        raise RequestError(f"{path} is no picture that can be read: {error}") from error
    try:
        found = json.loads(text)
        seeds, settings = found["seeds"], found["settings"]
        if not (found["bundle"] and isinstance(seeds, list) and isinstance(settings, dict)):
            raise ValueError
    except (TypeError, ValueError, KeyError):
        raise RequestError(
            f"{path} does not say how it was made: it is not of fewstep generate, or was edited"
        ) from None
    return dict(found)


def order_of(record: Record, info: Any, text: Array | None) -> Order:
    """The order that a record is of.

    Args:
        record: of a picture.
        info: what the bundle is conditioned on.
        text: the states that were given, for text bundles.

    Raises:
        RequestError: it is of another kind of bundle, or the texts are others.
    """
    from fewstep.runtime.condition import ClassCondition, condition_of

    seeds = tuple(record["seeds"])
    if isinstance(info, ClassCondition):
        ids = tuple(record.get("class_ids") or ())
        info.array(ids)
        labels = tuple(map(info.label, ids))
        return Order(ids, seeds, labels, _together(ids))
    states = condition_of(info, None, text)
    if _digest(states) != record.get("text"):
        raise RequestError("the texts are not those of the picture: give the same file as --text")
    rows = tuple(record["texts"])
    return Order(rows, seeds, tuple(f"text {row}" for row in rows), _together(rows), states)


def _together(conditions: Sequence[int]) -> int:
    """Images of every condition, where all have as many and stand together; else 1."""
    each = next((k for k, c in enumerate(conditions) if c != conditions[0]), len(conditions))
    rows = [conditions[k : k + each] for k in range(0, len(conditions), max(each, 1))]
    return each if all(len(set(row)) == 1 and len(row) == each for row in rows) else 1


def _digest(states: Array) -> str:
    return hashlib.sha256(states.tobytes()).hexdigest()


def _plain(value: Any) -> Any:
    """As JSON gives it back."""
    return json.loads(json.dumps(value, default=list))
