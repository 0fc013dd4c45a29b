"""``fewstep bench``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from fewstep.cli.common import (
    BackendOption,
    BundleArgument,
    DeviceOption,
    PrecisionOption,
    errors,
    export_module,
    out,
    say_notes,
)
from fewstep.runtime.errors import RequestError


def bench_command(
    bundle: BundleArgument,
    batch: Annotated[list[int] | None, typer.Option(help="Batch size; repeat for more.")] = None,
    steps: Annotated[list[int] | None, typer.Option(help="Steps; repeat for more.")] = None,
    runs: Annotated[int, typer.Option(help="Measured runs of each contender.")] = 10,
    schedule: Annotated[str | None, typer.Option(help="Schedule, or policy.")] = None,
    baseline: Annotated[
        bool,
        typer.Option(
            help="Also time PyTorch eager with the authors' 2T + 1 passes and raster order; "
            "needs --transformer and --tokenizer."
        ),
    ] = False,
    transformer: Annotated[Path | None, typer.Option(help="The bundle's checkpoint.")] = None,
    tokenizer: Annotated[Path | None, typer.Option(help="The bundle's checkpoint.")] = None,
    config: Annotated[Path | None, typer.Option(help="As given to export.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the report here.")] = None,
    backend: BackendOption = "auto",
    device: DeviceOption = "auto",
    precision: PrecisionOption = "auto",
) -> None:
    """Latency percentiles per stage, images per second, peak memory."""
    from fewstep.runtime import bench
    from fewstep.runtime.files import replacing
    from fewstep.runtime.generator import Generator
    from fewstep.runtime.tables import bench_tables, megabytes

    sizes = batch or [1]
    with Generator.open(
        bundle,
        backend=backend,
        device=device,
        precision=precision,
        max_batch=max(sizes),
        profile=True,
    ) as generator:
        say_notes(generator)
        counts = steps or [generator.bundle.manifest.model.defaults.steps]
        contenders = {
            f"fewstep, batch {b}, {t} steps": (
                bench.contender(generator, batch=b, steps=t, schedule=schedule),
                b,
                t,
            )
            for b in sizes
            for t in counts
        }
        if baseline:
            if transformer is None or tokenizer is None:
                raise RequestError("--baseline needs --transformer and --tokenizer")
            eager = export_module("eager")
            sampler = eager.EagerSampler.load(generator.bundle, transformer, tokenizer, config)
            tokens = generator.bundle.manifest.model.num_tokens
            for b in sizes:
                for t in counts:
                    run = eager.contender(sampler, generator, batch=b, steps=t, schedule=schedule)
                    contenders[f"PyTorch, batch {b}, {t} steps"] = (run, b, t)
                raster = bench.raster_contender(generator, batch=b)
                contenders[f"raster order, batch {b}"] = (raster, b, tokens)
        with errors.status(f"timing {len(contenders)} contenders, {runs} runs each"):
            report = bench.report(generator, bench.measure(contenders, runs=runs))
    for table in bench_tables(report):
        out.print(table)
    beside = " (PyTorch included)" if baseline else ""
    out.print(f"peak memory of this process{beside}: {megabytes(report.peak_memory_bytes)}")
    if json_file is not None:
        with replacing(json_file) as temporary:
            temporary.write_text(json.dumps(report.as_dict(), indent=2) + "\n")
