"""Running the recorded inputs through engines, and judging what they give."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from fewstep.runtime.bundle import Bundle
from fewstep.runtime.devices import Array
from fewstep.runtime.engines import run_once
from fewstep.runtime.errors import BundleError, EngineError
from fewstep.runtime.generator import Generator
from fewstep.runtime.request import Request
from fewstep.runtime.verify.figures import largest_errors, logit_figures, psnr
from fewstep.runtime.verify.report import AT_LEAST, LOOP, Check, Report
from fewstep.runtime.verify.thresholds import THRESHOLDS, Thresholds

_LARGEST = frozenset(("logit_error", "action_error"))  # over the steps; other figures are means
_RECORDED = frozenset(
    ("condition", "seeds", "parameters", "tokens", "sampled", "positions", "logits", "image")
)


def verify(generator: Generator) -> Report:
    """Replay every golden rollout of the generator's bundle against its precision's bars.

    Raises:
        BundleError: the bundle has no golden rollouts, or incomplete ones.
        EngineError: a graph cannot be run.
    """
    recorded = golden(generator.bundle)
    limits = THRESHOLDS[generator.precision]
    checks = [
        check
        for schedule, rollout in recorded.items()
        for check in _replay(generator, schedule, rollout, limits)
    ]
    return Report(
        bundle=str(generator.bundle.path),
        precision=generator.precision,
        checks=tuple(checks),
        backend=generator.backend,
        device=generator.device.name,
    )


def golden(bundle: Bundle) -> dict[str, dict[str, Array]]:
    """The golden rollouts of a bundle, complete and of its model, by schedule and name.

    Raises:
        BundleError: there are none, or they are incomplete or of another model.
    """
    if bundle.manifest.golden is None:
        raise BundleError(f"{bundle.path} has no golden rollouts; export it again to record them")
    recorded = rollouts(bundle.arrays(bundle.manifest.golden))
    _check_complete(bundle, recorded)
    return recorded


def rollouts(arrays: Mapping[str, Array]) -> dict[str, dict[str, Array]]:
    """The recordings of a golden file by schedule and name."""
    found: dict[str, dict[str, Array]] = {}
    for key, value in arrays.items():
        schedule, _, name = key.partition("/")
        found.setdefault(schedule, {})[name] = value
    return found


def _check_complete(bundle: Bundle, rollouts: Mapping[str, Mapping[str, Array]]) -> None:
    """Refuse recordings with nothing to check, or of another model."""
    model, file = bundle.manifest.model, bundle.manifest.golden
    problems = [] if rollouts else ["it holds no rollout"]
    for schedule, rollout in rollouts.items():
        if absent := sorted(_RECORDED - rollout.keys()):
            problems.append(f"'{schedule}' lacks {', '.join(absent)}")
        elif rollout["tokens"].ndim != 3 or rollout["tokens"].shape[2] != model.num_tokens:
            problems.append(f"'{schedule}' is not of {model.num_tokens} tokens")
        elif rollout["logits"].shape[-1] != model.codebook_size:
            problems.append(f"'{schedule}' is not of {model.codebook_size} codes")
    if problems:
        raise BundleError(f"{bundle.path}/{file}: {'; '.join(problems)}; export the bundle again")


def _replay(
    generator: Generator, schedule: str, rollout: Mapping[str, Array], limits: Thresholds
) -> Iterator[Check]:
    tokens = rollout["sampled"][-1]
    actions = rollout.get("actions")

    def check(graph: str, figure: str, value: float, steps: Sequence[float] = ()) -> Check:
        limit, at_most = getattr(limits, figure), figure not in AT_LEAST
        return Check(graph, schedule, figure, value, limit, at_most, tuple(steps))

    policy = None if actions is None else schedule
    logits, acted = teacher_forced(generator, rollout, policy=policy)
    for figure, steps in logit_figures(logits, rollout["logits"]).items():
        yield check("transformer", figure, _over_steps(figure, steps), steps)
    if actions is not None:
        steps = largest_errors(acted, actions)
        yield check(schedule, "action_error", _over_steps("action_error", steps), steps)
    image = _run(generator, "decoder", {"tokens": tokens})["image"]
    yield check("decoder", "psnr_db", psnr(image, rollout["image"], peak=1.0))
    free = _free_running(generator, schedule, rollout)
    yield check(LOOP, "token_agreement", float((free == tokens).mean()))


def teacher_forced(
    generator: Generator, rollout: Mapping[str, Array], *, policy: str | None
) -> tuple[Array, Array]:
    """Run the recorded tokens of every step through the transformer, and the policy if asked.

    Args:
        generator: whose engines are run.
        rollout: ``tokens [T + 1, B, N]``, ``condition`` and ``positions [K]``.
        policy: the policy network to run too.

    Returns:
        Conditional logits ``[T, B, K, V]`` and raw actions ``[T, B, 4]`` (empty without policy).
    """
    model = generator.bundle.manifest.model
    logits, actions = [], []
    for step, tokens in enumerate(rollout["tokens"][:-1]):
        inputs = {"tokens": tokens, model.condition_input: rollout["condition"]}
        out = _run(generator, "transformer", inputs)
        logits.append(out["logits"][:, rollout["positions"]])
        if policy is not None:
            state = {"features": out["features"], "step": np.full(len(tokens), step, np.int32)}
            actions.append(_run(generator, policy, state)["action"])
    return np.stack(logits), np.array(actions)


def _run(generator: Generator, graph: str, inputs: Mapping[str, Array]) -> dict[str, Array]:
    """Run an engine on as many images at a time as it takes."""
    count, most = len(next(iter(inputs.values()))), generator.max_batch
    parts = [
        run_once(
            generator.device,
            generator.engines[graph],
            {name: value[first : first + most] for name, value in inputs.items()},
        )
        for first in range(0, count, most)
    ]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _free_running(generator: Generator, schedule: str, rollout: Mapping[str, Array]) -> Array:
    """Final tokens from the recorded seeds and, for a fixed schedule, parameters."""
    policy = schedule if schedule in generator.bundle.manifest.model.policies else None
    parameters = None if policy else rollout["parameters"][:, 0]
    request = Request(
        condition=rollout["condition"],
        seeds=rollout["seeds"],
        steps=len(rollout["sampled"]),
        parameters=parameters,
        guided=parameters is None or bool(parameters[:, 3].any()),
        policy=policy,
    )
    try:
        return generator.run(request).tokens
    except EngineError:  # a graph gave NaN: the other figures say which; nothing agrees
        return np.full_like(rollout["sampled"][-1], -1)


def _over_steps(figure: str, steps: Sequence[float]) -> float:
    return float(np.max(steps) if figure in _LARGEST else np.mean(steps))
