"""The official policy code's own numbers, without a model: residuals, and actions to parameters.

The recording has raw actions of 8 steps and what the authors' code makes of them, with and
without the heuristic residual, and the residuals themselves.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import nn

from fewstep.runtime.families.masked.model import MaskedPolicyInfo
from fewstep.runtime.kernels.policy_parameters import policy_parameters

Array = npt.NDArray[Any]
Recorded = Callable[[str], dict[str, Array]]

OFFICIAL = {
    "ratio_offset": "manual_gen_ratios",
    "masking_offset": "manual_temp",
    "sampling_offset": "manual_samp_temp",
    "guidance_offset": "manual_cfg",
}
"""The kernel's offsets and their official names, in the order of the actions."""


def _parameters(action: Array, step: int, steps: int, *, residual: bool) -> Array:
    found, error = np.full(action.shape, -1, np.float32), np.zeros(1, np.int32)
    offsets = MaskedPolicyInfo(residual=residual).offsets(step, steps)
    policy_parameters(action=action, **offsets, parameters=found, error=error)
    assert error[0] == 0
    return found


@pytest.mark.parametrize("residual", [False, True])
def test_any_action_becomes_the_official_parameters(residual: bool, recorded: Recorded) -> None:
    data = recorded("adanat_policy")
    actions = data["in/actions_for_bias"]
    for step, action in enumerate(actions):
        found = _parameters(action, step, len(actions), residual=residual)
        names = OFFICIAL.values()
        expected = [data[f"out/bias_heu{int(residual)}/{name}"][step] for name in names]
        np.testing.assert_allclose(found, np.stack(expected, -1), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("offset", OFFICIAL)
def test_the_offsets_are_the_official_residuals(offset: str, recorded: Recorded) -> None:
    expected = recorded("adanat_policy")[f"out/residual/{OFFICIAL[offset]}"]
    found = [MaskedPolicyInfo(residual=True).offsets(step, 8)[offset] for step in range(8)]
    # The official ones are computed in float32, which cancels where 1 − cos is small.
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_no_action_follows_the_official_residuals(recorded: Recorded) -> None:
    data = recorded("adanat_policy")
    residuals = np.stack([data[f"out/residual/{name}"] for name in OFFICIAL.values()], -1)
    raw = torch.from_numpy(residuals)
    expected = torch.cat([raw[:, :1].sigmoid(), nn.functional.softplus(raw[:, 1:])], 1)
    nothing = np.zeros((1, 4), np.float32)
    found = [_parameters(nothing, step, 8, residual=True) for step in range(8)]
    # The official residuals are computed in float32, which cancels where 1 − cos is small.
    np.testing.assert_allclose(np.concatenate(found), expected, rtol=1e-3, atol=1e-6)
