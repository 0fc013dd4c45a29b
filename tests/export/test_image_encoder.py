"""The tokenizer's encoder as a graph: what it gives, in every form; files that have none.

Networks are checked against the authors' in ``models/``: here the graph is checked against them.
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
from tests import tiny, tiny_amused, tiny_forms, tiny_var
from torch import Tensor, nn
from torch.nn import functional as F

from fewstep.export import presets
from fewstep.export.checkpoint import open_checkpoint
from fewstep.export.config import read_config
from fewstep.export.models import VQModel
from fewstep.export.models.halton_vq import LlamaGenVQ
from fewstep.export.models.maskgit_tokenizer import VQVAE
from fewstep.export.models.titok import TiTok
from fewstep.export.models.var_vae import VQVAE as MultiScale
from fewstep.export.onnx_graph import export_graph
from fewstep.export.parts.masked import open_muse_name
from fewstep.export.source import Exportable, sources
from fewstep.export.var_graphs import ImageEncoder
from fewstep.runtime.editing import ENCODER
from fewstep.runtime.errors import CheckpointError
from fewstep.runtime.families.masked.model import MaskedModel
from fewstep.runtime.families.var.model import VarModel

Recorded = Callable[[str], dict[str, npt.NDArray[Any]]]


def _load(form: str, given: dict[str, Any]) -> Exportable:
    options = {name: value for name, value in given.items() if name != "config"}
    return sources()[form].load(options, read_config(given.get("config")))


def _picture(found: Exportable) -> Tensor:
    random = torch.Generator().manual_seed(3)
    coarse = torch.rand(2, 3, 4, 4, generator=random)
    return F.interpolate(coarse, found.model.image_size, mode="bicubic").clamp(0, 1)


def _ids(found: Exportable) -> Tensor:
    with torch.no_grad():
        ids: Tensor = found.graphs[ENCODER].module(_picture(found))
    return ids


def _network(kind: Any, arguments: Any, path: Path) -> nn.Module:
    state = open_checkpoint(path).tree
    network: nn.Module = kind(**arguments)
    network.load_state_dict(state.get("state_dict", state))
    return network.eval()


_KINDS: dict[str, Any] = {"maskgit-torch": VQVAE, "titok": TiTok, "halton": LlamaGenVQ}


@pytest.mark.parametrize("name", _KINDS)
def test_ids_are_those_of_the_form_s_tokenizer(name: str, tmp_path: Path) -> None:
    form = tiny_forms.FORMS[name]
    given = form.write(tmp_path)
    found = _load(name, {**given, "encoder": True})
    network: Any = _network(_KINDS[name], form.tokenizer_arguments, given["tokenizer"])
    ids = _ids(found)
    assert found.model.editable
    assert ids.dtype == torch.int32
    assert ids.shape == (2, 16)
    with torch.no_grad():
        assert torch.equal(ids.long(), network.encode(_picture(found)))


def test_ids_of_amused_are_those_of_its_vq_model(tmp_path: Path) -> None:
    folder = tiny_amused.write_amused(tmp_path / "amused")
    found = _load("amused", {"folder": folder, "encoder": True})
    plain = _load("amused", {"folder": folder})
    assert plain.graphs.keys() == found.graphs.keys() - {ENCODER}
    assert not plain.model.editable
    ids = _ids(found)
    assert isinstance(found.model, MaskedModel)
    assert 1 < len(set(ids.flatten().tolist())) <= found.model.codebook_size


@pytest.mark.parametrize("pixels", ["", "-1:1"])
def test_pixels_are_brought_to_the_range_of_the_tokenizer(pixels: str, tmp_path: Path) -> None:
    given = {**tiny.wide_checkpoints(tmp_path), "encoder": True, "pixel_range": pixels}
    del given["policy"]
    found = _load("maskgit", given)
    arguments = json.loads(given["config"].read_text())["tokenizer"]
    vqgan: Any = _network(VQModel, arguments, given["tokenizer"])
    image = _picture(found)
    with torch.no_grad():
        assert torch.equal(_ids(found).long(), vqgan.encode(2 * image - 1 if pixels else image))


def test_ties_go_to_the_lowest_id(tmp_path: Path) -> None:
    """As PyTorch's argmin and the authors' code: equal codes stand for one, in the graph too."""
    given = {**tiny.checkpoints(tmp_path), "encoder": True}
    del given["policy"]
    whole = torch.load(given["tokenizer"])
    codes = whole["state_dict"]["quantize.embedding.weight"]
    codes[12:] = codes[:12]
    torch.save(whole, given["tokenizer"])
    config = json.loads(given["config"].read_text())
    del config["policy"], config["policy_residual"]
    given["config"].write_text(json.dumps(config))
    found = _load("maskgit", given)
    info = export_graph(ENCODER, found.graphs[ENCODER], tmp_path)
    import onnxruntime

    session = onnxruntime.InferenceSession(tmp_path / info.file)
    (ids,) = session.run(None, {"image": _picture(found).numpy()})
    assert ids.max() < 12
    np.testing.assert_array_equal(ids, _ids(found).numpy())


# --- VAR


def test_ids_of_all_scales_are_those_of_vars_official_tokenizer(recorded: Recorded) -> None:
    data = recorded("var_vae")
    state = {key[3:]: torch.from_numpy(data[key]) for key in data if key.startswith("sd/")}
    arguments = json.loads(str(data["cfg"]))["vqvae"]
    vae = presets.load(MultiScale, state, Path("vae.pth"), arguments)
    model, image = _scales(vae.v_patch_nums), torch.from_numpy(data["in/image_pm1"])
    with torch.no_grad():
        ids = ImageEncoder(model, vae)((image + 1) / 2).numpy()
    wanted = [data[f"out/img_to_idx/{n}"].reshape(len(image), -1) for n in range(model.scales)]
    np.testing.assert_array_equal(ids, np.concatenate(wanted, 1))


def test_ids_of_all_scales_are_those_of_the_residual_loop() -> None:
    """Resized by matrices, and by PyTorch's ``interpolate`` as the authors do."""
    _, vae, _ = tiny_var.models()
    image = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        ids = ImageEncoder(_scales(tiny_var.SCALES), vae)(image)
        maps = vae.img_to_idxBl(2 * image - 1)
    assert torch.equal(ids.long(), torch.cat(maps, 1))


