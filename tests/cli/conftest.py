"""Fixtures of the command line's tests."""

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


@pytest.fixture(autouse=True)
def _own_families_and_forms(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command line without the family that other tests of the same process may register."""
    monkeypatch.setattr("fewstep.runtime.families._registered", {})
    monkeypatch.setattr("fewstep.export.source._registered", {})
