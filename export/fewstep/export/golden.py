"""Golden rollouts: whole generations recorded with PyTorch, replayed later to verify an engine.

For the bundle's default schedule, and for the policy if there is one, a few images are generated
by the runtime's own loop with PyTorch behind the engine protocol. The file keeps what a replay
needs: seeds, conditions, the parameters and tokens of every step, logits at a few positions, the
policy's raw actions and the decoder's image.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from fewstep.export.torch_engine import TorchEngine
from fewstep.runtime.bundle import Bundle
from fewstep.runtime.devices import Array
from fewstep.runtime.devices.cpu import CpuDevice
from fewstep.runtime.engines import run_once
from fewstep.runtime.generator import Generator
from fewstep.runtime.manifest import ClassCondition
from fewstep.runtime.request import RAMPS, schedule_of
from fewstep.runtime.schedule import policy_schedule
from fewstep.runtime.verify import teacher_forced

GOLDEN_FILE = "golden.npz"
_IMAGES = 2
_STEPS = 4  # mask ratios from all to few, in half the time of the usual eight
_POSITIONS = 8
_SEED = 20_220


def record(bundle: Bundle, engines: Mapping[str, TorchEngine]) -> None:
    """Record the golden rollouts of a bundle into its folder."""
    model = bundle.manifest.model
    steps = min(_STEPS, model.num_tokens)
    chosen = schedule_of(model, None, dict.fromkeys(RAMPS), steps)
    default = chosen if isinstance(chosen, str) else model.defaults.schedule
    schedules = dict.fromkeys((default, *model.policies))
    arrays: dict[str, Array] = {}
    with Generator(bundle, CpuDevice(), engines, max_batch=_IMAGES) as generator:
        for schedule in schedules:
            rollout = record_rollout(generator, schedule)
            arrays |= {f"{schedule}/{name}": value for name, value in rollout.items()}
    np.savez_compressed(bundle.path / GOLDEN_FILE, **arrays)  # type: ignore[arg-type]


def record_rollout(generator: Generator, schedule: str) -> dict[str, Array]:
    """What a replay of one schedule or policy needs, by name."""
    model = generator.bundle.manifest.model
    rng = np.random.default_rng(_SEED)
    steps = min(_STEPS, model.num_tokens)
    named = policy_schedule(schedule)
    request: dict[str, Any] = {"schedule": named, "seed": _SEED, "steps": steps}
    condition: Array
    if isinstance(model.condition, ClassCondition):
        count = model.condition.num_classes
        condition = np.linspace(0, count - 1, _IMAGES).astype(np.int32)
        request["class_ids"] = condition.tolist()
    else:
        shape = (_IMAGES, model.condition.length, model.condition.width)
        condition = rng.standard_normal(shape, np.float32)
        request["text"] = condition
    result = generator.generate(**request)
    positions = np.sort(rng.choice(model.num_tokens, min(_POSITIONS, model.num_tokens), False))
    rollout = {
        "condition": condition,
        "seeds": result.seeds,
        "parameters": result.trace.parameters,
        "tokens": result.trace.tokens,
        "sampled": result.trace.sampled,
        "positions": positions,
    }
    decoder = generator.engines["decoder"]
    policy = schedule if schedule in model.policies else None
    rollout["logits"], actions = teacher_forced(generator, rollout, policy=policy)
    rollout["image"] = run_once(generator.device, decoder, {"tokens": result.tokens})["image"]
    return rollout | ({"actions": actions} if policy else {})
