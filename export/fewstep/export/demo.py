"""``fewstep demo``: checkpoint → export → bundle → verify → images, on the shipped sample."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from fewstep.cli.animation import save_animation, step_frames
from fewstep.cli.pictures import grid, save
from fewstep.cli.tables import megabytes, stages_of, verify_table
from fewstep.export.flow import export
from fewstep.runtime import bench
from fewstep.runtime.bundle import Bundle
from fewstep.runtime.condition import ClassCondition
from fewstep.runtime.errors import CheckpointError, EngineError
from fewstep.runtime.generator import Generator
from fewstep.runtime.inspect import inspect
from fewstep.runtime.progress import Progress
from fewstep.runtime.verify import verify

IMAGES_PER_CLASS = 8
STEP_COUNTS = (8, 4)
_SEED = 1
_TIMED_RUNS = 10
_SCALE = 2


def run(sample: Path, out: Path, console: Console) -> None:
    """Run the demo.

    Args:
        sample: folder with ``config.json``, ``weights/{transformer,tokenizer}`` and, if there
            are any, tuned policies ``weights/policy-*``.
        out: where ``bundle/``, the grids and the animation go.
        console: where progress and the closing table are shown.

    Raises:
        CheckpointError: no sample in that folder.
        EngineError: the exported graphs do not reproduce PyTorch's golden rollouts.
    """
    files = sample_checkpoints(sample)
    with _stage(console, "exporting checkpoints to ONNX") as show:
        command = f"fewstep demo --sample {sample} --out {out}"
        bundle = export(
            "adanat", files, out / "bundle", overwrite=True, command=command, progress=show
        )
    with Generator.open(bundle, max_batch=IMAGES_PER_CLASS) as generator:
        with _stage(console, "verifying the graphs against PyTorch's golden rollouts"):
            report = verify(generator)
        console.print(verify_table(report))
        if not report.passed:
            raise EngineError("the exported graphs do not reproduce PyTorch; see the table above")
        for steps in STEP_COUNTS:
            with _stage(console, f"generating {IMAGES_PER_CLASS} images per class, {steps} steps"):
                _write_grid(generator, steps, out / f"grid-{steps}-steps.png")
        with _stage(console, "drawing how tokens are decided"):
            _write_steps(generator, out / "steps.gif")
        with _stage(console, "timing"):
            measurements = bench.measure(_contenders(generator), runs=_TIMED_RUNS)
    console.print(_summary(bundle, sample, measurements))
    console.print(_next_steps(out), highlight=False, soft_wrap=True)


def sample_checkpoints(sample: Path) -> dict[str, Any]:
    """What to export of a trained sample's folder, with an untrained policy.

    Raises:
        CheckpointError: there is no trained sample.
    """
    weights = sample / "weights"
    files = {
        "transformer": weights / "transformer.safetensors",
        "tokenizer": weights / "tokenizer.safetensors",
        "untrained_policy": True,
        "tuned_policy": sorted(weights.glob("policy-*.safetensors")),
        "config": sample / "config.json",
    }
    if not (weights / "transformer.safetensors").is_file():
        raise CheckpointError(
            f"no trained sample in {sample}: run the demo in a clone of the repository, "
            "or name the sample's folder with --sample"
        )
    return files


@contextlib.contextmanager
def _stage(console: Console, title: str) -> Iterator[Progress]:
    start = time.perf_counter()
    with console.status(f"{title} …") as status:
        yield lambda detail, done: status.update(f"{title}: {detail} …")
    console.print(f"[green]✓[/] {title} ({time.perf_counter() - start:.1f} s)", highlight=False)


def _classes(generator: Generator) -> tuple[list[int], list[str]]:
    info = generator.bundle.manifest.model.condition
    assert isinstance(info, ClassCondition)
    ids = list(range(info.num_classes))
    return ids, [info.label(class_id) for class_id in ids]


def _write_grid(generator: Generator, steps: int, path: Path) -> None:
    ids, labels = _classes(generator)
    result = generator.generate(
        class_ids=np.repeat(ids, IMAGES_PER_CLASS).tolist(), steps=steps, seed=_SEED
    )
    rows = result.images.reshape(len(ids), IMAGES_PER_CLASS, *result.images.shape[1:])
    title = f"Fashion sample, {steps} steps"
    save(grid(rows, labels, title, scale=_SCALE), path)


def _write_steps(generator: Generator, path: Path) -> None:
    ids, labels = _classes(generator)
    result = generator.generate(class_ids=np.repeat(ids, 4).tolist(), steps=8, seed=_SEED)
    save_animation(step_frames(generator, result, labels, scale=_SCALE), path)


def _contenders(generator: Generator) -> dict[str, bench.Contender]:
    return {
        f"{steps} steps × {batch}": bench.contender(
            generator, batch=batch, settings={"steps": steps}
        )
        for steps in STEP_COUNTS
        for batch in (1, IMAGES_PER_CLASS)
    }


def _summary(bundle: Bundle, sample: Path, measurements: list[bench.Measurement]) -> Table:
    manifest, stages = bundle.manifest, stages_of(measurements)
    table = Table(
        title=f"{manifest.name}: {', '.join(manifest.graphs)} from {sample}/weights\n"
        f"bundle {megabytes(inspect(bundle).total_bytes)}; median ms on this CPU, steps × batch",
        title_justify="left",
    )
    for heading in ("", *stages, "total", "images/s"):
        table.add_column(heading, justify="right" if heading else "left")
    for m in measurements:
        times = [f"{m.stages_ms[s].p50:.1f}" if s in m.stages_ms else "-" for s in stages]
        table.add_row(m.name, *times, f"{m.total_ms.p50:.1f}", f"{m.images_per_s:.1f}")
    return table


def _next_steps(out: Path) -> str:
    return (
        f"Look at [bold]{out}/grid-8-steps.png[/], grid-4-steps.png and steps.gif, then try:\n"
        f"  fewstep generate {out}/bundle --class Dress --count 8 --steps 6 --out dresses.png\n"
        f"  fewstep generate {out}/bundle --class Bag --schedule policy --trace bag.gif\n"
        f"  fewstep inspect {out}/bundle\n"
        f"  fewstep bench {out}/bundle --batch 1 --batch 8 --steps 4 --steps 8"
    )
