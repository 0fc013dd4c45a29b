"""What ``fewstep demo`` shows of a bundle: verified, generated, drawn step by step, timed."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from fewstep.cli import common
from fewstep.cli.animation import save_animation, step_frames, steps_shown
from fewstep.cli.common import command, errors, say_next
from fewstep.cli.pictures import grid, save
from fewstep.cli.tables import megabytes, stages_of, verify_table
from fewstep.runtime import bench
from fewstep.runtime.bundle import Bundle
from fewstep.runtime.condition import ClassCondition
from fewstep.runtime.errors import EngineError, RequestError
from fewstep.runtime.generator import Generator
from fewstep.runtime.inspect import inspect
from fewstep.runtime.progress import Progress
from fewstep.runtime.verify import verify

IMAGES_PER_CLASS = 8
STEP_COUNTS = (8, 4)
_MOST_CLASSES = 10
_SEED = 1
_TIMED_RUNS = 10
_SCALE = 2


def tour(bundle: Bundle, out: Path, console: Console = common.out) -> None:
    """Verify a bundle, draw images of its first classes and time it.

    Args:
        bundle: a class-conditional one.
        out: where the grids and the animation go.
        console: where progress and the closing table are shown.

    Raises:
        RequestError: the bundle is text-conditional.
        EngineError: the graphs do not reproduce PyTorch's golden rollouts.
        OutputError: ``out`` is not writable.
    """
    _condition(bundle)
    with Generator.open(bundle, max_batch=IMAGES_PER_CLASS) as generator:
        with stage(console, "verifying the graphs against PyTorch's golden rollouts"):
            report = verify(generator)
        console.print(verify_table(report))
        if not report.passed:
            raise EngineError("the graphs do not reproduce PyTorch; see the table above")
        for steps in STEP_COUNTS:
            with stage(console, f"generating {IMAGES_PER_CLASS} images per class, {steps} steps"):
                _write_grid(generator, steps, out / f"grid-{steps}-steps.png")
        with stage(console, "drawing how tokens are decided"):
            _write_steps(generator, out / "steps.gif")
        with stage(console, "timing"):
            measurements = bench.measure(_contenders(generator), runs=_TIMED_RUNS)
        console.print(_summary(generator, measurements))
    _say_next(bundle, out, console)


@contextlib.contextmanager
def stage(console: Console, title: str) -> Iterator[Progress]:
    """Show what is being done, and how long it took; yields what to call with details."""
    start = time.perf_counter()
    with errors.status(f"{title} …") as status:
        yield lambda detail, done: status.update(f"{title}: {detail} …")
    console.print(f"[green]✓[/] {title} ({time.perf_counter() - start:.1f} s)", highlight=False)


def _classes(bundle: Bundle) -> tuple[list[int], list[str]]:
    """The ids and labels of the first classes."""
    info = _condition(bundle)
    ids = info.ids[:_MOST_CLASSES]
    return ids, [info.label(class_id) for class_id in ids]


def _condition(bundle: Bundle) -> ClassCondition:
    info = bundle.manifest.model.condition
    if not isinstance(info, ClassCondition):
        raise RequestError(
            f"{bundle.path} is text-conditional, and the demo has no text: generate from it with "
            "fewstep generate --text"
        )
    return info


def _write_grid(generator: Generator, steps: int, path: Path) -> None:
    ids, labels = _classes(generator.bundle)
    result = generator.generate(
        class_ids=np.repeat(ids, IMAGES_PER_CLASS).tolist(), steps=steps, seed=_SEED
    )
    rows = result.images.reshape(len(ids), IMAGES_PER_CLASS, *result.images.shape[1:])
    title = f"{generator.bundle.manifest.name}, {steps} steps"
    save(grid(rows, labels, title, scale=_SCALE), path)


def _write_steps(generator: Generator, path: Path) -> None:
    ids, labels = _classes(generator.bundle)
    result = generator.generate(class_ids=np.repeat(ids, 4).tolist(), steps=8, seed=_SEED)
    save_animation(step_frames(steps_shown(generator, result), labels, scale=_SCALE), path)


def _contenders(generator: Generator) -> dict[str, bench.Contender]:
    return {
        f"{steps} steps × {batch}": bench.contender(
            generator, batch=batch, settings={"steps": steps}
        )
        for steps in STEP_COUNTS
        for batch in (1, IMAGES_PER_CLASS)
    }


def _summary(generator: Generator, measurements: list[bench.Measurement]) -> Table:
    bundle, stages = generator.bundle, stages_of(measurements)
    manifest = bundle.manifest
    table = Table(
        title=f"{escape(manifest.name)}: {', '.join(manifest.graphs)}\n"
        f"bundle {megabytes(inspect(bundle).total_bytes)}; median ms by {generator.backend} on "
        f"{escape(generator.device.name)}, steps × batch",
        title_justify="left",
    )
    for heading in ("", *stages, "total", "images/s"):
        table.add_column(heading, justify="right" if heading else "left")
    for m in measurements:
        times = [f"{m.stages_ms[s].p50:.1f}" if s in m.stages_ms else "-" for s in stages]
        table.add_row(m.name, *times, f"{m.total_ms.p50:.1f}", f"{m.images_per_s:.1f}")
    return table


def _say_next(bundle: Bundle, out: Path, console: Console) -> None:
    """Where to look, and commands for one class and another."""
    known = _condition(bundle).class_names or ()
    policies = [name for name in bundle.manifest.graphs if name.startswith("policy")]
    names = [
        label if label in known else class_id
        for class_id, label in zip(*_classes(bundle), strict=True)
    ]
    one, other = names[3 % len(names)], names[8 % len(names)]
    files = [out / f"grid-{steps}-steps.png" for steps in STEP_COUNTS] + [out / "steps.gif"]
    console.print(
        f"look at {', '.join(map(str, files))}", highlight=False, soft_wrap=True, markup=False
    )
    generate = ("generate", bundle.path, "--class")
    schedule = ("--schedule", policies[-1], "--trace", "policy.gif") if policies else ()
    say_next(
        command(*generate, one, "--count", 8, "--steps", 6, "--out", "images.png"),
        command(*generate, other, *schedule),
        command("inspect", bundle.path),
        command("bench", bundle.path, "--batch", 1, "--batch", 8, "--steps", 4, "--steps", 8),
    )
