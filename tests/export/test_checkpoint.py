"""Reading checkpoint files: formats, and what is refused without running it."""

from __future__ import annotations

import argparse
import bz2
import collections
import fractions
import gzip
import io
import lzma
import os
import pickle
import sys
import tarfile
import types
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from fewstep.export import checkpoint
from fewstep.export.unpickling import plain
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


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("nested", [False, True], ids=["flat", "nested"])
def test_pickled_code_is_refused_and_not_run(legacy: bool, nested: bool, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    hostile: dict[str, Any] = STATE | {"extra": CreatesFile(marker)}
    content = {"model": STATE, "args": argparse.Namespace(hostile=hostile)} if nested else hostile
    path = saved(content, tmp_path / "model.pth", legacy=legacy)
    with pytest.raises(CheckpointError, match="needs pickled Python code, which is never run") as c:
        checkpoint.read(path)
    assert "\n" not in str(c.value)
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
def test_a_missing_file_is_named(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"absent{suffix}"
    with pytest.raises(CheckpointError, match=rf"{path}: no such file"):
        checkpoint.read(path)


@pytest.mark.parametrize(
    ("content", "kind"), [([STATE], "list"), (STATE["weight"], "Tensor"), (None, "NoneType")]
)
def test_what_is_not_a_dictionary_is_refused(content: object, kind: str, tmp_path: Path) -> None:
    path = saved(content, tmp_path / "model.pth")
    with pytest.raises(CheckpointError, match=f"expected a dictionary of tensors, got {kind}"):
        checkpoint.read(path)


# --- settings that training scripts keep with the weights


def test_settings_of_libraries_are_read_and_their_code_is_not_run(tmp_path: Path) -> None:
    content = {
        "model": STATE,
        "numbers": {"fid": np.float64(3.25), "rows": np.int64(3), "name": np.str_("x")},
        "array": np.arange(3.0),
        "path": Path("runs/1"),
        "more": types.SimpleNamespace(lr=0.5),
        "default": collections.defaultdict(list, {"a": [1]}),
        "dtype": torch.float16,
    }
    for legacy in (False, True):
        path = saved(content, tmp_path / "model.pth", legacy=legacy)
        found = checkpoint.read(path)
        assert found["numbers"] == {"fid": 3.25, "rows": 3, "name": "x"}
        assert found["array"].tolist() == [0, 1, 2]
        assert str(found["path"]) == "runs/1"
        assert found["more"].lr == 0.5
        assert found["default"] == {"a": [1]}


def test_objects_of_absent_libraries_become_inert(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Lightning and OmegaConf pickle them; neither is installed where the file is read."""

    class AttributeDict(dict[str, object]):
        pass

    class DictConfig:
        def __init__(self, content: dict[str, object]) -> None:
            self._content = content

    class Callback:
        def __setstate__(self, state: object) -> None:
            raise AssertionError("code of the file ran")

    classes = {
        "pytorch_lightning.utilities.parsing": AttributeDict,
        "omegaconf.dictconfig": DictConfig,
        "pytorch_lightning.callbacks": Callback,
    }
    for package in ("pytorch_lightning", "pytorch_lightning.utilities", "omegaconf"):
        monkeypatch.setitem(sys.modules, package, types.ModuleType(package))
    for name, each in classes.items():
        module = types.ModuleType(name)
        setattr(module, each.__name__, each)
        monkeypatch.setitem(sys.modules, name, module)
        each.__module__, each.__qualname__ = name, each.__name__
    callback = Callback()
    callback.__dict__["best"] = 1
    content = {
        "state_dict": STATE,
        "hyper_parameters": AttributeDict(heu=1),
        "config": DictConfig({"gen_steps": 8}),
        "callbacks": {Callback: callback},
    }
    path = saved(content, tmp_path / "last.ckpt")
    for name in classes:
        monkeypatch.delitem(sys.modules, name)
    found = checkpoint.read(path)
    assert found["hyper_parameters"]["heu"] == 1
    assert plain(found["config"]) == {"gen_steps": 8}


def test_the_class_that_needs_code_is_named(tmp_path: Path) -> None:
    path = saved({"model": STATE, "x": fractions.Fraction(1, 2)}, tmp_path / "model.pth")
    with pytest.raises(CheckpointError, match=r"never run here \(fractions.Fraction\); load it"):
        checkpoint.read(path)


@pytest.mark.parametrize("device", ["cuda:1", "cuda:7", "mps", "xpu:0"])
def test_tensors_of_other_devices_come_to_the_cpu(
    device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.serialization, "location_tag", lambda _: device)
    path = saved(STATE, tmp_path / "model.pth")
    monkeypatch.undo()
    assert all(each.device.type == "cpu" for each in checkpoint.read(path).values())


# --- files that are something else


def _zip(name: str, content: bytes = b"x") -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(name, content)
    return buffer.getvalue()


def _tar() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("nnet_ema.pth"))
    return buffer.getvalue()


PAGE = b"<!DOCTYPE html><html><head><title>Google Drive - Virus scan warning</title></head>"
OTHERS: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "is empty; download or copy it again"),
    "LFS": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 132735\n",
        "is a Git LFS pointer.*git lfs pull",
    ),
    "page": (PAGE, r"is a web page .*Google Drive - Virus scan warning.*: download the file"),
    "page without a doctype": (b"\n <HTML><body>Sign in</body>", "is a web page"),
    "error": (b"Entry not found", "text file that begins with 'Entry not found'"),
    "XML": (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code>", "text file .*AccessDenied"),
    "JSON": (b'{"error": "Invalid username or password."}', "text file .*Invalid username"),
    "zip": (_zip("readme.txt"), r"zip archive of something else \(readme.txt\); unpack it"),
    "npz": (_zip("weight.npy"), "is an .npz archive of NumPy arrays"),
    "empty zip": (_zip("x")[-22:], "zip archive|not a whole"),
    "tar": (_tar(), "is a tar archive: unpack it first"),
    "gzip": (gzip.compress(b"weights"), "compressed with gzip: unpack it first"),
    "bzip2": (bz2.compress(b"weights"), "compressed with bzip2"),
    "xz": (lzma.compress(b"weights"), "compressed with xz"),
    "pickle": (pickle.dumps({"weight": [1.0]}), "is not a whole PyTorch checkpoint|never run"),
    "HDF5": (b"\x89HDF\r\n\x1a\n" + bytes(50), "is an HDF5 file"),
    "npy": (b"\x93NUMPY\x01\x00" + bytes(50), "is a NumPy array"),
    "GGUF": (b"GGUF" + bytes(50), "is a GGUF file"),
    "picture": (b"\x89PNG\r\n\x1a\n", "is a picture"),
    "zeros": (bytes(64), "is not a whole"),
    "noise": (bytes(range(255, 100, -1)), "is not a whole"),
    "TorchScript": (
        _zip("model/constants.pkl"),
        "is a TorchScript program, whose code is never run",
    ),
}


@pytest.mark.parametrize("suffix", [".pth", ".ckpt", ".safetensors", ".pth.tar", ""])
@pytest.mark.parametrize("kind", OTHERS)
def test_other_files_are_called_what_they_are(kind: str, suffix: str, tmp_path: Path) -> None:
    content, message = OTHERS[kind]
    path = tmp_path / f"model{suffix}"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=message) as caught:
        checkpoint.read(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400 + len(str(path))


@pytest.mark.parametrize(
    "name", ["nnet_ema", "NNET.PTH", "model.PT", "checkpoint.pth.tar", "100.ckpt", "x.safetensors"]
)
def test_files_are_known_by_content_not_by_name(name: str, tmp_path: Path) -> None:
    assert checkpoint.read(saved(STATE, tmp_path / name)).keys() == STATE.keys()
    save_file(STATE, tmp_path / name)
    assert checkpoint.read(tmp_path / name).keys() == STATE.keys()


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.pth")
    with pytest.raises(CheckpointError, match=r"pipe.pth is no regular file"):
        checkpoint.read(tmp_path / "pipe.pth")
    (tmp_path / "link.pth").symlink_to(tmp_path / "absent.pth")
    with pytest.raises(CheckpointError, match=r"link.pth: no such file"):
        checkpoint.read(tmp_path / "link.pth")
    with pytest.raises(CheckpointError, match="cannot read|no such file"):
        checkpoint.read(tmp_path / ("x" * 300))
