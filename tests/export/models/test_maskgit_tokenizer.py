"""The tokenizer of maskgit-torch in sizes that the recording does not have.

Covered: levels and grids, beside the VQGAN of AdaNAT's files, which is the same network under other
keys; other counts of blocks, norms and activations; codes; what the constructor refuses.
``test_maskgit_torch.py`` compares it with the official code.
"""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fewstep.export.models import VQModel
from fewstep.export.models.maskgit_tokenizer import VQVAE, ResBlock

TOKENIZER: dict[str, Any] = {
    "codebook_size": 12,
    "embedding_dim": 8,
    "filters": 32,
    "channel_multipliers": [1, 2],
}
VQGAN: dict[str, Any] = {
    **{"z_channels": 8, "resolution": 16, "in_channels": 3, "out_ch": 3},
    **{"ch": 32, "num_res_blocks": 2},
}


def _random(module: nn.Module) -> nn.Module:
    """Every parameter and float buffer random, those of norms and biases too."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for each in module.parameters():
            each.copy_(0.3 * torch.randn(each.shape, generator=generator))
        for name, buffer in module.named_buffers():
            if buffer.is_floating_point():
                shift = 0.5 if name.endswith("running_var") else 0.0
                buffer.copy_(torch.rand(buffer.shape, generator=generator) + shift)
    return module.eval()


_ADANAT = {"norm0.": "norm1.", "conv0.": "conv1.", "norm1.": "norm2.", "conv1.": "conv2."}
_ADANAT |= {"conv_res.": "nin_shortcut.", "quantizer.codebook.": "quantize.embedding."}


def _adanat_key(key: str, levels: int) -> str:
    """The key of :class:`VQModel` for a tensor of a tokenizer with two blocks a level."""
    key = re.sub("|".join(map(re.escape, _ADANAT)), lambda at: _ADANAT[at[0]], key)
    found = re.fullmatch(r"(encoder|decoder)\.res_blocks\.(\d+)\.(\d+)\.(.*)", key)
    if found is None:
        return key
    side, level, at, rest = found[1], int(found[2]), int(found[3]), found[4]
    if level == (levels if side == "encoder" else 0):
        return f"{side}.mid.block_{at + 1}.{rest}"
    if side == "encoder":
        return f"encoder.down.{level}.block.{at}.{rest}"
    place = "upsample.conv" if at == 3 else f"block.{at}"
    return f"decoder.up.{levels - level}.{place}.{rest}"


@torch.no_grad()
@pytest.mark.parametrize("multipliers", [[1], [2], [1, 2], [3, 1, 2], [1, 1, 2, 2, 4]])
def test_any_levels_are_those_of_the_same_vqgan_under_other_keys(multipliers: list[int]) -> None:
    """Adanat's, whose epsilon alone is another; on a grid that is no square."""
    own: Any = _random(VQVAE(**TOKENIZER | {"channel_multipliers": multipliers}))
    config = VQGAN | {"ch_mult": multipliers}
    theirs = VQModel(ddconfig=config, n_embed=12, embed_dim=8).eval()
    for each in theirs.modules():
        if isinstance(each, nn.GroupNorm):
            each.eps = 1e-5
    state = {_adanat_key(k, len(multipliers)): value for k, value in own.state_dict().items()}
    theirs.load_state_dict(state, strict=True)
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(12, (2, 2, 3), generator=generator)
    image = own.decode(tokens)
    assert image.shape == (2, 3, 2 * own.downsampling, 3 * own.downsampling)
    torch.testing.assert_close(image, theirs.decode(tokens))
    given = torch.rand(image.shape, generator=generator)
    torch.testing.assert_close(own.encoder(given), theirs.encoder(given))
    assert torch.equal(own.encode(given), theirs.encode(given))


