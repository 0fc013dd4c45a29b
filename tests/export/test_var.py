"""``fewstep export var``: the authors' files are recognised, and what does not fit is said."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from tests import tiny_var
from torch import Tensor

from fewstep.export import presets
from fewstep.export.config import ExportConfig, read_config
from fewstep.export.flow import export
from fewstep.export.models import FixedPolicy
from fewstep.export.models.var import VAR
from fewstep.export.models.var_quantizer import phi_indices
from fewstep.export.models.var_vae import VQVAE
from fewstep.export.parts.var import AdaGenPolicy
from fewstep.export.source import Exportable
from fewstep.export.tuned import TunedPolicy, save_tuned
from fewstep.export.var import Checkpoints, load
from fewstep.runtime.errors import CheckpointError
from fewstep.runtime.families.var.model import VarModel, VarPolicyInfo

Layouts = dict[str, dict[str, torch.Size]]
Recorded = Callable[[str], dict[str, npt.NDArray[Any]]]

SCALES_256 = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)


def _hollow(shapes: dict[str, torch.Size]) -> dict[str, Tensor]:
    found = {key: torch.zeros(()).expand(shape) for key, shape in shapes.items()}
    return found | {k: v.long() for k, v in found.items() if k == "lvl_1L"}


@pytest.mark.parametrize(
    ("name", "depth", "tokens"),
    [(f"var_d{depth}.pth", depth, 680) for depth in (16, 20, 24, 30)]
    + [("var_d36.pth (512)", 36, 2240)],
)
def test_published_transformers_are_recognised(
    name: str, depth: int, tokens: int, layouts: Layouts
) -> None:
    model = presets.load(VAR, _hollow(layouts[name]), Path(name), None)
    assert (model.depth, model.embed_dim, model.num_heads) == (depth, 64 * depth, depth)
    assert model.pos_1LC.shape[1] == tokens == sum(side * side for side in model.patch_nums)
    assert model.codebook_size == 4096


def test_the_published_tokenizer_and_policies_are_recognised(layouts: Layouts) -> None:
    name = "vae_ch160v4096z32.pth"
    vae = presets.load(VQVAE, _hollow(layouts[name]), Path(name), None)
    assert (vae.vocab_size, vae.Cvae, vae.downsampling, vae.v_patch_nums) == (
        *(4096, 32, 16),
        SCALES_256,
    )
    for depth in (16, 30):
        name = f"adagen var_d{depth}_policy.pth"
        policy = presets.load(AdaGenPolicy, _hollow(layouts[name]), Path(name), None)
        assert (policy.in_channels, policy.grid_size) == (64 * depth, 16)


def test_the_phis_of_ten_scales_are_the_official_ones() -> None:
    assert phi_indices(4, 10) == (0, 0, 1, 1, 1, 2, 2, 3, 3, 3)


def test_the_tokenizer_is_the_official_one(recorded: Recorded) -> None:
    data = recorded("var_vae")
    state = {key[3:]: torch.from_numpy(data[key]) for key in data if key.startswith("sd/")}
    arguments = json.loads(str(data["cfg"]))["vqvae"]
    vae = presets.load(VQVAE, state, Path("vae.pth"), arguments)
    with torch.no_grad():
        image = vae.unclamped(torch.from_numpy(data["in/f_hat"])).clamp(-1, 1)
        ids = vae.img_to_idxBl(torch.from_numpy(data["in/image_pm1"]))
    np.testing.assert_allclose(image, data["out/fhat_to_img"], rtol=0, atol=1e-4)
    for scale, found in enumerate(ids):
        np.testing.assert_array_equal(found, data[f"out/img_to_idx/{scale}"])


@torch.no_grad()
def test_logits_of_all_scales_at_once_are_the_official_ones(recorded: Recorded) -> None:
    """Teacher forcing, as training uses it."""
    data, tokenizer = recorded("var_d3"), recorded("var_vae")
    cfg = json.loads(str(data["cfg"]))
    vae = VQVAE(**json.loads(str(tokenizer["cfg"]))["vqvae"])
    state = {key[3:]: torch.from_numpy(data[key]) for key in data if key.startswith("sd/")}
    var = presets.load(VAR, state, Path("var.pth"), {"vae_local": vae, **cfg["var"]})
    sides, name = var.patch_nums, "topkp"
    maps = [torch.from_numpy(data[f"out/{name}/next_in/{s}"]) for s in range(len(sides) - 1)]
    words = torch.cat([each.flatten(2).transpose(1, 2) for each in maps], 1)
    ids = torch.from_numpy(data[f"in/{name}/labels"])
    both = torch.cat([ids, torch.full_like(ids, var.num_classes)])
    parts = var(both, torch.cat([words, words])).split([side * side for side in sides], 1)
    for scale, logits in enumerate(parts):
        t = cfg["runs"][name]["cfg"] * scale / (len(sides) - 1)
        guided = (1 + t) * logits[: len(ids)] - t * logits[len(ids) :]
        wanted = data[f"out/{name}/logits_cfg/{scale}"]
        np.testing.assert_allclose(guided, wanted, rtol=0, atol=1e-4)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return tiny_var.checkpoints(tmp_path_factory.mktemp("tiny-var"))


def _loaded(files: dict[str, Any], config: dict[str, Any] | None = None, **more: Any) -> Exportable:
    given = {name: each for name, each in (files | more).items() if name != "config"}
    said = read_config(files["config"]).model_dump(exclude_unset=True) | (config or {})
    return load(Checkpoints(**given), ExportConfig.model_validate(said))


def test_what_the_manifest_says(files: dict[str, Any]) -> None:
    model = _loaded(files).model
    assert isinstance(model, VarModel)
    assert (model.patch_nums, model.phis) == ((1, 2, 3, 4), (0, 1, 2, 3))
    assert (model.image_size, model.cache_width) == ((8, 8), 128)
    assert model.condition.unconditional_id == 5
    policy = model.policies["policy"]
    assert (policy.guidance, policy.top_k, policy.top_p) == (1.5, 20, 0.9)
    assert model.defaults.guidance == (0.0, 2.0)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"transformer": tiny_var.TRANSFORMER | {"patch_nums": [1, 2, 3]}}, "14 positions"),
        ({"transformer": tiny_var.TRANSFORMER | {"patch_nums": [1, 3, 2, 4]}}, "rising sides"),
        ({"transformer": tiny_var.TRANSFORMER | {"num_heads": 5}}, "no multiple of num_heads"),
        ({"transformer": tiny_var.TRANSFORMER | {"depth": 3}}, "missing"),
        ({"transformer": tiny_var.TRANSFORMER | {"shared_aln": True}}, "missing"),
        ({"tokenizer": tiny_var.TOKENIZER | {"vocab_size": 41}}, "quantize.embedding.weight"),
        ({"tokenizer": tiny_var.TOKENIZER | {"v_patch_nums": [1, 2, 4, 5]}}, "scales"),
        ({"policy": tiny_var.POLICY | {"grid_size": 6}}, "linear1.weight"),
        ({"policy_schedule": {"top_k": 0}}, "top_k"),
        ({"policy_schedule": {"temperature": 1}}, "unknown setting of policy_schedule"),
        ({"policy_schedule": {"steps": 4}}, "unknown setting of policy_schedule"),
        ({"policy_schedule": {"top_k": 4096}}, "top_k"),
        ({"transformer": tiny_var.TRANSFORMER | {"patch_nums": "1234"}}, "must be rising sides"),
        ({"transformer": tiny_var.TRANSFORMER | {"norm_eps": "x"}}, "norm_eps must be above 0"),
        ({"tokenizer": tiny_var.TOKENIZER | {"v_patch_nums": [1, 2.5]}}, "must be rising sides"),
        ({"policy_residual": True}, "policy_residual in --config is not for var"),
        ({"unconditional": "none", "class_names": None}, "a policy always uses guidance"),
        ({"defaults": {"top_p": 2}}, "top_p must be above 0"),
    ],
)
def test_a_configuration_that_does_not_fit_is_said(
    files: dict[str, Any], config: dict[str, Any], words: str, tmp_path: Path
) -> None:
    said = json.loads(files["config"].read_text()) | config
    (tmp_path / "config.json").write_text(json.dumps(said))
    given = files | {"config": tmp_path / "config.json"}
    with pytest.raises(CheckpointError, match=words) as caught:
        export("var", given, tmp_path / "bundle")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 2_000
    assert not (tmp_path / "bundle").exists()


def test_files_in_each_others_place_are_sent_where_they_belong(files: dict[str, Any]) -> None:
    transformer, tokenizer = files["transformer"], files["tokenizer"]
    with pytest.raises(CheckpointError, match="pass it as --transformer"):
        _loaded(files, tokenizer=transformer)
    with pytest.raises(CheckpointError, match="pass it as --tokenizer"):
        _loaded(files, transformer=tokenizer)


def test_a_tokenizer_of_another_codebook_does_not_fit(
    files: dict[str, Any], tmp_path: Path
) -> None:
    tokenizer = tiny_var.TOKENIZER | {"vocab_size": 50}
    torch.save(VQVAE(**tokenizer).state_dict(), tmp_path / "vae.pth")
    with pytest.raises(CheckpointError, match=r"head.bias \[40\] instead of \[50\]"):
        _loaded(files, {"tokenizer": tokenizer}, tokenizer=tmp_path / "vae.pth")


def test_a_policy_for_another_transformer_is_refused(files: dict[str, Any], tmp_path: Path) -> None:
    wide = tiny_var.POLICY | {"in_channels": 64}
    torch.save(AdaGenPolicy(**wide).state_dict(), tmp_path / "policy.pth")
    with pytest.raises(CheckpointError, match="feature width 48 but the policy's is 64"):
        _loaded(files, {"policy": wide}, policy=tmp_path / "policy.pth")


def test_scales_that_the_file_contradicts_are_refused(
    files: dict[str, Any], tmp_path: Path
) -> None:
    """As many positions, on other scales: only ``lvl_1L`` tells."""
    sides = [1, 4, 8]  # 1 + 16 + 64 positions, as many as 4 + 13 + 64 would be
    arguments = tiny_var.TRANSFORMER | {"patch_nums": sides}
    tokenizer = tiny_var.TOKENIZER | {"v_patch_nums": sides}
    vae = VQVAE(**tokenizer)
    state = VAR(vae, **arguments).state_dict()
    state["lvl_1L"][0, 1:4] = 0
    for parameter in state.values():
        if parameter.is_floating_point():
            parameter.nan_to_num_(0.0, neginf=-torch.inf)
    torch.save(state, tmp_path / "var.pth")
    torch.save(vae.state_dict(), tmp_path / "vae.pth")
    config = {
        "transformer": arguments,
        "tokenizer": tokenizer,
        "policy": None,
        "policy_schedule": None,
    }
    given = {"transformer": tmp_path / "var.pth", "tokenizer": tmp_path / "vae.pth"}
    with pytest.raises(CheckpointError, match="as its lvl_1L says"):
        _loaded(files, config, **given, policy=None)


def test_weights_that_are_no_numbers_are_refused_and_masks_are_not(
    files: dict[str, Any], tmp_path: Path
) -> None:
    state = torch.load(files["transformer"], weights_only=True)
    assert torch.isinf(state["attn_bias_for_masking"]).any()
    state["head.weight"][0, 0] = -torch.inf
    torch.save(state, tmp_path / "var.pth")
    with pytest.raises(CheckpointError, match="infinity in 1 of .* tensors .head.weight"):
        _loaded(files, transformer=tmp_path / "var.pth")


def test_an_untrained_policy_follows_the_recipe(files: dict[str, Any]) -> None:
    made = _loaded(files, policy=None, untrained_policy=True)
    assert isinstance(made.model, VarModel)
    assert made.model.policies["policy"].untrained_seed is not None
    graph = made.graphs["policy"]
    with torch.no_grad():
        assert (graph.module(*graph.inputs.values()) == 0).all()


def test_indices_saved_in_half_precision_are_read(files: dict[str, Any], tmp_path: Path) -> None:
    state = torch.load(files["transformer"], weights_only=True)
    torch.save({key: value.half() for key, value in state.items()}, tmp_path / "var.pth")
    assert _loaded(files, transformer=tmp_path / "var.pth").model == _loaded(files).model
    state["lvl_1L"] = state["lvl_1L"] + 0.5
    torch.save(state, tmp_path / "var.pth")
    with pytest.raises(CheckpointError, match=r"fractions in the place of indices .* .lvl_1L"):
        _loaded(files, transformer=tmp_path / "var.pth")


@pytest.mark.parametrize("steps", [3, 4])
def test_a_policy_tuned_for_other_scales_is_refused(
    files: dict[str, Any], steps: int, tmp_path: Path
) -> None:
    path = tmp_path / "policy-a.safetensors"
    info = VarPolicyInfo(steps=steps)
    save_tuned(path, TunedPolicy("policy-a", FixedPolicy(steps, 4), info, "var"))
    if steps == 4:
        assert "policy-a" in _loaded(files, tuned_policy=[path]).graphs
    else:
        with pytest.raises(CheckpointError, match="tuned for 3 scales, and the transformer has 4"):
            _loaded(files, tuned_policy=[path])


def test_a_transformer_of_the_other_family_is_named(
    files: dict[str, Any], tiny_checkpoints: dict[str, Any]
) -> None:
    with pytest.raises(CheckpointError, match=r"is a transformer \(U-ViT\) of another form"):
        _loaded(files, transformer=tiny_checkpoints["transformer"])
