"""U-ViT: logits, features and keys of the official class, and the constructor's options."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from fewstep.export.models import UViT

Recorded = Callable[[str], dict[str, npt.NDArray[Any]]]

SMALL: dict[str, Any] = {"img_size": 2, "codebook_size": 6, "embed_dim": 8, "num_heads": 2}
CLASSES: dict[str, Any] = SMALL | {"depth": 4, "num_classes": 3}
TEXT: dict[str, Any] = SMALL | {"depth": 4, "clip_dim": 5, "num_clip_token": 7}


def small(seed: int = 0, **arguments: Any) -> UViT:
    """A model with a 2×2 grid and matrices large enough that everything matters."""
    model = UViT(**arguments).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3, generator=generator)
    return model


def run_small(model: UViT) -> tuple[Tensor, Tensor]:
    """Logits and features for two fixed images and conditions."""
    tokens = torch.tensor([[6, 1, 2, 6], [0, 6, 6, 5]])
    condition = torch.tensor([0, 2])
    if not model.class_conditional:
        condition = torch.linspace(-1, 1, 70).reshape(2, 7, 5)
    with torch.no_grad():
        logits, features = model(tokens, condition)
    return logits, features


@pytest.mark.parametrize(
    ("fixture", "name"), [("class_uvit", "adanat_uvit_class"), ("text_uvit", "adanat_text")]
)
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_gives_the_official_logits_and_features(
    fixture: str, name: str, dtype: torch.dtype, recorded: Recorded, request: pytest.FixtureRequest
) -> None:
    model, data = request.getfixturevalue(fixture), recorded(name)
    condition = torch.from_numpy(data["in/context"])
    if not condition.is_floating_point():
        condition = condition.to(dtype)
    with torch.no_grad():
        logits, features = model(torch.from_numpy(data["in/masked_ids"]).to(dtype), condition)
    np.testing.assert_allclose(logits, data["out/logits"], rtol=0, atol=1e-4)
    np.testing.assert_allclose(features, data["out/feat"], rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("fixture", "name"), [("class_uvit", "adanat_uvit_class"), ("text_uvit", "adanat_text")]
)
def test_has_exactly_the_official_keys(
    fixture: str, name: str, recorded: Recorded, request: pytest.FixtureRequest
) -> None:
    official = {key.removeprefix("sd/") for key in recorded(name) if key.startswith("sd/")}
    assert request.getfixturevalue(fixture).state_dict().keys() == official


@pytest.mark.parametrize("arguments", [CLASSES, TEXT], ids=["class", "text"])
def test_logits_cover_the_codes_and_features_the_grid(arguments: dict[str, Any]) -> None:
    logits, features = run_small(small(**arguments))
    assert logits.shape == (2, 4, 6)  # the mask token cannot be predicted
    assert features.shape == (2, 4, 8)


def test_an_image_does_not_depend_on_its_batch(class_uvit: UViT, recorded: Recorded) -> None:
    data = recorded("adanat_uvit_class")
    tokens = torch.from_numpy(data["in/masked_ids"])
    condition = torch.from_numpy(data["in/context"])
    with torch.no_grad():
        together, _ = class_uvit(tokens, condition)
        alone, _ = class_uvit(tokens[1:], condition[1:])
    torch.testing.assert_close(together[1:], alone, rtol=0, atol=1e-5)


@pytest.mark.parametrize("arguments", [CLASSES, TEXT], ids=["class", "text"])
def test_without_skips_there_are_no_skip_keys(arguments: dict[str, Any]) -> None:
    with_skips, without = UViT(**arguments), UViT(**arguments, skip=False)
    extra = with_skips.state_dict().keys() - without.state_dict().keys()
    assert extra == {
        f"out_blocks.{block}.skip_linear.{part}" for block in (0, 1) for part in ("weight", "bias")
    }
    assert without.state_dict().keys() < with_skips.state_dict().keys()


@pytest.mark.parametrize("arguments", [CLASSES, TEXT], ids=["class", "text"])
def test_without_skips_equals_skips_that_pass_nothing(arguments: dict[str, Any]) -> None:
    without, with_skips = small(**arguments, skip=False), UViT(**arguments).eval()
    through = torch.cat([torch.eye(8), torch.zeros(8, 8)], dim=1)  # keeps x, drops the skip
    state = dict(without.state_dict())
    for block in (0, 1):
        state[f"out_blocks.{block}.skip_linear.weight"] = through
        state[f"out_blocks.{block}.skip_linear.bias"] = torch.zeros(8)
    with_skips.load_state_dict(state)
    for expected, actual in zip(run_small(without), run_small(with_skips), strict=True):
        torch.testing.assert_close(actual, expected)


def test_the_first_block_up_is_joined_to_the_last_block_down() -> None:
    """Long skips are a stack: out block 0 reads in block 1, out block 1 reads in block 0."""
    model = small(**CLASSES)
    seen: list[Tensor] = []
    for block in [*model.in_blocks, *model.out_blocks]:
        block.register_forward_hook(
            lambda block, inputs, output: seen.append(inputs[1] if len(inputs) > 1 else output)
        )
    run_small(model)
    down_0, down_1, up_0, up_1 = seen
    assert up_0 is down_1
    assert up_1 is down_0


def test_an_odd_depth_counts_as_the_even_one_below() -> None:
    even, odd = UViT(**CLASSES), UViT(**CLASSES | {"depth": 5})
    assert odd.state_dict().keys() == even.state_dict().keys()


def test_a_bias_on_the_attention_adds_its_keys_only() -> None:
    extra = UViT(**CLASSES, qkv_bias=True).state_dict().keys() - UViT(**CLASSES).state_dict().keys()
    blocks = ("in_blocks.0", "in_blocks.1", "mid_block", "out_blocks.0", "out_blocks.1")
    assert extra == {f"{block}.attn.qkv.bias" for block in blocks}


def test_the_attention_scale_can_be_set() -> None:
    default, same, other = (
        run_small(small(**CLASSES, qk_scale=scale))[0] for scale in (None, 4**-0.5, 1.0)
    )
    torch.testing.assert_close(same, default)
    assert not torch.allclose(other, default, atol=1e-3)


@pytest.mark.parametrize("arguments", [CLASSES, TEXT], ids=["class", "text"])
def test_the_condition_and_every_token_matter(arguments: dict[str, Any]) -> None:
    model = small(**arguments)
    tokens, changed = torch.tensor([[6, 1, 2, 6]]), torch.tensor([[6, 1, 3, 6]])
    conditions = [torch.tensor([0]), torch.tensor([1])]
    if not model.class_conditional:
        conditions = [torch.zeros(1, 7, 5), torch.ones(1, 7, 5)]
    with torch.no_grad():
        reference = model(tokens, conditions[0])[0]
        assert not torch.allclose(model(tokens, conditions[1])[0], reference, atol=1e-3)
        assert not torch.allclose(model(changed, conditions[0])[0], reference, atol=1e-3)


def test_the_head_does_not_train_the_embeddings_it_is_tied_to() -> None:
    model = small(**CLASSES)
    model(torch.tensor([[6, 1, 2, 6]]), torch.tensor([0]))[0].square().sum().backward()
    gradient = model.token_emb.word_embeddings.weight.grad
    assert gradient is not None
    used = gradient.abs().sum(dim=1) > 0
    assert used.tolist() == [False, True, True, False, False, False, True]


def test_patches_are_refused() -> None:
    with pytest.raises(ValueError, match="patch_size must be 1, got 2"):
        UViT(**CLASSES, patch_size=2)
