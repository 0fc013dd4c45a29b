"""Reading checkpoint files: formats, what is refused (without running it), and key comparison."""

from __future__ import annotations

import argparse
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from fewstep.export import checkpoint
from fewstep.runtime.errors import CheckpointError

STATE = {
    "weight": torch.arange(6.0).reshape(2, 3),
    "bias": torch.tensor([-1.0, 0.5]),
    "count": torch.tensor([3], dtype=torch.int64),
}


class CreatesFile:
    """Unpickling this creates a file: what a hostile checkpoint would do."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return Path.touch, (self.path,)


def saved(content: object, path: Path, *, legacy: bool = False) -> Path:
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    return path


@pytest.mark.parametrize(
    ("suffix", "legacy"),
    [(".pth", False), (".pth", True), (".pt", False), (".ckpt", False), (".bin", False)],
)
def test_torch_files_come_back(suffix: str, legacy: bool, tmp_path: Path) -> None:
    content = checkpoint.read(saved(STATE, tmp_path / f"model{suffix}", legacy=legacy))
    assert content.keys() == STATE.keys()
    for key, value in STATE.items():
        assert torch.equal(content[key], value)


def test_safetensors_files_come_back(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file(STATE, path)
    content = checkpoint.read(path)
    assert content.keys() == STATE.keys()
    for key, value in STATE.items():
        assert torch.equal(content[key], value)


def test_the_official_training_state_is_read(tmp_path: Path) -> None:
    """It holds optimizer states, counters and the parsed command line beside the model."""
    content = {
        "model": STATE,
        "optimizer": {"state": {0: {"step": torch.tensor(1.0)}}, "param_groups": [{"lr": 1e-5}]},
        "args": argparse.Namespace(dset="in256", action_std=[0.6], resume=None),
        "global_step": 7,
    }
    found = checkpoint.read(saved(content, tmp_path / "ckpt_7.pth"))
    assert found["model"].keys() == STATE.keys()
    assert found["args"].dset == "in256"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_floating_point_becomes_float32(dtype: torch.dtype, tmp_path: Path) -> None:
    state = {"weight": STATE["weight"].to(dtype), "count": STATE["count"]}
    path = saved(state, tmp_path / "model.pth")
    found = checkpoint.tensors(path, checkpoint.read(path))
    assert found["weight"].dtype == torch.float32
    assert torch.equal(found["weight"], STATE["weight"])  # small integers: exact in every format
    assert found["count"].dtype == torch.int64


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("nested", [False, True], ids=["flat", "nested"])
def test_pickled_code_is_refused_and_not_run(legacy: bool, nested: bool, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    hostile: dict[str, Any] = STATE | {"extra": CreatesFile(marker)}
    content = {"model": STATE, "args": argparse.Namespace(hostile=hostile)} if nested else hostile
    path = saved(content, tmp_path / "model.pth", legacy=legacy)
    with pytest.raises(CheckpointError, match="needs pickled Python code, which is never run"):
        checkpoint.read(path)
    assert not marker.exists()
    torch.load(path, weights_only=False)
    assert marker.exists()  # the file is hostile indeed


def test_a_whole_model_is_refused(tmp_path: Path) -> None:
    path = saved(nn.Linear(2, 2), tmp_path / "model.pth")
    with pytest.raises(CheckpointError, match=r"save the state dict alone: torch.save"):
        checkpoint.read(path)


def _whole(suffix: str, *, legacy: bool = False) -> bytes:
    if suffix == ".safetensors":
        from safetensors.torch import save

        return save(STATE)
    buffer = io.BytesIO()
    torch.save(STATE, buffer, _use_new_zipfile_serialization=not legacy)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("suffix", "legacy"), [(".pth", False), (".pth", True), (".safetensors", False)]
)
def test_a_file_truncated_anywhere_is_refused(suffix: str, legacy: bool, tmp_path: Path) -> None:
    whole, path = _whole(suffix, legacy=legacy), tmp_path / f"model{suffix}"
    path.write_bytes(whole)
    assert checkpoint.read(path).keys() == STATE.keys()
    for size in range(0, len(whole), max(1, len(whole) // 60)):  # from empty on
        path.write_bytes(whole[:size])
        with pytest.raises(CheckpointError, match=str(path)):
            checkpoint.read(path)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize(
    "content",
    [b"", b"version https://git-lfs.github.com/spec/v1\n", b"<!DOCTYPE html>", bytes(64)],
    ids=["empty", "lfs-pointer", "html", "zeros"],
)
def test_another_kind_of_file_is_not_called_code(
    suffix: str, content: bytes, tmp_path: Path
) -> None:
    path = tmp_path / f"model{suffix}"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="is not a whole"):
        checkpoint.read(path)


@pytest.mark.parametrize("name", ["model.npz", "model", "model.onnx", "model.PTH"])
def test_another_suffix_is_refused_with_the_known_ones(name: str, tmp_path: Path) -> None:
    path = saved(STATE, tmp_path / name)
    with pytest.raises(CheckpointError, match=r"\.pth, \.pt, \.ckpt, \.bin, \.safetensors"):
        checkpoint.read(path)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_missing_file_is_named(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"absent{suffix}"
    with pytest.raises(CheckpointError, match=rf"{path}: no such file"):
        checkpoint.read(path)


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "model.pth").mkdir()
    with pytest.raises(CheckpointError, match="no such file"):
        checkpoint.read(tmp_path / "model.pth")


@pytest.mark.parametrize(
    ("content", "kind"), [([STATE], "list"), (STATE["weight"], "Tensor"), (None, "NoneType")]
)
def test_what_is_not_a_dictionary_is_refused(content: object, kind: str, tmp_path: Path) -> None:
    path = saved(content, tmp_path / "model.pth")
    with pytest.raises(CheckpointError, match=f"expected a dictionary of tensors, got {kind}"):
        checkpoint.read(path)
    with pytest.raises(CheckpointError, match=f"expected a dictionary of tensors, got {kind}"):
        checkpoint.tensors(path, content)


def test_entries_that_are_no_named_tensors_are_listed_together() -> None:
    content = STATE | {"epoch": 3, "nested": dict(STATE), 5: torch.ones(1)}
    with pytest.raises(CheckpointError, match="epoch, nested, 5 hold other objects") as caught:
        checkpoint.tensors(Path("model.pth"), content)
    assert "weight" not in str(caught.value)


def test_a_long_list_of_entries_is_cut() -> None:
    content = {f"entry{i}": i for i in range(30)}
    with pytest.raises(CheckpointError, match=r"entry11 and 18 more hold") as caught:
        checkpoint.tensors(Path("model.pth"), content)
    assert "entry12" not in str(caught.value)


def _linear_state(**changes: Tensor) -> dict[str, Tensor]:
    return {"weight": torch.ones(2, 3), "bias": torch.ones(2)} | changes


def test_every_mismatch_is_reported_together() -> None:
    state = _linear_state(weight=torch.ones(2, 4), scale=torch.ones(1))
    del state["bias"]
    assert checkpoint.mismatches(nn.Linear(3, 2), state) == (
        "1 missing: bias; 1 unexpected: scale; 1 mis-shaped: weight [2, 4] instead of [2, 3]"
    )


def test_no_mismatch_is_an_empty_report() -> None:
    assert checkpoint.mismatches(nn.Linear(3, 2), _linear_state()) == ""


def test_loading_adopts_the_tensors_and_freezes_the_model() -> None:
    with torch.device("meta"):
        model = nn.Linear(3, 2).train()
    state = _linear_state()
    checkpoint.load_into(model, state, Path("model.pth"))
    assert torch.equal(model(torch.ones(1, 3)), torch.full((1, 2), 4.0))
    assert model.weight.data_ptr() == state["weight"].data_ptr()  # no second copy in memory
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_loading_what_does_not_fit_is_refused_and_changes_nothing() -> None:
    model = nn.Linear(3, 2)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    state = _linear_state(bias=torch.ones(7))
    with pytest.raises(CheckpointError, match=r"x.pth does not fit Linear: 1 mis-shaped: bias"):
        checkpoint.load_into(model, state, Path("x.pth"))
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key])
