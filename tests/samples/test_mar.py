"""The MAR of the Fashion-MNIST sample: its weights export, its images show what was asked for, its
presets work, and its training computes what the official formulas say.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from sample_bundle import mar_bundle
from tests.samples.class_means import CLASSES, nearest
from train_mar import encoded, noising, tokenizer

from fewstep.runtime import Generator
from fewstep.runtime.bundle import Bundle
from fewstep.runtime.families.mar.model import MarModel

COUNT = 40


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return mar_bundle(tmp_path_factory.mktemp("mar") / "bundle")


def _model(bundle: Bundle) -> MarModel:
    model = bundle.manifest.model
    assert isinstance(model, MarModel)
    return model


@pytest.fixture(scope="module")
def images(bundle: Bundle) -> npt.NDArray[np.uint8]:
    """``[COUNT, 32, 32, 3]``, classes taking turns."""
    with Generator.open(bundle) as generator:
        made: npt.NDArray[np.uint8] = generator.generate(
            class_ids=[index % CLASSES for index in range(COUNT)]
        ).images
    return made


def test_images_show_the_class_asked_for(images: npt.NDArray[np.uint8]) -> None:
    right = nearest(images) == np.arange(COUNT) % CLASSES
    assert right.mean() >= 0.6


def test_every_preset_makes_images(bundle: Bundle) -> None:
    presets = _model(bundle).presets
    config = Path(__file__).parents[2] / "samples" / "fashion" / "mar_config.json"
    assert presets == json.loads(config.read_text())["presets"]
    with Generator.open(bundle) as generator:
        found = {name: generator.generate(class_ids=[3], preset=name).images for name in presets}
    assert found
    assert all(each.std() > 10 for each in found.values())


@torch.no_grad()
def test_tokenizer_takes_images_apart_and_puts_them_together(
    images: npt.NDArray[np.uint8],
) -> None:
    model = tokenizer()
    mean = encoded(images[..., 0])[:, : model.embed_dim]
    again = model.unclamped(mean)
    image = torch.from_numpy(images).permute(0, 3, 1, 2) / 127.5 - 1
    assert (again - image).abs().mean() < 0.1


def test_latents_vary_by_one(images: npt.NDArray[np.uint8], bundle: Bundle) -> None:
    scale = _model(bundle).latent_scale
    latents = encoded(images[..., 0])[:, : tokenizer().embed_dim] * scale
    assert 0.7 < float(latents.std()) < 1.3


def test_the_training_adds_noise_as_the_official_diffusion() -> None:
    recorded = np.load(Path(__file__).parents[1] / "data" / "mar.npz")
    of = noising()
    taken = recorded["aux/10/timestep_map"]
    expected = recorded["aux/10/alphas_cumprod"]
    np.testing.assert_allclose(of.root[taken].square(), expected, rtol=1e-5, atol=1e-9)
    np.testing.assert_allclose(of.root.square() + of.rest.square(), np.ones(1000), rtol=1e-5)
