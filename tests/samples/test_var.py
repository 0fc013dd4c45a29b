"""The VAR of the Fashion-MNIST sample: its weights export; its images show what was asked for."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch
from sample_bundle import var_bundle
from tests.samples.class_means import CLASSES, nearest
from train_var import tokenizer

from fewstep.runtime import Generator

COUNT = 40


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> npt.NDArray[np.uint8]:
    """``[COUNT, 32, 32, 3]``, classes taking turns."""
    bundle = var_bundle(tmp_path_factory.mktemp("var") / "bundle")
    with Generator.open(bundle) as generator:
        made: npt.NDArray[np.uint8] = generator.generate(
            class_ids=[index % CLASSES for index in range(COUNT)]
        ).images
    return made


def test_images_show_the_class_asked_for(images: npt.NDArray[np.uint8]) -> None:
    right = nearest(images) == np.arange(COUNT) % CLASSES
    assert right.mean() >= 0.6


@torch.no_grad()
def test_tokenizer_takes_images_apart_and_puts_them_together(
    images: npt.NDArray[np.uint8],
) -> None:
    model = tokenizer()
    image = torch.from_numpy(images).permute(0, 3, 1, 2) / 127.5 - 1
    maps = model.quantize.token_maps(model.latents(image))
    again = model.unclamped(model.quantize.f_hat(maps))
    assert (again - image).abs().mean() < 0.1
