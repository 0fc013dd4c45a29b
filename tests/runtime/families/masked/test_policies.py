"""What tuning asks of masked models: settings that follow a policy, schedules, and actions undone.

Reference for actions: the kernel that turns them into parameters.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from fewstep.runtime.errors import RequestError
from fewstep.runtime.examples import example_request
from fewstep.runtime.families.masked.model import MaskedModel, MaskedPolicyInfo
from fewstep.runtime.families.masked.policies import MaskedPolicies
from fewstep.runtime.families.masked.schedule import Schedule
from fewstep.runtime.families.masked.settings import MaskedSettings
from fewstep.runtime.generator import Generator
from fewstep.runtime.kernels.policy_parameters import policy_parameters
from fewstep.runtime.settings import PerStep, settings_of

_RULES = MaskedPolicies()


@pytest.fixture
def model(generator: Generator) -> MaskedModel:
    """With residuals in its policy, and a newer one without."""
    info = generator.model.info
    assert isinstance(info, MaskedModel)
    newer = {"policy-plain": MaskedPolicyInfo(residual=False)}
    return info.model_copy(update={"policies": {**info.policies, **newer}})


def _with(model: MaskedModel, **defaults: Any) -> MaskedModel:
    return model.model_copy(update={"defaults": settings_of(MaskedSettings(), defaults)})


@pytest.mark.parametrize("policy", ["policy", "policy-plain"])
def test_actions_of_a_schedule_give_its_parameters(model: MaskedModel, policy: str) -> None:
    wanted = _RULES.schedule(model, "square", 5, {"guidance": "0:2", "sampling_temperature": 0.7})
    actions = _RULES.actions(model, policy, wanted)
    found, error = np.empty((5, 1, 4), np.float32), np.zeros(1, np.int32)
    for step in range(5):
        policy_parameters(
            action=actions[step][None],
            **MaskedPolicyInfo(residual=policy == "policy").offsets(step, 5),
            parameters=found[step],
            error=error,
        )
    reachable = np.maximum(wanted, 0.02)
    reachable[:, 0] = np.minimum(reachable[:, 0], 0.98)
    np.testing.assert_allclose(found[:, 0], reachable, rtol=1e-4)


def test_a_schedule_is_that_of_a_request(model: MaskedModel) -> None:
    given = {"guidance": (0, 2), "masking_temperature": "3,1,0.5"}
    found = _RULES.schedule(model, "arccos", 3, given)
    expected = np.array(
        [[0.78365, 3, 1, 2 / 3], [0.53547, 1, 1, 4 / 3], [0, 0.5, 1, 2]], np.float32
    )
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)
    with pytest.raises(RequestError, match="lists need one value for every step: steps 4"):
        _RULES.schedule(model, "arccos", 4, given)


@pytest.mark.parametrize("policy", ["policy", "policy-plain"])
def test_settings_follow_a_policy_whatever_others_there_are(
    generator: Generator, model: MaskedModel, policy: str
) -> None:
    several = replace(generator.model, info=model)
    settings = settings_of(model.defaults, _RULES.settings(policy, 3))
    request = example_request(several, settings)
    assert (request.policy, request.steps) == (policy, 3)


@pytest.mark.parametrize(
    ("defaults", "steps", "expected"),
    [
        ({"schedule": "square", "guidance": 1}, 4, Schedule("square", (1, 1))),
        ({"schedule": "policy", "guidance": 1}, 4, Schedule("cosine", (1, 1))),
        ({"guidance": "0,1,2", "steps": 3}, 3, Schedule(guidance=PerStep((0, 1, 2)))),
        ({"guidance": "0,1,2", "steps": 3}, 4, Schedule()),
    ],
)
def test_the_hand_made_schedule_is_the_bundles_or_a_cosine(
    model: MaskedModel, defaults: dict[str, Any], steps: int, expected: Schedule
) -> None:
    found = _RULES.hand_made(_with(model, **defaults), steps)
    np.testing.assert_array_equal(found, expected.parameters(steps, model.num_tokens))
