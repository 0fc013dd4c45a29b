"""``fewstep export mar``: the authors' files are recognised, and what does not fit is said.

Covered: published sizes by their keys and shapes; averaged weights, wrappings, decoders alone; what
the manifest says; every configuration and file that does not fit, with one line and nothing left
behind; golden rollouts under any defaults.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests import tiny_mar
from tests.export.changed import configured
from torch import Tensor

from fewstep.export import presets
from fewstep.export.config import ExportConfig, read_config
from fewstep.export.flow import export
from fewstep.export.mar import Checkpoints, Models, describe, load
from fewstep.export.models.kl import AutoencoderKL
from fewstep.export.models.mar import MAR
from fewstep.export.source import Exportable
from fewstep.runtime.errors import CheckpointError
from fewstep.runtime.families import Model, family_of
from fewstep.runtime.families.mar.model import MarModel
from fewstep.runtime.settings import settings_of

Layouts = dict[str, dict[str, torch.Size]]
State = dict[str, Tensor]

_PUBLISHED = [
    ("base", 768, 12, 12, (6, 1024)),
    ("large", 1024, 16, 16, (8, 1280)),
    ("huge", 1280, 20, 16, (12, 1536)),
]
_KL = "kl16.ckpt"


def _hollow(shapes: dict[str, torch.Size]) -> State:
    """Tensors of these shapes in one number's memory each."""
    return {key: torch.zeros(()).expand(shape) for key, shape in shapes.items()}


# --- published files


@pytest.mark.parametrize(("name", "width", "depth", "heads", "head"), _PUBLISHED)
def test_published_transformers_are_recognised(
    name: str, width: int, depth: int, heads: int, head: tuple[int, int], layouts: Layouts
) -> None:
    state = _hollow(layouts[f"mar_{name} checkpoint-last.pth"])
    model = presets.load(MAR, state, Path("checkpoint-last.pth"), None)
    for blocks, own in (
        (model.encoder_blocks, model.encoder_width),
        (model.decoder_blocks, model.decoder_width),
    ):
        assert (len(blocks), own) == (depth, width)
        attention: Any = blocks[0]
        assert (attention.attn.heads, attention.norm1.eps) == (heads, 1e-6)
    assert (len(model.diffloss.net.res_blocks), model.diffloss.net.width) == head
    assert (model.seq_len, model.token_embed_dim, model.buffer_size) == (256, 16, 64)
    assert (model.class_num, model.vae_stride, model.patch_size) == (1000, 16, 1)


def test_the_published_autoencoder_is_recognised(layouts: Layouts) -> None:
    kl = presets.load(AutoencoderKL, _hollow(layouts[_KL]), Path(_KL), None)
    assert (kl.embed_dim, kl.downsampling) == (16, 16)
    assert hasattr(kl, "encoder")


def test_the_published_files_are_read_as_they_are(layouts: Layouts, tmp_path: Path) -> None:
    """With both copies of the weights, and the arguments of the training."""
    weights = _hollow(layouts["mar_base checkpoint-last.pth"])
    training = {"optimizer": {}, "scaler": {}, "epoch": 399}
    arguments = argparse.Namespace(img_size=256, vae_embed_dim=16, vae_stride=16, patch_size=1)
    arguments.__dict__ |= {"buffer_size": 64, "diffloss_d": 6, "diffloss_w": 1024, "cfg": 2.9}
    both = {"model": weights, "model_ema": dict(weights), "args": arguments}
    files = Checkpoints(tmp_path / "checkpoint-last.pth", tmp_path / _KL)
    torch.save(both | training, files.transformer)
    torch.save({"model": _hollow(layouts[_KL])}, files.tokenizer)
    found = load(files, ExportConfig())
    model = found.model
    assert isinstance(model, MarModel)
    assert (model.latent_scale, model.full_blocks, model.image_size) == (0.2325, 3, (256, 256))
    assert (model.side, model.channels, model.condition.unconditional_id) == (16, 16, 1000)
    assert model.defaults.iterations == 64
    assert len(found.graphs) == 6
    assert any("took model_ema" in note for note in found.notes)


