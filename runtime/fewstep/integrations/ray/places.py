"""Where a bulk run puts its images: a PNG for each, or Parquet, a part for each block of images.

Names are known before, so that a run can tell what is there; everything is written under a
temporary name and renamed, so what is there is whole.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from fewstep.cli.order import Order
from fewstep.cli.pictures import file_name, image_of
from fewstep.cli.produce import is_there
from fewstep.cli.record import KEY, Record, difference, same, text_of
from fewstep.runtime.errors import OutputError, RequestError, choose
from fewstep.runtime.files import replacing, require_writable
from fewstep.runtime.manifest import MANIFEST_NAME

Records = Callable[[Sequence[int]], Record]
"""What a picture says of some images of a block, by their numbers in it."""

_PART = re.compile(r"images-[0-9]+-[0-9]+\.parquet")


@dataclass(frozen=True)
class Block:
    """Images that are made one after another by one actor, and the number of the first of them in
    the whole order."""

    first: int
    order: Order


class Place(Protocol):
    """Where images go. ``folder`` is the same one on every machine."""

    @property
    def folder(self) -> Path:
        """That has all of them."""

    def names(self, block: Block) -> list[str]:
        """The files of a block."""

    def is_ours(self, name: str) -> bool:
        """Whether a file of this name is one of some bulk run."""

    def absent(self, block: Block, record: Records) -> list[int]:
        """The images of a block that are not there.

        Raises:
            OutputError: what is there was made otherwise.
        """

    def write(self, block: Block, record: Records, images: Iterable[tuple[int, bytes]]) -> None:
        """Write images of a block, those that are absent: their numbers in it, and PNGs.

        Raises:
            OutputError: the folder is not writable.
        """


@dataclass(frozen=True)
class Files:
    """A PNG for each image, named as those of ``fewstep generate``. ``digits``: of the largest
    condition."""

    folder: Path
    digits: int

    def names(self, block: Block) -> list[str]:
        """As :meth:`Place.names`."""
        return [file_name(block.order, k, self.digits) for k in range(len(block.order))]

    def is_ours(self, name: str) -> bool:
        """As :meth:`Place.is_ours`."""
        return image_of(name) is not None

    def absent(self, block: Block, record: Records) -> list[int]:
        """As :meth:`Place.absent`."""
        paths = [self.folder / name for name in self.names(block)]
        return [k for k, path in enumerate(paths) if not is_there(path, record([k]))]

    def write(self, block: Block, record: Records, images: Iterable[tuple[int, bytes]]) -> None:
        """As :meth:`Place.write`, each as soon as it comes."""
        names = self.names(block)
        for k, png in images:
            with replacing(self.folder / names[k]) as temporary:
                temporary.write_bytes(png)


@dataclass(frozen=True)
class Parts:
    """Parquet, a file for each block: ``file_name``, ``image`` (a PNG with its record), ``seed``,
    ``condition`` (a class id, or a row of the texts), ``label``, ``record`` (JSON).

    The file's metadata has the record of all of its images under ``fewstep``.
    """

    folder: Path
    digits: int

    def names(self, block: Block) -> list[str]:
        """As :meth:`Place.names`: one."""
        last = block.first + len(block.order) - 1
        return [f"images-{block.first:09}-{last:09}.parquet"]

    def is_ours(self, name: str) -> bool:
        """As :meth:`Place.is_ours`."""
        return _PART.fullmatch(name) is not None

    def absent(self, block: Block, record: Records) -> list[int]:
        """As :meth:`Place.absent`: all of a block or none."""
        import pyarrow.parquet as parquet

        rows, path = range(len(block.order)), self.folder / self.names(block)[0]
        if not path.is_file():
            return [*rows]
        try:
            theirs = dict(json.loads(parquet.read_schema(path).metadata[KEY.encode()]))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise OutputError(
                f"{path} does not say how it was made: remove it, or choose another folder"
            ) from error
        ours = record(rows)
        if not same(ours, theirs):
            raise OutputError(
                f"{path} was made otherwise ({difference(ours, theirs)}): give the same settings, "
                "or choose another folder"
            )
        return []

    def write(self, block: Block, record: Records, images: Iterable[tuple[int, bytes]]) -> None:
        """As :meth:`Place.write`."""
        import pyarrow as arrow
        import pyarrow.parquet as parquet

        order, every = block.order, sorted(images)
        rows = [k for k, _ in every]
        columns = {
            "file_name": arrow.array([file_name(order, k, self.digits) for k in rows]),
            "image": arrow.array([png for _, png in every], arrow.binary()),
            "seed": arrow.array([order.seeds[k] for k in rows], arrow.uint64()),
            "condition": arrow.array([order.conditions[k] for k in rows], arrow.int64()),
            "label": arrow.array([order.labels[k] for k in rows]),
            "record": arrow.array([text_of(record([k])) for k in rows]),
        }
        table = arrow.table(columns).replace_schema_metadata({KEY: text_of(record(rows))})
        packed = dict.fromkeys(columns, "zstd") | {"image": "none"}  # PNGs are packed already
        with replacing(self.folder / self.names(block)[0]) as temporary:
            parquet.write_table(table, temporary, compression=packed)


PLACES: dict[str, type[Files] | type[Parts]] = {"png": Files, "parquet": Parts}
"""By the name of the format."""


def place_of(kind: str, folder: Path, digits: int) -> Place:
    """The place for images of a format.

    Raises:
        RequestError: no such format.
    """
    if kind not in PLACES:
        raise RequestError(choose("format", kind, PLACES))
    return PLACES[kind](folder, digits)


def check_place(place: Place, blocks: Sequence[Block], resume: bool) -> None:
    """Refuse a place that cannot have these images, before any work.

    Raises:
        OutputError: it is not writable, is a bundle, or has files of another run.
    """
    folder = place.folder
    if (folder / MANIFEST_NAME).is_file():
        raise OutputError(f"{folder} is a bundle: name another folder")
    require_writable(folder / place.names(blocks[0])[0])
    there = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    there = {
        name for name in there if any(kind(folder, 1).is_ours(name) for kind in PLACES.values())
    }
    if there and not resume:
        raise OutputError(f"{folder} has images already: pass resume=True, or name another folder")
    foreign = there.difference(name for block in blocks for name in place.names(block))
    if foreign:
        raise OutputError(
            f"{folder} has files of another run ({min(foreign)}): give the order, the format and "
            "the block of that one, or name another folder"
        )
