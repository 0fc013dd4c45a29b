"""What the family says of itself: settings of golden rollouts and of records, checks of the
manifest, and keys.

Covered: rollouts fit whatever defaults a bundle has; complete settings make the same request again;
models that cannot be are refused; what makes another plan.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fewstep.runtime.bundle import Bundle
from fewstep.runtime.condition import ClassCondition
from fewstep.runtime.families import Model, family_of, model_of
from fewstep.runtime.families.mar.key import MarKey
from fewstep.runtime.families.mar.model import MarModel
from fewstep.runtime.families.mar.request import MarRequest
from fewstep.runtime.request import checked_request
from fewstep.runtime.settings import settings_of

FAMILY = family_of("mar")

DEFAULTS: dict[str, dict[str, Any]] = {
    "none": {},
    "a guidance an iteration": {"guidance": "1,2,3,4,5,6"},
    "a temperature an iteration": {"temperature": "1,1,1,1,1,0.5"},
    "parts": {"recompute": "1,1,1,1,0,0", "refresh": 2},
    "steps an iteration": {"diffusion_steps": "5,4,3,2,1,1"},
    "refreshes": {"refresh": 9, "refresh_first": 1},
    "one half": {"refresh": 2, "reuse_guidance": True},
    "a cap": {"max_timestep": 800},
    "no guidance": {"guidance": 1},
    "a preset": {"preset": "fast"},
}


@pytest.fixture(scope="module")
def model(mar_bundle: Path) -> Model:
    return model_of(Bundle.read(mar_bundle))


def _changed(model: Model, **fields: Any) -> Model:
    info: MarModel = model.info
    return Model(MarModel.model_validate({**info.model_dump(), **fields}), model.graphs)


def _with_defaults(model: Model, given: dict[str, Any], **fields: Any) -> Model:
    """A model with other defaults, as it is read from a manifest."""
    info: MarModel = model.info
    return _changed(model, defaults=settings_of(info.defaults, given).model_dump(), **fields)


def _request(model: Model, settings: dict[str, Any]) -> MarRequest:
    found = checked_request(model, class_ids=[1, 2], text=None, seed=0, settings=settings)
    assert isinstance(found, MarRequest)
    return found


def _assert_same(one: MarRequest, other: MarRequest) -> None:
    for name in ("counts", "spacings", "largest_timestep", "recomputed", "reuse_guidance"):
        assert getattr(one, name) == getattr(other, name)
    np.testing.assert_array_equal(one.parameters, other.parameters)


@pytest.mark.parametrize("unguided", [False, True])
@pytest.mark.parametrize("name", DEFAULTS)
def test_golden_rollouts_fit_all_defaults(model: Model, name: str, unguided: bool) -> None:
    more = {}
    if unguided:
        nothing = ClassCondition(num_classes=6, unconditional_id=None)
        more["condition"] = nothing.model_dump()
    changed = _with_defaults(model, DEFAULTS[name], **more)
    rollouts = json.loads(json.dumps(FAMILY.rollouts(changed)))
    assert rollouts.keys() == {"full", "cached"}
    full, cached = (_request(changed, rollouts[each]) for each in ("full", "cached"))
    for each in (full, cached):
        assert len(each.counts) == 8
        assert each.spacings == ("10",) * 8
        assert each.guided is (not unguided and name != "no guidance")
    assert full.recomputed == ()
    assert not full.reuse_guidance
    assert [step for step, count in enumerate(cached.recomputed) if not count] == [0, 1, 2, 5]
    assert cached.reuse_guidance is cached.guided
    assert max(cached.recomputed) <= 22


@pytest.mark.parametrize("name", DEFAULTS)
@pytest.mark.parametrize(
    "given",
    [
        {},
        {"preset": "fast"},
        {"preset": "fast", "temperature": 0.5, "guidance": "2:2"},
        {"iterations": 6, "guidance": "1,2,3,1,2,3", "refresh": 3},
        {"iterations": 1, "guidance": [3.0], "recompute": 0.5, "temperature": 1}
        | {"diffusion_steps": 3},
    ],
)
def test_complete_settings_make_the_same_request_again(
    model: Model, name: str, given: dict[str, Any]
) -> None:
    changed = _with_defaults(model, DEFAULTS[name])
    info: MarModel = changed.info
    if given.get("iterations", 6) != 6 or "preset" in given:  # lists of defaults would not fit
        given = {"guidance": 2, "temperature": 1, "recompute": 1, **given}
    complete = FAMILY.complete(changed, settings_of(info.defaults, given))
    assert "preset" not in complete
    again = _request(changed, json.loads(json.dumps(complete)))
    _assert_same(again, _request(changed, given))


def test_the_manifest_is_checked(model: Model) -> None:
    for fields, words in (
        ({"channels": 10}, "multiple of patch_size squared, got 10 and 2"),
        ({"decoder_heads": 3}, "multiple of decoder_heads, got 32 and 3"),
        ({"full_blocks": 5}, "full_blocks must be below decoder_depth, 5, got 5"),
        ({"full_blocks": -1}, "full_blocks"),
        ({"buffer_size": 0}, "buffer_size"),
        ({"latent_scale": 0}, "latent_scale"),
        ({"defaults": {"steps": 3}}, "steps"),
    ):
        with pytest.raises(ValueError, match=words):
            _changed(model, **fields)


def test_a_model_is_described(model: Model) -> None:
    found = model.info.describe()
    assert found["tokens"] == "4×4 of 12 numbers, patches of 2×2"
    assert found["transformer"] == "encoder 2 × 48, decoder 5 × 32, 6 buffer positions"
    assert (found["diffusion head"], found["latent scale"]) == ("width 24", "0.5")
    assert found["presets"] == "fast"
    plain = _changed(model, patch_size=1, channels=3, presets={}).info.describe()
    assert plain["tokens"] == "4×4 of 3 numbers"
    assert "presets" not in plain


def _key(model: Model, **settings: Any) -> MarKey:
    found = FAMILY.key(model, _request(model, settings), 2)
    assert isinstance(found, MarKey)
    return found


def test_numbers_need_no_other_plan_and_shapes_do(model: Model) -> None:
    plain = _key(model)
    for settings in ({"guidance": "3:3"}, {"temperature": 0}, {"refresh_first": 2}):
        assert _key(model, **settings) == plain
    others = [
        _key(model, **settings)
        for settings in (
            *({"guidance": 1}, {"iterations": 5}, {"diffusion_steps": 4}, {"max_timestep": 950}),
            *({"refresh": 2, "refresh_first": 1}, {"diffusion_steps": "ddim5"}),
            {"refresh": 2, "refresh_first": 1, "reuse_guidance": True},
            {"refresh": 2, "refresh_first": 1, "recompute": 1},
        )
    ]
    assert len({plain, *others}) == len(others) + 1


def test_corners_are_of_what_is_there(model: Model) -> None:
    guided = [*FAMILY.corners(model, 3)]
    assert guided[0].counts == (1, 2, 2, 3, 4, 4)  # of the defaults
    assert {each.batch for each in guided} == {3}
    assert {each.guided for each in guided} == {True, False}
    nothing = ClassCondition(num_classes=6, unconditional_id=None)
    plain = [*FAMILY.corners(_changed(model, condition=nothing.model_dump()), 3)]
    assert {each.guided for each in plain} == {False}
    assert not any(each.reuse_guidance for each in plain)
    one = [*FAMILY.corners(_changed(model, side=1, image_size=(4, 4)), 1)]
    assert {each.counts for each in one} == {(1,)}
    for key in (*guided, *plain):
        FAMILY.program(model, key)
