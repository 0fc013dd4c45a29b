"""Fixtures of the kernels' tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from fewstep.runtime.bundle import Bundle


@pytest.fixture
def bundle(bundle_copy: Path) -> Bundle:
    """A bundle without kernels, to add some to."""
    return Bundle.read(bundle_copy)