@torch.no_grad()
@pytest.mark.parametrize("blocks", [1, 3])
def test_other_counts_of_blocks(blocks: int) -> None:
    """A block without its last convolution gives its input, so that fewer are left."""
    more: Any = _random(VQVAE(**TOKENIZER | {"num_res_blocks": blocks + 1}))
    fewer = VQVAE(**TOKENIZER | {"num_res_blocks": blocks}).eval()
    state = {}
    for key, value in more.state_dict().items():
        place = re.search(r"res_blocks\.\d+\.(\d+)\.", key)
        at = int(place[1]) if place else -1
        if at == blocks:
            if key.endswith("conv1.weight"):
                value.zero_()
            continue
        after = place is not None and at > blocks  # the convolution after the doubling
        state[re.sub(r"\.\d+\.(weight|bias)$", rf".{at - 1}.\1", key) if after else key] = value
    fewer.load_state_dict(state, strict=True)
    tokens = torch.randint(12, (1, 3, 2), generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(more.decode(tokens), fewer.decode(tokens))
    image = torch.rand(1, 3, 4, 6, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(more.encoder(image), fewer.encoder(image))


@torch.no_grad()
def test_batch_norm_and_relu() -> None:
    block: Any = _random(ResBlock(5, 7, "BN", "relu"))
    x = torch.randn(2, 5, 4, 3, generator=torch.Generator().manual_seed(1))
    h = x
    for norm, weight in ((block.norm0, block.conv0.weight), (block.norm1, block.conv1.weight)):
        column = (-1, 1, 1)
        spread = (norm.running_var + 1e-5).sqrt().reshape(column)
        h = (h - norm.running_mean.reshape(column)) / spread
        h = h * norm.weight.reshape(column) + norm.bias.reshape(column)
        h = F.conv2d(h.clamp(min=0), weight, padding=1)
    shortcut = torch.einsum("oi,bihw->bohw", block.conv_res.weight[:, :, 0, 0], h)
    torch.testing.assert_close(block(x), h + shortcut)
    tokenizer = VQVAE(**TOKENIZER | {"norm_type": "BN", "activation_fn": "relu", "filters": 6})
    assert tokenizer.eval()(torch.zeros(1, 4, dtype=torch.int64)).shape == (1, 3, 4, 4)
    assert "decoder.norm_out.running_var" in tokenizer.state_dict()
    assert {each.activation for each in tokenizer.modules() if hasattr(each, "activation")} == {
        F.relu
    }


@torch.no_grad()
def test_convolutions_on_the_way_down() -> None:
    """Kernels of 4, stride 2, no padding."""
    tokenizer = VQVAE(**TOKENIZER | {"conv_downsample": True, "channel_multipliers": [1, 1, 2]})
    state = tokenizer.state_dict()
    shapes = [state[f"encoder.res_blocks.{level}.2.weight"].shape for level in (0, 1)]
    assert shapes == [(32, 32, 4, 4), (32, 32, 4, 4)]
    ids = tokenizer.eval().encode(torch.rand(1, 3, 24, 16))
    assert ids.shape == (1, 4 * 2)  # 24 → 11 → 4 and 16 → 7 → 2
    assert tokenizer(torch.zeros(1, 4, dtype=torch.int64)).shape == (1, 3, 8, 8)


def test_a_token_is_the_nearest_code_and_the_first_of_equals() -> None:
    model = VQVAE(**TOKENIZER)
    codes = torch.randn(12, 8, generator=torch.Generator().manual_seed(0))
    codes[7] = codes[2]
    model.quantizer.codebook.weight.data = codes
    wanted = torch.tensor([[3, 0, 7], [9, 11, 2]])
    noise = 0.05 * torch.randn(1, 8, 2, 3, generator=torch.Generator().manual_seed(1))
    latents = codes[wanted].permute(2, 0, 1)[None] + noise
    assert model.quantizer(latents)[0].tolist() == [[3, 0, 2], [9, 11, 2]]


def test_the_image_is_clamped() -> None:
    model, tokens = VQVAE(**TOKENIZER).eval(), torch.arange(9).reshape(1, 9)
    model.decoder.conv_out.bias = nn.Parameter(torch.tensor([5.0, -5.0, 0.5]))
    with torch.no_grad():
        raw, image = model.unclamped(tokens), model(tokens)
    assert raw[:, 0].min() > 1
    assert raw[:, 1].max() < 0
    torch.testing.assert_close(image, raw.clamp(0, 1))


def test_grids() -> None:
    """Square ones without a size; with one what it says, row by row."""
    any_size = VQVAE(**TOKENIZER)
    assert [any_size.grid(count) for count in (1, 9, 1024)] == [(1, 1), (3, 3), (32, 32)]
    with pytest.raises(ValueError, match="8 tokens do not fill a grid of 2×2"):
        any_size.grid(8)
    wide: Any = _random(VQVAE(**TOKENIZER | {"image_size": [4, 8]}))
    assert wide.grid(8) == (2, 4)
    with pytest.raises(ValueError, match="16 tokens do not fill a grid of 2×4"):
        wide.grid(16)
    tokens = torch.arange(8).reshape(1, 8)
    with torch.no_grad():
        torch.testing.assert_close(wide.unclamped(tokens), wide.decode(tokens.reshape(1, 2, 4)))
    assert VQVAE(**TOKENIZER | {"image_size": 8}).image_size == (8, 8)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"quantizer": "gumbel"}, "quantizer must be vq, got 'gumbel'"),
        ({"norm_type": "LN"}, "norm_type must be GN or BN, got 'LN'"),
        ({"activation_fn": "gelu"}, "activation_fn must be relu or swish, got 'gelu'"),
        ({"filters": 48}, r"multiples of 32 \(GroupNorm\), got 48 and \[48, 96\]"),
        ({"channel_multipliers": []}, r"one for every level, got \[\]"),
        ({"channel_multipliers": [1, 0.5]}, "channel_multipliers must be whole numbers"),
        ({"num_res_blocks": 0}, "num_res_blocks must be a whole number, at least 1, got 0"),
        ({"image_size": 7}, "image_size must be a multiple of 2 pixels, or two of them, got 7"),
        ({"image_size": [8, 8, 8]}, "image_size must be a multiple of 2 pixels, or two of them"),
        ({"image_size": True}, "image_size must be a multiple of 2 pixels"),
    ],
)
def test_tokenizers_that_cannot_be_are_refused(changed: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        VQVAE(**TOKENIZER | changed)
