"""What pictures say of themselves: enough to make them again.

It is one JSON object: in a PNG the text ``fewstep``, in JPEG and WebP the EXIF description, in a
GIF its comment.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from PIL import Image, PngImagePlugin
from pydantic import ConfigDict, Field, PositiveInt, ValidationError, model_validator
from typing_extensions import Self

from fewstep import __version__
from fewstep.cli.common import say_note, say_warning
from fewstep.cli.order import Order, changed, labels_of, ordered
from fewstep.runtime.edit.given import UNREADABLE
from fewstep.runtime.errors import RequestError
from fewstep.runtime.records import Precision, Sha256, Strict

if TYPE_CHECKING:
    from fewstep.runtime.bundle import Bundle
    from fewstep.runtime.condition import Condition, TextCondition
    from fewstep.runtime.devices import Array
    from fewstep.runtime.generator import Generator

Record = dict[str, Any]

KEY = "fewstep"
_DESCRIPTION = 0x010E  # of EXIF
_MOST_EXIF = 60_000  # a JPEG's segment has 65,533 bytes
_SET = ("bundle", "settings", "precision", "backend", "text", "negative", "best_of", "edit")
_DECIDES = (*_SET, "class_ids", "texts", "prompts", "seeds")
_MOST_SCALE = 64  # as of the command line

_Row = Annotated[int, Field(ge=0)]
_Seed = Annotated[int, Field(ge=0, lt=2**64)]


class _Bundle(Strict):
    """Which bundle it is; see :func:`bundle_record`."""

    model_config = ConfigDict(strict=True)

    name: str
    sha256: Sha256


class _Edit(Strict):
    """What an edited picture says of the one that it was made of: hashes of the files ``image`` and
    ``mask``, and the options of ``fewstep edit``."""

    model_config = ConfigDict(strict=True)

    image: Sha256
    mask: Sha256 | None = None
    box: tuple[int, int, int, int] | None = None
    outpaint: dict[str, int] | None = None
    strength: float | None = None
    fit: str
    blend: bool


class _Written(Strict):
    """What a record has to be.

    ``texts``: rows of the states with the hash ``text``; or ``prompts``, one a seed. ``scale`` and
    ``columns``: the options as they were given. ``each``: as of
    :class:`fewstep.cli.order.Order`. Older pictures have none of the three. ``best_of``: how many
    candidates there were of each, where there were several; ``seeds`` are those that were kept.
    ``edit``: of edited pictures.
    """

    model_config = ConfigDict(strict=True)

    fewstep: str
    bundle: _Bundle
    class_ids: tuple[_Row, ...] | None = None
    classes: tuple[str, ...] | None = None
    texts: tuple[_Row, ...] | None = None
    text: Sha256 | None = None
    prompts: tuple[str, ...] | None = None
    negative: str | None = None
    seeds: tuple[_Seed, ...] = Field(min_length=1)
    settings: dict[str, Any]
    precision: Precision
    backend: str
    device: str
    scale: Annotated[int, Field(ge=1, le=_MOST_SCALE)] | None = None
    columns: PositiveInt | None = None
    each: PositiveInt = 1
    best_of: PositiveInt | None = None
    edit: _Edit | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        kinds: list[Sequence[object] | None] = [self.texts, self.class_ids, self.prompts]
        given = [each for each in kinds if each is not None]
        if len(given) != 1 or (self.texts is None) != (self.text is None):
            raise ValueError("either class_ids, or texts and text, or prompts")
        rows, count, each = given[0], len(self.seeds), self.each
        if len(rows) != count or (self.classes is not None and len(self.classes) != count):
            raise ValueError("a condition for each seed")
        groups = [rows[k : k + each] for k in range(0, count, each)]
        if any(len(group) != each or len(set(group)) != 1 for group in groups):
            raise ValueError("each images of every condition")
        return self


def record_of(
    generator: Generator,
    settings: Mapping[str, Any],
    order: Order,
    wanted: Sequence[int],
    seeds: Sequence[int] | None = None,
    *,
    scale: int | None = None,
    columns: int | None = None,
    best_of: int = 1,
    edit: Mapping[str, Any] | None = None,
) -> Record:
    """What to write into a picture of some images of an order.

    Args:
        generator: that makes them.
        settings: complete ones.
        order: all images.
        wanted: those in the picture, all or one.
        seeds: theirs; those of the order if ``None``.
        scale: as it was given.
        columns: as they were given.
        best_of: candidates of each.
        edit: what to say of the picture that they were made of.
    """
    conditions = [order.conditions[k] for k in wanted]
    if order.text is None:
        asked: Record = {"class_ids": conditions, "classes": [order.labels[k] for k in wanted]}
    elif isinstance(order.text, tuple):
        asked = {"prompts": [order.text[row] for row in conditions]}
    else:
        asked = {"texts": conditions, "text": _digest(order.text)}
    if order.negative:
        asked["negative"] = order.negative
    return {
        "fewstep": __version__,
        "bundle": bundle_record(generator.bundle),
        **asked,
        "seeds": [order.seeds[k] for k in wanted] if seeds is None else [*seeds],
        "settings": dict(settings),
        "precision": generator.precision,
        "backend": generator.backend,
        "device": generator.device.name,
        "scale": scale,
        "columns": columns,
        "each": order.each if len(wanted) == len(order) else 1,
        **({"best_of": best_of} if best_of > 1 else {}),
        **({} if edit is None else {"edit": dict(edit)}),
    }


def bundle_record(bundle: Bundle) -> Record:
    """Which bundle it is: its name, and a hash over those of its fp32 graphs."""
    manifest = bundle.manifest
    files = sorted(file for g in manifest.graphs.values() for file in (g.file, *g.external))
    hashes = "".join(manifest.files[file].sha256 for file in files)
    return {"name": manifest.name, "sha256": hashlib.sha256(hashes.encode()).hexdigest()}


def same(one: Record, other: Record) -> bool:
    """Whether two records are of the same images, up to the device and the version.

    The size of the pixels counts too, where both say it.
    """
    return not _unlike(one, other)


def _unlike(one: Record, other: Record, names: Sequence[str] = _DECIDES) -> list[str]:
    """What two records do not agree on, of some names."""
    found = [name for name in names if _plain(one.get(name)) != _plain(other.get(name))]
    if "scale" in one and "scale" in other and (one["scale"] or 1) != (other["scale"] or 1):
        found.append("scale")
    return found


def difference(one: Record, other: Record, *, of_sets: bool = False) -> str:
    """What two records do not agree on, for people; empty if nothing.

    ``of_sets``: whatever images they are of, only what all images of a set share counts.
    """
    found = []
    for name in _unlike(one, other, _SET if of_sets else _DECIDES):
        mine, theirs = one.get(name), other.get(name)
        if name == "scale":
            mine, theirs = mine or 1, theirs or 1
        if isinstance(mine, Mapping) and isinstance(theirs, Mapping):
            keys = [key for key in mine if _plain(mine[key]) != _plain(theirs.get(key))]
            if "sha256" in keys:
                keys.remove("sha256")
                found.append("other weights")
            found += [f"{key} {theirs.get(key)} there, {mine[key]} here" for key in keys]
        elif name == "text":
            found.append("other texts")
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
    """What a picture says of itself, as JSON has it.

    Raises:
        RequestError: it is no picture, or says nothing, or what no picture of ours says.
    """
    try:
        with Image.open(path) as image:
            text = image.info.get(KEY) or image.getexif().get(_DESCRIPTION)
            text = text or image.info.get("comment") or ""
    except UNREADABLE as error:
        raise unreadable(path, error) from error
    try:
        found = _Written.model_validate_json(text)
    except ValidationError:
        raise RequestError(
            f"{path} does not say how it was made: it is not of fewstep generate, or was edited"
        ) from None
    return found.model_dump(mode="json", exclude_unset=True)


def unreadable(path: Path, error: BaseException) -> RequestError:
    """The error for a file that Pillow does not read."""
    reason = getattr(error, "strerror", None)  # what else Pillow says is not for users
    reason = "no such file" if isinstance(error, FileNotFoundError) else reason
    if reason is None and "truncated" in str(error).lower():
        reason = "it is truncated, its end is missing"
    if isinstance(error, Image.DecompressionBombError):
        reason = f"it has far more than {Image.MAX_IMAGE_PIXELS:,} pixels"
    return RequestError(f"{path} is no picture that can be read{f': {reason}' if reason else ''}")


def order_again(
    record: Record | None,
    info: Condition,
    classes: Sequence[str] | None,
    texts: tuple[str, ...] | Array | None,
    count: int | None,
    seed: int | None,
    **shared: Any,
) -> Order:
    """The order of a command's words; with a record, that of its picture but for these words.

    ``shared``: ``negative``, ``shard`` and ``check``. Arguments and errors as of
    :func:`fewstep.cli.order.ordered`, and of :func:`order_of`.
    """
    if record is None:
        return ordered(info, classes, texts, count or 1, seed or 0, **shared)
    before = order_of(record, info, texts)
    of_states = before.text is not None and before.prompts is None
    texts = None if of_states else texts  # the same states again
    return changed(before, info, classes, texts, count, seed, **shared)


def order_of(record: Record, info: Condition, texts: tuple[str, ...] | Array | None) -> Order:
    """The order that a record is of.

    Args:
        record: of a picture.
        info: what the bundle is conditioned on.
        texts: what was given, which for pictures of states has to be these; prompts take their
            place (:func:`fewstep.cli.order.changed`).

    Raises:
        RequestError: it is of another kind of bundle, or the states are absent or others.
    """
    from fewstep.runtime.condition import ClassCondition

    seeds, of_classes = tuple(record["seeds"]), isinstance(info, ClassCondition)
    if of_classes != ("class_ids" in record):
        kinds = ("texts", "classes") if of_classes else ("classes", "texts")
        raise RequestError("the picture is of {}, this bundle makes images of {}".format(*kinds))
    if isinstance(info, ClassCondition):
        ids = tuple(record["class_ids"])
        info.array(ids)
        labels = tuple(map(info.label, ids))
        return Order(ids, seeds, labels, record.get("each") or _together(ids))
    if "prompts" in record:
        return _order_of_prompts(record, info)
    rows = tuple(record["texts"])
    together = record.get("each") or _together(rows)
    negative = record.get("negative")
    if isinstance(texts, tuple):
        labels = tuple(f"text {row}" for row in rows)
        return Order(rows, seeds, labels, together, texts, negative)
    if texts is None:
        raise RequestError("give the text states of the picture too: --text-file FILE.npy")
    if _digest(texts) != record["text"] or max(rows) >= len(texts):
        raise RequestError(
            "the texts are not those of the picture: give the same file as --text-file"
        )
    return Order(rows, seeds, labels_of(texts, rows), together, texts, negative)


def compare(generator: Generator, record: Record, like: Path) -> None:
    """Say what may make images differ from those of a picture."""
    from fewstep.runtime.class_names import normal

    ours = bundle_record(generator.bundle)
    if record["bundle"] != ours:
        name = normal(record["bundle"]["name"])
        say_warning(f"{like} is of other weights ({name}): the images will differ")
    for what in ("precision", "backend"):
        here = getattr(generator, what)
        if record.get(what) != here:
            say_note(f"{like} was made in {record.get(what)}, this is {here}: images may differ")


def _order_of_prompts(record: Record, info: TextCondition) -> Order:
    if info.encoder is None:
        raise RequestError("the picture is of prompts, and this bundle has no text encoder")
    prompts = tuple(dict.fromkeys(record["prompts"]))
    rows = tuple(prompts.index(each) for each in record["prompts"])
    return Order(
        rows,
        tuple(record["seeds"]),
        labels_of(prompts, rows),
        record["each"],
        prompts,
        record.get("negative"),
    )


def _together(conditions: Sequence[int]) -> int:
    """A guess at ``each`` for a picture that does not say it: images of every condition, where all
    have as many and stand together; else 1."""
    each = next((k for k, c in enumerate(conditions) if c != conditions[0]), len(conditions))
    rows = [conditions[k : k + each] for k in range(0, len(conditions), max(each, 1))]
    return each if all(len(set(row)) == 1 and len(row) == each for row in rows) else 1


def _digest(states: Array) -> str:
    return hashlib.sha256(states.tobytes()).hexdigest()


def _plain(value: Any) -> Any:
    """As JSON gives it back."""
    return json.loads(json.dumps(value, default=list))
