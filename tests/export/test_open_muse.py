"""The MaskGIT VQGAN under open-muse's names (``maskgit-vqgan-imagenet-f16-256.bin``).

1d-tokenizer has the same decoder under the same names; a tiny one of it was recorded.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fewstep.export import presets
from fewstep.export.models import VQModel
from fewstep.export.parts.masked import open_muse_name

Recorded = Callable[[str], dict[str, npt.NDArray[Any]]]


def official(recorded: Recorded) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The official state dict, and what the tokenizer's constructor is given for its size."""
    data = recorded("maskgit_vqgan")
    config = json.loads(str(data["cfg"]))
    conf, side = config["conf"], data["out/raw"].shape[-1]
    ddconfig = {
        "z_channels": conf["z_channels"],
        "resolution": side,
        "in_channels": conf["num_channels"],
        "out_ch": conf["num_channels"],
        "ch": conf["hidden_channels"],
        "ch_mult": conf["channel_mult"],
        "num_res_blocks": conf["num_res_blocks"],
    }
    arguments = {
        "ddconfig": ddconfig,
        "n_embed": config["num_embeddings"],
        "embed_dim": conf["z_channels"],
    }
    state = {
        key.removeprefix("sd/"): torch.from_numpy(value)
        for key, value in data.items()
        if key.startswith("sd/")
    }
    return state, arguments


def test_it_is_read_under_its_names_and_gives_the_official_images(
    recorded: Recorded, tmp_path: Path
) -> None:
    state, arguments = official(recorded)
    path = tmp_path / "maskgit-vqgan-imagenet-f16-256.bin"
    torch.save(state, path)
    model, found = presets.read(VQModel, path, arguments)
    assert any("open-muse" in note for note in found.notes)
    data = recorded("maskgit_vqgan")
    with torch.no_grad():
        image = model.decode(torch.from_numpy(data["in/code"]).reshape(2, 4, 4))
    np.testing.assert_allclose(image, data["out/raw"], rtol=0, atol=1e-4)


def test_all_keys_and_shapes_map_one_to_one(recorded: Recorded) -> None:
    state, arguments = official(recorded)
    own = VQModel(**arguments).state_dict()
    names = {open_muse_name(key): each.shape for key, each in own.items()}
    assert len(names) == len(own)
    assert names == {key: each.shape for key, each in state.items()}


def test_the_published_size_is_recognised_and_comes_back(
    layouts: dict[str, dict[str, torch.Size]], tmp_path: Path
) -> None:
    shapes = layouts["vqgan_jax_strongaug.ckpt"]
    state = {open_muse_name(key): torch.zeros(()).expand(each) for key, each in shapes.items()}
    assert sum(bool(re.search(r"mid\.[01]\.|upsample_conv", key)) for key in state) == 32
    torch.save(state, tmp_path / "x.bin")
    model, _ = presets.read(VQModel, tmp_path / "x.bin", None)
    assert {key: each.shape for key, each in model.state_dict().items()} == {
        key: each for key, each in shapes.items() if not key.startswith("encoder.")
    }
