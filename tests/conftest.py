"""Session fixtures for every test folder: tiny random checkpoints and the bundles made of them.

Each bundle is exported once per session and shared, so a test that changes one works on a copy.
The weights are random but large enough that logits spread over several nats and that condition,
step and tokens all matter: other seeds then give other tokens.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

if TYPE_CHECKING:
    from torch import nn

    from fewstep.export import Checkpoints

# The same examples on every run, and no time limits: the machine may be busy with other work.
settings.register_profile(
    "fewstep", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("fewstep")

_CODES = 24
_TRANSFORMER: dict[str, Any] = {
    "img_size": 4,
    "codebook_size": _CODES,
    "embed_dim": 32,
    "depth": 2,
    "num_heads": 2,
}
_CLASSES: dict[str, Any] = {"num_classes": 6}  # 0 … 4 and the unconditional 5
_TEXT: dict[str, Any] = {"clip_dim": 12, "num_clip_token": 3}
_TOKENIZER: dict[str, Any] = {
    "ddconfig": {
        "double_z": False,
        "z_channels": 32,
        "resolution": 8,
        "in_channels": 3,
        "out_ch": 3,
        "ch": 32,
        "ch_mult": [1, 1],
        "num_res_blocks": 1,
        "attn_resolutions": [],
        "dropout": 0.0,
    },
    "n_embed": _CODES,
    "embed_dim": 32,
}
_POLICY: dict[str, Any] = {"in_channels": 32, "hidden_size": 16, "grid_size": 4}


@pytest.fixture(scope="session")
def tiny_checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Checkpoints:
    """Checkpoint files in the authors' formats, and their ``--config``: classes and a policy."""
    import torch

    from fewstep.export import Checkpoints
    from fewstep.export.models import PolicyNet, UViT, VQModel

    folder = tmp_path_factory.mktemp("tiny-checkpoints")
    config = {
        "transformer": _TRANSFORMER | _CLASSES,
        "tokenizer": _TOKENIZER,
        "policy": _POLICY,
        "policy_residual": True,
        "name": "tiny",
        "class_names": ["shirt", "shoe", "bag", "coat", "dress"],
    }
    files = Checkpoints(
        transformer=folder / "nnet_ema.pth",
        tokenizer=folder / "vqgan.ckpt",
        policy=folder / "ckpt_policy.pth",
        config=folder / "config.json",
    )
    policy = _randomised(PolicyNet(**_POLICY), seed=3)
    actor = {f"policy_old.actor.{key}": value for key, value in policy.state_dict().items()}
    transformer = _randomised(UViT(**_TRANSFORMER, **_CLASSES), seed=1)
    torch.save(transformer.state_dict(), files.transformer)
    tokenizer = _randomised(VQModel(**_TOKENIZER), seed=4)
    torch.save({"state_dict": tokenizer.state_dict()}, files.tokenizer)
    torch.save({"model": actor}, folder / "ckpt_policy.pth")
    (folder / "config.json").write_text(json.dumps(config))
    return files


@pytest.fixture(scope="session")
def tiny_text_checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Checkpoints:
    """As :func:`tiny_checkpoints`, but conditioned on text, without policy, with empty text."""
    import torch

    from fewstep.export import Checkpoints
    from fewstep.export.models import UViT, VQModel

    folder = tmp_path_factory.mktemp("tiny-text-checkpoints")
    config = {"transformer": _TRANSFORMER | _TEXT, "tokenizer": _TOKENIZER, "name": "tiny-text"}
    files = Checkpoints(
        transformer=folder / "nnet_ema.pth",
        tokenizer=folder / "vqgan.ckpt",
        config=folder / "config.json",
        unconditional_text=folder / "empty.npy",
    )
    transformer = _randomised(UViT(**_TRANSFORMER, **_TEXT), seed=2)
    torch.save(transformer.state_dict(), files.transformer)
    torch.save(_randomised(VQModel(**_TOKENIZER), seed=4).state_dict(), files.tokenizer)
    shape = (_TEXT["num_clip_token"], _TEXT["clip_dim"])
    np.save(folder / "empty.npy", np.random.default_rng(0).standard_normal(shape, np.float32))
    (folder / "config.json").write_text(json.dumps(config))
    return files


@pytest.fixture(scope="session")
def tiny_bundle(tiny_checkpoints: Checkpoints, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An AdaNAT bundle: 4×4 tokens of 24 codes, 5 classes, policy with residuals, 8×8 images."""
    from fewstep.export import export_masked

    out = tmp_path_factory.mktemp("bundles") / "tiny"
    return export_masked("adanat", tiny_checkpoints, out, command="pytest").path


@pytest.fixture(scope="session")
def tiny_text_bundle(
    tiny_text_checkpoints: Checkpoints, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A MaskGIT bundle with text states ``[3, 12]`` as condition, and those of the empty text."""
    from fewstep.export import export_masked

    out = tmp_path_factory.mktemp("bundles") / "tiny-text"
    return export_masked("maskgit", tiny_text_checkpoints, out, command="pytest").path


@pytest.fixture
def bundle_copy(tiny_bundle: Path, tmp_path: Path) -> Path:
    """A copy of the tiny bundle that a test may damage."""
    return shutil.copytree(tiny_bundle, tmp_path / "copy")


class Outcome:
    """Exit code and output of one command."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err


class Terminal:
    """Runs ``fewstep`` commands in this process."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self._monkeypatch, self._capsys = monkeypatch, capsys

    def __call__(self, *arguments: object) -> Outcome:
        from fewstep.cli import main

        self._monkeypatch.setattr(sys, "argv", ["fewstep", *map(str, arguments)])
        try:
            main()
            code = 0
        except SystemExit as end:
            code = int(end.code or 0)
        captured = self._capsys.readouterr()
        return Outcome(code, captured.out, captured.err)


@pytest.fixture
def fewstep(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Terminal:
    """A terminal to type commands in."""
    return Terminal(monkeypatch, capsys)


def _randomised(module: nn.Module, seed: int) -> nn.Module:
    """Draw every matrix and bias again, at scales that keep activations near 1."""
    import torch

    random = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        if name.endswith("bias"):
            scale = 0.1
        elif parameter.ndim < 2:  # the weight of a norm stays 1
            continue
        else:
            scale = 0.4 if "embeddings" in name else 1.2 * parameter[0].numel() ** -0.5
        with torch.no_grad():
            parameter.normal_(std=scale, generator=random)
    return module
