"""The demo on a tiny sample: every promised file appears, and a wrong sample is refused."""

from __future__ import annotations

import io
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from rich.console import Console
from safetensors.torch import save_file

from fewstep.export import checkpoint, demo
from fewstep.runtime.errors import CheckpointError


@pytest.fixture
def sample(tiny_checkpoints: dict[str, Any], tmp_path: Path) -> Path:
    """The tiny checkpoints in the layout of ``samples/fashion``, half precision, no policy."""
    weights = tmp_path / "sample" / "weights"
    weights.mkdir(parents=True)
    parts = {
        "transformer": checkpoint.read(tiny_checkpoints["transformer"]),
        "tokenizer": checkpoint.read(tiny_checkpoints["tokenizer"])["state_dict"],
    }
    for name, state in parts.items():
        half: dict[str, torch.Tensor] = {key: value.half() for key, value in state.items()}
        save_file(half, weights / f"{name}.safetensors")
    shutil.copy(tiny_checkpoints["config"], weights.parent / "config.json")
    return weights.parent


def test_every_promised_file_appears(sample: Path, tmp_path: Path) -> None:
    out, screen = tmp_path / "demo-output", io.StringIO()
    demo.run(sample, out, Console(file=screen, width=120))
    made = {path.name for path in out.iterdir()}
    assert made == {"bundle", "grid-8-steps.png", "grid-4-steps.png", "steps.gif"}
    with Image.open(out / "steps.gif") as animation:
        assert getattr(animation, "n_frames", 1) == 8
    shown = screen.getvalue()
    for stage in ("transformer", "sampling", "decoder", "other", "total", "images/s"):
        assert stage in shown
    assert "fewstep generate" in shown


def test_folder_without_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no trained sample"):
        demo.run(tmp_path, tmp_path / "out", Console(file=io.StringIO()))
    assert not (tmp_path / "out").exists()
