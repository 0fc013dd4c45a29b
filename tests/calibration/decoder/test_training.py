"""The student's training: its start, its loss, and that a seed decides it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from fewstep.build.graphs import load_graph
from fewstep.calibration.decoder.examples import Examples
from fewstep.calibration.decoder.training import codebook, loss_of, psnr_of, student, train
from fewstep.export.models.small_decoder import SmallDecoder
from fewstep.runtime.bundle import Bundle


def _examples(count: int = 12) -> Examples:
    random = np.random.default_rng(0)
    inputs = random.integers(24, size=(count, 16)).astype(np.int32)
    images = random.uniform(size=(count, 3, 8, 8)).astype(np.float16)
    return Examples(inputs, images, (4, 4))


def _trained(bundle: Bundle, seed: int) -> SmallDecoder:
    network = student(bundle, _examples(), 100_000, seed)
    cpu = torch.device("cpu")
    train(network, _examples(), updates=5, batch=4, learning_rate=1e-3, seed=seed, device=cpu)
    return network


def test_a_seed_decides_every_weight(tiny_bundle: Path) -> None:
    bundle = Bundle.read(tiny_bundle)
    first, again, other = (_trained(bundle, seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first["first.weight"], other["first.weight"])
    assert all(torch.equal(value, value.half().float()) for value in first.values())


def test_it_starts_with_the_codebook_and_sees_what_is_standardised(tiny_bundle: Path) -> None:
    bundle = Bundle.read(tiny_bundle)
    table = codebook(load_graph(bundle, "decoder"), 24)
    assert table is not None
    assert codebook(load_graph(bundle, "decoder"), 25) is None
    examples = _examples(200)
    network = student(bundle, examples, 100_000, 0)
    assert network.table is not None
    np.testing.assert_array_equal(network.table.weight.detach(), table)
    weight = network.first.weight.detach()[:, :, 0, 0]
    deviation = network.map(torch.from_numpy(examples.inputs)).std((0, 2, 3))
    mean = network.map(torch.from_numpy(examples.inputs)).mean((0, 2, 3)).detach()
    bound = network.shape.channels**-0.5  # of PyTorch's uniform start
    assert (weight * deviation.detach()).abs().max() <= bound * 1.001
    assert network.first.bias is not None
    assert (network.first.bias.detach() + weight @ mean).abs().max() <= bound * 1.001


def test_beyond_the_ends_nothing_is_lost() -> None:
    wanted = torch.tensor([0.0, 1.0, 0.5, 0.0]).reshape(1, 1, 2, 2).expand(1, 3, 2, 2)
    beyond = torch.tensor([-3.0, 2.0, 0.5, -0.1]).reshape(1, 1, 2, 2).expand(1, 3, 2, 2)
    assert loss_of(beyond, wanted) == 0
    assert loss_of(beyond.clamp(0, 1) + 0.25, wanted) > 0


def test_the_loss_is_the_formula(tiny_bundle: Path) -> None:
    random = torch.Generator().manual_seed(0)
    wanted = torch.rand((2, 3, 8, 8), generator=random)
    drawn = torch.rand((2, 3, 8, 8), generator=random)
    d = (drawn - wanted).numpy().astype(np.float64)
    expected = np.abs(np.diff(d, axis=2)).mean() + np.abs(np.diff(d, axis=3)).mean()
    for side in (1, 2, 4):
        pooled = d.reshape(2, 3, 8 // side, side, 8 // side, side).mean((3, 5))
        expected += np.abs(pooled).mean()
    assert float(loss_of(drawn, wanted)) == pytest.approx(expected, rel=1e-5)


def test_psnr_is_the_mean_over_images(tiny_bundle: Path) -> None:
    examples = _examples(5)
    network = student(Bundle.read(tiny_bundle), examples, 100_000, 0)
    with torch.no_grad():
        drawn = network(torch.from_numpy(examples.inputs)).numpy().astype(np.float64)
    errors = ((drawn - examples.images) ** 2).mean((1, 2, 3))
    assert psnr_of(network, examples, batch=2) == pytest.approx((-10 * np.log10(errors)).mean())