@pytest.mark.parametrize(("name", "guidance"), [("base", 2.9), ("large", 3.0), ("huge", 3.2)])
def test_published_sizes_are_guided_as_their_authors_evaluate_them(
    name: str, guidance: float, layouts: Layouts
) -> None:
    state = _hollow(layouts[f"mar_{name} checkpoint-last.pth"])
    transformer = presets.load(MAR, state, Path("checkpoint-last.pth"), None)
    tokenizer = presets.load(AutoencoderKL, _hollow(layouts[_KL]), Path(_KL), None)
    models = Models(transformer, tokenizer)
    model, _ = describe(models, ExportConfig(), 0.2325)
    assert model.defaults.guidance == (1.0, guidance)
    own, _ = describe(models, ExportConfig(defaults={"guidance": 2}), 0.2325)
    assert own.defaults.guidance == (1.0, 2.0)


def test_no_file_says_the_scale_of_another_tokenizer(layouts: Layouts, tmp_path: Path) -> None:
    files = Checkpoints(tmp_path / "mar.pth", tmp_path / _KL)
    torch.save(_hollow(layouts["mar_base checkpoint-last.pth"]), files.transformer)
    torch.save(_hollow(layouts[_KL]), files.tokenizer)
    known = ExportConfig(tokenizer={"embed_dim": 16, "ch_mult": [1, 1, 2, 2, 4]})
    with pytest.raises(CheckpointError, match="latent_scale is missing in --config"):
        load(files, known)
    model = load(files, known.model_copy(update={"latent_scale": 0.3})).model
    assert isinstance(model, MarModel)
    assert model.latent_scale == 0.3


# --- the tiny ones


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return tiny_mar.checkpoints(tmp_path_factory.mktemp("tiny-mar"))


@pytest.fixture(scope="module")
def weights(files: dict[str, Any]) -> State:
    return dict(torch.load(files["transformer"], weights_only=False)["model_ema"])


@pytest.fixture(scope="module")
def tokenizer(files: dict[str, Any]) -> State:
    return dict(torch.load(files["tokenizer"], weights_only=True)["model"])


def _loaded(files: dict[str, Any], config: dict[str, Any] | None = None, **more: Any) -> Exportable:
    """Read the files, with other entries of the configuration; ``None`` drops one."""
    given = {name: each for name, each in (files | more).items() if name != "config"}
    said = read_config(files["config"]).model_dump(exclude_unset=True) | (config or {})
    kept = {name: each for name, each in said.items() if each is not None}
    return load(Checkpoints(**given), ExportConfig.model_validate(kept))


def test_what_the_manifest_says(files: dict[str, Any]) -> None:
    model = _loaded(files).model
    assert isinstance(model, MarModel)
    assert (model.side, model.channels, model.patch_size, model.buffer_size) == (4, 12, 2, 6)
    assert (model.image_size, model.cache_width, model.full_blocks) == ((16, 16), 128, 1)
    assert model.condition.unconditional_id == 5
    assert (model.latent_scale, model.defaults.guidance) == (0.5, (1.0, 2.0))
    assert model.presets["fast"] == {"iterations": 3, "diffusion_steps": "4:2", "refresh": 2}


def test_averaged_weights_are_taken(files: dict[str, Any], weights: State) -> None:
    """The others are zeros in this file."""
    found = _loaded(files)
    state = found.graphs["encoder"].module.state_dict()
    for key, value in weights.items():
        assert torch.equal(state[f"mar.{key}"], value)
    assert "transformer: took model_ema, the averaged weights (EMA), of 2 sets of weights" in (
        found.notes
    )


