"""Files of other systems, and of the other networks of this one, are named, not measured."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from fewstep.export import foreign, presets, source
from fewstep.export.foreign import SIGNATURES, recognise
from fewstep.export.models import PolicyNet, UViT, VQModel
from fewstep.export.source import register
from fewstep.runtime.errors import CheckpointError

Layouts = dict[str, dict[str, torch.Size]]

PUBLISHED = {
    "vae_ch160v4096z32.pth": "VAR's multi-scale tokenizer",
    "var_d16.pth": "a VAR transformer",
    "var_d36.pth (512)": "a VAR transformer",
    "mar_base checkpoint-last.pth": "a MAR model",
    "kl16.ckpt": "a KL autoencoder",
    "generator_titok_b64.bin (ViT)": "a TiTok generator",
    "generator_titok_l32.bin (ViT)": "a TiTok generator",
    "generator_titok_s128.bin (UViT)": "a TiTok generator",
    "tokenizer_titok_l32.bin": "a TiTok tokenizer",
    "ImageNet_384_large.pth": "a Halton-MaskGIT transformer",
    "ImageNet_256_base.pth": "a Halton-MaskGIT transformer",
    "vq_ds16_c2i.pt": "a LlamaGen tokenizer",
    "amused UVit2DModel (library defaults)": "an aMUSEd transformer",
    **{f"var_d{depth}.pth": "a VAR transformer" for depth in (20, 24, 30)},
    **{f"mar_{size} checkpoint-last.pth": "a MAR model" for size in ("large", "huge")},
    **{f"maskgit_imagenet{size}.ckpt": "a maskgit-torch transformer" for size in (256, 512)},
    **{f"tokenizer_imagenet{size}.ckpt": "a maskgit-torch tokenizer" for size in (256, 512)},
    **{
        f"ImageNet_{size}.pth": "a Halton-MaskGIT transformer"
        for size in ("256_tiny", "256_small", "384_small", "384_base")
    },
    **{
        f"tokenizer_titok_{size}.bin": "a TiTok tokenizer"
        for size in ("b64", "s128", "bl64_vq8k", "bl128_vq8k", "sl256_vq8k")
    },
}
"""What the published key tables of ``tests/data`` are."""

_TAKEN = {
    "amused": ("aMUSEd",),
    "var": ("VAR",),
    "mar": ("MAR model", "KL autoencoder"),
    "halton": ("Halton-MaskGIT", "LlamaGen"),
    "titok": ("TiTok",),
    "maskgit-torch": ("maskgit-torch",),
}
"""By the form that takes them; no other does."""

OWN = (
    "adanat_in256_L nnet_ema",
    "adanat_cc3m nnet_ema",
    "adanat_policy_in256",
    "adanat_policy_cc3m",
    "vqgan_jax_strongaug.ckpt",
    *(f"adagen {name}_policy.pth" for name in ("maskgit", "var_d16", "var_d30")),
)


def hollow(shapes: dict[str, torch.Size]) -> dict[str, Tensor]:
    return {key: torch.zeros(()).expand(shape) for key, shape in shapes.items()}


def test_every_table_is_covered(layouts: Layouts) -> None:
    assert layouts.keys() == {*PUBLISHED, *OWN}


@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.parametrize("wrapper", ["", "module.", "model."])
def test_published_files_of_others_are_recognised(
    name: str, wrapper: str, layouts: Layouts
) -> None:
    found = recognise([wrapper + key for key in layouts[name]])
    assert found.startswith(PUBLISHED[name])
    form = next((f for f, names in _TAKEN.items() if any(n in PUBLISHED[name] for n in names)), "")
    end = f"fewstep export {form} takes it" if form else "which fewstep does not support yet"
    assert found.endswith(end)


@pytest.mark.parametrize("name", OWN)
def test_own_files_are_not_taken_for_others(name: str, layouts: Layouts) -> None:
    assert recognise(list(layouts[name])) == ""


@pytest.mark.parametrize("kind", [UViT, PolicyNet, VQModel])
@pytest.mark.parametrize("name", PUBLISHED)
def test_they_are_refused_by_name_and_not_sent_to_config(
    name: str, kind: type[nn.Module], layouts: Layouts, tmp_path: Path
) -> None:
    torch.save({"model_ema": hollow(layouts[name]), "epoch": 1}, tmp_path / "x.pth")
    with pytest.raises(CheckpointError) as caught:
        presets.read(kind, tmp_path / "x.pth", None)
    assert f"x.pth is {PUBLISHED[name]}" in str(caught.value)
    assert "--config" not in str(caught.value)
    assert len(str(caught.value)) < 300 + len(str(tmp_path))


def test_a_form_that_takes_them_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the form's name alone: the table need not change when the form comes."""
    maskgen, rar = ["text_embed_proj.weight", "lm_head.weight"], ["target_aware_pos_embed"]
    assert "does not support" in recognise(maskgen)

    class MaskGen:
        name, kind, summary, options = "maskgen", "maskgen", "MaskGen.", ()

    monkeypatch.setattr(source, "_registered", dict(source._registered))
    register(MaskGen())  # type: ignore[arg-type]
    assert recognise(maskgen) == ("a MaskGen model (1d-tokenizer): fewstep export maskgen takes it")
    assert "does not support" in recognise([*rar, "timesteps_embeddings"])