def _scales(sides: tuple[int, ...]) -> VarModel:
    return VarModel.model_construct(patch_nums=sides)


# --- files without an encoder, or with another one


def _without_encoder(path: Path) -> None:
    whole = open_checkpoint(path).tree
    kept = {k: v for k, v in whole.get("state_dict", whole).items() if not k.startswith("encoder.")}
    torch.save(kept, path)


@pytest.mark.parametrize("name", _KINDS)
def test_a_file_without_an_encoder_says_so(name: str, tmp_path: Path) -> None:
    given = tiny_forms.FORMS[name].write(tmp_path)
    _without_encoder(given["tokenizer"])
    assert ENCODER not in _load(name, given).graphs
    with pytest.raises(CheckpointError, match=r"no weights of the tokenizer's encoder .*--encoder"):
        _load(name, {**given, "encoder": True})


def test_an_encoder_under_open_muses_names_is_read(tmp_path: Path) -> None:
    given = {**tiny.wide_checkpoints(tmp_path), "encoder": True}
    del given["policy"]
    wanted = _ids(_load("maskgit", given))
    state = torch.load(given["tokenizer"])["state_dict"]
    torch.save({open_muse_name(key): value for key, value in state.items()}, given["tokenizer"])
    assert torch.equal(_ids(_load("maskgit", given)), wanted)


def test_an_encoder_of_another_grid_is_refused(tmp_path: Path) -> None:
    """The official convolutions that halve have no padding, so that some tokens are lost."""
    form = tiny_forms.FORMS["maskgit-torch"]
    given = form.write(tmp_path)
    arguments = {**form.tokenizer_arguments, "conv_downsample": True}
    config = json.loads(given["config"].read_text()) | {"tokenizer": arguments}
    given["config"].write_text(json.dumps(config))
    torch.save({"state_dict": VQVAE(**arguments).state_dict()}, given["tokenizer"])
    with pytest.raises(CheckpointError, match=r"gives tokens \[9\] .* reads \[16\]"):
        _load("maskgit-torch", {**given, "encoder": True})
