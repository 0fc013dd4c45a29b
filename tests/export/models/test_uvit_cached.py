"""U-ViT that computes some positions beside others whose keys and values are cached, against the
whole network with these keys and values frozen in every block."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from fewstep.export.models import UViT

SIZES: dict[str, Any] = {"img_size": 3, "codebook_size": 6, "embed_dim": 8, "num_heads": 2}
MODELS = [{"depth": 4, "num_classes": 3}, {"depth": 3, "clip_dim": 5, "num_clip_token": 7}]
MODELS.append({"depth": 2, "num_classes": 3, "skip": False, "qkv_bias": True})
GROUP = torch.tensor([[4, 0, 7], [2, 8, 3]])
"""Positions of two images, in any order."""


@pytest.fixture(params=MODELS, ids=("class", "text", "no skips"))
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


def _others() -> Tensor:
    """Positions outside of the group, ``[2, 6]``."""
    return torch.stack([torch.tensor([n for n in range(9) if n not in own]) for own in GROUP])


def _projections(model: UViT) -> list[torch.nn.Module]:
    blocks = [*model.in_blocks, model.mid_block, *model.out_blocks]
    return [
        module for block in blocks for name, module in block.named_modules() if name[-3:] == "qkv"
    ]


@contextmanager
def _hooked(model: UViT, hook: Any) -> Iterator[None]:
    """With the output of every block's projection to queries, keys and values through a hook."""
    projections = _projections(model)
    assert len(projections) == model.num_blocks
    handles = [
        each.register_forward_hook(lambda _, __, out, index=index: hook(index, out))
        for index, each in enumerate(projections)
    ]
    yield
    for handle in handles:
        handle.remove()


def _picked(values: Tensor, positions: Tensor) -> Tensor:
    """Positions of ``[B, N, C]``."""
    return values.gather(1, positions[..., None].expand(-1, -1, values.shape[-1]))


def _nothing(model: UViT) -> list[Tensor]:
    return [torch.zeros(2, 0, model.embed_dim)] * (2 * model.num_blocks)


def test_all_positions_beside_nothing_are_a_whole_pass(model: UViT, condition: Tensor) -> None:
    tokens, places = _tokens(0), torch.arange(9).expand(2, 9)
    logits, features, _ = model.with_cached(tokens, places, condition, _nothing(model))
    expected = model(tokens, condition)
    torch.testing.assert_close(logits, expected[0], rtol=0, atol=1e-5)
    torch.testing.assert_close(features, expected[1], rtol=0, atol=1e-5)


def test_positions_may_come_in_any_order(model: UViT, condition: Tensor) -> None:
    tokens = _tokens(1)
    places = torch.stack(
        [torch.randperm(9, generator=torch.Generator().manual_seed(n)) for n in (5, 6)]
    )
    logits, _, _ = model.with_cached(tokens.gather(1, places), places, condition, _nothing(model))
    expected = _picked(model(tokens, condition)[0], places)
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-5)


def test_a_group_sees_frozen_keys_and_values(model: UViT, condition: Tensor) -> None:
    """Other positions have changed since, and so have those of the group."""
    before, now, others, width = _tokens(2), _tokens(3), _others(), model.embed_dim
    seen: list[Tensor] = []
    with _hooked(model, lambda _, out: seen.append(out.clone())):
        model(before, condition)

    def freeze(index: int, out: Tensor) -> Tensor:
        at = model.extras + others
        for image in range(2):
            out[image, at[image], width:] = seen[index][image, at[image], width:]
        return out

    with _hooked(model, freeze):
        expected = model(now, condition)
    places = torch.arange(9).expand(2, 9)
    _, _, cache = model.with_cached(before, places, condition, _nothing(model))
    past = [_picked(each, others) for each in cache]
    logits, features, own = model.with_cached(now.gather(1, GROUP), GROUP, condition, past)
    torch.testing.assert_close(logits, _picked(expected[0], GROUP), rtol=0, atol=1e-5)
    torch.testing.assert_close(features, _picked(expected[1], GROUP), rtol=0, atol=1e-5)
    assert {each.shape for each in own} == {(2, 3, width)}
    whole = model(now, condition)[0]
    assert (logits - _picked(whole, GROUP)).abs().max() > 1e-3  # it is not the whole network


def test_keys_and_values_are_those_of_the_blocks_in_their_order(
    model: UViT, condition: Tensor
) -> None:
    seen: list[Tensor] = []
    with _hooked(model, lambda _, out: seen.append(out[:, model.extras :])):
        model(_tokens(4), condition)
    places = torch.arange(9).expand(2, 9)
    _, _, own = model.with_cached(_tokens(4), places, condition, _nothing(model))
    for index, projected in enumerate(seen):
        _, keys, values = projected.chunk(3, -1)
        torch.testing.assert_close(own[2 * index], keys, rtol=0, atol=1e-6)
        torch.testing.assert_close(own[2 * index + 1], values, rtol=0, atol=1e-6)
