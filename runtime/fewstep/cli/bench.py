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
    out,
    progress_bar,
    say_notes,
)
from fewstep.cli.settings import combinations


def bench_command(
    context: typer.Context,
    bundle: BundleArgument,
    batch: Annotated[list[int] | None, typer.Option(help="Batch size; repeat for more.")] = None,
    runs: Annotated[int, typer.Option(help="Measured runs of each combination.")] = 10,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the report here.")] = None,
    backend: BackendOption = "auto",
    device: DeviceOption = "auto",
    precision: PrecisionOption = "auto",
) -> None:
    """Latency percentiles per stage, images per second, peak memory.

    Every batch size is timed with every combination of settings.
    """
    from fewstep.cli.tables import bench_tables, megabytes, settings_text
    from fewstep.runtime import bench
    from fewstep.runtime.bundle import Bundle
    from fewstep.runtime.files import replacing
    from fewstep.runtime.generator import Generator
    from fewstep.runtime.settings import settings_of

    sizes, wanted, opened = batch or [1], combinations(context), Bundle.read(bundle)
    for settings in wanted:
        settings_of(opened.manifest.model.defaults, settings)  # wrong ones are known at once
    with Generator.open(
        opened,
        backend=backend,
        device=device,
        precision=precision,
        max_batch=max(sizes),
        profile=True,
    ) as generator:
        say_notes(generator)
        contenders = {
            settings_text({"batch": size, **settings}): bench.contender(
                generator, batch=size, settings=settings
            )
            for size in sizes
            for settings in wanted
        }
        with progress_bar(f"timing {len(contenders)} combinations") as progress:
            measured = bench.measure(contenders, runs=runs, progress=progress)
        report = bench.report(generator, measured)
    for table in bench_tables(report):
        out.print(table)
    out.print(f"peak memory of this process: {megabytes(report.peak_memory_bytes)}")
    if json_file is not None:
        with replacing(json_file) as temporary:
            temporary.write_text(json.dumps(report.as_dict(), indent=2) + "\n")
