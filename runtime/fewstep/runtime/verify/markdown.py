"""A verification as Markdown or JSON in a file that CI can attach."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from fewstep.runtime.errors import RequestError
from fewstep.runtime.files import replacing
from fewstep.runtime.verify.document import Divergence, TensorError, Unavailable, Verification
from fewstep.runtime.verify.report import Check, Report

FORMATS = (".md", ".json")
"""Report files by their ending."""


def require_report_path(path: Path) -> Path:
    """The path, if its ending says how to write it.

    Raises:
        RequestError: another ending.
    """
    if path.suffix not in FORMATS:
        raise RequestError(
            f"unknown report format '{path.suffix}' of {path}; expected a file name that ends in "
            f"{' or '.join(FORMATS)}"
        )
    return path


def write_report(verification: Verification, path: Path) -> None:
    """Write a report, as the file's ending says.

    Raises:
        RequestError: another ending than those of :data:`FORMATS`.
        OutputError: the file cannot be written.
    """
    if require_report_path(path).suffix == ".md":
        text = as_markdown(verification)
    else:
        text = json.dumps(verification.as_dict(), indent=2, allow_nan=False) + "\n"
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def as_markdown(verification: Verification) -> str:
    """The whole report: verdict, machine, a section per precision, diverging tensors."""
    parts = [f"# Verification of {_cell(verification.name)}: {_verdict(verification.passed)}"]
    parts.append(f"Bundle: `{verification.bundle}`")
    known = {name: version for name, version in verification.packages.items() if version}
    parts.append(_table(("Machine", ""), [*verification.machine.items(), *known.items()]))
    for report in verification.reports:
        parts += _report_parts(report)
    parts += [
        f"## {each.precision}\n\n{_cell(unavailable_line(each))}"
        for each in verification.unavailable
    ]
    if verification.divergences:
        parts.append("## First diverging tensors")
    for divergence in verification.divergences:
        first, *others = map(_cell, divergence_lines(divergence))
        parts.append("\n".join((first, "", *(f"- {line}" for line in others))).rstrip())
    return "\n\n".join(parts) + "\n"


def unavailable_line(unavailable: Unavailable) -> str:
    """Why a precision was not verified, and whether that counts."""
    counts = "asked for, so this fails" if unavailable.asked else "skipped"
    return f"{unavailable.precision} cannot run here ({counts}): {unavailable.reason}"


def divergence_lines(divergence: Divergence) -> list[str]:
    """What ``--layers`` found in one graph: a headline, then details."""
    place = f"{divergence.rollout}, step {divergence.step}, image {divergence.image}"
    lines = [f"{divergence.graph} in {divergence.precision} ({place}): {_headline(divergence)}"]
    lines += [f"reads {_described(each)}" for each in divergence.before]
    lines += [f"reads weights {name}" for name in divergence.weights]
    if (odd := divergence.first_not_finite) and odd != divergence.first:
        lines.append(f"first NaN or infinite numbers: {_described(odd)}")
    if divergence.first is None and divergence.worst is not None:
        lines.append(f"the largest error: {_described(divergence.worst)}")
    lines.append(_coverage(divergence))
    return lines


def _headline(divergence: Divergence) -> str:
    first = divergence.first
    if first is None and divergence.reference:
        return (
            f"no tensor differs from {divergence.reference} by more than {divergence.tolerance:g}"
        )
    if first is None:
        return "all tensors are finite"
    if first.error is None:
        return f"NaN or infinite numbers begin at {_described(first)}"
    return f"first differs from {divergence.reference} at {_described(first)}"


def _described(found: TensorError) -> str:
    text = f"{found.tensor} of node {found.node} ({found.operator})"
    if not found.finite:
        return f"{text}, which has NaN or infinite numbers"
    return text if found.error is None else f"{text}, error {found.error:.3g}"


def _coverage(divergence: Divergence) -> str:
    seen = (
        f"looked at {divergence.compared} of {divergence.tensors} tensors, "
        f"with {divergence.backend}"
    )
    if divergence.reference:
        return f"{seen}; a tensor may differ by {divergence.tolerance:g} of its largest magnitude"
    return f"{seen}; to compare them, name the same model's bundle from elsewhere with --reference"


def _report_parts(report: Report) -> Iterator[str]:
    where = f"{report.backend} on {report.device}"
    yield f"## {report.precision}: {_verdict(report.passed)} ({_cell(where)})"
    rows = [
        (
            *_names(each),
            f"{each.value:.3g}",
            each.wanted,
            _verdict(each.passed),
        )
        for each in report.checks
    ]
    yield _table(("Graph", "Rollout", "Metric", "Value", "Tolerance", "Verdict"), rows)
    stepped = [each for each in report.checks if each.steps]
    worst = [(*_names(each), *_worst(each)) for each in stepped]
    yield _table(("Graph", "Rollout", "Metric", "Worst step", "Value there"), worst)


def _names(check: Check) -> tuple[str, str, str]:
    return check.graph, check.rollout, check.title


def _worst(check: Check) -> tuple[str, str]:
    step = check.worst_step or 0
    return f"{step} of 0 … {len(check.steps) - 1}", f"{check.steps[step]:.3g}"


def _verdict(passed: bool) -> str:
    return "passed" if passed else "**failed**"


def _table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join(f"| {' | '.join(map(_cell, line))} |" for line in lines)


def _cell(text: str) -> str:
    """Text that stays in its line and in its cell."""
    return " ".join(text.split()).replace("|", "\\|")
