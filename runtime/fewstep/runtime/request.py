"""What the caller asks for, checked against the bundle before anything runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real

import numpy as np
import numpy.typing as npt

from fewstep.runtime.devices import Array
from fewstep.runtime.errors import RequestError, choose
from fewstep.runtime.manifest import ClassCondition, MaskedModel, TextCondition
from fewstep.runtime.schedule import EXPORTED_POLICY, MASK_RATIOS, POLICY, Ramp, Schedule

RAMPS = ("guidance", "sampling_temperature", "masking_temperature")
"""What a fixed schedule ramps, and a policy decides by itself."""

_MAX_SEED = 2**64 - 1


@dataclass(frozen=True)
class Request:
    """A checked request for B images.

    ``condition``: class ids ``[B]`` int32 or text states ``[B, L, D]`` float32. ``seeds [B]``
    uint64. ``parameters [T, 4]`` float32 of a fixed schedule, or ``None`` with the name of the
    ``policy`` to follow. ``guided``: whether any step needs the unconditional half.
    """

    condition: Array
    seeds: npt.NDArray[np.uint64]
    steps: int
    parameters: npt.NDArray[np.float32] | None
    guided: bool
    policy: str | None = None


def class_condition(info: ClassCondition, class_ids: Sequence[int]) -> Array:
    """Class ids as ``[B]`` int32.

    Raises:
        RequestError: empty, not integers, or out of range.
    """
    ids = np.atleast_1d(np.asarray(class_ids))
    if ids.size == 0 or ids.ndim != 1 or ids.dtype.kind not in "iu":
        raise RequestError(f"class_ids must be a list of integers, got {class_ids!r}")
    if wrong := sorted({int(i) for i in ids if not 0 <= i < info.num_classes}):
        offenders = ", ".join(map(str, wrong))
        raise RequestError(f"class ids must be 0 … {info.num_classes - 1}, got {offenders}")
    return ids.astype(np.int32)


def text_condition(info: TextCondition, text: Array) -> Array:
    """Text states as ``[B, L, D]`` float32.

    Raises:
        RequestError: another shape, or numbers that are not finite.
    """
    states = np.asarray(text)
    if states.ndim != 3 or states.shape[1:] != (info.length, info.width) or not len(states):
        raise RequestError(
            f"text must have shape [B, {info.length}, {info.width}], got {list(states.shape)}"
        )
    if states.dtype.kind != "f" or not np.isfinite(states).all():
        raise RequestError(f"text must hold finite floats, got {states.dtype}")
    return states.astype(np.float32)


def condition_of(model: MaskedModel, class_ids: Sequence[int] | None, text: Array | None) -> Array:
    """The condition in the bundle's own kind.

    Raises:
        RequestError: the other kind was given, or none, or a bad value.
    """
    if isinstance(model.condition, ClassCondition):
        if text is not None or class_ids is None:
            raise RequestError("this bundle is class-conditional: give class_ids, not text")
        return class_condition(model.condition, class_ids)
    if class_ids is not None or text is None:
        raise RequestError("this bundle is text-conditional: give text states, not class_ids")
    return text_condition(model.condition, text)


def seeds_of(seed: int | Sequence[int], count: int) -> npt.NDArray[np.uint64]:
    """One seed per image: ``seed + i``, or those given.

    Raises:
        RequestError: not integers, a wrong number of seeds, or one outside 0 … 2⁶⁴ − 1.
    """
    single = not isinstance(seed, (Sequence, np.ndarray))
    given: list[object] = [seed] if single else list(seed)  # type: ignore[arg-type]
    if wrong_kind := [value for value in given if not isinstance(value, (int, np.integer))]:
        raise RequestError(f"seeds must be integers, got {wrong_kind[0]!r}")
    seeds = [int(value) for value in given]  # type: ignore[call-overload]
    if single:
        seeds = [seeds[0] + i for i in range(count)]
    if len(seeds) != count:
        raise RequestError(f"expected {count} seeds, one per image, got {len(seeds)}")
    if wrong := [value for value in seeds if not 0 <= value <= _MAX_SEED]:
        raise RequestError(f"seeds must be 0 … 2^64 − 1, got {wrong[0]}")
    return np.array(seeds, np.uint64)


def steps_of(model: MaskedModel, steps: int | None) -> int:
    """The number of steps.

    Raises:
        RequestError: outside 1 … number of tokens.
    """
    steps = model.defaults.steps if steps is None else steps
    if not isinstance(steps, Integral):
        raise RequestError(f"steps must be an integer, got {steps!r}")
    if not 1 <= steps <= model.num_tokens:
        raise RequestError(
            f"steps must be 1 … {model.num_tokens} (the number of tokens), got {steps}"
        )
    return int(steps)


def schedule_of(
    model: MaskedModel, name: str | None, ramps: Mapping[str, float | Ramp | None], steps: int
) -> Schedule | str:
    """The fixed schedule, or the name of the policy network to follow.

    ``policy`` is the newest that was tuned for this number of steps, else the newest for any
    number; ``policy-exported`` is the one whose graph has the name ``policy``.

    Raises:
        RequestError: unknown name, no policy in the bundle, or a ramp beside the policy.
    """
    name = model.defaults.schedule if name is None else name
    if name in (POLICY, EXPORTED_POLICY) or name in model.policies:
        policy = _policy(model, name, steps)
        if policy is None:
            known = ", ".join(MASK_RATIOS)
            raise RequestError(f"this bundle has no policy network; use a schedule: {known}")
        if extra := [key for key, value in ramps.items() if value is not None]:
            raise RequestError(f"the policy decides {', '.join(extra)}: leave it out")
        return policy
    if name not in MASK_RATIOS:
        raise RequestError(choose("schedule", name, [*MASK_RATIOS, POLICY, *model.policies]))
    complete = {
        key: getattr(model.defaults, key) if value is None else _ramp(key, value)
        for key, value in ramps.items()
    }
    return Schedule(name, **complete)


def _policy(model: MaskedModel, name: str, steps: int) -> str | None:
    if name == POLICY:
        return model.policy_for(steps)
    graph = POLICY if name == EXPORTED_POLICY else name
    return graph if graph in model.policies else None


def require_unconditional(model: MaskedModel, guided: bool) -> None:
    """Check that a guided request can be served.

    Raises:
        RequestError: guidance in a bundle without the text states of the empty text.
    """
    condition = model.condition
    if guided and isinstance(condition, TextCondition) and condition.unconditional_file is None:
        raise RequestError("this bundle has no unconditional text: use guidance 0")


def _ramp(name: str, value: float | Ramp) -> Ramp:
    if isinstance(value, Real):
        return float(value), float(value)
    if (
        not isinstance(value, Sequence)
        or len(value) != 2
        or not all(isinstance(end, Real) for end in value)
    ):
        raise RequestError(f"{name} must be a number or a pair (start, end), got {value!r}")
    return float(value[0]), float(value[1])
