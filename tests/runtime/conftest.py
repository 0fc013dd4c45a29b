"""Fixtures of the runtime tests: open generators, shared, and private copies of the bundle."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from fewstep.runtime.generator import Generator


@pytest.fixture(scope="session")
def generator(tiny_bundle: Path) -> Iterator[Generator]:
    """The tiny class-conditional bundle, opened once."""
    with Generator.open(tiny_bundle, threads=1) as opened:
        yield opened


@pytest.fixture(scope="session")
def text_generator(tiny_text_bundle: Path) -> Iterator[Generator]:
    """The tiny text-conditional bundle, opened once."""
    with Generator.open(tiny_text_bundle, threads=1) as opened:
        yield opened


@pytest.fixture
def bundle_copy(tiny_bundle: Path, tmp_path: Path) -> Path:
    """A copy of the tiny bundle that a test may damage."""
    return shutil.copytree(tiny_bundle, tmp_path / "copy")
