"""The discriminator as a graph: the scores that the reward saw, in the bundle and in a tuning."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.calibration.policy.stand_ins import SmallNetwork, random_images, real_images
from tests.masked import masked_model

from fewstep.build.variants import add_variant
from fewstep.calibration.policy import judge as judging
from fewstep.calibration.policy.data import RealImages
from fewstep.calibration.policy.judge import ExportedJudge, export_judge
from fewstep.calibration.policy.options import PolicyOptions
from fewstep.calibration.policy.rewards import Adversarial
from fewstep.calibration.policy.training import Training
from fewstep.calibration.policy.tune import tune
from fewstep.runtime.bundle import Bundle
from fewstep.runtime.devices.cpu import CpuDevice
from fewstep.runtime.engines import run_once
from fewstep.runtime.engines.onnxruntime import OnnxRuntimeEngine
from fewstep.runtime.errors import CalibrationError, ExportError
from fewstep.runtime.families.masked.model import MaskedModel
from fewstep.runtime.generator import Generator
from fewstep.runtime.verify import verify

_CPU = torch.device("cpu")
_NETWORK = SmallNetwork()


def _trained(real: RealImages, model: MaskedModel) -> Adversarial:
    """A discriminator that has learnt from 40 images which are too bright."""
    reward = Adversarial(real, _NETWORK, model, _CPU, learning_rate=2e-3, epochs=3, seed=0)
    for update in range(2):
        made = (real.images[:40].astype(int) + 40).clip(0, 255).astype(np.uint8)
        features = _NETWORK.features(made, _CPU)
        reward.learn(features, real.condition[:40], np.random.default_rng(update))
    return reward


def _exported(reward: Adversarial, real: RealImages) -> ExportedJudge:
    described = {"policy": "policy-3-steps", "features": "small"}
    return export_judge(reward.judge(_NETWORK), real, **described, updates=2)


def _scores(made: ExportedJudge, folder: Path, pixels: np.ndarray, of: np.ndarray) -> np.ndarray:
    path = folder / made.info.graph.file
    path.write_bytes(made.content)
    engine = OnnxRuntimeEngine("judge", path, made.info.graph, threads=1)
    return run_once(CpuDevice(), engine, {"pixels": pixels, "condition": of})["score"]


def _enlarged(real: RealImages) -> RealImages:
    """Of 16×16 pixels, which the network takes as 8×8, antialiased."""
    images = np.random.default_rng(1).integers(0, 256, (len(real.images), 16, 16, 3))
    return RealImages(images.astype(np.uint8), real.condition, sha256=real.sha256)


@pytest.mark.parametrize("larger", [False, True], ids=["its size", "larger"])
def test_scores_are_the_logits_behind_the_reward(
    larger: bool, model: MaskedModel, tmp_path: Path
) -> None:
    real = _enlarged(real_images(100)) if larger else real_images(100)
    reward = _trained(real, model)
    made = _exported(reward, real)
    pixels, labels = (random_images(9, seed=5)[0], real.condition[:9])
    if larger:
        pixels = pixels.repeat(2, 1).repeat(2, 2)
    expected = torch.logit(reward.score(_NETWORK.features(pixels, _CPU), labels)).numpy()
    found = _scores(made, tmp_path, pixels, labels)
    assert np.ptp(expected) > 0.01
    np.testing.assert_allclose(found, expected, atol=2e-4)
    assert {each.split(":")[0] for each in _operators(made)} <= {""}  # standard ones alone


def _operators(made: ExportedJudge) -> set[str]:
    import onnx

    model = onnx.load_from_string(made.content)
    assert not model.functions
    return {f"{node.domain}:{node.op_type}" for node in model.graph.node}


def test_texts_are_judged_by_their_states(tiny_text_bundle: Path, tmp_path: Path) -> None:
    texts = np.random.default_rng(2).standard_normal((60, 3, 12)).astype(np.float32)
    real = RealImages(random_images(60)[0], texts, sha256="0" * 64)
    reward = _trained(real, masked_model(Bundle.read(tiny_text_bundle)))
    pixels = random_images(6, seed=5)[0]
    expected = torch.logit(reward.score(_NETWORK.features(pixels, _CPU), texts[7:13])).numpy()
    found = _scores(_exported(reward, real), tmp_path, pixels, texts[7:13])
    np.testing.assert_allclose(found, expected, atol=2e-4)


def test_an_export_leaves_the_discriminator_as_it_is(model: MaskedModel) -> None:
    real = real_images(100)
    reward = _trained(real, model)
    before = {key: value.clone() for key, value in reward.state()["discriminator"].items()}
    _exported(reward, real)
    after = reward.state()["discriminator"]
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_a_graph_of_other_scores_is_refused(
    model: MaskedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = real_images(100)
    checked = len(real.part(judging._CHECKED))
    monkeypatch.setattr(judging, "run_once", lambda *_: {"score": np.full(checked, 99.0)})
    with pytest.raises(ExportError, match="'judge': scores of ONNX Runtime differ from PyTorch"):
        _exported(_trained(real, model), real)


def test_a_tuning_puts_its_judge_into_the_bundle(
    small_network: None, options: Callable[..., PolicyOptions]
) -> None:
    bundle = options().bundle
    add_variant(Bundle.read(bundle), "fp16")
    found = tune(options(updates=1, name="policy-judged", keep_judge=True))
    changed = Bundle.read(bundle)
    assert changed.manifest.judge is not None and changed.damage() == {}
    judge = changed.manifest.judge
    assert (judge.policy, judge.features) == ("policy-judged", options().features)
    assert found.info.tuning is not None
    assert (judge.updates, judge.data_sha256) == (1, found.info.tuning.data_sha256)
    assert found.judge_bytes == changed.manifest.files[judge.graph.file].bytes
    for precision in ("fp32", "fp16"):
        with Generator.open(bundle, precision=precision, threads=1) as generator:
            assert verify(generator).passed
            result = generator.generate(class_ids=[0, 1], steps=3, best_of=3)
            assert result.scores is not None and np.isfinite(result.scores).all()
    tune(options(updates=1, name="policy-other", keep_judge=True, seed=5))
    again = Bundle.read(bundle)
    assert again.manifest.judge is not None and again.manifest.judge.policy == "policy-other"
    assert not (bundle / judge.graph.file).exists()  # there is one judge
    assert again.damage() == {}


def test_only_a_discriminator_can_be_kept(options: Callable[..., PolicyOptions]) -> None:
    with pytest.raises(CalibrationError, match="--keep-judge .*got --reward classifier"):
        options(keep_judge=True, reward="classifier")


def test_a_judge_that_cannot_be_exported_leaves_the_bundle(
    small_network: None, options: Callable[..., PolicyOptions], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(judging, "TOLERANCE", -1.0)
    wish = options(updates=1, keep_judge=True)
    before = (wish.bundle / "bundle.json").read_bytes()
    with pytest.raises(ExportError, match="tune without --keep-judge"):
        tune(wish)
    assert (wish.bundle / "bundle.json").read_bytes() == before
    monkeypatch.setattr(Training, "_update", None)  # there is nothing left to train
    assert tune(options(updates=1)).name == "policy-3-steps"
    assert Bundle.read(wish.bundle).manifest.judge is None
