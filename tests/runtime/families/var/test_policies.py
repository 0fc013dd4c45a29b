"""AdaGen's policies for VAR: recipe, actions and parameters."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from fewstep.runtime.bundle import Bundle
from fewstep.runtime.families import family_of, model_of
from fewstep.runtime.families.var.model import VarModel, VarPolicyInfo
from fewstep.runtime.families.var.policies import VarPolicies, offsets
from fewstep.runtime.families.var.settings import VarSettings
from fewstep.runtime.generator import Generator
from fewstep.runtime.kernels.cpu import KERNELS
from fewstep.runtime.settings import settings_of

Floats = npt.NDArray[np.float32]
RECIPE = VarPolicyInfo(guidance=2.0, top_k=900, top_p=0.96, sampling_temperature=1.0)


def _parameters(action: Floats, info: VarPolicyInfo, scale: float) -> Floats:
    found, error = np.zeros((1, 4), np.float32), np.zeros(1, np.int32)
    KERNELS["sampling_parameters"](
        action=action[None],
        **offsets(info),
        guidance_scale=scale,
        parameters=found,
        error=error,
    )
    assert not error[0]
    parameters: Floats = found[0]
    return parameters


def test_an_action_of_zeros_follows_the_recipe() -> None:
    found = _parameters(np.zeros(4, np.float32), RECIPE, 0.5)
    np.testing.assert_allclose(found, [1.0, 900.0, 0.96, 1.0], rtol=1e-6)
    assert found[1] == 900  # it is truncated later


def test_actions_of_a_schedule_give_the_schedule(var_bundle: Path) -> None:
    model, rules = Bundle.read(var_bundle).manifest.model, VarPolicies()
    assert isinstance(model, VarModel)
    given = {"guidance": 3, "top_k": 30, "top_p": 0.8, "sampling_temperature": 0.7}
    wanted = settings_of(VarSettings(), given).parameters(4)
    actions = rules.actions(model, "policy", wanted)
    for scale, action in enumerate(actions):
        found = _parameters(action, model.policies["policy"], scale / 3)
        np.testing.assert_allclose(found, wanted[scale], rtol=1e-5)


def test_a_policy_sets_every_scale_of_every_image(var_bundle: Path) -> None:
    with Generator.open(var_bundle, threads=1) as generator:
        made = generator.generate(class_ids=[0, 1], schedule="policy")
        plain = generator.generate(class_ids=[0, 1])
    parameters = made.trace.parameters
    assert parameters.shape == (4, 2, 4)
    assert (parameters[0, :, 0] == 0).all()  # guidance begins at 0
    assert not np.array_equal(parameters[1, 0], parameters[1, 1])
    assert not np.array_equal(parameters[1], parameters[2])
    np.testing.assert_allclose(plain.trace.parameters[:, 0, 1], 20)


def test_a_record_names_the_policy_that_ran_and_all_scales(var_bundle: Path) -> None:
    """Whatever policies and defaults there will be."""
    model = model_of(Bundle.read(var_bundle))
    family = family_of("var")
    for schedule in ("policy", "policy-exported"):
        settings = settings_of(model.info.defaults, {"schedule": schedule})
        assert family.complete(model, settings) == {
            "schedule": "policy-exported",
            **{"scales": 4, "guided_scales": 4, "reuse_first": False, "decoder": "full"},
        }
    fixed = family.complete(model, settings_of(model.info.defaults, {"scales": 3}))
    assert (fixed["scales"], fixed["guided_scales"], fixed["schedule"]) == (3, 4, "fixed")
