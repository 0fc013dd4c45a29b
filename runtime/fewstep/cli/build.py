"""``fewstep build``."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from fewstep.cli.common import (
    PRECISIONS,
    BundleArgument,
    JsonOption,
    ThreadsOption,
    command,
    errors,
    progress_bar,
    say_note,
    say_verdict,
    say_warning,
    show,
)
from fewstep.runtime.errors import RequestError, choose
from fewstep.runtime.machine import at_most

if TYPE_CHECKING:
    from fewstep.build.pipeline import BuildRequest
    from fewstep.build.variants import GraphReport


def build_command(
    bundle: BundleArgument,
    backend: Annotated[
        str | None,
        typer.Option(
            help="Build engines: tensorrt or tensorrt-rtx.",
            autocompletion=lambda: ["tensorrt", "tensorrt-rtx"],
        ),
    ] = None,
    compute_capability: Annotated[
        list[str] | None,
        typer.Option(
            help="GPUs to build for, one or more, such as 8.6 8.9 12.0; with --preflight, also "
            "those that TensorRT would build on, such as 8.7 (Orin) and 11.0 (Thor)."
        ),
    ] = None,
    precision: Annotated[
        str | None,
        typer.Option(
            help="fp32, fp16 or bf16, whose graphs are made if they are not there; int8 or fp8, "
            "whose graphs calibrate quantize makes. fp16 for engines, if not given.",
            autocompletion=lambda: list(PRECISIONS),
        ),
    ] = None,
    max_batch: Annotated[int, typer.Option(help="Most images that engines decode together.")] = 8,
    opt_batch: Annotated[
        list[int] | None,
        typer.Option(help="Images that engines are tuned for, one or more. [1]"),
    ] = None,
    optimization_level: Annotated[
        int | None, typer.Option(help="0 … 5, as trtexec --builderOptimizationLevel.")
    ] = None,
    workspace: Annotated[int | None, typer.Option(help="Builder's workspace limit, MiB.")] = None,
    fp32_heads: Annotated[
        bool | None,
        typer.Option(
            "--fp32-heads/--no-fp32-heads",
            help="Keep the logits' and actions' last matmul in fp32. On, but for 7.5.",
        ),
    ] = None,
    kernels: Annotated[
        bool | None,
        typer.Option("--kernels/--no-kernels", help="Compile the CUDA kernels. On with engines."),
    ] = None,
    force: Annotated[bool, typer.Option(help="Build even what is up to date.")] = False,
    check: Annotated[
        bool, typer.Option("--check", help="Build nothing; exit with 1 if anything is stale.")
    ] = False,
    preflight: Annotated[
        bool,
        typer.Option(
            "--preflight",
            help="Only check the graphs, made if absent, and list what comes next; needs no "
            "builder and no GPU.",
        ),
    ] = False,
    threads: ThreadsOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Build engines, graphs of lower precision and CUDA kernels, ahead of time."""
    from fewstep.build import pipeline

    def request() -> BuildRequest:
        return pipeline.BuildRequest(
            bundle=bundle,
            backend=_backend(backend),
            precision=precision,
            capabilities=tuple(compute_capability or ()),
            options=_options(max_batch, opt_batch, optimization_level, workspace),
            fp32_heads=fp32_heads,
            kernels=kernels,
            force=force,
        )

    if check and preflight:
        raise RequestError("--check looks for what is stale, --preflight at graphs: pass one")
    if check:
        if backend is not None or precision is not None or kernels is not None:
            _check(request(), as_json)
        elif compute_capability:
            raise RequestError("--compute-capability goes with --backend or --kernels")
        else:
            _check_contents(bundle, as_json)
    elif preflight:
        with at_most(threads):
            _preflight(request(), as_json)
    else:
        with at_most(threads):
            _build(request(), as_json)


def _build(request: BuildRequest, as_json: bool) -> None:
    from fewstep.build import pipeline
    from fewstep.cli.tables import engines_table, kernels_table, variant_tables
    from fewstep.cli.verdicts import build_verdict

    default = _default_precision(request)
    if errors.is_terminal and not as_json:  # before minutes are spent
        show({}, default, as_json)
        default = []
    with progress_bar("checking graphs and kernels", lines=True) as progress:
        outcome = pipeline.build(request, progress)
    tables: list[Any] = list(variant_tables(outcome.graphs)) if outcome.graphs else []
    tables += _norms(outcome.graphs)
    if outcome.engines:
        tables.append(engines_table(outcome.engines))
    if outcome.kernels is not None and outcome.engines:
        tables.append(f"CUDA kernels for {', '.join(outcome.kernels.cubins)} are compiled")
    elif outcome.kernels is not None:
        tables.append(kernels_table(outcome.kernels))
    shown = [] if outcome.up_to_date else tables
    show(outcome.as_dict(), [*default, *shown], as_json)
    if not as_json:
        where = "on the device" if outcome.engines else ""
        say_verdict(*build_verdict(outcome, request.bundle), where=where)
    for note in outcome.notes:
        say_note(note)
    for engine in outcome.engines:
        for warning in engine.warnings:
            say_warning(f"{engine.info.graph}: {warning}")


