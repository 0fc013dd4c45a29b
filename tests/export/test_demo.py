"""The demo's export, of a tiny sample in the layout of ``samples/fashion``."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from fewstep.export import checkpoint, demo


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


def test_a_sample_is_exported_shown_and_exported_again(
    fewstep: Any, sample: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fewstep.cli.tour._TIMED_RUNS", 1)
    out = tmp_path / "demo-output"
    done = fewstep("demo", "--sample", sample, "--out", out)
    assert done.code == 0, done.err
    made = {path.name for path in out.iterdir()}
    assert made == {"bundle", "grid-8-steps.png", "grid-4-steps.png", "steps.gif"}
    bundle = demo.export_sample(sample, out)
    assert bundle.path == out / "bundle"
    assert bundle.manifest.provenance.command.startswith("fewstep demo --sample ")


def test_folder_without_weights_is_refused(fewstep: Any, tmp_path: Path) -> None:
    done = fewstep("demo", "--sample", tmp_path, "--out", tmp_path / "out")
    assert done.code == 1
    assert "no trained sample" in done.err
    assert not (tmp_path / "out").exists()
