"""What many GPUs make, cost and need, by arithmetic from a few numbers (docs/scaling.md).

    python -m tests.benchmarks.scaling --image-ms 9.26 --batch 8 --gpus 1 100 10000 --price 2.5
    python -m tests.benchmarks.scaling --tasks 2000         # what Ray's driver schedules a second

Measured here, in CPU time, which other programs disturb least: making a PNG of an image, and an
answer of OpenAI's API out of it. Given by options: milliseconds of an image on a GPU, with full
batches, and what a GPU costs an hour.
"""

from __future__ import annotations

import argparse
import base64
import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fewstep.integrations.ray import ray_module
from fewstep.integrations.ray.stage import png_of
from fewstep.runtime.devices import Array

_RECORD = {
    "fewstep": "0.1.0",
    "settings": {"steps": 8},
    "note": "about as long as records are" * 20,
}
_RUNS, _IMAGES = 5, 16


@dataclass(frozen=True)
class Work:
    """Of one image: milliseconds of CPU time for its PNG, and for an API's answer; their bytes."""

    png_ms: float
    png_bytes: float
    answer_ms: float
    answer_bytes: float


@dataclass(frozen=True)
class Plan:
    """What some GPUs make and need. Of each second: ``images``, ``png_cores`` that are busy making
    PNGs, ``stored`` and ``sent`` bytes. ``cost``: of a million images. ``waits``: seconds that a
    request waits on average, by utilisation."""

    gpus: int
    images: float
    png_cores: float
    stored: float
    sent: float
    cost: float
    waits: dict[float, float]


def planned(gpus: int, image_ms: float, batch: int, price: float, work: Work) -> Plan:
    """The arithmetic for ``gpus`` that are never idle.

    Args:
        gpus: how many.
        image_ms: of one, for an image in a full batch.
        batch: images of it.
        price: of a GPU for an hour.
        work: on the CPU.
    """
    images = gpus * 1e3 / image_ms
    served_s = image_ms * batch / 1e3
    return Plan(
        gpus,
        images,
        png_cores=images * work.png_ms / 1e3,
        stored=images * work.png_bytes,
        sent=images * work.answer_bytes,
        cost=gpus * price / 3600 / images * 1e6,
        waits={load: wait_s(gpus, load, served_s) for load in (0.5, 0.8, 0.95)},
    )


def wait_s(servers: int, load: float, served_s: float) -> float:
    """Mean wait in one queue for all servers, whose every service takes ``served_s``.

    Requests come at random times. M/M/c by Erlang's formula C, halved for services that all take as
    long (exact for one server, close for more).

    Args:
        servers: that take from the queue.
        load: utilisation of each, 0 … 1.
        served_s: seconds of a service: a full batch.
    """
    offered, blocked = servers * load, 1.0
    for count in range(1, servers + 1):  # Erlang's formula B, by its recursion
        blocked = offered * blocked / (count + offered * blocked)
    waits = blocked / (1 - load * (1 - blocked))
    return waits * served_s / (servers * (1 - load)) / 2


def measured(images: Sequence[Array]) -> Work:
    """Make PNGs of ``images [H, W, 3]``, and answers; the least time of some rounds."""
    pngs = [png_of(each, _RECORD) for each in images]
    answers = [_answer(each) for each in pngs]
    return Work(
        _least_ms(lambda: [png_of(each, _RECORD) for each in images]) / len(images),
        float(np.mean([*map(len, pngs)])),
        _least_ms(lambda: [*map(_answer, pngs)]) / len(images),
        float(np.mean([*map(len, answers)])),
    )


def _answer(png: bytes) -> bytes:
    return json.dumps({"data": [{"b64_json": base64.b64encode(png).decode()}]}).encode()


def _least_ms(work: Callable[[], object]) -> float:
    times = []
    for _ in range(_RUNS):
        start = time.process_time()
        work()
        times.append(time.process_time() - start)
    return min(times) * 1e3


