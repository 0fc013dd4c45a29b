"""Bulk generation with Ray Data: the images of one order, made by actors on many machines.

Image k depends on the order and on k alone, so it is the one that ``fewstep generate`` makes on one
machine. The order is cut into blocks. A block that was begun by a machine that failed is made by
another, and one that is there is left as it is.
"""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from fewstep.cli.order import Order, digits_of, ordered
from fewstep.integrations.ray import ray_module
from fewstep.integrations.ray.places import Block, check_place, place_of
from fewstep.integrations.ray.stage import Job, Maker, rows_of
from fewstep.runtime import errors
from fewstep.runtime.bundle import Bundle
from fewstep.runtime.condition import ClassCondition, condition_of
from fewstep.runtime.errors import RequestError
from fewstep.runtime.families import Model, family_of, model_of
from fewstep.runtime.given_texts import prompts_of
from fewstep.runtime.request import checked_request
from fewstep.runtime.settings import settings_of
from fewstep.runtime.unfinished import sweep

_BATCHES = 16  # of a block
# Where Ray notes the cluster that was started last.
_CURRENT = Path(os.environ.get("RAY_TMPDIR") or tempfile.gettempdir(), "ray/ray_current_cluster")
_ANSWER_S = 10.0


@dataclass(frozen=True)
class Made:
    """What a run did: images that it made, and that were there; seconds of all actors together."""

    made: int
    kept: int
    seconds: float


def generate(
    bundle: str | Path,
    wanted: Any,
    *,
    out: str | Path,
    count: int = 1,
    seed: int = 0,
    negative: str | None = None,
    format: str = "png",
    resume: bool = True,
    actors: int | tuple[int, int] = 1,
    num_cpus: int = 1,
    num_gpus: float = 0,
    batch: int = 8,
    block: int | None = None,
    backend: str = "auto",
    device: str = "auto",
    precision: str = "auto",
    **settings: Any,
) -> Made:
    """Make the images of an order with Ray's actors, and write each once and whole.

    Uses the cluster that the process is connected to, or that ``RAY_ADDRESS`` names, or the last
    one that was started here, or this machine; ``RAY_ADDRESS=local`` is this machine. Machines that
    join or leave meanwhile are Ray's affair: no image is lost or made twice.

    Args:
        bundle: its folder, which every machine has under this name.
        wanted: classes as ``--class`` of ``fewstep generate`` takes them (names and numbers; or
            ``all``, ``random``, ``balanced``); prompts, one or several; text states ``[B, L, D]``;
            or an :class:`~fewstep.cli.order.Order`, with neither ``count`` nor ``seed``.
        out: the folder for the images, the same one on every machine.
        count: images of each; of all together with ``random`` and ``balanced``.
        seed: of the first image; others count up.
        negative: what guidance leads away from, for texts.
        format: ``png``, files as ``fewstep generate`` writes them; or ``parquet``, a file a block
            (:class:`~fewstep.integrations.ray.places.Parts`).
        resume: make what the folder lacks; ``False`` refuses one that has images.
        actors: how many generators; or the least and the most of them, which Ray scales between.
        num_cpus: cores that Ray reserves for each, and threads that it uses.
        num_gpus: GPUs for each; a part of one lets several share it.
        batch: images decoded together.
        block: images of a unit of work, and of a Parquet file: a multiple of ``batch``; 16 batches
            if ``None``.
        backend: as of ``Generator.open``.
        device: as there; with ``num_gpus`` each actor sees its own alone.
        precision: as there.
        settings: as of ``Generator.generate``.

    Raises:
        RequestError: what the bundle cannot serve, numbers that do not go together, or a cluster
            that does not answer.
        OutputError: the folder is not writable, or has images that were made otherwise.
        BundleError: the bundle is damaged, or absent on a machine.
        MissingDependencyError: Ray is not installed.
        EngineError, DeviceError: as of ``Generator.generate``, from any machine.
    """
    block = _BATCHES * batch if block is None else block
    if batch < 1 or block < 1 or block % batch:
        raise RequestError(f"block must be a multiple of batch, got {block} and {batch}")
    if not isinstance(num_cpus, int) or num_cpus < 1 or num_gpus < 0:
        raise RequestError(
            f"num_cpus must be an integer of at least 1 and num_gpus at least 0, got {num_cpus} "
            f"and {num_gpus}"
        )
    least, most = (actors, actors) if isinstance(actors, int) else actors
    if not 1 <= least <= most:
        raise RequestError(f"actors must be at least 1, or (least, most), got {actors}")
    opened = Bundle.read(bundle)
    model = model_of(opened)
    chosen = settings_of(model.info.defaults, settings)
    order = _order(model, wanted, count, seed, negative)
    for k in (0, len(order) - 1):
        checked_request(model, **order.take([k]), settings=settings)
    place = place_of(format, Path(out).absolute(), digits_of(model.info.condition, order))
    blocks = [*_blocks(order, block)]
    check_place(place, blocks, resume)
    how = {"backend": backend, "device": device, "precision": precision}
    job = Job(
        bundle=str(opened.path.absolute()),
        place=place,
        settings=settings,
        complete=family_of(model.info.kind).complete(model, chosen),
        text=order.text,
        negative=order.negative,
        opened={**how, "max_batch": batch, "threads": num_cpus},
    )
    _connect()
    data = ray_module("ray.data")
    stage = data.from_arrow(rows_of(blocks)).map_batches(
        Maker,
        fn_constructor_args=[job],
        batch_size=1,
        batch_format="pyarrow",
        compute=data.ActorPoolStrategy(min_size=least, max_size=most),
        num_cpus=num_cpus,
        num_gpus=num_gpus,
    )
    rows = []
    try:
        for row in stage.iter_rows():
            if row["error"]:
                raise getattr(errors, row["error"], errors.FewstepError)(row["message"])
            rows.append(row)
    finally:
        sweep(place.folder)  # what killed actors left half-written
    return Made(*(sum(row[name] for row in rows) for name in ("made", "kept", "seconds")))


