"""TiTok's tokenizer: PyTorch's own layers, the recorded VQGAN, and the published files.

Nothing recorded TiTok itself, so its encoder and decoder are written a second time here with
``nn.TransformerEncoderLayer`` and with loops in place of reshapes. The VQGAN's decoder inside it is
compared with a recording of the official code.
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
from torch import Tensor, nn
from torch.nn import functional as F

from fewstep.export import presets
from fewstep.export.models import VQModel
from fewstep.export.models.titok import PixelDecoder, TiTok
from fewstep.export.parts.masked import open_muse_name

Recorded = Callable[[str], dict[str, npt.NDArray[Any]]]
Layouts = dict[str, dict[str, torch.Size]]

WIDTH, BLOCKS, HEADS = 16, 2, 4
TINY: dict[str, Any] = {
    "codebook_size": 10,
    "token_size": 5,
    "num_latent_tokens": 3,
    "vit_enc_model_size": [WIDTH, BLOCKS, HEADS],
    "vit_dec_model_size": [WIDTH, BLOCKS, HEADS],
    "use_l2_norm": False,
    "crop_size": 32,
    "pixel_channels": 32,
}
PLAIN: dict[str, Any] = TINY | {"is_legacy": False, "finetune_decoder": False}
TOKENS = torch.tensor([[0, 3, 9], [3, 3, 1]])
IMAGES = torch.linspace(0, 1, 2 * 3 * 32 * 32).reshape(2, 32, 32, 3).permute(0, 3, 1, 2)


def tiny(arguments: dict[str, Any], **changes: Any) -> TiTok:
    """A tokenizer of 32×32 images and three tokens; both transformers matter in it."""
    model = TiTok(**(arguments | changes)).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not name.startswith("pixel_decoder."):
                parameter.normal_(std=0.3, generator=generator)
            if ".ln_" in name and name.endswith("weight"):
                parameter.add_(1)
    return model


def _torch_block(state: dict[str, Tensor], name: str) -> nn.TransformerEncoderLayer:
    own = nn.TransformerEncoderLayer(
        WIDTH, HEADS, 4 * WIDTH, 0.0, "gelu", batch_first=True, norm_first=True
    )
    others = {
        "self_attn.in_proj_weight": "attn.in_proj_weight",
        "self_attn.in_proj_bias": "attn.in_proj_bias",
    }
    for layer, other in (
        ("self_attn.out_proj", "attn.out_proj"),
        ("linear1", "mlp.c_fc"),
        ("linear2", "mlp.c_proj"),
        ("norm1", "ln_1"),
        ("norm2", "ln_2"),
    ):
        others |= {f"{layer}.{part}": f"{other}.{part}" for part in ("weight", "bias")}
    own.load_state_dict({key: state[f"{name}.{other}"] for key, other in others.items()})
    return own


def _blocks(x: Tensor, state: dict[str, Tensor], name: str) -> Tensor:
    """From before ``ln_pre`` to after ``ln_post``."""

    def norm(x: Tensor, which: str) -> Tensor:
        start = f"{name}.ln_{which}"
        return F.layer_norm(x, (WIDTH,), state[f"{start}.weight"], state[f"{start}.bias"])

    x = norm(x, "pre")
    for block in range(BLOCKS):
        x = _torch_block(state, f"{name}.transformer.{block}")(x)
    return norm(x, "post")


def _encoded(model: TiTok, images: Tensor) -> Tensor:
    """The N latents of images after all blocks of the encoder, ``[B, N, C]``."""
    state = dict(model.state_dict())
    kernel = state["encoder.patch_embed.weight"].flatten(1)  # [C, 3·16·16]
    patches = [
        images[:, :, row : row + 16, column : column + 16].flatten(1) @ kernel.T
        + state["encoder.patch_embed.bias"]
        for row in (0, 16)
        for column in (0, 16)
    ]
    places = state["encoder.positional_embedding"]
    first = (state["encoder.class_embedding"] + places[:1]).expand(len(images), 1, WIDTH)
    grid = torch.stack(patches, 1) + places[1:]
    latents = state["latent_tokens"] + state["encoder.latent_token_positional_embedding"]
    x = torch.cat([first, grid, latents.expand(len(images), 3, WIDTH)], 1)
    return _blocks(x, state, "encoder")[:, 5:]


def _decoded(model: TiTok, tokens: Tensor) -> Tensor:
    """The patches after all blocks of the decoder, ``[B, P, C]``."""
    state = dict(model.state_dict())
    codes = state["quantize.embedding.weight"][tokens]
    weight, bias = (state[f"decoder.decoder_embed.{part}"] for part in ("weight", "bias"))
    latents = codes @ weight.T + bias + state["decoder.latent_token_positional_embedding"]
    masks = state["decoder.mask_token"][0].expand(4, WIDTH)
    grid = torch.cat([state["decoder.class_embedding"], masks])
    grid = grid + state["decoder.positional_embedding"]
    x = torch.cat([grid.expand(len(tokens), 5, WIDTH), latents], 1)
    return _blocks(x, state, "decoder")[:, 1:5]


def _per_patch(x: Tensor, model: TiTok, name: str) -> Tensor:
    """A 1×1 convolution of patches ``[B, P, C]``."""
    state = model.state_dict()
    return F.linear(x, state[f"{name}.weight"][:, :, 0, 0], state[f"{name}.bias"])


# --- encoder


@torch.no_grad()
@pytest.mark.parametrize("legacy", [True, False])
def test_latents_are_those_of_pytorchs_encoder(legacy: bool) -> None:
    """A legacy model reads the numbers of an image's latents in an order of its own."""
    model = tiny(TINY if legacy else PLAIN)
    x = _encoded(model, IMAGES)
    if legacy:
        x = torch.stack([x.flatten(1)[:, token::3] for token in range(3)], 1)
    expected = _per_patch(x, model, "encoder.conv_out")
    found = model.encoder(IMAGES, model.latent_tokens)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("norm", [True, False])
