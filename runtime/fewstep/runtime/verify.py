"""Replaying golden rollouts: does this engine compute what PyTorch computed?

Teacher-forced: the recorded tokens of every step go through the transformer (and policy), so one
wrong token cannot hide behind another. Free-running: the same seeds are generated from scratch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from fewstep.runtime.device import Array
from fewstep.runtime.engine import run_once
from fewstep.runtime.errors import BundleError, EngineError
from fewstep.runtime.generator import Generator
from fewstep.runtime.request import Request
from fewstep.runtime.schedule import POLICY

_MAX_PSNR = 120.0
_RECORDED = frozenset(
    ("condition", "seeds", "parameters", "tokens", "sampled", "positions", "logits", "image")
)


@dataclass(frozen=True)
class Thresholds:
    """What a replay must reach.

    ``logit_error``: largest difference from PyTorch, over max(1, its largest magnitude).
    ``argmax_agreement``: fraction of recorded positions with the same most likely code.
    ``token_agreement``: fraction of equal final tokens, free-running.
    ``psnr_db``: decoder image against PyTorch's, from the same tokens.
    """

    logit_error: float
    argmax_agreement: float
    token_agreement: float
    psnr_db: float


THRESHOLDS: dict[str, Thresholds] = {
    # Differences of rounding only; a free-running token may flip on a tie.
    "fp32": Thresholds(1e-3, 0.999, 0.99, 60.0),
    # Acceptance bars for reduced precision: a flipped token changes every later step, so free-
    # running agreement says little and the teacher-forced figures decide.
    "fp16": Thresholds(2e-2, 0.98, 0.5, 40.0),
    "bf16": Thresholds(1e-1, 0.93, 0.3, 32.0),
    "int8": Thresholds(3e-1, 0.80, 0.1, 25.0),
    "fp8": Thresholds(3e-1, 0.80, 0.1, 25.0),
}


@dataclass(frozen=True)
class Check:
    """One figure with its bar."""

    schedule: str
    figure: str
    value: float
    limit: float
    at_most: bool

    @property
    def passed(self) -> bool:
        """Whether the value meets its bar (NaN never does)."""
        return self.value <= self.limit if self.at_most else self.value >= self.limit


@dataclass(frozen=True)
class Report:
    """All checks of one verification."""

    bundle: str
    precision: str
    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        """Whether every check passed."""
        return all(check.passed for check in self.checks)

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        checks = [asdict(check) | {"passed": check.passed} for check in self.checks]
        return {"bundle": self.bundle, "precision": self.precision, "passed": self.passed} | {
            "checks": checks
        }


def verify(generator: Generator) -> Report:
    """Replay every golden rollout of the generator's bundle against its precision's bars.

    Raises:
        BundleError: the bundle has no golden rollouts, or incomplete ones.
    """
    bundle = generator.bundle
    precision = generator.precision
    if bundle.manifest.golden is None:
        raise BundleError(f"{bundle.path} has no golden rollouts; export it again to record them")
    limits, checks = THRESHOLDS[precision], []
    recorded = rollouts(bundle.arrays(bundle.manifest.golden))
    _check_complete(generator, recorded)
    for schedule, rollout in recorded.items():
        for figure, value in _replay(generator, schedule, rollout).items():
            at_most = figure.endswith("error")
            limit = limits.logit_error if at_most else getattr(limits, figure)
            checks.append(Check(schedule, figure, value, limit, at_most))
    return Report(str(bundle.path), precision, tuple(checks))


def rollouts(arrays: Mapping[str, Array]) -> dict[str, dict[str, Array]]:
    """The recordings of a golden file by schedule and name."""
    found: dict[str, dict[str, Array]] = {}
    for key, value in arrays.items():
        schedule, _, name = key.partition("/")
        found.setdefault(schedule, {})[name] = value
    return found


def _check_complete(generator: Generator, rollouts: Mapping[str, Mapping[str, Array]]) -> None:
    """Refuse recordings with nothing to check, or of another model."""
    model, file = generator.bundle.manifest.model, generator.bundle.manifest.golden
    problems = [] if rollouts else ["it holds no rollout"]
    for schedule, rollout in rollouts.items():
        if absent := sorted(_RECORDED - rollout.keys()):
            problems.append(f"'{schedule}' lacks {', '.join(absent)}")
        elif rollout["tokens"].ndim != 3 or rollout["tokens"].shape[2] != model.num_tokens:
            problems.append(f"'{schedule}' is not of {model.num_tokens} tokens")
        elif rollout["logits"].shape[-1] != model.codebook_size:
            problems.append(f"'{schedule}' is not of {model.codebook_size} codes")
    if problems:
        raise BundleError(
            f"{generator.bundle.path}/{file}: {'; '.join(problems)}; export the bundle again"
        )


def _replay(generator: Generator, schedule: str, rollout: Mapping[str, Array]) -> dict[str, float]:
    logits, actions = teacher_forced(generator, rollout, policy="actions" in rollout)
    decoder, tokens = generator.engines["decoder"], rollout["sampled"][-1]
    image = run_once(generator.device, decoder, {"tokens": tokens})["image"]
    figures = {
        "logit_error": _relative_error(logits, rollout["logits"]),
        "argmax_agreement": _agreement(logits.argmax(-1), rollout["logits"].argmax(-1)),
        "psnr_db": psnr(image, rollout["image"], peak=1.0),
        "token_agreement": _agreement(_free_running(generator, schedule, rollout), tokens),
    }
    if "actions" in rollout:
        figures["action_error"] = _relative_error(actions, rollout["actions"])
    return figures


def teacher_forced(
    generator: Generator, rollout: Mapping[str, Array], *, policy: bool
) -> tuple[Array, Array]:
    """Run the recorded tokens of every step through the transformer, and the policy if asked.

    Args:
        generator: whose engines are run.
        rollout: ``tokens [T + 1, B, N]``, ``condition`` and ``positions [K]``.
        policy: whether to run the policy network too.

    Returns:
        Conditional logits ``[T, B, K, V]`` and raw actions ``[T, B, 4]`` (empty without policy).
    """
    model, engines = generator.bundle.manifest.model, generator.engines
    network = engines[model.policy.graph] if model.policy and policy else None
    logits, actions = [], []
    for step, tokens in enumerate(rollout["tokens"][:-1]):
        inputs = {"tokens": tokens, model.condition_input: rollout["condition"]}
        out = run_once(generator.device, engines["transformer"], inputs)
        logits.append(out["logits"][:, rollout["positions"]])
        if network is not None:
            state = {"features": out["features"], "step": np.full(len(tokens), step, np.int32)}
            actions.append(run_once(generator.device, network, state)["action"])
    return np.stack(logits), np.array(actions)


def _free_running(generator: Generator, schedule: str, rollout: Mapping[str, Array]) -> Array:
    """Final tokens from the recorded seeds and, for a fixed schedule, parameters."""
    parameters = None if schedule == POLICY else rollout["parameters"][:, 0]
    request = Request(
        condition=rollout["condition"],
        seeds=rollout["seeds"],
        steps=len(rollout["sampled"]),
        parameters=parameters,
        guided=parameters is None or bool(parameters[:, 3].any()),
    )
    try:
        return generator.run(request).tokens
    except EngineError:  # a graph gave NaN: the other figures say which; nothing agrees
        return np.full_like(rollout["sampled"][-1], -1)


def psnr(actual: Array, expected: Array, *, peak: float) -> float:
    """Peak signal-to-noise ratio in dB, at most 120."""
    error = float(np.mean((np.asarray(actual, np.float64) - expected) ** 2))
    if error == 0:
        return _MAX_PSNR
    value = 10 * float(np.log10(peak**2 / error))
    return value if value != value else min(_MAX_PSNR, value)  # NaN fails every bar


def _relative_error(actual: Array, expected: Array) -> float:
    return float(np.abs(actual - expected).max() / max(1.0, np.abs(expected).max()))


def _agreement(actual: Array, expected: Array) -> float:
    return float((actual == expected).mean())
