"""Policies of masked models: AdaNAT's, which set mask ratio, temperatures and guidance."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from fewstep.runtime.errors import RequestError
from fewstep.runtime.families.masked.model import MaskedModel, MaskedPolicyInfo
from fewstep.runtime.families.masked.request import schedule_of
from fewstep.runtime.families.masked.schedule import MASK_RATIOS, Schedule
from fewstep.runtime.families.masked.settings import RAMPS
from fewstep.runtime.policies import PolicyRules, policy_schedule
from fewstep.runtime.settings import settings_of

_LEAST = 0.02  # a softplus gets no nearer to 0 within reach of an optimizer


class MaskedPolicies(PolicyRules):
    """AdaNAT's policies."""

    Info = MaskedPolicyInfo
    parameters = ("mask ratio", "masking temperature", "sampling temperature", "guidance scale")
    schedules = tuple(MASK_RATIOS)
    schedule_settings = RAMPS

    def settings(self, policy: str, steps: int) -> dict[str, Any]:
        return {"schedule": policy_schedule(policy), "steps": steps}

    def schedule(
        self, model: MaskedModel, name: str, steps: int, given: Mapping[str, Any]
    ) -> npt.NDArray[np.float32]:
        chosen = settings_of(model.defaults, {**given, "schedule": name, "steps": steps})
        found = schedule_of(model, chosen)
        assert isinstance(found, Schedule)
        return found.parameters(steps, model.num_tokens)

    def actions(
        self, model: MaskedModel, policy: str, parameters: npt.NDArray[np.float32]
    ) -> npt.NDArray[np.float32]:
        """``kernels.policy_parameters`` undone.

        Mask ratios are kept between 0.02 and 0.98, the others at 0.02 or above.
        """
        info, rows, before = model.policies[policy], [], np.zeros(4)
        for step, (ratio, *others) in enumerate(parameters.astype(float)):
            offsets = info.offsets(step, len(parameters)).values()
            ratio = min(1 - _LEAST, max(_LEAST, ratio))
            raw = [math.log(ratio / (1 - ratio))]
            raw += [math.log(math.expm1(max(_LEAST, each))) for each in others]
            smoothed = np.array(raw) - np.array([*offsets])
            share = info.smoothing if step else 0.0
            rows.append((smoothed - share * before) / (1 - share))
            before = smoothed
        return np.array(rows, np.float32)

    def hand_made(self, model: MaskedModel, steps: int) -> npt.NDArray[np.float32]:
        """The bundle's default schedule; the cosine under its settings if that is a policy, and
        under fewstep's own if they are lists for another number of steps."""
        own = model.defaults.schedule
        name = own if own in MASK_RATIOS else self.schedules[0]
        try:
            return self.schedule(model, name, steps, {})
        except RequestError:
            return Schedule(rules=model.rules).parameters(steps, model.num_tokens)