def test_a_token_is_the_nearest_code(norm: bool) -> None:
    model = tiny(PLAIN, use_l2_norm=norm)
    latents = model.encoder(IMAGES, model.latent_tokens)
    codes = model.quantize.embedding.weight
    if norm:
        nearest = F.cosine_similarity(latents[:, :, None], codes, dim=-1).argmax(-1)
    else:
        nearest = torch.cdist(latents, codes.expand(2, 10, 5)).argmin(-1)
    found = model.encode(IMAGES)
    assert found.shape == (2, 3)
    assert torch.equal(found, nearest)


@torch.no_grad()
@pytest.mark.parametrize("norm", [True, False])
def test_lengths_of_codes_matter_unless_they_are_normed(norm: bool) -> None:
    model = tiny(PLAIN, use_l2_norm=norm)
    image, codes = model.unclamped(TOKENS), model.quantize.embedding.weight
    lengths = torch.linspace(0.2, 5, 10)[:, None]
    model.quantize.embedding.weight = nn.Parameter(codes * lengths)
    assert torch.allclose(model.unclamped(TOKENS), image, atol=1e-5) is norm


# --- decoder


def _vqgan_config(resolution: int, z_channels: int) -> dict[str, object]:
    """``ddconfig`` of MaskGIT's VQGAN, a quarter as wide."""
    sizes = {"resolution": resolution, "z_channels": z_channels, "ch": 32, "num_res_blocks": 2}
    return {"in_channels": 3, "out_ch": 3, "ch_mult": [1, 1, 2, 2, 4], **sizes}


