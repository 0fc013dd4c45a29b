"""The published full-size checkpoints are recognised by their keys and shapes.

Only shapes matter here: every tensor is one number, expanded, so that gigabytes of layout fit into
small files.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fewstep.export import presets
from fewstep.export.config import ExportConfig
from fewstep.export.layout import mismatches
from fewstep.export.masked import Checkpoints, Models, load_models
from fewstep.export.models import PolicyNet, UViT, VQModel
from fewstep.export.parts import part_of
from fewstep.runtime.errors import CheckpointError

Layouts = dict[str, dict[str, torch.Size]]

IN256, CC3M = "adanat_in256_L nnet_ema", "adanat_cc3m nnet_ema"
IN256_POLICY, CC3M_POLICY = "adanat_policy_in256", "adanat_policy_cc3m"
VQGAN = "vqgan_jax_strongaug.ckpt"
ACTOR = "policy_old.actor."


def hollow(shapes: dict[str, torch.Size]) -> dict[str, Tensor]:
    """Tensors of these shapes in one number's memory each."""
    return {key: torch.zeros(()).expand(shape) for key, shape in shapes.items()}


def actor(shapes: dict[str, torch.Size]) -> dict[str, Tensor]:
    found = hollow(shapes)
    return {key.removeprefix(ACTOR): found[key] for key in found if key.startswith(ACTOR)}


def loaded(folder: Path, *contents: object) -> Models:
    """The models of a transformer's, a tokenizer's and a policy's file with these contents."""
    files = Checkpoints(folder / "nnet_ema.pth", folder / "vqgan.ckpt", folder / "ckpt_9.pth")
    paths = (files.transformer, files.tokenizer, files.policy)
    for path, content in zip(paths, contents, strict=True):
        assert path is not None
        torch.save(content, path)
    return load_models(files, ExportConfig())


