"""Pictures of a training: there, whole, and of the right numbers."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from fewstep.calibration.policy.plots import draw
from fewstep.calibration.policy.state import Row
from fewstep.runtime.errors import OutputError

_NAMES = ("mask ratio", "masking temperature", "guidance scale")
_HAND_MADE = np.array([[0.7, 4.5, 1.5], [0.0, 0.0, 3.0]], np.float32)


def _rows(updates: int) -> list[Row]:
    schedule = {"mean": [[0.9, 4.0, 0.5], [0.0, 1.0, 2.0]], "deviation": [[0.1] * 3] * 2}
    rows: list[Row] = [{"update": 0, "frechet_distance": 9.0, "schedule": schedule}]
    return rows + [
        {"update": each + 1, "reward": 0.1 * each, "discriminator_accuracy": 0.7}
        for each in range(updates)
    ]


@pytest.mark.parametrize("updates", [0, 1, 100])
def test_training_and_schedule_are_drawn(updates: int, tmp_path: Path) -> None:
    draw(_rows(updates), _NAMES, _HAND_MADE, tmp_path)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["schedule.png", "training.png"]
    for path in tmp_path.iterdir():
        with Image.open(path) as image:
            assert image.width > 1000
            assert len(set(np.asarray(image.convert("L")).ravel().tolist())) > 5


def test_what_is_drawn_is_the_history(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: dict[str, list[Any]] = {}

    def look(figure: Figure, path: Path, **_: object) -> None:
        lines = [[line.get_xydata() for line in axes.lines] for axes in figure.axes]
        drawn[path.stem.split("-")[0].strip(".")] = lines

    monkeypatch.setattr(Figure, "savefig", look)
    draw(_rows(3), _NAMES, _HAND_MADE, tmp_path)
    reward, distance, _ = drawn["training"]
    np.testing.assert_allclose(reward[0], np.array([[1, 0], [2, 0.1], [3, 0.2]]))
    np.testing.assert_allclose(distance[0], np.array([[0, 9]]))
    for column, lines in enumerate(drawn["schedule"]):
        mean = [row[column] for row in _rows(0)[0]["schedule"]["mean"]]
        np.testing.assert_allclose(lines[0][:, 1], np.array(mean))
        np.testing.assert_allclose(lines[1][:, 1], _HAND_MADE[:, column])


def test_without_an_evaluation_there_is_no_schedule(tmp_path: Path) -> None:
    draw(_rows(3)[1:], _NAMES, _HAND_MADE, tmp_path)
    assert [each.name for each in tmp_path.iterdir()] == ["training.png"]


def test_a_full_disk_leaves_the_former_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw(_rows(3), _NAMES, _HAND_MADE, tmp_path)
    before = (tmp_path / "training.png").read_bytes()

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Figure, "savefig", full)
    with pytest.raises(OutputError, match=r"cannot write .*training\.png"):
        draw(_rows(4), _NAMES, _HAND_MADE, tmp_path)
    assert (tmp_path / "training.png").read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 2
