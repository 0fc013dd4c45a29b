"""The checkpoint of a training: whole or not at all, and of one training only."""

from __future__ import annotations

import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fewstep.calibration.policy import state
from fewstep.calibration.policy.state import CHECKPOINT, TrainingState
from fewstep.runtime.errors import CalibrationError, OutputError

_SIGNATURE: dict[str, Any] = {"steps": 4, "deviation": [0.6, 0.1], "start": None}


def _save(folder: Path, update: int = 3) -> tuple[TrainingState, dict[str, Any]]:
    best = {"update": 2, "frechet_distance": 1.5, "actor": {"w": torch.arange(3.0)}}
    reached = TrainingState(update, [{"update": each, "reward": 0.5} for each in range(4)], best)
    weights = {"networks": {"w": torch.randn(40_000)}, "optimizer": {"lr": 1e-3}, "reward": {}}
    state.save(folder, _SIGNATURE, reached, weights)
    return reached, weights


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    reached, weights = _save(tmp_path)
    found = state.load(tmp_path, dict(_SIGNATURE))
    assert found is not None
    assert (found[0].update, found[0].history) == (3, reached.history)
    assert found[0].best is not None and reached.best is not None
    assert torch.equal(found[0].best["actor"]["w"], torch.arange(3.0))
    assert torch.equal(found[1]["networks"]["w"], weights["networks"]["w"])
    assert [each.name for each in tmp_path.iterdir()] == [CHECKPOINT]


def test_without_a_checkpoint_there_is_nothing(tmp_path: Path) -> None:
    assert state.load(tmp_path, _SIGNATURE) is None


def test_the_last_one_counts(tmp_path: Path) -> None:
    _save(tmp_path, update=3)
    _save(tmp_path, update=8)
    found = state.load(tmp_path, _SIGNATURE)
    assert found is not None and found[0].update == 8


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"steps": 5}, "steps 4 instead of 5"),
        ({"deviation": [0.6, 0.2]}, r"deviation \[0.6, 0.1\] instead of \[0.6, 0.2\]"),
        ({"new": 1}, "new None instead of 1"),
        ({"steps": 8, "start": "scratch"}, "start None instead of scratch, steps 4 instead of 8"),
    ],
)
def test_a_checkpoint_of_another_training_is_refused(
    change: dict[str, Any], said: str, tmp_path: Path
) -> None:
    _save(tmp_path)
    message = f"is of another training: {said}; begin anew with --restart, or .* --work"
    with pytest.raises(CalibrationError, match=message):
        state.load(tmp_path, _SIGNATURE | change)


@pytest.mark.parametrize("part", [0, 1, 20, 0.3, 0.9, 0.999])
def test_a_cut_off_checkpoint_is_said_to_be_damaged(part: float, tmp_path: Path) -> None:
    _save(tmp_path)
    path = tmp_path / CHECKPOINT
    whole = path.read_bytes()
    path.write_bytes(whole[: int(part * len(whole) if 0 < part < 1 else part)])
    with pytest.raises(CalibrationError, match="checkpoint.pt is damaged .* --restart"):
        state.load(tmp_path, _SIGNATURE)


def test_no_damage_is_a_traceback(tmp_path: Path) -> None:
    """Bytes changed at random outside the weights: it is loaded, or said to be damaged."""
    _save(tmp_path)
    path, random = tmp_path / CHECKPOINT, np.random.default_rng(0)
    whole, refused = bytearray(path.read_bytes()), 0
    for _ in range(40):
        damaged = whole.copy()
        for place in random.integers(3000, size=3):  # the pickle comes first
            damaged[place] = random.integers(256)
        path.write_bytes(damaged)
        try:
            state.load(tmp_path, _SIGNATURE)
        except CalibrationError:
            refused += 1
    assert refused > 5


@pytest.mark.parametrize("content", [[1, 2], torch.zeros(3), {"signature": {}}, {}, "text"])
def test_other_files_are_said_to_be_damaged(content: object, tmp_path: Path) -> None:
    torch.save(content, tmp_path / CHECKPOINT)
    with pytest.raises(CalibrationError, match="is damaged .* --restart"):
        state.load(tmp_path, {})


class _Code:
    """A pickle that would run something."""

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return (print, ("this was run",))


def test_nothing_in_a_checkpoint_is_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"signature": _Code()}, tmp_path / CHECKPOINT)
    with pytest.raises(CalibrationError, match="is damaged"):
        state.load(tmp_path, {})
    assert capsys.readouterr().out == ""


@pytest.fixture
def small_files() -> Any:
    """No file may become larger than 50 kB, as on a disk that is nearly full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_leaves_the_former_checkpoint(tmp_path: Path, request: Any) -> None:
    _save(tmp_path, update=3)
    whole = (tmp_path / CHECKPOINT).read_bytes()
    request.getfixturevalue("small_files")
    with pytest.raises(OutputError, match="cannot write .*checkpoint.pt"):
        _save(tmp_path, update=8)
    assert (tmp_path / CHECKPOINT).read_bytes() == whole
    assert [each.name for each in tmp_path.iterdir()] == [CHECKPOINT]


def test_an_interruption_while_writing_leaves_the_former_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _save(tmp_path, update=3)

    def interrupted(content: object, path: Path) -> None:
        path.write_bytes(b"half of")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        _save(tmp_path, update=8)
    found = state.load(tmp_path, _SIGNATURE)
    assert found is not None and found[0].update == 3
    assert [each.name for each in tmp_path.iterdir()] == [CHECKPOINT]
