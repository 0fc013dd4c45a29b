"""A curve of a tiny bundle: times, distances, and what becomes of the bundle."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.calibration.evaluation.conftest import averages, blobs
from tests.conftest import Terminal

from fewstep.calibration.evaluation.flow import evaluate
from fewstep.calibration.presets import flow
from fewstep.runtime.bundle import Bundle
from fewstep.runtime.errors import CalibrationError, RequestError
from fewstep.runtime.families import family_of, model_of
from fewstep.runtime.generator import Generator


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """12 averages in the place of EfficientNet's features."""
    averages(monkeypatch, flow)


@pytest.fixture
def real(tmp_path: Path) -> Path:
    place = tmp_path / "real.npz"
    np.savez(place, arr_0=blobs(40, seed=3, side=8))
    return place


def _request(bundle: Path, real: Path, **more: Any) -> flow.PresetsRequest:
    options: dict[str, Any] = {"images": 20, "seconds": 0.01, "threads": 1, **more}
    return flow.PresetsRequest(bundle, real, **options)


_CANDIDATES = ({"steps": 1}, {"steps": 4, "guidance": 0}, {"steps": 3, "schedule": "policy"})


def test_points_are_images_of_their_settings(bundle_copy: Path, real: Path, tmp_path: Path) -> None:
    outcome = flow.calibrate_presets(_request(bundle_copy, real, candidates=_CANDIDATES, seed=7))
    assert len(outcome.curve.points) == 3
    classes = [image % 5 for image in range(20)]
    with Generator.open(bundle_copy, threads=1) as generator:
        for point in outcome.curve.points:
            images = generator.generate(class_ids=classes, seed=7, **point.settings).images
            np.savez(tmp_path / "made.npz", arr_0=images)
            found = evaluate(tmp_path / "made.npz", real).metrics["efficientnet_frechet_distance"]
            assert point.frechet_distance == pytest.approx(found, rel=1e-6)
            assert point.image_ms > 0
    assert any("busy" in each for each in outcome.warnings) == (
        (outcome.curve.others_load or 0) > 0.15
    )


def test_presets_are_in_the_bundle_and_make_the_same_images(bundle_copy: Path, real: Path) -> None:
    before = Bundle.read(bundle_copy)
    curve = flow.calibrate_presets(_request(bundle_copy, real, candidates=_CANDIDATES)).curve
    now = Bundle.read(bundle_copy)
    assert now.manifest.curve == curve
    presets = {name: each for each in curve.points for name in each.presets}
    assert presets.keys() == {"fast", "balanced", "best"}
    assert now.manifest.model.model_dump()["presets"] == {
        name: each.settings for name, each in presets.items()
    }
    changed = {"curve", "model"}
    fields, old = now.manifest.model_dump(), before.manifest.model_dump()
    assert {name: fields[name] for name in fields.keys() - changed} == {
        name: old[name] for name in old.keys() - changed
    }
    with Generator.open(bundle_copy, threads=1) as generator:
        for name, each in presets.items():
            one = generator.generate(class_ids=[2], preset=name)
            other = generator.generate(class_ids=[2], **each.settings)
            np.testing.assert_array_equal(one.images, other.images)


@pytest.mark.parametrize("bundle", ["tiny_bundle", "var_bundle", "mar_bundle"])
def test_families_suggest_settings_that_their_models_serve(
    bundle: str, request: pytest.FixtureRequest
) -> None:
    model = model_of(Bundle.read(request.getfixturevalue(bundle)))
    found = flow._candidates(model, ())
    assert len(found) > 2
    assert [*found][0] == "the defaults"
    assert len(family_of(model.info.kind).candidates(model)) >= len(found)


def test_a_model_of_any_family_gets_presets(var_bundle: Path, tmp_path: Path, real: Path) -> None:
    bundle = Path(shutil.copytree(var_bundle, tmp_path / "var"))
    given: tuple[dict[str, Any], ...] = ({"guided_scales": 2}, {"schedule": "policy"})
    flow.calibrate_presets(_request(bundle, real, candidates=given))
    with Generator.open(bundle, threads=1) as generator:
        for name in ("fast", "balanced", "best"):
            assert generator.generate(class_ids=[1], preset=name).images.shape == (1, 8, 8, 3)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"images": 1}, "--images must be at least 2, got 1"),
        ({"seed": -1}, "--seed must be 0"),
        ({"seed": 2**64 - 19}, "so that all fit"),
        ({"within": (0.1, 0.2)}, "--within takes two parts"),
        ({"within": (float("nan"), 0.0)}, "--within takes two parts"),
        ({"candidates": ({"stepz": 3},)}, "steps"),
        ({"candidates": ({"steps": 99},)}, "steps must be 1 … 16"),
        ({"text": np.zeros((1, 3, 12), np.float32)}, "class-conditional"),
    ],
)
def test_what_cannot_be_measured_is_told_before_the_work(
    tiny_bundle: Path, real: Path, more: dict[str, Any], message: str
) -> None:
    before = (tiny_bundle / "bundle.json").read_bytes()
    with pytest.raises(RequestError, match=message):
        flow.calibrate_presets(_request(tiny_bundle, real, **more))
    assert (tiny_bundle / "bundle.json").read_bytes() == before


def test_texts_have_to_be_given_and_are_taken_in_turn(
    tiny_text_bundle: Path, tmp_path: Path, real: Path
) -> None:
    bundle = Path(shutil.copytree(tiny_text_bundle, tmp_path / "text"))
    with pytest.raises(RequestError, match="--text-file"):
        flow.calibrate_presets(_request(bundle, real))
    text = np.random.default_rng(0).standard_normal((3, 3, 12), np.float32)
    given = ({"steps": 1}, {"steps": 2})
    points = flow.calibrate_presets(
        _request(bundle, real, candidates=given, text=text)
    ).curve.points
    assert {each.settings["steps"] for each in points} == {1, 2}


def test_a_failure_leaves_the_bundle_as_it_was(
    bundle_copy: Path, real: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = (bundle_copy / "bundle.json").read_bytes()

    def broken(*_: Any) -> Any:
        raise CalibrationError("no features")

    monkeypatch.setattr(Generator, "run", broken)
    with pytest.raises(CalibrationError, match="no features"):
        flow.calibrate_presets(_request(bundle_copy, real, candidates=_CANDIDATES))
    assert (bundle_copy / "bundle.json").read_bytes() == before


def test_the_command(fewstep: Terminal, bundle_copy: Path, real: Path) -> None:
    options = ("--reference", real, "--images", 6, "--seconds", 0.01, "--threads", 1)
    done = fewstep("calibrate", "presets", bundle_copy, *options, "--steps", 1, "--steps", 2)
    assert done.code == 0, done.err
    assert "Fréchet distance" in done.out
    assert "--preset" in done.out + done.err
    shown = fewstep("inspect", bundle_copy)
    assert all(name in shown.out for name in ("fast", "balanced", "best"))
    again = fewstep("calibrate", "presets", bundle_copy, *options, "--steps", 1, "--json")
    assert len(json.loads(again.out)["points"]) == 1
    assert fewstep("calibrate", "presets", bundle_copy, "--reference", "nothing").code == 1


def test_a_family_without_presets_is_refused(toy_copy: Path, real: Path) -> None:
    with pytest.raises(RequestError, match="toy models have no presets"):
        flow.calibrate_presets(_request(toy_copy, real))
