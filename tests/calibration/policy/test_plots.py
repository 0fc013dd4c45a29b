"""Pictures of a training: there, whole, and of the right numbers."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from fewstep.calibration.policy.plots import draw, hand_made
from fewstep.calibration.policy.state import Row
from fewstep.runtime.errors import OutputError
from fewstep.runtime.families.masked.model import MaskedModel


def _rows(updates: int) -> list[Row]:
    schedule = {"mean": [[0.9, 4.0, 1.0, 0.5], [0.0, 1.0, 1.0, 2.0]], "deviation": [[0.1] * 4] * 2}
    rows: list[Row] = [{"update": 0, "frechet_distance": 9.0, "schedule": schedule}]
    return rows + [
        {"update": each + 1, "reward": 0.1 * each, "discriminator_accuracy": 0.7}
        for each in range(updates)
    ]


@pytest.mark.parametrize("updates", [0, 1, 100])
def test_training_and_schedule_are_drawn(updates: int, model: MaskedModel, tmp_path: Path) -> None:
    draw(_rows(updates), model, tmp_path)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["schedule.png", "training.png"]
    for path in tmp_path.iterdir():
        with Image.open(path) as image:
            assert image.width > 1000
            assert len(set(np.asarray(image.convert("L")).ravel().tolist())) > 5


def test_what_is_drawn_is_the_history(
    model: MaskedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: dict[str, list[Any]] = {}

    def look(figure: Figure, path: Path, **_: object) -> None:
        lines = [[line.get_xydata() for line in axes.lines] for axes in figure.axes]
        drawn[path.stem.split("-")[0].strip(".")] = lines

    monkeypatch.setattr(Figure, "savefig", look)
    draw(_rows(3), model, tmp_path)
    reward, distance, _ = drawn["training"]
    np.testing.assert_allclose(reward[0], np.array([[1, 0], [2, 0.1], [3, 0.2]]))
    np.testing.assert_allclose(distance[0], np.array([[0, 9]]))
    fixed = hand_made(model).parameters(2, model.num_tokens)
    for column, lines in enumerate(drawn["schedule"]):
        mean = [row[column] for row in _rows(0)[0]["schedule"]["mean"]]
        np.testing.assert_allclose(lines[0][:, 1], np.array(mean))
        np.testing.assert_allclose(lines[1][:, 1], fixed[:, column])


def test_without_an_evaluation_there_is_no_schedule(model: MaskedModel, tmp_path: Path) -> None:
    draw(_rows(3)[1:], model, tmp_path)
    assert [each.name for each in tmp_path.iterdir()] == ["training.png"]


def test_a_policy_as_default_is_compared_with_the_cosine(model: MaskedModel) -> None:
    changed = model.model_copy(
        update={"defaults": model.defaults.model_copy(update={"schedule": "policy"})}
    )
    found, expected = (hand_made(each).parameters(4, 16) for each in (changed, model))
    np.testing.assert_array_equal(found, expected)


def test_a_full_disk_leaves_the_former_picture(
    model: MaskedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw(_rows(3), model, tmp_path)
    before = (tmp_path / "training.png").read_bytes()

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Figure, "savefig", full)
    with pytest.raises(OutputError, match=r"cannot write .*training\.png"):
        draw(_rows(4), model, tmp_path)
    assert (tmp_path / "training.png").read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 2
