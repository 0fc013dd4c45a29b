"""``fewstep verify``."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fewstep.cli.common import (
    BackendOption,
    BundleArgument,
    DeviceOption,
    JsonOption,
    ThreadsOption,
    build_module,
    command,
    errors,
    out,
    say_note,
    say_verdict,
    show,
)
from fewstep.runtime.errors import EngineError, FewstepError, RequestError
from fewstep.runtime.machine import at_most

if TYPE_CHECKING:
    from fewstep.runtime.bundle import Bundle
    from fewstep.runtime.generator import Generator
    from fewstep.runtime.verify import Divergence, Report, Unavailable, Verification

_ALL, _AUTO = "all", "auto"

PrecisionsOption = Annotated[
    list[str] | None,
    typer.Option(
        "--precision",
        help="fp32, or what was made for the bundle: fp16, bf16, int8, fp8; one or more. "
        "all: every one that the bundle has and that can run here.",
    ),
]


def verify_command(
    bundle: BundleArgument,
    backend: BackendOption = "auto",
    device: DeviceOption = "auto",
    precision: PrecisionsOption = None,
    layers: Annotated[
        bool, typer.Option("--layers", help="Name the first tensors that diverge.")
    ] = False,
    reference: Annotated[
        Path | None,
        typer.Option(help="With --layers: a bundle of the same model to compare fp32 with."),
    ] = None,
    report: Annotated[
        Path | None, typer.Option(help="Write a report as well, .md or .json.")
    ] = None,
    threads: ThreadsOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Replay the golden rollouts: errors of every graph, and agreement of what is decided.

    TensorRT's engines that pass are marked as verified on this GPU in the bundle.
    """
    from fewstep.runtime.bundle import Bundle
    from fewstep.runtime.files import require_writable
    from fewstep.runtime.verify import require_report_path, write_report

    if reference is not None and not layers:
        raise RequestError("--reference is what --layers compares with: pass --layers too")
    if report is not None:
        require_writable(require_report_path(report))
    opened = Bundle.read(bundle)
    right = None if reference is None else Bundle.read(reference)
    wanted = precision or [_AUTO]
    reports, unavailable = _verified(opened, backend, device, wanted, threads)
    with at_most(threads):
        found = _divergences(opened, reports, right, device) if layers else ()
    verification = _verification(opened, reports, unavailable, found)
    if report is not None:
        write_report(verification, report)
    _show(verification, as_json)
    if not as_json:
        options = [("--backend", backend, "auto"), ("--device", device, "auto")]
        given = [word for name, value, usual in options if value != usual for word in (name, value)]
        _conclude(verification, opened, given, precision, layers)
    if not verification.passed:
        raise typer.Exit(1)


def _verified(
    bundle: Bundle, backend: str, device: str, wanted: list[str], threads: int
) -> tuple[tuple[Report, ...], tuple[Unavailable, ...]]:
    """A report for every precision that runs here, and the reasons why the others do not."""
    from fewstep.runtime.generator import Generator
    from fewstep.runtime.verify import Unavailable, verify

    reports: list[Report] = []
    unavailable: list[Unavailable] = []
    for name in _precisions(bundle, backend, wanted):
        try:
            generator = Generator.open(
                bundle, backend=backend, device=device, precision=name, threads=threads
            )
        except EngineError as error:
            if not _not_implemented(error):
                raise
            unavailable.append(Unavailable(name, " ".join(str(error).split()), name in wanted))
            continue
        with errors.status(f"replaying golden rollouts in {generator.precision}"), generator:
            reports.append(verify(generator))
        _mark(generator, reports[-1])
    return tuple(reports), tuple(unavailable)


def _mark(generator: Generator, report: Report) -> None:
    """Mark the engines in the bundle; where that cannot be written, the verdict stands."""
    from fewstep.runtime.verify import mark

    try:
        mark(generator, report)
    except FewstepError as error:
        say_note(f"the verdict on these engines is not recorded in the bundle: {error}")


