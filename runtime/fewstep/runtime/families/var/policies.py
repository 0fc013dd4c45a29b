"""AdaGen's policies for VAR: from a network's actions to the parameters of a scale, and back.

Formulas as in the official AdaGen repository (LeapLabTHU/AdaGen). An action of zeros follows the
schedule of the policy's recipe (:class:`~fewstep.runtime.families.var.model.VarPolicyInfo`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from fewstep.runtime.families.var.model import VarModel, VarPolicyInfo
from fewstep.runtime.families.var.settings import FIXED, SAMPLING, VarSettings
from fewstep.runtime.policies import PolicyRules, policy_schedule
from fewstep.runtime.settings import settings_of

_TOP_K_RANGE = 4096  # of the activation, whatever the codebook's size
_LEAST = 1e-6
_REACHABLE = 0.02  # a softplus or sigmoid gets no nearer to its ends within an optimizer's reach


def offsets(policy: VarPolicyInfo) -> dict[str, float]:
    """What ``kernels.sampling_parameters`` adds to a policy's actions, by argument.

    Inverse activations of the recipe: x + ln(1 − e⁻ˣ) of the softplus, ln(y / (1 − y)) of the
    sigmoid with y kept 10⁻⁶ from 0 and 1.
    """
    return {
        "guidance_offset": _inverse_softplus(policy.guidance),
        "top_k_offset": _logit(policy.top_k / _TOP_K_RANGE),
        "top_p_offset": _logit(policy.top_p),
        "temperature_offset": _inverse_softplus(policy.sampling_temperature),
    }


class VarPolicies(PolicyRules):
    """A policy sets guidance, top-k, top-p and temperature of every scale."""

    Info = VarPolicyInfo
    parameters = ("guidance scale", "top-k", "top-p", "sampling temperature")
    schedules = (FIXED,)
    schedule_settings = SAMPLING
    reserved = (*PolicyRules.reserved, FIXED)

    def steps(self, model: VarModel) -> int:
        return model.scales

    def settings(self, policy: str, steps: int) -> dict[str, Any]:
        every = {"scales": steps, "guided_scales": steps}
        return {"schedule": policy_schedule(policy), **every}

    def schedule(
        self, model: VarModel, name: str, steps: int, given: Mapping[str, Any]
    ) -> npt.NDArray[np.float32]:
        settings: VarSettings = settings_of(model.defaults, given)
        return settings.parameters(steps)

    def actions(
        self, model: VarModel, policy: str, parameters: npt.NDArray[np.float32]
    ) -> npt.NDArray[np.float32]:
        zero = offsets(model.policies[policy])
        rows = []
        for scale, (guidance, top_k, top_p, temperature) in enumerate(parameters.astype(float)):
            ramp = scale / max(1, len(parameters) - 1)
            raw = (
                # At the first scale every action gives 0.
                _inverse_softplus(max(_REACHABLE, guidance / ramp))
                if ramp
                else zero["guidance_offset"],
                _logit(_within(top_k / _TOP_K_RANGE, 1 / _TOP_K_RANGE)),
                _logit(_within(top_p, _REACHABLE)),
                _inverse_softplus(max(_REACHABLE, temperature)),
            )
            rows.append([value - offset for value, offset in zip(raw, zero.values(), strict=True)])
        return np.array(rows, np.float32)


def _within(value: float, margin: float) -> float:
    return min(1 - margin, max(margin, value))


def _inverse_softplus(value: float) -> float:
    return value + math.log(-math.expm1(-value))


def _logit(value: float) -> float:
    kept = _within(value, _LEAST)
    return math.log(kept / (1 - kept))