def _connect() -> None:
    """Connect the process to Ray's cluster, unless it is; Ray asks a dead one for minutes."""
    ray, address = ray_module("ray"), _address()
    if ray.is_initialized():
        return
    host, _, port = address.rpartition(":")
    try:
        if port.isdecimal() and "//" not in host:
            socket.create_connection((host.strip("[]"), int(port)), _ANSWER_S).close()
        ray.init()
    except OSError as error:
        raise RequestError(
            f"no answer of Ray's cluster {address} ({error}): set RAY_ADDRESS to another, or to "
            "local for one of this machine"
        ) from error


def _address() -> str:
    """Of the cluster that Ray takes; empty for a new one."""
    address = os.environ.get("RAY_ADDRESS", "")
    if address not in ("", "auto"):
        return address
    return _CURRENT.read_text().strip() if _CURRENT.is_file() else address


def _order(model: Model, wanted: Any, count: int, seed: int, negative: str | None) -> Order:
    """The order that a call asks for."""
    info = model.info.condition
    if isinstance(wanted, Order):
        if count != 1 or seed or negative is not None:
            raise RequestError("an order says count, seed and negative itself: leave them out")
        return wanted
    if isinstance(info, ClassCondition):
        if negative is not None:
            raise RequestError("this bundle is class-conditional: leave negative out")
        return ordered(info, [*map(str, np.atleast_1d(wanted).tolist())], None, count, seed)
    states, prompts = condition_of(info, None, wanted, model.tokenizer), prompts_of(wanted)
    texts = states if prompts is None else tuple(prompts)
    return ordered(info, None, texts, count, seed, negative=negative)


def _blocks(order: Order, size: int) -> Iterator[Block]:
    for first in range(0, len(order), size):
        cut = slice(first, first + size)
        parts = {name: getattr(order, name)[cut] for name in ("conditions", "seeds", "labels")}
        yield Block(first, replace(order, **parts, each=1))