@pytest.mark.parametrize(
    "wrapped",
    [
        lambda state: state,
        lambda state: {"model_ema": {f"module.{key}": each for key, each in state.items()}},
        lambda state: {"model": {f"_orig_mod.{key}": each for key, each in state.items()}},
        lambda state: {"state_dict": {key: each.half() for key, each in state.items()}},
    ],
    ids=["plain", "module", "compiled", "half"],
)
def test_wrapped_files_are_read(
    wrapped: Callable[[State], Any], files: dict[str, Any], weights: State, tmp_path: Path
) -> None:
    torch.save(wrapped(weights), tmp_path / "mar.pth")
    found = _loaded(files, transformer=tmp_path / "mar.pth")
    assert found.model == _loaded(files).model
    state = found.graphs["head"].module.state_dict()
    key = "net.input_proj.weight"
    np.testing.assert_allclose(state[key], weights[f"diffloss.{key}"], rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    "left",
    [
        lambda key: key.startswith(("decoder.", "post_quant_conv.")),
        lambda key: key != "encoder.conv_out.bias",
    ],
    ids=["decoder alone", "half an encoder"],
)
def test_a_tokenizer_needs_no_encoder(
    left: Callable[[str], bool], files: dict[str, Any], tokenizer: State, tmp_path: Path
) -> None:
    kept = {f"first_stage_model.{key}": each for key, each in tokenizer.items() if left(key)}
    torch.save({"state_dict": kept | {"loss.logvar": torch.zeros(1)}}, tmp_path / "kl.ckpt")
    found = _loaded(files, tokenizer=tmp_path / "kl.ckpt")
    key = "decoder.conv_out.weight"
    assert torch.equal(found.graphs["decoder"].module.state_dict()[key], tokenizer[key])


# --- golden rollouts under any defaults


@pytest.mark.parametrize(
    "config",
    [
        {"defaults": {"iterations": 3, "guidance": "3,1,2", "temperature": "1,1,0.9"}},
        {"defaults": {"preset": "fast"}, "presets": {"fast": {"iterations": 2, "guidance": "1,2"}}},
        {
            "defaults": {
                "refresh": 2,
                "recompute": "1,0.5",
                "iterations": 2,
                "diffusion_steps": "3,2",
            }
        },
        {"defaults": {}, "unconditional": "none", "class_names": None},
    ],
    ids=["lists", "a preset", "parts", "no guidance"],
)
def test_rollouts_are_short_whatever_the_defaults(
    files: dict[str, Any], config: dict[str, Any]
) -> None:
    model = Model(_loaded(files, {"presets": {}} | config).model, graphs={})
    family = family_of("mar")
    found = family.rollouts(model)
    for name, settings in found.items():
        said = settings_of(model.info.defaults, json.loads(json.dumps(settings)))
        request = family.request(model, np.zeros(2, np.int32), np.zeros(2, np.uint64), said)
        assert len(request.counts) == 8
        assert set(request.spacings) == {"10"}
        assert request.guided == model.info.can_guide
        assert (name, any(request.recomputed)) in {("full", False), ("cached", True)}
        assert request.reuse_guidance == (name == "cached" and model.info.can_guide)


# --- what does not fit


def _transformer(**changed: Any) -> dict[str, Any]:
    return {"transformer": tiny_mar.TRANSFORMER | changed}


