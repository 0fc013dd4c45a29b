"""Values for every step: as lists, as a mapping, and from files, AutoNAT's among them.

Covered: tokens are those of a plain loop that is told the same values (its formulas are written
out in ``test_decode.py``); a strategy of AutoNAT gives the parameters that its sampler would use;
lists that do not fit the steps, fields that nobody knows and settings that are given twice are
refused in a line; such settings stay hashable and go through JSON.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fewstep.runtime.errors import RequestError
from fewstep.runtime.families.masked.model import MaskedModel
from fewstep.runtime.families.masked.request import check_settings, schedule_of
from fewstep.runtime.families.masked.schedule import Schedule
from fewstep.runtime.families.masked.settings import MaskedSettings
from fewstep.runtime.generator import Generator
from fewstep.runtime.settings import PerStep, settings_of

_RATIOS = [0.9, 0.55, 0.0]
_MASKING = [2.5, 1.0, 0.0]
_SAMPLING = [1.5, 0.8, 1.0]
_GUIDANCE = [0.0, 2.0, 0.5]
_MAPPING = {
    "mask_ratio": _RATIOS,
    "masking_temperature": _MASKING,
    "sampling_temperature": _SAMPLING,
    "guidance": _GUIDANCE,
}
# In the form that AutoNAT's search writes: a list a line, the last step left out where it is 0.
_AUTONAT = """\
manual_ratios: [0.9, 0.55]
manual_temp: [2.5, 1.0]
manual_samp_temp: [1.5, 0.8, 1.0]
manual_cfg: [0.0, 2.0, 0.5]
"""
_EXPECTED = np.array([_RATIOS, _MASKING, _SAMPLING, _GUIDANCE], np.float32).T


@pytest.fixture
def model(generator: Generator) -> MaskedModel:
    found = generator.bundle.manifest.model
    assert isinstance(found, MaskedModel)
    return found


def _parameters(model: MaskedModel, given: dict[str, Any]) -> Any:
    settings = settings_of(MaskedSettings(), given)
    chosen = check_settings(model, settings)
    assert isinstance(chosen, Schedule)
    return chosen.parameters(settings.steps, model.num_tokens)


# --- the same parameters, however they are given


def _forms(folder: Path) -> dict[str, dict[str, Any]]:
    (folder / "autonat.yaml").write_text(_AUTONAT)
    (folder / "own.yml").write_text("".join(f"{k}: {v}\n" for k, v in _MAPPING.items()))
    (folder / "own.json").write_text(json.dumps(_MAPPING))
    ramps = {key: value for key, value in _MAPPING.items() if key != "mask_ratio"}
    text = {key: ",".join(map(str, value)) for key, value in ramps.items()}
    return {
        "autonat": {"schedule": str(folder / "autonat.yaml")},
        "path": {"schedule": folder / "autonat.yaml"},
        "yaml": {"schedule": str(folder / "own.yml")},
        "json": {"schedule": str(folder / "own.json"), "steps": "3"},
        "mapping": {"schedule": _MAPPING},
        "arrays": {"schedule": {key: np.array(value) for key, value in _MAPPING.items()}},
        "lists": {"schedule": _RATIOS, "steps": 3, **ramps},
        "text": {"schedule": "0.9, 0.55, 0", "steps": "3", **text},
    }


_FORMS = ("autonat", "path", "yaml", "json", "mapping", "arrays", "lists", "text")


@pytest.mark.parametrize("form", _FORMS)
def test_every_form_gives_the_parameters_of_the_steps(
    model: MaskedModel, tmp_path: Path, form: str
) -> None:
    found = _parameters(model, _forms(tmp_path)[form])
    np.testing.assert_array_equal(found, _EXPECTED)
    assert not found.flags.writeable


def test_the_strategy_that_is_published_is_read(model: MaskedModel, tmp_path: Path) -> None:
    """Eight steps, with numbers as PyYAML writes them."""
    ratios, cfg = [0.953, 0.879, 0.794, 0.745, 0.624, 0.407, 0.26], [0.0001] * 3 + [0.9] * 5
    lines = (f"manual_ratios: {ratios}", f"manual_temp: {[2.4] * 7}")
    (tmp_path / "T8.yaml").write_text(
        "\n".join(
            (*lines, "manual_samp_temp: [2.9, 1.8, 1, 1, 1, 1, 1, .71]", f"manual_cfg: {cfg}")
        )
    )
    found = _parameters(model, {"schedule": str(tmp_path / "T8.yaml")})
    np.testing.assert_array_equal(found[:, 0], np.array([*ratios, 0], np.float32))
    np.testing.assert_array_equal(found[:, 1], np.array([2.4] * 7 + [0], np.float32))
    np.testing.assert_array_equal(found[:, 2], np.array([2.9, 1.8] + [1] * 5 + [0.71], np.float32))
    np.testing.assert_array_equal(found[:, 3], np.array(cfg, np.float32))


def test_a_search_for_two_steps_writes_numbers_for_lists_of_one(model: MaskedModel) -> None:
    strategy = {
        "manual_ratios": 0.6,
        "manual_temp": 0.7,
        "manual_samp_temp": [1.0, 0.9],
        "manual_cfg": [0.1, 0.2],
    }
    found = _parameters(model, {"schedule": strategy})
    expected = [[0.6, 0.7, 1.0, 0.1], [0.0, 0.0, 0.9, 0.2]]
    np.testing.assert_array_equal(found, np.array(expected, np.float32))


def test_in_a_file_a_list_of_two_is_no_ramp(model: MaskedModel) -> None:
    found = _parameters(model, {"schedule": {"guidance": [1, 3], "sampling_temperature": "1:3"}})
    np.testing.assert_array_equal(found[:, 3], [1, 3])
    np.testing.assert_array_equal(found[:, 2], [2, 3])


def test_what_a_file_leaves_out_comes_from_elsewhere(model: MaskedModel, tmp_path: Path) -> None:
    file = tmp_path / "guidance.yaml"
    file.write_text("mask_ratio: linear\nguidance: [1, 0]\n")
    found = _parameters(model, {"schedule": file, "sampling_temperature": 0.5})
    np.testing.assert_array_equal(found, np.array([[0.5, 2.25, 0.5, 1], [0, 0, 0.5, 0]], "f4"))


def test_tokens_follow_the_values_of_every_step(generator: Generator) -> None:
    """A constant as a list is the constant, a ramp as a list the ramp, and another list is not."""
    common: dict[str, Any] = {"class_ids": [1, 2], "seed": 4, "steps": 4}
    plain = generator.generate(**common, schedule="cosine", guidance=2, sampling_temperature=1)
    ratios = [np.cos(np.pi / 2 * (t + 1) / 4) for t in range(3)]
    listed = generator.generate(
        **common,
        schedule=[*ratios, 0],
        guidance=[2, 2, 2, 2],
        masking_temperature=[4.5 * (1 - (t + 1) / 4) for t in range(4)],
    )
    np.testing.assert_array_equal(listed.tokens, plain.tokens)
    other = generator.generate(**common, schedule=[0.5, 0.4, 0.3, 0], guidance=[0, 0, 0, 5])
    assert (other.tokens != plain.tokens).any()
    np.testing.assert_array_equal(other.trace.parameters[:, 0, 3], [0, 0, 0, 5])


def test_guidance_zero_at_every_step_needs_no_second_half(model: MaskedModel) -> None:
    settings = settings_of(MaskedSettings(), {"steps": 3, "guidance": "0,0,0"})
    schedule = schedule_of(model, settings)
    assert isinstance(schedule, Schedule) and not schedule.guided


def test_settings_with_lists_are_plain_data_and_keep_every_bit() -> None:
    given = {"schedule": [1 / 3, 0.1, 0], "guidance": PerStep((0.1, 0.2, 1e-9)), "steps": 3}
    settings = settings_of(MaskedSettings(), given)
    written = json.loads(json.dumps(settings.model_dump()))
    assert settings_of(MaskedSettings(), written) == settings
    assert hash(settings) == hash(settings_of(MaskedSettings(), written))
    assert MaskedSettings.model_validate_json(settings.model_dump_json()) == settings
    assert settings.guidance == PerStep((0.1, 0.2, 1e-9))
    assert Schedule(guidance=settings.guidance).parameters(3, 64) is Schedule(
        guidance=settings.guidance
    ).parameters(3, 64)


# --- what is refused


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"schedule": [0.5, 0.2, 0]}, "one value for every step: steps 8, got schedule 3; for 3"),
        ({"guidance": "1,2", "steps": 3}, "steps 3, got guidance 2"),
        ({"schedule": [1.5, 0.5, 0], "steps": 3}, "mask ratios must be 0 … 1, got 1.5"),
        ({"schedule": "0.9,much"}, "mask ratios must be numbers, one for every step"),
        ({"schedule": "cosin"}, "Did you mean 'cosine'"),
        ({"guidance": "1,-2,3"}, "guidance must be finite and at least 0"),
        ({"guidance": "1,,3"}, "guidance must be numbers, one for every step"),
        ({"guidance": [1, "a", 3]}, "guidance must be numbers"),
        ({"schedule": {"mask_ratios": [0]}}, "unknown field 'mask_ratios'.*'mask_ratio'"),
        ({"schedule": {"guidance": [1, 2], "steps": 3}}, "got steps 3, guidance 2"),
        (
            {"schedule": {"guidance": [1, 2]}, "steps": 3},
            "the schedule is for 2 steps, got steps 3",
        ),
        ({"schedule": {"guidance": [1, 2]}, "guidance": 2}, "gives guidance already"),
        ({"schedule": {"guidance": [1, 2], "mask_ratio": [0]}}, "guidance 2, mask_ratio 1"),
        ({"schedule": {"steps": [4]}}, r"steps must be an integer, got \[4\]"),
        ({"schedule": {"steps": [4], "guidance": [1, 2]}}, "steps must be an integer"),
        ({"schedule": {"steps": 4.5}}, "the schedule: steps must be an integer, got 4.5"),
        ({"schedule": {"steps": True}}, "steps must be an integer, got True"),
        ({"schedule": {"steps": {}}}, "steps must be an integer"),
        ({"schedule": {"mask_ratio": 0.5}}, "mask_ratio must be a list with a number for every"),
        ({"schedule": {"mask_ratio": {"a": 1}}}, "mask_ratio must be a list"),
        ({"schedule": {"steps": 4, "mask_ratio": [1, 0]}}, "got steps 4, mask_ratio 2"),
        ({"schedule": {"guidance": [1, None]}}, "guidance must be numbers"),
        ({"schedule": {"manual_cfg": [1, 2]}}, "a strategy of AutoNAT has manual_ratios"),
    ],
)
def test_what_does_not_fit_is_refused_in_a_line(
    model: MaskedModel, given: dict[str, Any], message: str
) -> None:
    with pytest.raises(RequestError, match=message) as refused:
        _parameters(model, given)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.yaml", "a: [1", "is no YAML file"),
        ("a.yaml", "- 1\n- 2\n", "expected fields such as mask_ratio"),
        ("a.yaml", "", "expected fields such as"),
        ("a.json", "{", "is no JSON file"),
        ("a.yaml", "!!python/object/apply:os.getcwd []", "is no YAML file"),
        (
            "a.yaml",
            _AUTONAT.replace("[0.9, 0.55]", "[0.9]"),
            "need 2 values of manual_ratios, got 1",
        ),
        ("a.yaml", _AUTONAT.replace("1.5,", ""), "need 3 values of manual_samp_temp, got 2"),
        ("a.yaml", _AUTONAT.replace("1.5", "hot"), "manual_samp_temp must be numbers"),
        ("a.yaml", _AUTONAT + "gen_steps: 3\n", "a strategy of AutoNAT has"),
    ],
)
def test_files_that_are_no_schedule_are_named(
    tmp_path: Path, name: str, text: str, message: str
) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(RequestError, match=message) as refused:
        settings_of(MaskedSettings(), {"schedule": str(tmp_path / name)})
    assert name in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_file_that_is_not_there_or_not_text_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        RequestError, match=r"cannot read the schedule .*absent\.yaml: No such file"
    ):
        settings_of(MaskedSettings(), {"schedule": str(tmp_path / "absent.yaml")})
    (tmp_path / "picture.yaml").write_bytes(b"\x89PNG\xff\xfe")
    with pytest.raises(RequestError, match=r"picture\.yaml is no YAML file"):
        settings_of(MaskedSettings(), {"schedule": tmp_path / "picture.yaml"})


def test_a_file_is_read_again_when_it_changes(model: MaskedModel, tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    for ratio in (0.5, 0.25):
        file.write_text(json.dumps({"mask_ratio": [ratio, 0]}))
        assert _parameters(model, {"schedule": str(file)})[0, 0] == ratio


def test_policies_refuse_what_they_decide_in_a_list_too(model: MaskedModel) -> None:
    settings = settings_of(MaskedSettings(), {"schedule": "policy", "guidance": "1,2", "steps": 2})
    with pytest.raises(RequestError, match="the policy decides guidance"):
        schedule_of(model, settings)
