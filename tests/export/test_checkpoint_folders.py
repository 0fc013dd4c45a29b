"""Checkpoints of several files: folders of authors and of the hub, and shards with their index."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from fewstep.export import checkpoint
from fewstep.export.masked import Checkpoints
from fewstep.runtime.errors import CheckpointError

STATE = {
    "weight": torch.arange(6.0).reshape(2, 3),
    "bias": torch.tensor([-1.0, 0.5]),
    "count": torch.tensor([3], dtype=torch.int64),
}


def test_the_authors_folder_is_read_through_its_average(tmp_path: Path) -> None:
    """``100.ckpt/``: the weights, their average, and the state of training."""
    folder = tmp_path / "100.ckpt"
    folder.mkdir()
    for name in ("nnet.pth", "optimizer.pth", "lr_scheduler.pth", "step.pth"):
        torch.save({"other": torch.ones(1)}, folder / name)
    torch.save(STATE, folder / "nnet_ema.pth")
    content = checkpoint.open_checkpoint(folder)
    assert content.tree.keys() == STATE.keys()
    assert content.notes == ("read nnet_ema.pth of the folder",)
    assert checkpoint.files(folder) == (folder / "nnet_ema.pth",)


@pytest.mark.parametrize(
    "name", ["model.safetensors", "diffusion_pytorch_model.safetensors", "pytorch_model.bin"]
)
def test_a_folder_of_the_hub_is_read_with_its_config(name: str, tmp_path: Path) -> None:
    if name.endswith(".bin"):
        torch.save(STATE, tmp_path / name)
    else:
        save_file(STATE, tmp_path / name)
        torch.save({"other": torch.ones(1)}, tmp_path / "pytorch_model.bin")  # the same, once more
    (tmp_path / "config.json").write_text('{"depth": 2}')
    (tmp_path / "README.md").write_text("# A model")
    content = checkpoint.open_checkpoint(tmp_path)
    assert content.tree.keys() == STATE.keys()
    assert content.metadata["depth"] == 2


def test_a_folder_with_several_or_no_checkpoints_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"holds no checkpoint \(it holds nothing\)"):
        checkpoint.read(tmp_path)
    (tmp_path / "README.md").write_text("# A model")
    with pytest.raises(CheckpointError, match=r"it holds README.md\); expected a file ending in"):
        checkpoint.read(tmp_path)
    for name in ("a.pth", "b.pth"):
        torch.save(STATE, tmp_path / name)
    with pytest.raises(CheckpointError, match=r"several checkpoints \(a.pth, b.pth\); pass one"):
        checkpoint.read(tmp_path)


def test_a_folder_of_folders_says_which_hold_weights(tmp_path: Path) -> None:
    """As a diffusers pipeline is saved."""
    for name in ("transformer", "vqvae", "scheduler"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
    for name in ("transformer", "vqvae"):
        save_file(STATE, tmp_path / name / "diffusion_pytorch_model.safetensors")
    with pytest.raises(CheckpointError, match=r"in its folders transformer, vqvae; pass the fold"):
        checkpoint.read(tmp_path)
    assert checkpoint.read(tmp_path / "vqvae").keys() == STATE.keys()


def test_the_state_of_training_in_a_folder_is_passed_over(tmp_path: Path) -> None:
    """As Trainer and Accelerate save it."""
    save_file(STATE, tmp_path / "model.safetensors")
    for name in ("optimizer.bin", "scheduler.pt", "rng_state.pth", "training_args.bin"):
        torch.save({"other": torch.ones(1)}, tmp_path / name)
    assert checkpoint.read(tmp_path).keys() == STATE.keys()


def test_all_files_that_were_read_are_recorded(tmp_path: Path) -> None:
    index = _sharded(tmp_path, "safetensors")
    torch.save(STATE, tmp_path / "vqgan.ckpt")
    given = Checkpoints(index, tmp_path / "vqgan.ckpt")
    names = checkpoint.named_files(vars(given))
    assert list(names) == [
        "transformer/model.safetensors.index.json",
        "transformer/model-00001-of-00002.safetensors",
        "transformer/model-00002-of-00002.safetensors",
        "tokenizer",
    ]
    assert all(path.is_file() for path in names.values())


def _sharded(folder: Path, suffix: str) -> Path:
    """The state in two shards and their index, as transformers and diffusers write them."""
    names = {key: f"model-0000{row + 1}-of-00002.{suffix}" for row, key in enumerate(STATE)}
    names["count"] = names["weight"]
    for name in set(names.values()):
        part = {key: each for key, each in STATE.items() if names[key] == name}
        if suffix == "bin":
            torch.save(part, folder / name)
        else:
            save_file(part, folder / name)
    index = folder / f"model.{suffix}.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 44}, "weight_map": names}))
    return index


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_shards_are_read_by_their_index_their_folder_or_one_of_them(
    suffix: str, tmp_path: Path
) -> None:
    index = _sharded(tmp_path, suffix)
    for path in (index, tmp_path, tmp_path / f"model-00002-of-00002.{suffix}"):
        found = checkpoint.read(path)
        assert found.keys() == STATE.keys()
        assert all(torch.equal(found[key], STATE[key]) for key in STATE)
    assert {each.name for each in checkpoint.files(tmp_path)} == {
        index.name,
        f"model-00001-of-00002.{suffix}",
        f"model-00002-of-00002.{suffix}",
    }


def test_missing_shards_are_named(tmp_path: Path) -> None:
    index = _sharded(tmp_path, "safetensors")
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"1 are missing .*: model-00002-of-00002.safet"):
        checkpoint.read(index)
    save_file({"other": torch.ones(1)}, tmp_path / "model-00002-of-00002.safetensors")
    with pytest.raises(CheckpointError, match=r"lists 1 tensors that .* not hold: bias"):
        checkpoint.read(index)


@pytest.mark.parametrize(
    "text",
    [
        "{}",
        "[]",
        "nonsense",
        '{"weight_map": []}',
        '{"weight_map": {"weight": 3}}',
        '{"weight_map": {"weight": "../../secret.pth"}}',
        '{"weight_map": {"weight": "/etc/passwd"}}',
        "[" * 100_000,
    ],
    ids=lambda text: text[:30],
)
def test_an_index_that_is_none_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"index.json"):
        checkpoint.read(tmp_path / "model.safetensors.index.json")


def test_metadata_of_safetensors_are_settings(tmp_path: Path) -> None:
    save_file(STATE, tmp_path / "x.safetensors", {"heu": "1", "config": '{"a": 2}', "by": "me"})
    metadata = checkpoint.open_checkpoint(tmp_path / "x.safetensors").metadata
    assert metadata == {"heu": 1, "config": {"a": 2}, "by": "me"}
