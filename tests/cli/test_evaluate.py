"""``fewstep evaluate``: what it prints; ``tests/calibration/evaluation`` has the numbers."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

pytest.importorskip("torch")

from tests.calibration.evaluation.conftest import averages, blobs, write_pictures

if TYPE_CHECKING:
    from tests.conftest import Terminal


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A network of few features in the place of EfficientNet."""
    averages(monkeypatch)


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    made = write_pictures(tmp_path / "made", blobs(20, seed=1), classes=2)
    return made, write_pictures(tmp_path / "real", blobs(30, seed=2))


def test_metrics_and_a_verdict(fewstep: Terminal, folders: tuple[Path, Path]) -> None:
    found = fewstep("evaluate", folders[0], "--reference", folders[1])
    assert found.code == 0, found.err
    for title in ("EfficientNet Fréchet distance", "EfficientNet kernel distance", "precision"):
        assert title in found.out
    assert found.out.splitlines()[-1].startswith("EfficientNet Fréchet distance ")
    assert "never with published FID" in " ".join(found.err.split())


def test_json_has_all_of_it_and_nothing_else(fewstep: Terminal, folders: tuple[Path, Path]) -> None:
    found = json.loads(fewstep("evaluate", folders[0], "--reference", folders[1], "--json").out)
    assert (found["count"], found["reference_count"]) == (20, 30)
    assert set(found["metrics"]) == {
        "efficientnet_frechet_distance",
        "efficientnet_kernel_distance",
        "efficientnet_kernel_distance_deviation",
        "efficientnet_precision",
        "efficientnet_recall",
    }


def test_saved_statistics_are_named_with_the_command_that_takes_them(
    fewstep: Terminal, folders: tuple[Path, Path], tmp_path: Path
) -> None:
    found = fewstep("evaluate", folders[1], "--save-statistics", tmp_path / "real.npz")
    assert found.code == 0 and (tmp_path / "real.npz").is_file()
    after = next(line for line in found.out.splitlines() if line.startswith("next: "))
    assert fewstep(*shlex.split(after.removeprefix("next: "))[1:]).code == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("absent", "--reference", "real"), "absent is not there"),
        (("made/0/00000.png", "--reference", "real"), "is a single picture: expected a folder"),
        (("made", "--reference", "real", "--weights", "nope.pth"), "no such file: nope.pth"),
        (("made",), "nothing to compare with"),
        (("made", "--reference", "real", "--save-statistics", "a.txt"), "written as .npz"),
    ],
)
def test_errors_are_a_line(
    fewstep: Terminal,
    folders: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    found = fewstep("evaluate", *arguments)
    assert found.code == 1 and message in found.err
    assert len(found.err.splitlines()) == 1
