"""The report of a run on a GPU, as Markdown and JSON, and the table that ends its output."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.gpu.outcome import Outcome, passed

_COLUMNS = ("group", "verdict", "passed", "failed", "skipped", "seconds")
_SHOWN = 1500  # characters of how a test failed
_SLOWEST = 10


def write(
    folder: Path,
    facts: dict[str, Any],
    outcomes: list[Outcome],
    seconds: float,
    *,
    finished: bool = True,
) -> None:
    """Write ``report.json`` and ``report.md``.

    Args:
        folder: where.
        facts: what is known about the machine and the kit.
        outcomes: of the groups so far.
        seconds: the whole run's until now.
        finished: whether these are all groups; a run that was broken off has not passed.
    """
    data = {
        "passed": finished and passed(outcomes),
        "finished": finished,
        "seconds": round(seconds, 1),
        **facts,
        "groups": [outcome.as_dict() for outcome in outcomes],
    }
    (folder / "report.json").write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    (folder / "report.md").write_text(_page(facts, outcomes, seconds, finished), encoding="utf-8")


def table(outcomes: Sequence[Outcome]) -> str:
    """The groups as plain text, with what is wrong below."""
    rows = [_COLUMNS, *map(_row, outcomes)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_COLUMNS))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        for row in rows
    ]
    lines += [f"{each.group}: {each.state}: {each.why}" for each in outcomes if each.why]
    return "\n".join(line.rstrip() for line in lines)


def _row(outcome: Outcome) -> tuple[str, ...]:
    counts = [str(outcome.count(name)) for name in ("passed", "failed", "skipped")]
    return (outcome.group, outcome.state, *counts, f"{outcome.seconds:.1f}")


def _page(facts: dict[str, Any], outcomes: list[Outcome], seconds: float, finished: bool) -> str:
    verdict = ("passed" if passed(outcomes) else "FAILED") if finished else "BROKEN OFF"
    parts = [
        "# CUDA tests on a GPU",
        f"**{verdict}** in {seconds:.0f} s.",
        _listed(facts.get("machine", {})),
        _listed(_origin(facts)),
        "\n".join(f"- warning: {warning}" for warning in facts.get("warnings", [])),
        "## Groups",
        _markdown_table([_COLUMNS, *map(_row, outcomes)]),
        "\n".join(f"- {each.group}: {each.why}" for each in outcomes if each.why),
        *_failures(outcomes),
        *_skips(outcomes),
        "## Slowest tests",
        _slowest(outcomes),
        "## Packages",
        _listed({name: found or "not installed" for name, found in facts["packages"].items()})
        if facts.get("packages")
        else "Unknown.",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _origin(facts: dict[str, Any]) -> dict[str, str]:
    """Of which commit this is, and what came with the kit."""
    rows = {"commit": facts.get("commit") or "unknown"}
    if kit := facts.get("kit"):
        rows["kit"] = f"of commit {kit['commit']}, for CUDA {kit['cuda']}"
        rows["unpacked from it"] = ", ".join(kit["unpacked"]) or "nothing"
    return rows


def _listed(rows: dict[str, Any]) -> str:
    return "\n".join(f"- {name}: {value}" for name, value in rows.items())


def _markdown_table(rows: Sequence[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([lines[0], "|---" * len(rows[0]) + "|", *lines[1:]])


def _failures(outcomes: list[Outcome]) -> list[str]:
    found = [
        f"### {test.name}\n\n```\n{test.reason[-_SHOWN:]}\n```"
        for outcome in outcomes
        for test in outcome.tests
        if test.outcome == "failed"
    ]
    return ["## Failed", *found] if found else []


def _skips(outcomes: list[Outcome]) -> list[str]:
    found = [
        f"- {outcome.group}: {count} × {reason}"
        for outcome in outcomes
        for reason, count in outcome.skips().items()
    ]
    return ["## Skipped", "\n".join(found)] if found else []


def _slowest(outcomes: list[Outcome]) -> str:
    tests = sorted(
        (test for outcome in outcomes for test in outcome.tests), key=lambda test: -test.seconds
    )
    return "\n".join(f"- {test.seconds:.1f} s: {test.name}" for test in tests[:_SLOWEST])