def _default_precision(request: BuildRequest) -> list[str]:
    """A line on the precision, where engines are wanted and nobody named theirs."""
    if request.backend is None or request.precision is not None:
        return []
    default = request.graph_precision
    return [
        f"precision {default}, the default for engines; --precision fp32 for that of the export"
    ]


def _norms(reports: Iterable[GraphReport]) -> Iterator[str]:
    """Norms that stayed fp32, a line for each graph and reason."""
    for report in reports:
        names: dict[str, list[str]] = {}
        for name, reason in report.fp32_norms.items():
            names.setdefault(reason, []).append(name)
        for reason, found in names.items():
            more = f" and {len(found) - 1} more" if len(found) > 1 else ""
            yield escape(f"norms of {report.graph} in fp32, {found[0]}{more}: {reason}")


def _preflight(request: BuildRequest, as_json: bool) -> None:
    from fewstep.build.pipeline import preflight_only
    from fewstep.cli.tables import variant_tables

    with progress_bar("checking graphs and kernels") as progress:
        found = preflight_only(request, progress)
    shown: list[Any] = _default_precision(request)
    shown += variant_tables(found.graphs) if found.graphs else []
    shown += [*_norms(found.graphs), "preflight found nothing that stands in the way"]
    for title, points in (
        ("checked here:", found.checklist.checked),
        ("left to the build here:", found.checklist.left_here),
        ("left to the device:", found.checklist.left_on_device),
    ):
        shown += [title, *(f"  {escape(each)}" for each in points)] if points else []
    shown.append("next:")
    for number, step in enumerate(found.checklist.steps, 1):
        note = f" ({step.note})" if step.note else ""
        typed = step.command
        if step.where == "here" and typed.startswith("fewstep "):
            typed = command(*shlex.split(typed)[1:])
        shown.append(escape(f"  {number}. {step.where}{note}: {typed}"))
    show(found.as_dict(), shown, as_json)
    for note in found.notes:
        say_note(note)


def _check(request: BuildRequest, as_json: bool) -> None:
    from fewstep.build.kernels import kernel_notes
    from fewstep.build.stale import stale

    found = stale(request)
    lines = [escape(f"{name}: {reason}") for name, reason in found.items()]
    lines = [*lines, "the same command without --check builds that"] if found else []
    lines = [*_default_precision(request), *(lines or ["everything is up to date"])]
    show({"stale": found, "precision": request.shown_precision}, lines, as_json)
    if request.with_kernels:
        for note in kernel_notes(request.capabilities):
            say_note(note)
    if found:
        raise typer.Exit(1)


def _check_contents(path: Path, as_json: bool) -> None:
    from fewstep.build.stale import stale_contents
    from fewstep.runtime.bundle import Bundle

    found = stale_contents(Bundle.read(path))
    lines = [escape(f"{name}: {reason}") for name, reason in found.items()]
    lines = lines or ["everything that the bundle holds is intact and up to date"]
    show({"stale": found}, lines, as_json)
    if found:
        raise typer.Exit(1)


def _backend(name: str | None) -> Any:
    from fewstep.runtime.engines.tensorrt_api import MODULES

    if name is not None and name not in MODULES:
        raise RequestError(choose("backend", name, MODULES))
    return name


def _options(
    max_batch: int, opt_batch: list[int] | None, level: int | None, workspace: int | None
) -> Any:
    from pydantic import ValidationError

    from fewstep.runtime.records import BuildOptions

    try:
        return BuildOptions(
            max_batch=max_batch,
            opt_batch=tuple(sorted(set(opt_batch or [1]))),
            optimization_level=level,
            workspace_mib=workspace,
        )
    except ValidationError as error:
        problems = []
        for each in error.errors():
            said = each["msg"].removeprefix("Value error, ").replace("Input should", "must")
            option = "".join(str(name) for name in each["loc"][:1])
            spelled = f"--{option.removesuffix('_mib').replace('_', '-')}"
            problems.append(f"{spelled} {said}, got {each['input']}" if option else said)
        raise RequestError("; ".join(problems)) from None
