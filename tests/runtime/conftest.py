"""Fixtures of the runtime tests: open generators, shared."""

from __future__ import annotations

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