def _precisions(bundle: Bundle, backend: str, wanted: Iterable[str]) -> list[str]:
    """The wanted precisions once each; ``all`` are those of the backend's engines, or graphs."""
    engines = [each.precision for each in bundle.manifest.engines if each.backend == backend]
    spelled: dict[str, None] = {}
    for name in wanted:
        spelled |= dict.fromkeys((engines or bundle.precisions) if name == _ALL else (name,))
    return list(spelled)


def _not_implemented(error: EngineError) -> bool:
    """Whether the backend lacks a precision; any other refusal of a graph is a failure of it."""
    return type(error.__cause__).__name__ in ("NotImplemented", "NotImplementedError")


def _divergences(
    bundle: Bundle, reports: Iterable[Report], reference: Bundle | None, device: str
) -> tuple[Divergence, ...]:
    """The first diverging tensors of the failing graphs, or of all where none fails by itself."""
    first_divergence = build_module("layers").first_divergence
    found = []
    for report in reports:
        with _walk(bundle, report, device) as options:
            for graph in report.failing_graphs or bundle.manifest.graphs:
                with errors.status(f"looking through {graph} in {report.precision}"):
                    options["reference"] = reference
                    found.append(first_divergence(bundle, graph, report.precision, **options))
    return tuple(found)


@contextlib.contextmanager
def _walk(bundle: Bundle, report: Report, device: str) -> Iterator[dict[str, Any]]:
    """How the graphs of a report are looked through: with the backend that was verified."""
    if report.backend == "onnxruntime":
        yield {}
        return
    if report.backend == "openvino":
        from fewstep.runtime.engines.openvino import OpenVino

        walk_in = build_module("subgraph_openvino").walk_in
        how = f"{report.backend} on {report.device}"
        of = OpenVino.load().graphs(report.precision)
        yield {"walk": walk_in(report.precision), "of": of, "backend": how}
        return
    from fewstep.runtime.engines.select import Wanted

    ordinal = Wanted.parse(report.backend, device, report.precision).ordinal
    with build_module("subgraph_tensorrt").opened_walk(bundle, report.backend, ordinal) as walk:
        yield {"walk": walk, "backend": f"{report.backend} on {report.device}"}


def _verification(
    bundle: Bundle,
    reports: tuple[Report, ...],
    unavailable: tuple[Unavailable, ...],
    divergences: tuple[Divergence, ...],
) -> Verification:
    from fewstep.runtime.doctor import diagnose
    from fewstep.runtime.verify import Verification

    diagnosis = diagnose()
    return Verification(
        name=bundle.manifest.name,
        bundle=str(bundle.path),
        machine=diagnosis.machine,
        packages=diagnosis.packages,
        reports=reports,
        unavailable=unavailable,
        divergences=divergences,
    )


def _conclude(
    verification: Verification,
    bundle: Bundle,
    given: list[str],
    precision: list[str] | None,
    layers: bool,
) -> None:
    """Say the verdict, and the command that makes use of it or looks into it."""
    from fewstep.cli.verdicts import use_command, verify_verdict

    failing = [each.precision for each in verification.reports if not each.passed]
    commands = []
    if verification.passed and verification.reports:
        last = verification.reports[-1].precision
        named = ["--precision", last] if precision else []
        commands = [use_command(bundle, *given, *named)]
    elif failing and not layers:
        commands = [command("verify", bundle.path, *given, "--precision", failing[0], "--layers")]
    say_verdict(verify_verdict(verification), commands)


def _show(verification: Verification, as_json: bool) -> None:
    from fewstep.cli.tables import verify_table
    from fewstep.cli.verdicts import token_note
    from fewstep.runtime.verify import divergence_lines, unavailable_line

    tables: list[Any] = []
    for report in verification.reports:
        tables += [verify_table(report), *token_note(report)]
    show(verification.as_dict(), tables, as_json)
    if as_json:
        return
    lines = [unavailable_line(each) for each in verification.unavailable]
    for divergence in verification.divergences:
        first, *others = divergence_lines(divergence)
        lines += [first, *(f"  {line}" for line in others)]
    for line in lines:
        out.print(line, highlight=False, soft_wrap=True, markup=False)
