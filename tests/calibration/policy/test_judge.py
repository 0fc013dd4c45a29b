"""The discriminator as a graph: the scores that the reward saw, in the bundle and in a tuning."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from tests.calibration.policy.stand_ins import SmallNetwork, random_images, real_images
from tests.masked import masked_model

from fewstep.build.variants import add_variant
from fewstep.calibration.policy import judge as judging
from fewstep.calibration.policy import tune as tuning
from fewstep.calibration.policy.data import RealImages
from fewstep.calibration.policy.judge import ExportedJudge, export_judge
from fewstep.calibration.policy.options import PolicyOptions
from fewstep.calibration.policy.rewards import Adversarial
from fewstep.calibration.policy.tune import tune
from fewstep.runtime.bundle import Bundle
from fewstep.runtime.devices.cpu import CpuDevice
from fewstep.runtime.engines import run_once
from fewstep.runtime.engines.onnxruntime import OnnxRuntimeEngine
from fewstep.runtime.errors import CalibrationError, ExportError
from fewstep.runtime.families.masked.model import MaskedModel
from fewstep.runtime.generator import Generator
from fewstep.runtime.records import GraphInfo
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


def test_scores_are_the_logits_behind_the_reward(
    model: MaskedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And stay them: an export leaves the discriminator as it is."""
    real = real_images(100)
    reward = _trained(real, model)
    made = _exported(reward, real)
    graph = onnx.load_from_string(made.content)
    assert not graph.functions and {node.domain for node in graph.graph.node} == {""}
    pixels, labels = random_images(9, seed=5)[0], real.condition[:9]
    expected = torch.logit(reward.score(_NETWORK.features(pixels, _CPU), labels)).numpy()
    assert np.ptp(expected) > 0.01
    found = _scores(made, tmp_path, pixels, labels)
    np.testing.assert_allclose(found, expected, atol=2e-4)
    one = _scores(made, tmp_path, pixels[4:5], labels[4:5])
    np.testing.assert_allclose(one, expected[4:5], atol=2e-4)

    def same(name: str, graph: object, folder: Path) -> GraphInfo:
        (folder / made.info.graph.file).write_bytes(made.content)
        return made.info.graph

    monkeypatch.setattr(judging, "export_graph", same)
    reward.learn(_NETWORK.features(pixels, _CPU), labels, np.random.default_rng(9))
    with pytest.raises(ExportError, match="'judge': scores of ONNX Runtime differ from PyTorch"):
        _exported(reward, real)  # the graph is that of the discriminator before


def test_texts_are_judged_by_their_states_and_large_images_antialiased(
    tiny_text_bundle: Path, tmp_path: Path
) -> None:
    """Of 16×16 pixels, which the network takes as 8×8."""
    random = np.random.default_rng(2)
    texts = random.standard_normal((60, 3, 12)).astype(np.float32)
    images = random.integers(0, 256, (60, 16, 16, 3)).astype(np.uint8)
    real = RealImages(images, texts, sha256="0" * 64)
    reward = _trained(real, masked_model(Bundle.read(tiny_text_bundle)))
    pixels, texts = images[20:26] // 2, texts[7:13]
    expected = torch.logit(reward.score(_NETWORK.features(pixels, _CPU), texts)).numpy()
    found = _scores(_exported(reward, real), tmp_path, pixels, texts)
    np.testing.assert_allclose(found, expected, atol=2e-4)


def test_a_tuning_puts_its_judge_into_the_bundle(
    small_network: None, options: Callable[..., PolicyOptions]
) -> None:
    bundle = options().bundle
    found = tune(options(updates=1, keep_judge=True))
    changed = Bundle.read(bundle)
    assert changed.manifest.judge is not None and changed.damage() == {}
    judge = changed.manifest.judge
    assert (judge.policy, judge.features) == (found.name, options().features)
    assert found.info.tuning is not None
    assert (judge.updates, judge.data_sha256) == (1, found.info.tuning.data_sha256)
    assert found.judge_bytes == changed.manifest.files[judge.graph.file].bytes
    with Generator.open(bundle, threads=1) as generator:
        assert verify(generator).passed
        result = generator.generate(class_ids=[0, 1], steps=3, best_of=3)
        assert result.scores is not None and np.isfinite(result.scores).all()
    add_variant(changed, "fp16")
    assert Bundle.read(bundle).manifest.judge == judge


def test_only_a_discriminator_can_be_kept(options: Callable[..., PolicyOptions]) -> None:
    with pytest.raises(CalibrationError, match="--keep-judge .*got --reward classifier"):
        options(keep_judge=True, reward="classifier")


def test_a_judge_that_cannot_be_exported_leaves_the_bundle(
    small_network: None, options: Callable[..., PolicyOptions], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise ExportError("no such operator")

    monkeypatch.setattr(tuning, "export_judge", fails)
    wish = options(updates=1, keep_judge=True)
    before = (wish.bundle / "bundle.json").read_bytes()
    with pytest.raises(ExportError, match="no such operator"):
        tune(wish)
    assert (wish.bundle / "bundle.json").read_bytes() == before
