"""The distributions, built once, without a network: the build's own tools are those of `dev`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def build(out: Path, *options: str) -> list[Path]:
    """What `python -m build` makes of the working tree, in a folder."""
    command = [sys.executable, "-m", "build", "--no-isolation", *options, "--outdir", str(out), "."]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    return sorted(out.iterdir())


@pytest.fixture(scope="session")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The source distribution, and the wheel that was built from it."""
    wheel, sdist = build(tmp_path_factory.mktemp("dist"))
    return sdist, wheel
