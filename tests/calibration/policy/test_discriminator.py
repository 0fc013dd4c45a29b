"""The discriminator's heads: shapes, the condition, spectral norms, and independence of rows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tests.masked import masked_model
from torch import Tensor

from fewstep.calibration.policy.discriminator import Discriminator, mean_logit
from fewstep.calibration.policy.features import Features
from fewstep.runtime.bundle import Bundle
from fewstep.runtime.families.masked.model import MaskedModel

_CHANNELS = (8, 12, 20)
_SIDES = (4, 2, 1)
_WIDTH = 6


def _features(count: int, seed: int = 0) -> Features:
    random = torch.Generator().manual_seed(seed)
    maps = tuple(
        torch.randn((count, channels, side, side), generator=random)
        for channels, side in zip(_CHANNELS, _SIDES, strict=True)
    )
    return Features(maps, torch.randn((count, _WIDTH), generator=random))


@pytest.fixture
def discriminator(model: MaskedModel) -> Discriminator:
    """For three maps, under the classes of the tiny bundle, as it is scored with."""
    torch.manual_seed(0)
    return Discriminator(_CHANNELS, _WIDTH, model).eval()


@torch.no_grad()
def test_maps_have_a_logit_per_position_and_pooled_features_have_one(
    discriminator: Discriminator,
) -> None:
    found = discriminator(_features(3), torch.tensor([0, 4, 2]))
    assert [each.shape for each in found] == [(3, 16), (3, 4), (3, 1), (3, 1)]
    assert all(torch.isfinite(each).all() for each in found)


@pytest.mark.parametrize("train", [False, True])
@torch.no_grad()
def test_no_image_depends_on_its_neighbours(discriminator: Discriminator, train: bool) -> None:
    classes = torch.tensor([0, 4, 2, 1])
    discriminator.train(train)
    discriminator(_features(4), classes)  # spectral norms move when training
    discriminator.eval()
    together = mean_logit(discriminator(_features(4), classes))
    for row in range(4):
        one = torch.tensor([row])
        alone = mean_logit(discriminator(_features(4)[one], classes[one]))
        torch.testing.assert_close(alone[0], together[row])


@torch.no_grad()
def test_the_class_matters(discriminator: Discriminator) -> None:
    same = _features(1)[torch.zeros(5, dtype=torch.long)]
    found = mean_logit(discriminator(same, torch.arange(5)))
    assert len({round(float(each), 5) for each in found}) == 5


@torch.no_grad()
def test_the_text_matters(tiny_text_bundle: Path) -> None:
    model = masked_model(Bundle.read(tiny_text_bundle))
    discriminator = Discriminator(_CHANNELS, _WIDTH, model).eval()
    text = torch.from_numpy(np.random.default_rng(0).standard_normal((5, 3, 12), np.float32))
    same = _features(1)[torch.zeros(5, dtype=torch.long)]
    found = mean_logit(discriminator(same, text))
    assert len({round(float(each), 5) for each in found}) == 5


def test_every_convolution_has_spectral_norm_one(discriminator: Discriminator) -> None:
    """Of its weight as a matrix, once the power iteration has run on a few passes."""
    discriminator.train()
    for _ in range(40):
        discriminator(_features(2), torch.tensor([0, 1]))
    convolutions = [m for m in discriminator.modules() if isinstance(m, torch.nn.Conv2d)]
    assert len(convolutions) == 3 * (len(_CHANNELS) + 1)
    for each in convolutions:
        weight: Tensor = each.weight.detach()
        assert float(torch.linalg.matrix_norm(weight.flatten(1), 2)) == pytest.approx(1, abs=0.03)


def test_a_fine_map_weighs_no_more_than_a_coarse_one() -> None:
    logits = [torch.full((2, 16), 3.0), torch.tensor([[0.0, 2.0], [4.0, 8.0]])]
    assert mean_logit(logits).tolist() == [2.0, 4.5]
