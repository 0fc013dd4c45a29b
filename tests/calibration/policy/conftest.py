"""Fixtures of the policy tuning's tests: real images in a file, and a small feature network."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.calibration.policy.stand_ins import SmallNetwork, random_images, small_options
from tests.masked import masked_model

from fewstep.calibration.policy.options import PolicyOptions
from fewstep.runtime.bundle import Bundle
from fewstep.runtime.families.masked.model import MaskedModel
from fewstep.runtime.generator import Generator


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """The same sums on every machine, and the former number of threads afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty real images of 8×8 pixels in five classes, as ``.npz``."""
    path = tmp_path_factory.mktemp("real") / "images.npz"
    images, labels = random_images(40)
    np.savez(path, images=images, labels=labels)
    return path


@pytest.fixture(scope="session")
def model(tiny_bundle: Path) -> MaskedModel:
    """The tiny bundle's model."""
    return masked_model(Bundle.read(tiny_bundle))


@pytest.fixture
def small_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every feature network is the small one."""
    monkeypatch.setattr(
        "fewstep.calibration.policy.tune.open_network", lambda spec, size: SmallNetwork()
    )


@pytest.fixture
def options(bundle_copy: Path, data: Path) -> Callable[..., PolicyOptions]:
    """Options of a short training on a copy of the tiny bundle."""
    return lambda **changes: small_options(bundle_copy, data, **changes)


@pytest.fixture
def generator(tiny_bundle: Path) -> Iterator[Generator]:
    """The tiny bundle, opened for one test, which may replace its engines."""
    with Generator.open(tiny_bundle, threads=1) as opened:
        yield opened
