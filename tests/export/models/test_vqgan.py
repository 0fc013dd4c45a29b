"""VQGAN: images and token ids of the official class, its odd shortcut, and what it refuses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from fewstep.export.models import VQModel
from fewstep.export.models.vqgan import ResnetBlock

Recorded = Callable[[str], dict[str, npt.NDArray[Any]]]

DDCONFIG: dict[str, Any] = {
    "z_channels": 32,
    "resolution": 8,
    "in_channels": 3,
    "out_ch": 3,
    "ch": 32,
    "ch_mult": [1, 2],
    "num_res_blocks": 1,
}


def small(**changes: Any) -> VQModel:
    """A tokenizer of 8×8 images and 4×4 tokens."""
    return VQModel(ddconfig=DDCONFIG | changes, n_embed=10, embed_dim=32).eval()


def test_decodes_any_grid_like_the_official_decoder(vqgan: VQModel, recorded: Recorded) -> None:
    data = recorded("adanat_vqgan")
    with torch.no_grad():
        image = vqgan.decode(torch.from_numpy(data["in/code"]))
    np.testing.assert_allclose(image, data["out/decode_code_raw"], rtol=0, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_gives_the_official_image_from_flat_tokens(
    dtype: torch.dtype, vqgan: VQModel, recorded: Recorded
) -> None:
    data = recorded("adanat_vqgan")
    with torch.no_grad():
        image = vqgan(torch.from_numpy(data["in/code16"]).flatten(1).to(dtype))
    expected = data["out/image16_clamped_f16"].astype(np.float32)
    np.testing.assert_allclose(image, expected, rtol=0, atol=1e-3)
    assert image.min() >= 0
    assert image.max() <= 1


def test_encodes_to_exactly_the_official_ids(vqgan: VQModel, recorded: Recorded) -> None:
    data = recorded("adanat_vqgan")
    with torch.no_grad():
        ids = vqgan.encode(torch.from_numpy(data["in/enc_image"]))
    np.testing.assert_array_equal(ids.flatten(), data["out/enc_indices"])


def test_has_exactly_the_official_keys(vqgan: VQModel, recorded: Recorded) -> None:
    official = {
        key.removeprefix("sd/") for key in recorded("adanat_vqgan") if key.startswith("sd/")
    }
    assert vqgan.state_dict().keys() == official


def test_the_recorded_tokenizer_halves_four_times(vqgan: VQModel) -> None:
    assert (vqgan.downsampling, vqgan.resolution) == (16, 256)


def test_the_image_is_clamped_but_decode_is_not() -> None:
    model, tokens = small(), torch.arange(16).reshape(1, 16) % 10
    model.decoder.conv_out.bias = torch.nn.Parameter(torch.tensor([5.0, -5.0, 0.5]))
    with torch.no_grad():
        raw, image = model.decode(tokens.reshape(1, 4, 4)), model(tokens)
    assert raw[:, 0].min() > 1
    assert raw[:, 1].max() < 0
    torch.testing.assert_close(image, raw.clamp(0, 1))


def test_a_token_is_the_nearest_code() -> None:
    model = small()
    codes = torch.randn(10, 32, generator=torch.Generator().manual_seed(0))
    model.quantize.embedding.weight.data = codes
    wanted = torch.tensor([[3, 0], [9, 7]])
    noise = 0.1 * torch.randn(1, 32, 2, 2, generator=torch.Generator().manual_seed(1))
    latents = codes[wanted].permute(2, 0, 1)[None] + noise  # [1, 32, 2, 2]
    assert model.quantize(latents)[0].tolist() == wanted.tolist()


def test_a_block_that_changes_width_drops_its_input() -> None:
    """Its shortcut reads the output of conv2, so without conv2 nothing is left."""
    x = torch.randn(1, 32, 4, 4, generator=torch.Generator().manual_seed(0))
    same, wider = ResnetBlock(32, 32, 0.0), ResnetBlock(32, 64, 0.0)
    for block in (same, wider):
        torch.nn.init.zeros_(block.conv2.weight)
    with torch.no_grad():
        assert torch.equal(same(x), x)
        assert torch.equal(wider(x), torch.zeros(1, 64, 4, 4))


@pytest.mark.parametrize(
    ("changes", "embed_dim", "message"),
    [
        ({"double_z": True}, 32, "double_z must be false"),
        ({}, 64, r"z_channels \(32\) must equal embed_dim \(64\)"),
    ],
)
def test_refuses_what_it_does_not_implement(
    changes: dict[str, Any], embed_dim: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        VQModel(ddconfig=DDCONFIG | changes, n_embed=10, embed_dim=embed_dim)


def test_the_configuration_is_read_not_changed() -> None:
    config = DDCONFIG | {"attn_resolutions": [16], "dropout": 0.0, "double_z": False}
    before = dict(config)
    VQModel(ddconfig=config, n_embed=10, embed_dim=32)
    assert config == before
