"""Settings that files hold beside the weights: offered by name, and compared with what is used."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.export.wrapped import UVIT, VQGAN, read, weights
from torch import Tensor, nn

from fewstep.export.models import PolicyNet, UViT, VQModel
from fewstep.runtime.errors import CheckpointError


@pytest.mark.parametrize(
    "content",
    [
        {"args": argparse.Namespace(heu=1, gen_steps=8, path=Path("x"))},
        {"config": {"heu": 1, "gen_steps": 8}},
        {"cfg": {"policy": {"heu": 1}, "train": {"gen_steps": 8}}},
        {"hyper_parameters": {"args": argparse.Namespace(heu=1, gen_steps=8)}},
        {"hparams": {"heu": np.int64(1), "gen_steps": torch.tensor(8)}},
        {"heu": True, "gen_steps": np.float32(8)},
    ],
    ids=["args", "config", "nested", "Lightning", "numbers of libraries", "beside"],
)
def test_settings_are_offered_by_name(content: dict[str, Any], tmp_path: Path) -> None:
    stored = read(PolicyNet, {"model": weights(PolicyNet), **content}, tmp_path)[1].stored
    assert (stored["heu"], stored["gen_steps"]) == (1, 8)
    assert not any(isinstance(each, (Tensor, np.generic)) for each in stored.values())


def test_the_optimizer_has_no_settings_of_the_model(tmp_path: Path) -> None:
    content = {"model": weights(UViT), "optimizer": {"param_groups": [{"depth": 9}], "depth": 9}}
    assert "depth" not in read(UViT, content, tmp_path)[1].stored


@pytest.mark.parametrize(
    ("kind", "stored", "message"),
    [
        (UViT, {"num_heads": 4}, "says num_heads 4, but is read with 2"),
        (UViT, {"depth": 4}, "says depth 4, but is read with 2"),
        (UViT, {"mlp_ratio": 2}, "says mlp_ratio 2, but is read with 4.0"),
        (PolicyNet, {"grid_size": 16}, "says grid_size 16, but is read with 2"),
        (VQModel, {"ddconfig": {"num_res_blocks": 2}}, "ddconfig.num_res_blocks 2, but"),
        (VQModel, {"ddconfig": {}, "n_embed": 9}, "says n_embed 9, but is read with 5"),
    ],
)
@pytest.mark.parametrize("place", ["args", "config", "hyper_parameters"])
def test_settings_that_contradict_are_refused(
    place: str, kind: type[nn.Module], stored: dict[str, Any], message: str, tmp_path: Path
) -> None:
    settings = argparse.Namespace(**stored) if place == "args" else stored
    with pytest.raises(CheckpointError, match=re.escape(message)):
        read(kind, {"model": weights(kind), place: settings}, tmp_path)


def test_settings_that_agree_and_those_of_others_are_fine(tmp_path: Path) -> None:
    agreeing = {**UVIT, "mlp_ratio": 4, "num_classes": 2, "img_size": 256, "lr": 1e-4}
    read(UViT, {"model": weights(UViT), "args": argparse.Namespace(**agreeing)}, tmp_path)
    read(VQModel, {"model": weights(VQModel), "config": {**VQGAN, "lr": 1}}, tmp_path)
    # Of several networks in one configuration.
    both = {"tokenizer": {"embed_dim": 256, "depth": 1}, "transformer": UVIT}
    found = read(UViT, {"model": weights(UViT), "config": both}, tmp_path)[1]
    assert found.disputed == {"embed_dim", "depth"}
    # Of the transformer that was trained on these tokens.
    read(VQModel, {"model": weights(VQModel), "args": {"embed_dim": 768}}, tmp_path)
