"""Several processes: alone nothing changes; two by ``torchrun`` train the same weights."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.calibration.policy.stand_ins import assert_same_weights
from torch import distributed, nn

from fewstep.calibration.policy import workers

_ROOT = Path(__file__).parents[3]
_SCRIPT = Path(__file__).with_name("worker_run.py")


def test_alone_everything_does_nothing() -> None:
    module, values = nn.Linear(2, 2), torch.arange(3.0)
    with workers.joined():
        assert (workers.rank(), workers.world()) == (0, 1)
        assert workers.shared(module) is module
        assert workers.gathered(values) is values
        workers.wait()
        assert not distributed.is_initialized()


@pytest.fixture(scope="module")
def two(
    tiny_bundle: Path, data: Path, tmp_path_factory: pytest.TempPathFactory
) -> list[tuple[dict[str, Any], list[Any]]]:
    """Weights and history of each of two processes."""
    folder = tmp_path_factory.mktemp("two")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", "2", str(_SCRIPT)]
    command += map(str, (tiny_bundle, data, folder / "work", folder))
    paths = [str(_ROOT), *(str(_ROOT / each) for each in ("export", "runtime", "calibration"))]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return [
        (torch.load(folder / f"{each}.pt"), json.loads((folder / f"{each}.json").read_text()))
        for each in range(2)
    ]


def test_both_have_the_same_weights(two: list[tuple[dict[str, Any], list[Any]]]) -> None:
    assert_same_weights(two[0][0], two[1][0])
    assert all(torch.isfinite(each).all() for each in two[0][0].values())


def test_rewards_and_distances_are_of_all_images(
    two: list[tuple[dict[str, Any], list[Any]]],
) -> None:
    for first, second in zip(two[0][1], two[1][1], strict=True):
        assert first["frechet_distance"] == second["frechet_distance"]
        assert first["schedule"].keys() == second["schedule"].keys()
        assert first.get("reward") == second.get("reward")
        assert all(math.isfinite(each) for each in first.values() if isinstance(each, float))
