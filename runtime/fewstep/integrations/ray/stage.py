"""The stage of Ray Data that makes and writes images: a generator an actor.

While a batch is decoded, the images of the one before become PNGs in threads and are written.
"""

from __future__ import annotations

import contextlib
import functools
import io
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from PIL import Image

from fewstep.cli.order import Order, labels_of
from fewstep.cli.record import Record, record_of, save_options
from fewstep.integrations.ray.places import Block, Place
from fewstep.runtime.condition import ClassCondition
from fewstep.runtime.devices import Array
from fewstep.runtime.errors import FewstepError
from fewstep.runtime.generator import Generator
from fewstep.runtime.request import batches

if TYPE_CHECKING:
    import pyarrow as arrow

_PNG = ".png"


@dataclass(frozen=True)
class Job:
    """What all blocks of a run share.

    ``settings``: those that are given; ``complete``: all of them, for what pictures say.
    ``text``, ``negative``: of the order. ``opened``: arguments of ``Generator.open``, ``threads``
    among them, which are also those that make PNGs.
    """

    bundle: str
    place: Place
    settings: Mapping[str, Any]
    complete: Mapping[str, Any]
    text: tuple[str, ...] | Array | None
    negative: str | None
    opened: Mapping[str, Any]


class Maker:
    """For ``map_batches(Maker, fn_constructor_args=[job], batch_size=1, batch_format="pyarrow")``.

    Takes rows of :func:`rows_of`, a block each, and gives one for each: ``first``, ``made`` and
    ``kept`` images, ``seconds``; and where it failed ``error``, the name of one of
    ``fewstep.runtime.errors``, with its ``message``. Made again, a block leaves what is there as it
    is; so Ray may run it as often as machines fail.
    """

    def __init__(self, job: Job) -> None:
        self._job = job
        self._encoders = ThreadPoolExecutor(job.opened["threads"])
        self._decoder = ThreadPoolExecutor(1)  # a GPU's generator belongs to its thread

    @functools.cached_property
    def _generator(self) -> Generator:
        """Opened with the first block, whose row says what is wrong."""
        return self._decoder.submit(Generator.open, self._job.bundle, **self._job.opened).result()

    def __call__(self, table: arrow.Table) -> arrow.Table:
        """Make what is absent of every block."""
        import pyarrow as arrow

        return arrow.Table.from_pylist([*map(self._made, table.to_pylist())])

    def __del__(self) -> None:
        if "_generator" in self.__dict__:
            with contextlib.suppress(Exception):  # the process ends, and a GPU's memory with it
                self._decoder.submit(self._generator.close).result()

    def _made(self, row: Mapping[str, Any]) -> dict[str, Any]:
        start, made, error, message = time.perf_counter(), 0, "", ""
        try:
            made = self._make(self._block(row))
        except FewstepError as failed:  # as Ray sends exceptions, they lose what they are
            error, message = type(failed).__name__, str(failed)
        kept, seconds = len(row["seeds"]) - made, time.perf_counter() - start
        found = {"first": row["first"], "made": made, "kept": kept, "seconds": seconds}
        return {**found, "error": error, "message": message}

    def _make(self, block: Block) -> int:
        """Make what is absent of a block; how many images that were."""

        def record(wanted: Sequence[int]) -> Record:
            return record_of(self._generator, self._job.complete, block.order, wanted)

        absent = self._job.place.absent(block, record)
        if absent:
            self._job.place.write(block, record, self._images(block.order, absent, record))
        return len(absent)

    def _block(self, row: Mapping[str, Any]) -> Block:
        conditions, text = tuple(row["conditions"]), self._job.text
        info = self._generator.model.info.condition
        if text is None:
            assert isinstance(info, ClassCondition)
            labels = tuple(map(info.label, conditions))
        else:
            labels = labels_of(text, conditions)
        seeds = tuple(row["seeds"])
        order = Order(conditions, seeds, labels, 1, text, self._job.negative)
        return Block(row["first"], order)

    def _images(
        self, order: Order, absent: Sequence[int], record: Callable[[Sequence[int]], Record]
    ) -> Iterator[tuple[int, bytes]]:
        """Numbers and PNGs of the absent images.

        Whole batches are decoded, also where some of their images are there: at another batch size
        a decoder may round a last bit otherwise.
        """
        missing = set(absent)
        parts = [range(len(order))[rows] for rows in batches(len(order), self._generator.max_batch)]
        ahead: deque[tuple[range, Future[Array]]] = deque()
        for part in (each for each in parts if not missing.isdisjoint(each)):
            ahead.append((part, self._decoder.submit(self._decoded, order, part)))
            if len(ahead) > 1:
                yield from self._encoded(*ahead.popleft(), missing, record)
        while ahead:
            yield from self._encoded(*ahead.popleft(), missing, record)

    def _decoded(self, order: Order, part: range) -> Array:
        asked = {**order.take(part), **self._job.settings}
        return self._generator.generate(**asked).images

    def _encoded(
        self,
        part: range,
        pixels: Future[Array],
        missing: set[int],
        record: Callable[[Sequence[int]], Record],
    ) -> Iterator[tuple[int, bytes]]:
        wanted = [(k, each) for k, each in zip(part, pixels.result(), strict=True) if k in missing]
        numbers = [k for k, _ in wanted]
        pngs = self._encoders.map(png_of, [each for _, each in wanted], map(record, zip(numbers)))
        yield from zip(numbers, pngs, strict=True)


def png_of(pixels: Array, record: Record) -> bytes:
    """``pixels [H, W, 3]`` as a PNG that says how it was made."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png", **save_options(record, _PNG))
    return file.getvalue()


def rows_of(blocks: Sequence[Block]) -> list[arrow.Table]:
    """Blocks as tables of one row: ``first``, ``conditions``, ``seeds``."""
    import pyarrow as arrow

    kinds = arrow.schema(
        {
            "first": arrow.int64(),
            "conditions": arrow.list_(arrow.int64()),
            "seeds": arrow.list_(arrow.uint64()),
        }
    )
    return [
        arrow.Table.from_pylist(
            [{"first": b.first, "conditions": b.order.conditions, "seeds": b.order.seeds}], kinds
        )
        for b in blocks
    ]