def examples(size: int) -> dict[str, list[Array]]:
    """Images that a PNG makes small, and that it cannot: smooth ones with a photograph's noise (a
    standard deviation of 4 of 255), and noise alone."""
    random, place = np.random.default_rng(0), np.linspace(0, 2 * math.pi, size)
    smooth, noise = [], []
    for _ in range(_IMAGES):
        waves = random.uniform(0.5, 3, (3, 2))
        planes = [np.sin(a * place)[:, None] + np.cos(b * place)[None] for a, b in waves]
        plain = 128 + 50 * np.stack(planes, -1) + random.normal(0, 4, (size, size, 3))
        smooth.append(plain.clip(0, 255).astype(np.uint8))
        noise.append(random.integers(0, 256, (size, size, 3), np.uint8))
    return {"smooth with noise of 4": smooth, "noise": noise}


def scheduled(tasks: int) -> float:
    """Empty tasks of Ray Data for one actor, a second, on this machine."""

    class Nothing:
        def __call__(self, rows: Any) -> Any:
            return rows

    ray, data, arrow = (ray_module(name) for name in ("ray", "ray.data", "pyarrow"))
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        rows = data.from_arrow([arrow.table({"task": [each]}) for each in range(tasks)])
        pool = data.ActorPoolStrategy(size=1)
        stage = rows.map_batches(Nothing, batch_format="pyarrow", compute=pool, num_cpus=1)
        start = time.perf_counter()
        assert sum(1 for _ in stage.iter_rows()) == tasks
        return tasks / (time.perf_counter() - start)
    finally:
        ray.shutdown()


def _read(folder: Path) -> list[Array]:
    found = [np.asarray(Image.open(path).convert("RGB")) for path in sorted(folder.glob("*.png"))]
    if not found:
        raise SystemExit(f"{folder} has no PNGs")
    return found[:_IMAGES]


def _print(plan: Plan, block: int) -> None:
    print(f"{plan.gpus:,} GPUs: {plan.images:,.0f} images/s, {plan.images * 86400:,.3g} a day")
    print(f"  a million images cost {plan.cost:.2f}")
    print(f"  PNGs keep {plan.png_cores:,.1f} cores busy ({plan.png_cores / plan.gpus:.2f} a GPU)")
    print(f"  storage {plan.stored / 1e6:,.1f} MB/s, {plan.stored * 86400 / 1e12:,.2f} TB a day")
    print(f"  network {plan.sent * 8 / 1e9:,.3f} Gbit/s as answers")
    blocks = plan.images / block
    print(f"  {plan.images:,.0f} files/s, or {blocks:,.1f} parts and tasks/s of {block:,} images")
    waits = ", ".join(f"{at:.0%}: {each * 1e3:.2g} ms" for at, each in plan.waits.items())
    print(f"  mean wait in one queue at a utilisation of {waits}")


def main() -> None:
    """Measure, and print a plan for every number of GPUs."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--image-ms", type=float, default=9.26, help="of a GPU, in full batches")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--gpus", type=int, nargs="+", default=[1, 100, 10_000])
    parser.add_argument("--price", type=float, default=2.5, help="of a GPU for an hour")
    parser.add_argument("--size", type=int, default=256, help="of the images measured")
    parser.add_argument("--images", type=Path, help="folder of PNGs to measure with instead")
    parser.add_argument("--block", type=int, default=128, help="images of a block")
    parser.add_argument("--tasks", type=int, help="schedule so many by Ray, and nothing else")
    asked = parser.parse_args()
    if asked.tasks is not None:
        print(f"{scheduled(asked.tasks):.0f} tasks a second, the actor's start included")
        return
    sets = examples(asked.size) if asked.images is None else {"given": _read(asked.images)}
    found = {name: measured(images) for name, images in sets.items()}
    for name, work in found.items():
        print(
            f"{name}: PNG {work.png_ms:.2f} ms, {work.png_bytes / 1e3:.1f} kB; "
            f"answer {work.answer_ms:.2f} ms, {work.answer_bytes / 1e3:.1f} kB"
        )
    first = next(iter(found.values()))
    for gpus in asked.gpus:
        _print(planned(gpus, asked.image_ms, asked.batch, asked.price, first), asked.block)


if __name__ == "__main__":
    main()