def _tokenizer(**changed: Any) -> dict[str, Any]:
    return {"tokenizer": tiny_mar.TOKENIZER | changed}


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (_transformer(encoder_embed_dim=60), r"class_emb.weight \[5, 48\] instead of \[5, 60\]"),
        (_transformer(encoder_embed_dim=50), "50 must be a multiple of encoder_num_heads 3"),
        (_transformer(decoder_depth=4), "12 unexpected: decoder_blocks.4"),
        (_transformer(diffloss_d=3), "8 missing: diffloss.net.res_blocks.2"),
        (_transformer(diffloss_w=32), r"diffloss.net.cond_embed.bias \[24\] instead of \[32\]"),
        (_transformer(buffer_size=7), r"decoder_pos_embed_learned \[1, 22, 32\] instead of"),
        (_transformer(patch_size=1), "7 mis-shaped"),
        (_transformer(class_num=6), r"class_emb.weight \[5, 48\] instead of \[6, 48\]"),
        (_transformer(norm_layer_eps="x"), "norm_layer_eps must be above 0 and below 1"),
        (_transformer(depth=3), "unexpected keyword argument 'depth'"),
        (_tokenizer(ch_mult=[1, 2]), "mis-shaped: decoder.conv_in.bias"),
        (_tokenizer(embed_dim=4), "decoder.conv_in.weight"),
        (_tokenizer(ch=48), r"num_channels \(48\) must be divisible"),
        (_tokenizer(in_channels=1), "images have 3 channels"),
        ({"latent_scale": None}, "latent_scale is missing in --config: .*0.2325 for KL-16"),
        ({"latent_scale": 0}, "latent_scale: Input should be greater than 0"),
        ({"latent_scale": "x"}, "latent_scale: Input should be a valid number"),
        ({"policy": {"hidden_size": 8}}, "policy in --config is not for mar"),
        ({"policy_residual": False}, "policy_residual in --config is not for mar"),
        ({"policy_schedule": {"top_k": 3}}, "policy_schedule in --config is not for mar"),
        ({"pixel_range": [-1, 1]}, "pixel_range in --config is not for mar"),
        ({"class_names": ["ant"]}, "expected 5 names, got 1"),
        ({"unconditional": 7}, "unconditional in --config must be one of"),
        ({"defaults": {"iterations": 17}}, "defaults: iterations must be 1 … 16, .* got 17"),
        ({"defaults": {"iterations": 0}}, "defaults: iterations must be 1 … 16"),
        ({"defaults": {"steps": 4}}, "unknown setting 'steps'"),
        ({"defaults": {"diffusion_steps": "1001"}}, "diffusion_steps must be 1 … 1,000 timesteps"),
        (
            {"defaults": {"guidance": "1,2"}},
            "a value for each of the 16 iterations, got guidance 2",
        ),
        ({"defaults": {"reuse_guidance": True}}, "reuse_guidance needs refresh"),
        ({"defaults": {"preset": "slow"}}, "no preset 'slow': it has fast"),
        ({"presets": {"a": {"itrations": 3}}}, "preset 'a': unknown setting 'itrations'"),
        ({"presets": {"a": {"iterations": 17}}}, "preset 'a': iterations must be 1 … 16"),
        ({"presets": {"a": {"guidance": "1,2"}}}, "preset 'a': lists need a value for each"),
        ({"presets": {"a": {"refresh": 0}}}, "preset 'a': refresh must be at least 1"),
        ({"presets": {"a": {"preset": "a"}}}, "preset 'a' names another one"),
        ({"presets": {"a": 3}}, "presets.a: Input should be an object"),
    ],
)
def test_a_configuration_that_does_not_fit_is_said(
    files: dict[str, Any], config: dict[str, Any], words: str, tmp_path: Path
) -> None:
    given = configured(files, tmp_path, **config)
    with pytest.raises(CheckpointError, match=words) as caught:
        export("mar", given, tmp_path / "bundle")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 2_000
    assert [path.name for path in tmp_path.iterdir()] == ["changed.json"]


@pytest.mark.parametrize("told", [{"guidance": 2}, {"guidance": "1:3"}])
def test_guidance_needs_a_class_that_is_none(
    files: dict[str, Any], told: dict[str, Any], tmp_path: Path
) -> None:
    nothing: dict[str, Any] = {"unconditional": "none", "class_names": None}
    for more in ({"defaults": told}, {"defaults": {}, "presets": {"a": told}}):
        given = configured(files, tmp_path, **(nothing | more))
        with pytest.raises(CheckpointError, match="no unconditional class: use guidance 1"):
            export("mar", given, tmp_path / "bundle")
    assert _loaded(files, nothing | {"defaults": {}}).model.defaults.model_dump()["guidance"] == (
        "1.0:1.0"
    )


