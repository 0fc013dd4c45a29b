"""The closing lines of commands that make or check something: how it went, and what comes next."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from fewstep.cli.common import command
from fewstep.runtime.condition import ClassCondition

if TYPE_CHECKING:
    from fewstep.build.pipeline import Outcome
    from fewstep.runtime.bundle import Bundle
    from fewstep.runtime.verify import Report, Verification

_PROMPT = "a red apple"
_UP_TO_DATE = "everything is up to date"


def use_command(bundle: Bundle, *options: object) -> str:
    """A command that runs the bundle: it makes an image of the first class or of a prompt, or times
    text states."""
    condition = bundle.manifest.model.condition
    if isinstance(condition, ClassCondition):
        return command("generate", bundle.path, "--class", condition.ids[0], *options)
    if condition.encoder is not None:
        return command("generate", bundle.path, "--text", _PROMPT, *options)
    return command("bench", bundle.path, *options)


def rebuild_commands(bundle: Bundle) -> list[str]:
    """The commands that build engines like those of the bundle, for all of its graphs."""
    from fewstep.runtime.engines.compatibility import rebuild_command

    found: dict[str, None] = {}
    for info in bundle.manifest.engines:
        first, *others = info.compute_capabilities
        words = shlex.split(rebuild_command(bundle.path, info, first))[1:]
        if "--compute-capability" in words:
            place = words.index("--compute-capability") + 2
            words[place:place] = others
        found[command(*words)] = None
    return list(found)


def verify_verdict(verification: Verification) -> list[str]:
    """Whether all passed; where not, every metric that did not, a line each."""
    lines = [
        f"failed: {check.graph}, rollout {check.rollout}, {report.precision}: {check.title} is "
        f"{check.value:.3g} and must be {check.wanted}"
        for report in verification.reports
        for check in report.checks
        if not check.passed
    ]
    lines += [
        f"failed: {each.precision} was asked for and cannot run here"
        for each in verification.unavailable
        if each.asked
    ]
    if lines or not verification.passed:
        return lines or ["failed"]
    of = ", ".join(
        f"{each.precision} ({each.backend} on {each.device})" for each in verification.reports
    )
    return [f"passed: every metric is within its tolerance in {of}"]


def token_note(report: Report) -> list[str]:
    """Why agreement of tokens may be as low as it may be in lower precision."""
    asked = [each.tolerance for each in report.checks if each.metric == "token_agreement"]
    if report.precision == "fp32" or not asked:
        return []
    return [
        f"token agreement need only be {asked[0]:g} in {report.precision}: it is that of whole "
        "generations, where one token that differs changes all steps after it; what decides are "
        "the metrics of graphs, which get the recorded tokens"
    ]


def build_verdict(outcome: Outcome, path: Path) -> tuple[list[str], list[str]]:
    """What ``fewstep build`` made, and the next commands; none where nothing was to be done."""
    if outcome.up_to_date:
        return [_UP_TO_DATE], []
    if outcome.precision is None and outcome.kernels is not None:
        made = f"compiled: CUDA kernels for {', '.join(outcome.kernels.cubins)}"
        return [made], [command("inspect", path)]
    wanted = outcome.precision if outcome.precision in ("fp32", "fp16", "int8") else "all"
    checked: tuple[object, ...] = (
        "verify",
        path,
        "--precision",
        wanted,
    )  # CPUs run neither bf16 nor fp8
    made = f"made: {outcome.precision} graphs of {', '.join(g.graph for g in outcome.graphs)}"
    if outcome.engines:
        info = outcome.engines[0].info
        targets = ", ".join(info.compute_capabilities)
        made = f"built: {len(outcome.engines)} {info.precision} engines for {targets}"
        running = ("--backend", info.backend, "--device", "cuda", "--precision", info.precision)
        checked = ("verify", path, *running)
    return [made], [command(*checked)]
