"""What replays of masked forms share: a recorded generation of images of classes or texts.

Every generation is replayed twice: with the tokens of every step forced to the recorded ones, so
that each step is judged by itself, and free.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from tests.officials.comparison import Comparison
from tests.officials.replay import Arguments, Sampler, replay

from fewstep.runtime.generator import Generator
from fewstep.runtime.settings import settings_of

Array = npt.NDArray[Any]


def log_softmax(logits: Array) -> Array:
    """Along the last axis, in float64."""
    wide = logits.astype(np.float64)
    shifted = wide - wide.max(-1, keepdims=True)
    found: Array = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return found


def guided(of: Arguments, column: int) -> Array:
    """Logits ``[B, N, V]`` after guidance, whose scale is in a column of the parameters."""
    conditional, scale = of["conditional"].astype(np.float64), of["parameters"][:, column]
    found: Array = conditional + scale[:, None, None] * (conditional - of["unconditional"])
    return found


@dataclass(frozen=True)
class Rollout:
    """One recorded generation of T steps, B images, N tokens.

    ``tokens [T + 1, B, N]``: ids before every step and after the last, ``sampled [T, B, N]`` what
    each step drew, and ``drawn [T, B, N]`` where that counts. ``condition``: class ids ``[B]`` or
    text states ``[B, L, D]``. ``samplers``: by the kernel that
    draws, what writes the tokens of recorded noise. ``changed``: inputs in the place of the
    family's. ``given``: of :meth:`fewstep.runtime.families.Family.request`.
    """

    settings: Mapping[str, Any]
    condition: Array
    tokens: Array
    sampled: Array
    drawn: Array
    samplers: Mapping[str, Sampler]
    changed: Mapping[str, Array]
    given: Mapping[str, Array] | None = None


def compare(
    found: Comparison,
    generator: Generator,
    rollout: Rollout,
    first_logits: Array | None = None,
) -> None:
    """Replay a generation, step by step.

    Args:
        found: gets the comparisons.
        generator: of the bundle.
        rollout: what was recorded.
        first_logits: recorded ones of the first step, ``[2·B or B, N, V]``.
    """
    family, model = generator.family, generator.model
    settings = settings_of(model.info.defaults, rollout.settings)
    steps, batch = rollout.sampled.shape[:2]
    seeds = np.arange(batch, dtype=np.uint64)
    dtype = np.float32 if rollout.condition.ndim > 1 else np.int32
    condition = rollout.condition.astype(dtype)
    request = family.request(model, condition, seeds, settings, rollout.given)
    program = family.program(model, family.key(model, request, batch, constants=False))
    inputs = {**family.inputs(model, request, slice(0, batch)), **rollout.changed}
    decisions = {"tokens": rollout.tokens, "sampled": rollout.sampled}
    forced = replay(generator, program, inputs, rollout.samplers, decisions)
    if first_logits is not None:
        found.floats("logits", forced.runs["transformer"][0].outputs["logits"], first_logits)
    kernel = next(iter(rollout.samplers))
    for free in (False, True):
        launches = replay(generator, program, inputs, rollout.samplers) if free else forced
        kind = " of a free run" if free else ""
        for step, launch in enumerate(launches.launches[kernel]):
            drawn, at = rollout.drawn[step], f"step {step}"
            own = launch["sampled" if kernel == "sample_tokens" else "tokens"]
            wanted = np.where(drawn, rollout.sampled[step], 0)
            found.ids(f"ids{kind}", np.where(drawn, own, 0), wanted, at)
        for step, launch in enumerate(launches.launches["remask"][: steps - 1]):
            after = launch["next_tokens"][:batch] == model.info.mask_token
            recorded = rollout.tokens[step + 1] == model.info.mask_token
            found.ids(f"masks{kind}", after, recorded, f"step {step}")
