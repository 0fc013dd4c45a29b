"""U-ViT that computes some positions beside others whose keys and values are cached, against the
whole network with these keys and values frozen in every block."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.frozen_context import frozen, projected
from torch import Tensor

from fewstep.export.models import UViT

SIZES: dict[str, Any] = {"img_size": 3, "codebook_size": 6, "embed_dim": 8, "num_heads": 2}
MODELS: dict[str, dict[str, Any]] = {
    "class": {"depth": 4, "num_classes": 3},
    "text": {"depth": 3, "clip_dim": 5, "num_clip_token": 7},
    "no skips": {"depth": 2, "num_classes": 3, "skip": False, "qkv_bias": True},
}
GROUP = torch.tensor([[4, 0, 7], [2, 8, 3]])
"""Positions of two images, in any order."""


@pytest.fixture(params=[*MODELS.values()], ids=[*MODELS])
def model(request: pytest.FixtureRequest) -> UViT:
    """With matrices large enough that everything matters."""
    found = UViT(**SIZES, **request.param).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in found.parameters():
            parameter.normal_(std=0.3, generator=generator)
    return found.requires_grad_(False)


@pytest.fixture
def condition(model: UViT) -> Tensor:
    if model.class_conditional:
        return torch.tensor([0, 2])
    return torch.linspace(-1, 1, 70).reshape(2, 7, 5)


def _tokens(seed: int) -> Tensor:
    """Two images, codes and masked positions."""
    return torch.randint(7, (2, 9), generator=torch.Generator().manual_seed(seed))


def _picked(values: Tensor, positions: Tensor) -> Tensor:
    """Positions of ``[B, N, C]``."""
    return values.gather(1, positions[..., None].expand(-1, -1, values.shape[-1]))


def _everything(
    model: UViT, tokens: Tensor, condition: Tensor, positions: Tensor | None = None
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """A pass of all positions beside nothing."""
    positions = torch.arange(9).expand(2, 9) if positions is None else positions
    nothing = [torch.zeros(2, 0, model.embed_dim)] * (2 * model.num_blocks)
    return model.with_cached(tokens, positions, condition, nothing)


def test_all_positions_beside_nothing_are_a_whole_pass(model: UViT, condition: Tensor) -> None:
    logits, features, _ = _everything(model, _tokens(0), condition)
    expected = model(_tokens(0), condition)
    torch.testing.assert_close(logits, expected[0], rtol=0, atol=1e-5)
    torch.testing.assert_close(features, expected[1], rtol=0, atol=1e-5)


def test_positions_may_come_in_any_order(model: UViT, condition: Tensor) -> None:
    tokens, random = _tokens(1), torch.Generator().manual_seed(5)
    places = torch.stack([torch.randperm(9, generator=random) for _ in range(2)])
    logits, _, _ = _everything(model, tokens.gather(1, places), condition, places)
    expected = _picked(model(tokens, condition)[0], places)
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-5)


def test_a_group_sees_frozen_keys_and_values(model: UViT, condition: Tensor) -> None:
    """Other positions have changed since, and so have those of the group."""
    before, now = _tokens(2), _tokens(3)
    others = torch.stack([torch.tensor([n for n in range(9) if n not in own]) for own in GROUP])
    where = torch.ones(2, 9, dtype=torch.bool).scatter(1, GROUP, False)
    expected = frozen(model, now, condition, projected(model, before, condition), where)
    _, _, cache = _everything(model, before, condition)
    past = [_picked(each, others) for each in cache]
    logits, features, own = model.with_cached(now.gather(1, GROUP), GROUP, condition, past)
    torch.testing.assert_close(logits, _picked(expected[0], GROUP), rtol=0, atol=1e-5)
    torch.testing.assert_close(features, _picked(expected[1], GROUP), rtol=0, atol=1e-5)
    assert {each.shape for each in own} == {(2, 3, model.embed_dim)}
    whole = model(now, condition)[0]
    assert (logits - _picked(whole, GROUP)).abs().max() > 1e-3  # it is not the whole network


def test_keys_and_values_are_those_of_the_blocks_in_their_order(
    model: UViT, condition: Tensor
) -> None:
    _, _, own = _everything(model, _tokens(4), condition)
    for index, out in enumerate(projected(model, _tokens(4), condition)):
        _, keys, values = out[:, model.extras :].chunk(3, -1)
        torch.testing.assert_close(own[2 * index], keys, rtol=0, atol=1e-6)
        torch.testing.assert_close(own[2 * index + 1], values, rtol=0, atol=1e-6)