@pytest.mark.parametrize(
    ("layout", "width", "heads", "blocks", "extras", "classes"),
    [(IN256, 768, 8, 12, 1, 1001), (CC3M, 1152, 16, 14, 77, 0)],
)
def test_the_transformers_are_recognised(
    layout: str, width: int, heads: int, blocks: int, extras: int, classes: int, layouts: Layouts
) -> None:
    model = presets.load(UViT, hollow(layouts[layout]), Path("nnet_ema.pth"), None)
    assert (model.embed_dim, model.extras, model.num_classes) == (width, extras, classes)
    assert (model.num_tokens, model.codebook_size, model.skip) == (256, 1024, True)
    assert len(model.in_blocks) == len(model.out_blocks) == blocks
    assert model.mid_block.attn.num_heads == heads
    assert model.mid_block.attn.scale == (width // heads) ** -0.5


@pytest.mark.parametrize(("layout", "width"), [(IN256_POLICY, 768), (CC3M_POLICY, 1152)])
def test_the_policies_are_recognised(layout: str, width: int, layouts: Layouts) -> None:
    model = presets.load(PolicyNet, actor(layouts[layout]), Path("ckpt.pth"), None)
    assert (model.in_channels, model.grid_size) == (width, 16)
    assert model.linear3.out_features == 4


def test_the_tokenizer_is_recognised(layouts: Layouts) -> None:
    model = presets.load(VQModel, hollow(layouts[VQGAN]), Path("vqgan.ckpt"), None)
    assert (model.resolution, model.downsampling) == (256, 16)
    assert model.quantize.embedding.weight.shape == (1024, 256)


@pytest.mark.parametrize(
    ("kind", "names"),
    [(UViT, (IN256, CC3M)), (PolicyNet, (IN256_POLICY, CC3M_POLICY)), (VQModel, (VQGAN,))],
)
def test_each_preset_fits_its_own_layout_only(
    kind: type[nn.Module], names: tuple[str, ...], layouts: Layouts
) -> None:
    assert len(part_of(kind).sizes) == len(names)
    states = [actor(layouts[name]) or hollow(layouts[name]) for name in names]
    for row, preset in enumerate(part_of(kind).sizes):
        with torch.device("meta"):
            model = kind(**preset.arguments)
        assert [mismatches(model, state) == "" for state in states] == [
            row == column for column in range(len(states))
        ]


@pytest.mark.parametrize(
    ("transformer", "policy", "extra"),
    [
        (IN256, IN256_POLICY, {}),
        (CC3M, CC3M_POLICY, {"text_model.embeddings.position_ids": torch.arange(77)[None]}),
    ],
)
def test_the_published_files_are_read_as_they_are(
    transformer: str, policy: str, extra: dict[str, Tensor], layouts: Layouts, tmp_path: Path
) -> None:
    """With their wrapping: ``['model']`` and ``policy_old.actor.*``, ``['state_dict']``."""
    training = {"args": argparse.Namespace(heu=1), "global_step": 9, "optimizer": {}}
    models = loaded(
        tmp_path,
        hollow(layouts[transformer]) | extra,
        {"state_dict": hollow(layouts[VQGAN]), "epoch": 3},
        {"model": hollow(layouts[policy]), **training},
    )
    assert models.policy is not None
    assert models.policy.in_channels == models.transformer.embed_dim
    assert models.tokenizer.quantize.embedding.num_embeddings == models.transformer.codebook_size


def test_the_old_policy_is_taken_not_the_one_in_training(layouts: Layouts, tmp_path: Path) -> None:
    policy = hollow(layouts[IN256_POLICY])
    assert f"{ACTOR}linear3.bias" in policy
    assert "policy.actor.linear3.bias" in policy
    policy[f"{ACTOR}linear3.bias"] = torch.tensor([1.0, 2.0, 3.0, 4.0])
    models = loaded(tmp_path, hollow(layouts[IN256]), hollow(layouts[VQGAN]), {"model": policy})
    assert models.policy is not None
    assert models.policy.linear3.bias.tolist() == [1, 2, 3, 4]


def test_a_changed_table_is_refused_with_every_difference(layouts: Layouts) -> None:
    state = hollow(layouts[IN256])
    state["norm.weight"] = torch.zeros(700)
    state["surplus.weight"] = torch.zeros(1)
    del state["mlm_layer.fc.bias"]
    with pytest.raises(CheckpointError) as caught:
        presets.load(UViT, state, Path("nnet_ema.pth"), None)
    message = str(caught.value)
    assert "AdaNAT-L, ImageNet 256×256" in message
    assert "AdaNAT, CC3M 256×256" in message
    assert "--config" in message
    # Against the nearest entry, not the other one with its hundreds of differences.
    assert message.endswith(
        "1 missing: mlm_layer.fc.bias; 1 unexpected: surplus.weight; "
        "1 mis-shaped: norm.weight [700] instead of [768]"
    )


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
def test_published_files_saved_through_wrappers_are_loaded(
    prefix: str, layouts: Layouts, tmp_path: Path
) -> None:
    torch.save(hollow({prefix + key: each for key, each in layouts[IN256].items()}), tmp_path / "L")
    model, found = presets.read(UViT, tmp_path / "L", None)
    assert model.embed_dim == 768
    assert found.notes == (f"removed the prefix {prefix}",)


@pytest.mark.parametrize(
    ("near", "name"), [(IN256, "AdaNAT-L, ImageNet 256×256"), (CC3M, "AdaNAT, CC3M 256×256")]
)
def test_the_nearest_is_nearest_by_keys_and_shapes(
    near: str, name: str, layouts: Layouts, tmp_path: Path
) -> None:
    """Not by the length of the message: here that of the far one is the shorter."""
    state = hollow(layouts[near])
    for row, key in enumerate(list(state)[:40]):
        state[f"a_rather_long_name_of_a_surplus_tensor_{row}.{key}"] = state.pop(key)
    torch.save(state, tmp_path / "x.pth")
    with pytest.raises(CheckpointError) as caught:
        presets.read(UViT, tmp_path / "x.pth", None)
    assert f"Against the nearest, {name} (" in str(caught.value)
    assert len(str(caught.value)) < 1000 + len(str(tmp_path))


@pytest.mark.parametrize(
    ("kind", "layout", "key"),
    [
        (PolicyNet, IN256_POLICY, "linear3.weight"),
        (PolicyNet, CC3M_POLICY, "x_embedder.bias"),
        (VQModel, VQGAN, "quantize.embedding.weight"),
    ],
)
def test_a_changed_shape_is_named(
    kind: type[nn.Module], layout: str, key: str, layouts: Layouts
) -> None:
    state = actor(layouts[layout]) or hollow(layouts[layout])
    expected = list(state[key].shape)
    state[key] = torch.zeros([5, *expected[1:]])
    wrong = f"1 mis-shaped: {key} {[5, *expected[1:]]} instead of {expected}"
    with pytest.raises(CheckpointError, match=re.escape(wrong)):
        presets.load(kind, state, Path("x.pth"), None)


@pytest.mark.parametrize(
    "arguments",
    [
        {"embed_dims": 32},
        {"embed_dim": "32"},
        {"patch_size": 2},
        {"embed_dim": 32, "num_heads": 0},
        {"embed_dim": 32, "num_heads": 5},
    ],
    ids=str,
)
def test_arguments_that_do_not_build_are_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match=r"x.pth: the configuration does not build: .*\S"):
        presets.load(UViT, {}, Path("x.pth"), arguments)


def test_arguments_take_the_place_of_recognition(layouts: Layouts) -> None:
    """Head count leaves no trace in the shapes, so the given one must win."""
    arguments = {"embed_dim": 768, "depth": 24, "num_heads": 12, "num_classes": 1001}
    model = presets.load(UViT, hollow(layouts[IN256]), Path("x.pth"), arguments)
    assert model.mid_block.attn.num_heads == 12
    with pytest.raises(CheckpointError, match="does not fit UViT"):
        presets.load(UViT, hollow(layouts[IN256]), Path("x.pth"), arguments | {"depth": 22})
