"""LlamaGen's tokenizer beside a recording of the official code and plain formulas.

Covered: both halves beside their formulas, written with functions of PyTorch, with and without
codes of length 1; grids, pixel range and the mask id; the published file, and what may be missing
in others; what the constructor refuses.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from fewstep.export import presets
from fewstep.export.models.halton_vq import LlamaGenVQ
from fewstep.runtime.errors import CheckpointError

Layouts = dict[str, dict[str, torch.Size]]
Recorded = Callable[[str], dict[str, npt.NDArray[Any]]]
State = dict[str, Tensor]

_NAME = "halton_vq16"
_DATA = Path(__file__).parents[2] / "data"
VQ: dict[str, Any] = {
    "codebook_size": 12,
    "codebook_embed_dim": 5,
    "z_channels": 6,
    "ch": 32,
    "num_res_blocks": 1,
    "encoder_ch_mult": (1, 2, 2),
    "decoder_ch_mult": (2, 1, 3),
}


def _tokenizer(**changes: Any) -> LlamaGenVQ:
    """With weights so large that everything matters."""
    model, generator = LlamaGenVQ(**{**VQ, **changes}), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3, generator=generator)
    return model.eval()


# --- beside the recording


@pytest.fixture(scope="module")
def vq_data(recorded: Recorded) -> dict[str, npt.NDArray[Any]]:
    if not (_DATA / f"{_NAME}.npz").exists():
        pytest.skip(f"{_NAME}.npz is not in tests/data")
    return recorded(_NAME)


@pytest.fixture(scope="module")
def recorded_vq(vq_data: dict[str, npt.NDArray[Any]]) -> LlamaGenVQ:
    said = json.loads(str(vq_data["cfg"]))
    arguments = {key: value for key, value in said.items() if key not in ("f_factor", "note")}
    state = {key[3:]: torch.from_numpy(vq_data[key]) for key in vq_data if key.startswith("sd/")}
    return presets.load(LlamaGenVQ, state, Path("vq.pt"), arguments)


@torch.no_grad()
def test_decodes_the_official_image(
    recorded_vq: LlamaGenVQ, vq_data: dict[str, npt.NDArray[Any]]
) -> None:
    """Its grid is not square."""
    image = recorded_vq.decode(torch.from_numpy(vq_data["in/code"]))
    expected = vq_data["out/raw_f32"] / 2 + 0.5  # officially −1…1
    np.testing.assert_allclose(image, expected, rtol=0, atol=1e-4)


@torch.no_grad()
def test_encodes_to_the_official_ids(
    recorded_vq: LlamaGenVQ, vq_data: dict[str, npt.NDArray[Any]]
) -> None:
    ids = recorded_vq.encode((torch.from_numpy(vq_data["in/image_pm1"]) + 1) / 2)
    np.testing.assert_array_equal(ids.flatten(), vq_data["out/enc_idx"])


# --- beside the formulas


class _Walk:
    """The networks of the tokenizer, from the keys of a file alone."""

    def __init__(self, state: State) -> None:
        self.state = state

    def conv(self, name: str, x: Tensor, **how: Any) -> Tensor:
        weight = self.state[f"{name}.weight"]
        how.setdefault("padding", weight.shape[-1] // 2)
        return F.conv2d(x, weight, self.state[f"{name}.bias"], **how)

    def norm(self, name: str, x: Tensor) -> Tensor:
        return F.group_norm(x, 32, self.state[f"{name}.weight"], self.state[f"{name}.bias"], 1e-6)

    def block(self, name: str, x: Tensor) -> Tensor:
        if f"{name}.q.weight" in self.state:
            h = self.norm(f"{name}.norm", x)
            q, k, v = (self.conv(f"{name}.{each}", h).flatten(2).mT for each in "qkv")
            h = F.scaled_dot_product_attention(q, k, v).mT.reshape(x.shape)
            return x + self.conv(f"{name}.proj_out", h)
        h = x
        for each in "12":
            h = self.conv(f"{name}.conv{each}", F.silu(self.norm(f"{name}.norm{each}", h)))
        if f"{name}.nin_shortcut.weight" in self.state:
            x = self.conv(f"{name}.nin_shortcut", x)
        return x + h

    def has(self, name: str) -> bool:
        return any(key.startswith(f"{name}.") for key in self.state)

    def levels(self, half: str, x: Tensor) -> Tensor:
        level = 0
        while self.has(name := f"{half}.conv_blocks.{level}"):
            block = 0
            while self.has(f"{name}.res.{block}"):
                x = self.block(f"{name}.res.{block}", x)
                if self.has(f"{name}.attn.{block}"):
                    x = self.block(f"{name}.attn.{block}", x)
                block += 1
            if self.has(f"{name}.upsample"):
                x = x.repeat_interleave(2, 2).repeat_interleave(2, 3)
                x = self.conv(f"{name}.upsample.conv", x)
            if self.has(f"{name}.downsample"):
                x = self.conv(
                    f"{name}.downsample.conv", F.pad(x, (0, 1, 0, 1)), stride=2, padding=0
                )
            level += 1
        return x

    def middle(self, half: str, x: Tensor) -> Tensor:
        for each in "012":
            x = self.block(f"{half}.mid.{each}", x)
        return x

    def end(self, half: str, x: Tensor) -> Tensor:
        return self.conv(f"{half}.conv_out", F.silu(self.norm(f"{half}.norm_out", x)))

    def decode(self, latents: Tensor) -> Tensor:
        h = self.conv("decoder.conv_in", self.conv("post_quant_conv", latents))
        return self.end("decoder", self.levels("decoder", self.middle("decoder", h)))

    def encode(self, image: Tensor) -> Tensor:
        h = self.levels("encoder", self.conv("encoder.conv_in", image))
        return self.conv("quant_conv", self.end("encoder", self.middle("encoder", h)))


@torch.no_grad()
@pytest.mark.parametrize("l2_norm", [True, False])
def test_decodes_by_its_formulas(l2_norm: bool) -> None:
    model = _tokenizer(codebook_l2_norm=l2_norm)
    tokens = torch.arange(12).reshape(1, 3, 4)
    codes = model.quantize.embedding.weight
    if l2_norm:
        codes = codes / codes.norm(dim=1, keepdim=True)
    image = _Walk(model.state_dict()).decode(codes[tokens].permute(0, 3, 1, 2))
    found = model.decode(tokens)
    assert found.shape == (1, 3, 12, 16)
    torch.testing.assert_close(found, image / 2 + 0.5, rtol=1e-4, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("l2_norm", [True, False])
def test_encodes_to_the_nearest_codes_of_its_formulas(l2_norm: bool) -> None:
    model = _tokenizer(codebook_l2_norm=l2_norm)
    image = torch.rand(2, 3, 12, 16, generator=torch.Generator().manual_seed(2))
    z = _Walk(model.state_dict()).encode(image * 2 - 1).permute(0, 2, 3, 1).flatten(1, 2)
    codes = model.quantize.embedding.weight
    if l2_norm:
        expected = torch.cosine_similarity(z[:, :, None], codes, dim=-1).argmax(-1)
    else:
        expected = torch.cdist(z, codes).argmin(-1)
    assert len(set(expected.flatten().tolist())) > 1
    assert torch.equal(model.encode(image), expected)


@torch.no_grad()
def test_flat_tokens_are_a_square_row_by_row() -> None:
    model = _tokenizer()
    tokens = torch.arange(18, dtype=torch.int32).reshape(2, 9) % 12
    raw, image = model.unclamped(tokens), model(tokens)
    assert torch.equal(raw, model.decode(tokens.reshape(2, 3, 3)))
    assert raw.min() < 0
    assert raw.max() > 1
    assert torch.equal(image, raw.clamp(0, 1))


@torch.no_grad()
def test_the_mask_id_is_decoded_as_the_last_code() -> None:
    model = _tokenizer()
    tokens = torch.tensor([[11, 0, 3, 11]])
    drawn = torch.tensor([[12, 0, 3, 11]])
    assert torch.equal(model.unclamped(drawn), model.unclamped(tokens))


@pytest.mark.parametrize(("encoder", "decoder"), [((1, 2), (1,)), ((), ())])
def test_tokenizers_that_do_not_build_are_refused(
    encoder: tuple[int, ...], decoder: tuple[int, ...]
) -> None:
    words = f"at least 1, got {len(encoder)} and {len(decoder)}"
    with pytest.raises(ValueError, match=words):
        LlamaGenVQ(**{**VQ, "encoder_ch_mult": encoder, "decoder_ch_mult": decoder})


# --- files


def test_the_published_tokenizer_is_recognised(layouts: Layouts, tmp_path: Path) -> None:
    path = tmp_path / "vq_ds16_c2i.pt"
    # Tensors of these shapes in one number's memory each.
    state = {k: torch.zeros(()).expand(shape) for k, shape in layouts[path.name].items()}
    torch.save({"model": state}, path)
    read, _ = presets.read(LlamaGenVQ, path, None)
    whole = presets.load(LlamaGenVQ, state, path, None)
    for model in (read, whole):
        assert (model.downsampling, model.codebook_size) == (16, 16384)
        assert model.quantize.l2_norm
        assert model.quantize.embedding.weight.shape == (16384, 8)
    assert hasattr(whole, "encoder")


@pytest.mark.parametrize(
    ("left_out", "changes"),
    [
        (("encoder.", "quant_conv."), {}),
        (("quantize.codebook_used",), {"codebook_show_usage": False}),
        ((), {"codebook_show_usage": False}),
    ],
    ids=["decoder alone", "without the buffer", "with it"],
)
def test_what_is_never_exported_may_be_missing(
    left_out: tuple[str, ...], changes: dict[str, Any], tmp_path: Path
) -> None:
    model, path = _tokenizer(), tmp_path / "vq.pt"
    weights = {k: each for k, each in model.state_dict().items() if not k.startswith(left_out)}
    torch.save({"model": weights}, path)
    found, _ = presets.read(LlamaGenVQ, path, {**VQ, **changes})
    tokens = torch.arange(9).reshape(1, 9)
    with torch.no_grad():
        assert torch.equal(found(tokens), model(tokens))


def test_a_file_that_says_another_norm_is_refused(tmp_path: Path) -> None:
    """Nothing in the shapes says it."""
    model, path = _tokenizer(codebook_l2_norm=False), tmp_path / "vq.pt"
    said = {"codebook_embed_dim": 5, "codebook_l2_norm": False}
    torch.save({"model": model.state_dict(), "args": said}, path)
    with pytest.raises(CheckpointError, match="codebook_l2_norm False, but is read with True"):
        presets.read(LlamaGenVQ, path, VQ)