def test_models_of_one_another_do_not_fit(files: dict[str, Any], tmp_path: Path) -> None:
    """Each of its own size: only together they do not."""
    for changed, words in (
        ({"embed_dim": 4}, "channels of the latents 3 but the tokenizer's is 4"),
        ({"ch_mult": [1, 1, 1]}, r"pixels of a position \(vae_stride\) 2 but the tokenizer's is 4"),
    ):
        arguments = tiny_mar.TOKENIZER | changed
        torch.save(AutoencoderKL(**arguments).state_dict(), tmp_path / "kl.pth")
        with pytest.raises(CheckpointError, match=f"do not belong together.*{words}"):
            _loaded(files, {"tokenizer": arguments}, tokenizer=tmp_path / "kl.pth")


def test_files_in_each_others_place_are_sent_where_they_belong(files: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match="a MAR transformer, .* pass it as --transformer"):
        _loaded(files, tokenizer=files["transformer"])
    with pytest.raises(CheckpointError, match="a KL autoencoder, .* pass it as --tokenizer"):
        _loaded(files, transformer=files["tokenizer"])


def test_files_of_other_forms_are_named(
    files: dict[str, Any], tiny_checkpoints: dict[str, Any], layouts: Layouts, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match=r"is a transformer \(U-ViT\) of another form"):
        _loaded(files, transformer=tiny_checkpoints["transformer"])
    for option, name, words in (
        ("transformer", "var_d16.pth", "a VAR transformer: fewstep export var takes it"),
        ("tokenizer", "vae_ch160v4096z32.pth", "VAR's multi-scale tokenizer: fewstep export var"),
        ("tokenizer", "vqgan_jax_strongaug.ckpt", "x.pth is none of the published sizes .KL-16"),
    ):
        torch.save(_hollow(layouts[name]), tmp_path / "x.pth")
        with pytest.raises(CheckpointError, match=words):
            _loaded(files, {option: None}, **{option: tmp_path / "x.pth"})


@pytest.mark.parametrize(
    ("form", "entry"),
    [
        ("var", {"latent_scale": 0.5}),
        ("var", {"presets": {"fast": {}}}),
        ("maskgit", {"latent_scale": 0.5}),
    ],
)
def test_other_forms_have_no_use_for_scale_and_presets(
    form: str, entry: dict[str, Any], files: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(entry))
    given = files | {"config": tmp_path / "config.json"}
    with pytest.raises(CheckpointError, match=f"{[*entry][0]} in --config is not for"):
        export(form, given, tmp_path / "bundle")


def test_damaged_files_are_said(
    files: dict[str, Any], weights: State, tokenizer: State, tmp_path: Path
) -> None:
    def said(words: str, **content: Any) -> None:
        (name, each), path = *content.items(), tmp_path / "x.pth"
        path.write_bytes(each) if isinstance(each, bytes) else torch.save(each, path)
        with pytest.raises(CheckpointError, match=words) as caught:
            export("mar", files | {name: path}, tmp_path / "bundle")
        assert "\n" not in str(caught.value)
        assert [each.name for each in tmp_path.iterdir()] == ["x.pth"]

    said("x.pth is not a whole PyTorch", transformer=files["transformer"].read_bytes()[:40_000])
    said("x.pth is not a whole PyTorch", tokenizer=files["tokenizer"].read_bytes()[:40_000])
    wrong = weights | {"z_proj.weight": torch.full((48, 12), torch.nan)}
    said("NaN in 1 of .* tensors .z_proj.weight", transformer={"model_ema": wrong})
    bias = {"decoder.conv_out.bias": torch.full((3,), torch.inf)}
    said("infinity in 1 of 68 tensors .decoder.conv_out.bias", tokenizer=tokenizer | bias)
    headless = {k: v for k, v in weights.items() if not k.startswith("diffloss.")}
    said("28 missing: diffloss.net", transformer={"model_ema": headless})
    left = {k: v for k, v in tokenizer.items() if k != "decoder.conv_in.weight"}
    said("1 missing: decoder.conv_in.weight", tokenizer={"model": left})
    said("1 unexpected: surplus", transformer={"model": weights | {"surplus": torch.zeros(2)}})
    other = {"model": weights, "args": argparse.Namespace(buffer_size=7, diffloss_d=2)}
    said("says buffer_size 7, but is read with 6", transformer=other)
