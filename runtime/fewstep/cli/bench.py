"""``fewstep bench``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from fewstep.cli.common import (
    BackendOption,
    BundleArgument,
    DeviceOption,
    JsonOption,
    PrecisionOption,
    ThreadsOption,
    command,
    progress_bar,
    say_next,
    say_notes,
    say_warning,
    show,
)
from fewstep.cli.settings import combinations, options
from fewstep.runtime.errors import RequestError

if TYPE_CHECKING:
    from fewstep.runtime.bench import Measurement, Report
    from fewstep.runtime.bundle import Bundle

_SECONDS = 3.0


def bench_command(
    context: typer.Context,
    bundle: BundleArgument,
    batch: Annotated[list[int] | None, typer.Option(help="Batch sizes, one or more. [1]")] = None,
    seconds: Annotated[
        float | None,
        typer.Option(
            help="How long to time each combination, after a fifth of that unmeasured. [3]"
        ),
    ] = None,
    runs: Annotated[
        int | None,
        typer.Option(
            help="Runs of each combination, however long they take, after one unmeasured."
        ),
    ] = None,
    report_file: Annotated[
        Path | None, typer.Option("--report", help="Write the report as well, .json.")
    ] = None,
    backend: BackendOption = "auto",
    device: DeviceOption = "auto",
    precision: PrecisionOption = "auto",
    threads: ThreadsOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Latency percentiles per stage, images per second, peak memory.

    Every batch size is timed with every combination of settings, turn by turn. The ratio is that of
    its time to the first one's. p90 takes 10 runs or more, p99 takes 100.
    """
    from fewstep.cli.tables import bench_tables, megabytes, settings_text
    from fewstep.runtime import bench
    from fewstep.runtime.bundle import Bundle
    from fewstep.runtime.files import replacing, require_writable
    from fewstep.runtime.generator import Generator
    from fewstep.runtime.load import OthersLoad
    from fewstep.runtime.settings import settings_of

    if runs is not None and seconds is not None:
        raise RequestError("--runs and --seconds say how long to go on: pass one")
    if report_file is not None and report_file.suffix != ".json":
        raise RequestError(f"--report writes .json, got {report_file}")
    if report_file is not None:
        require_writable(report_file)
    sizes, wanted, opened = batch or [1], combinations(context), Bundle.read(bundle)
    for settings in wanted:
        settings_of(opened.manifest.model.defaults, settings)  # wrong ones are known at once
    with Generator.open(
        opened,
        backend=backend,
        device=device,
        precision=precision,
        threads=threads,
        max_batch=max(sizes),
        profile=True,
    ) as generator:
        say_notes(generator)
        given = {
            settings_text({"batch": size, **settings}): (size, settings)
            for size in sizes
            for settings in wanted
        }
        contenders = {
            name: bench.contender(generator, batch=size, settings=settings)
            for name, (size, settings) in given.items()
        }
        watch = OthersLoad()
        with progress_bar(f"timing {len(contenders)} combinations") as progress:
            measured = bench.measure(
                contenders,
                runs=runs,
                seconds=_SECONDS if seconds is None else seconds,
                progress=progress,
            )
        report = bench.report(generator, measured, watch.share())
    if report_file is not None:
        with replacing(report_file) as temporary:
            temporary.write_text(json.dumps(report.as_dict(), indent=2) + "\n", encoding="utf-8")
    memory = f"peak memory of this process: {megabytes(report.peak_memory_bytes)}"
    fastest = max(report.measurements, key=lambda each: each.images_per_s)
    verdict = _verdict(fastest, report, report_file)
    show(report.as_dict(), [*bench_tables(report), memory, escape(verdict)], as_json)
    for warning in report.warnings:
        say_warning(warning)
    if not as_json:
        how = ["--precision", report.precision, "--backend", report.backend]
        how += [] if device == "auto" else ["--device", device]
        say_next(_next(opened, [*options(given[fastest.name][1]), *how]))


def _next(bundle: Bundle, words: list[object]) -> str:
    """A command that makes images so, of a class or of texts that nobody wrote."""
    from fewstep.runtime.condition import ClassCondition

    condition = bundle.manifest.model.condition
    if isinstance(condition, ClassCondition):
        return command("generate", bundle.path, "--class", condition.ids[0], *words)
    return command("compare", bundle.path, *words)


def _verdict(fastest: Measurement, report: Report, file: Path | None) -> str:
    """The fastest of all, and where the report is."""
    best = "fastest: " if len(report.measurements) > 1 else ""
    rate = f"{fastest.images_per_s:.1f} images/s, {fastest.total_ms.p50:.1f} ms a run"
    return f"{best}{fastest.name} with {rate}{'' if file is None else f' → {file}'}"
