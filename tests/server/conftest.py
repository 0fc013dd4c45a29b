"""Servers to ask: with the tiny bundles, on free ports, in threads of this process."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.serving import KEY, Served, opening, serving

from fewstep.server.guard import Access


@pytest.fixture(scope="session")
def served(tiny_bundle: Path, var_bundle: Path) -> Iterator[Served]:
    """A server of two models: ``tiny``, which is masked, and a VAR."""
    openings = [opening(tiny_bundle), opening(var_bundle)]
    with serving(openings) as found:
        yield found


@pytest.fixture(scope="session")
def keyed(tiny_bundle: Path) -> Iterator[Served]:
    """A server with a key, which a page elsewhere may ask."""
    access = Access("0.0.0.0", KEY, ("https://page.example",))
    with serving([opening(tiny_bundle)], access) as found:
        yield found