@pytest.mark.parametrize(
    ("keys", "name"),
    [
        (
            ["encoder.down.0.block.0.conv1.bias", "decoder.mid.attn_1.q.weight"]
            + ["quantize.embedding.weight", "quant_conv.weight", "post_quant_conv.weight"],
            "a taming-transformers VQGAN",
        ),
        (
            ["decoder.up_blocks.0.resnets.0.conv1.weight", "quantize.embedding.weight"],
            "a diffusers VQModel",
        ),
        (
            ["decoder.up_blocks.0.resnets.0.conv1.weight", "quant_conv.weight"],
            "a diffusers AutoencoderKL",
        ),
        (["model.diffusion_model.input_blocks.0.0.weight"], "a Stable Diffusion or LDM model"),
        (["text_model.encoder.layers.0.self_attn.q_proj.weight"], "a CLIP model"),
        (["visual.class_embedding", "token_embedding.weight"], "a CLIP model"),
        (
            ["single_transformer_blocks.0.proj_mlp.weight", "mlm_layer.conv2.weight"]
            + ["transformer_blocks.0.attn.add_q_proj.weight"],
            "a Meissonic transformer",
        ),
        (
            ["transformer_layers.0.attention.query.weight", "transformer_layers.0.ffn.wi_0.weight"],
            "an open-muse transformer",
        ),
        (["text_embed_proj.weight", "lm_head.weight", "blocks.0.x"], "a MaskGen model"),
        (
            ["tok_emb.weight", "blocks.0.MultiHeadAttention.in_proj_weight"],
            "a maskgit-torch transformer",
        ),
    ],
)
def test_others_are_recognised_by_their_telling_keys(keys: list[str], name: str) -> None:
    assert recognise(keys).startswith(name)


def test_every_signature_is_reached() -> None:
    """None is hidden behind one before it."""
    for signature in SIGNATURES:
        assert foreign.recognise(list(signature.keys)).startswith(signature.name)


@pytest.mark.parametrize(
    ("name", "own", "option"),
    [
        ("adanat_in256_L nnet_ema", UViT, "--transformer"),
        ("adanat_cc3m nnet_ema", UViT, "--transformer"),
        ("adanat_policy_in256", PolicyNet, "--policy"),
        ("vqgan_jax_strongaug.ckpt", VQModel, "--tokenizer"),
    ],
)
@pytest.mark.parametrize("kind", [UViT, PolicyNet, VQModel])
def test_files_given_for_one_another_are_sent_where_they_belong(
    kind: type[nn.Module],
    name: str,
    own: type[nn.Module],
    option: str,
    layouts: Layouts,
    tmp_path: Path,
) -> None:
    if kind is own:
        return
    torch.save({"model": hollow(layouts[name])}, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match=rf"x.pth is a .*, not a .*; pass it as {option}"):
        presets.read(kind, tmp_path / "x.pth", None)


def test_a_network_of_another_kind_is_refused_with_some_of_its_keys(tmp_path: Path) -> None:
    state = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).state_dict()
    torch.save(state, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match=r"holds no transformer .*other names \(0.weight, 0"):
        presets.read(UViT, tmp_path / "x.pth", None)
    torch.save({"epoch": 3}, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match=r"holds no tokenizer \(VQGAN\): no tensors"):
        presets.read(VQModel, tmp_path / "x.pth", None)