@torch.no_grad()
def test_pixels_are_those_of_pytorchs_decoder() -> None:
    """A patch holds its rows, they their pixels, they their colours; a convolution ends it."""
    model = tiny(PLAIN)
    x = _decoded(model, TOKENS)
    values = _per_patch(x, model, "decoder.ffn.0")  # [B, P, 16·16·3]
    expected = torch.zeros(2, 3, 32, 32)
    for patch in range(4):
        top, left = 16 * (patch // 2), 16 * (patch % 2)
        for row in range(16):
            for column in range(16):
                at = 3 * (16 * row + column)
                expected[:, :, top + row, left + column] = values[:, patch, at : at + 3]
    last = model.decoder.conv_out
    expected = F.conv2d(expected, last.weight, last.bias, padding=1)
    torch.testing.assert_close(model.unclamped(TOKENS), expected, rtol=0, atol=1e-4)


@torch.no_grad()
def test_a_legacy_decoder_mixes_the_codes_of_a_vqgan() -> None:
    model = tiny(TINY)
    x = _decoded(model, TOKENS)
    hidden = torch.tanh(_per_patch(x, model, "decoder.ffn.0"))
    chances = torch.softmax(_per_patch(hidden, model, "decoder.ffn.2"), -1)  # [B, P, 1024]
    z = torch.zeros(2, 256, 2, 2)
    for patch in range(4):
        z[:, :, patch // 2, patch % 2] = chances[:, patch] @ model.pixel_quantize.embedding.weight
    expected = model.pixel_decoder(z)
    assert expected.shape == (2, 3, 32, 32)
    torch.testing.assert_close(model.unclamped(TOKENS), expected, rtol=0, atol=1e-4)


@torch.no_grad()
def test_a_certain_legacy_decoder_gives_the_image_of_the_vqgan() -> None:
    """As the VQGAN of its own class decodes it, with the same weights."""
    model = tiny(TINY)
    vqgan = VQModel(_vqgan_config(32, 256), 1024, 256).eval()
    weights = model.state_dict()
    known = {key: f"pixel_{open_muse_name(key)}" for key in vqgan.state_dict()}
    found = {key: weights[each] for key, each in known.items() if each in weights}
    missing = vqgan.load_state_dict(found, strict=False).missing_keys
    assert all(key.startswith("encoder.") for key in missing)
    codes = torch.tensor([[5, 1000, 77, 0]])
    logits = 1000.0 * F.one_hot(codes, 1024).transpose(1, 2).reshape(1, 1024, 2, 2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model.decoder, "forward", lambda _: logits)
        image = model.unclamped(TOKENS[:1])
    torch.testing.assert_close(image, vqgan.unclamped(codes), rtol=0, atol=1e-4)


@torch.no_grad()
def test_the_pixel_decoder_is_the_official_one(recorded: Recorded) -> None:
    data = recorded("maskgit_vqgan")
    config = json.loads(str(data["cfg"]))["conf"]
    decoder = PixelDecoder(config["hidden_channels"], config["z_channels"]).eval()
    decoder.load_state_dict(
        {
            key.removeprefix("sd/decoder."): torch.from_numpy(data[key])
            for key in data
            if key.startswith("sd/decoder.")
        }
    )
    codes = torch.from_numpy(data["sd/quantize.embedding.weight"])
    z = F.embedding(torch.from_numpy(data["in/code"]), codes)  # [B, 16, D]
    image = decoder(z.transpose(1, 2).reshape(len(z), -1, 4, 4))
    np.testing.assert_allclose(image, data["out/raw"], rtol=0, atol=1e-4)


@torch.no_grad()
def test_the_vqgan_alone_gives_the_official_ids_and_images(recorded: Recorded) -> None:
    """``maskgit-vqgan-imagenet-f16-256.bin`` is a :class:`VQModel` under open-muse's keys."""
    data = recorded("maskgit_vqgan")
    said = json.loads(str(data["cfg"]))
    vqgan = VQModel(_vqgan_config(64, 32), said["num_embeddings"], 32).eval()
    keys = {key: f"sd/{open_muse_name(key)}" for key in vqgan.state_dict()}
    vqgan.load_state_dict({key: torch.from_numpy(data[each]) for key, each in keys.items()})
    ids = vqgan.encode(torch.from_numpy(data["in/image01"]))
    np.testing.assert_array_equal(ids, data["out/enc_idx"])
    image = vqgan.unclamped(torch.from_numpy(data["in/code"]))
    np.testing.assert_allclose(image, data["out/raw"], rtol=0, atol=1e-4)


# --- both kinds


@torch.no_grad()
@pytest.mark.parametrize("arguments", [TINY, PLAIN], ids=["legacy", "plain"])
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_the_image_is_clamped(arguments: dict[str, Any], dtype: torch.dtype) -> None:
    model = tiny(arguments)
    last: Any = model.pixel_decoder if arguments is TINY else model.decoder
    last.conv_out.bias = nn.Parameter(torch.tensor([50.0, -50.0, 0.5]))
    raw, image = model.unclamped(TOKENS.to(dtype)), model(TOKENS.to(dtype))
    assert raw[:, 0].min() > 1
    assert raw[:, 1].max() < 0
    torch.testing.assert_close(image, raw.clamp(0, 1))


@torch.no_grad()
@pytest.mark.parametrize("arguments", [TINY, PLAIN], ids=["legacy", "plain"])
def test_an_image_does_not_depend_on_its_batch(arguments: dict[str, Any]) -> None:
    model = tiny(arguments)
    torch.testing.assert_close(model(TOKENS)[1:], model(TOKENS[1:]), rtol=0, atol=1e-4)
    assert torch.equal(model.encode(IMAGES)[1:], model.encode(IMAGES[1:]))


@torch.no_grad()
def test_patches_of_the_two_transformers_may_differ() -> None:
    """A legacy decoder makes 16 pixels of every patch, whatever it is called."""
    plain = tiny(PLAIN, vit_enc_patch_size=8, vit_dec_patch_size=4)
    assert plain.encode(IMAGES).shape == (2, 3)
    assert plain(TOKENS).shape == (2, 3, plain.resolution, plain.resolution) == (2, 3, 32, 32)
    legacy = tiny(TINY, vit_dec_patch_size=8)
    assert legacy(TOKENS).shape == (2, 3, legacy.resolution, legacy.resolution) == (2, 3, 64, 64)


# --- files and arguments

_PUBLISHED = [
    ("l32", 32, 4096, True),
    ("b64", 64, 4096, True),
    ("s128", 128, 4096, True),
    ("bl64_vq8k", 64, 8192, False),
    ("bl128_vq8k", 128, 8192, False),
    ("sl256_vq8k", 256, 8192, False),
]


@pytest.mark.parametrize(("name", "tokens", "codes", "legacy"), _PUBLISHED)
def test_published_tokenizers_are_recognised(
    name: str, tokens: int, codes: int, legacy: bool, layouts: Layouts
) -> None:
    shapes = layouts[f"tokenizer_titok_{name}.bin"]
    state = {key: torch.zeros(()).expand(shape) for key, shape in shapes.items()}
    model = presets.load(TiTok, state, Path(f"{name}.bin"), None)
    assert {key: each.shape for key, each in model.state_dict().items()} == shapes
    assert (model.num_tokens, model.codebook_size, model.resolution) == (tokens, codes, 256)
    assert (model.quantize.use_l2_norm, model.decoder.is_legacy) == (legacy, legacy)
    blocks: Any = (model.encoder.transformer[0], model.decoder.transformer[0])
    letters = (name[0], name[int(name[1] == "l")])
    assert [each.attn.heads for each in blocks] == [
        {"s": 8, "b": 12, "l": 16}[letter] for letter in letters
    ]


def test_a_tokenizer_needs_no_encoder() -> None:
    model = presets.load(TiTok, dict(tiny(PLAIN).state_dict()), Path("x.bin"), PLAIN)
    kept = {key: each for key, each in model.state_dict().items() if "encoder." not in key}
    alone = presets.load(TiTok, kept, Path("x.bin"), PLAIN)
    assert not hasattr(alone, "encoder")
    torch.testing.assert_close(alone(TOKENS), model(TOKENS))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"quantize_mode": "vae"}, "quantize_mode must be vq, got 'vae'"),
        ({"is_legacy": False}, "finetune_decoder must be false where is_legacy is"),
        ({"finetune_decoder": False}, "finetune_decoder must be true where is_legacy is"),
        ({"vit_dec_model_size": "huge"}, "must be small, base, large, or .* got 'huge'"),
        ({"vit_enc_model_size": [8, 2]}, "vit_enc_model_size must be small, base, large, or"),
        ({"vit_enc_model_size": [10, 2, 4]}, "width 10 must be a multiple of heads 4"),
        ({"vit_enc_model_size": [8, 0, 4]}, "blocks in vit_enc_model_size must be a whole number"),
        ({"crop_size": 40}, "crop_size 40 must be a multiple of vit_enc_patch_size 16"),
        ({"token_size": 1.5}, "token_size must be a whole number, at least 1, got 1.5"),
        ({"pixel_channels": 48}, "pixel_channels must be a multiple of 32, got 48"),
    ],
)
def test_what_does_not_build_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        TiTok(**(TINY | changes))
