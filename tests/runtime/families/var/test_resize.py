"""Resizing matrices against PyTorch's operators."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from fewstep.runtime.families.var.resize import area, bicubic

SIDES = [(1, 16), (2, 16), (13, 16), (16, 16), (24, 32), (32, 16), (3, 4), (1, 1), (5, 2)]


@pytest.mark.parametrize(("source", "target"), SIDES)
def test_bicubic_is_torchs(source: int, target: int) -> None:
    maps = torch.randn(2, 3, source, source, generator=torch.Generator().manual_seed(source))
    wanted = F.interpolate(maps, size=(target, target), mode="bicubic")
    matrix = bicubic(source, target)
    np.testing.assert_allclose(matrix @ maps.numpy() @ matrix.T, wanted, atol=3e-6)


@pytest.mark.parametrize(("target", "source"), SIDES)
def test_area_is_torchs(source: int, target: int) -> None:
    maps = torch.randn(2, 3, source, source, generator=torch.Generator().manual_seed(target))
    wanted = F.interpolate(maps, size=(target, target), mode="area")
    matrix = area(source, target)
    np.testing.assert_allclose(matrix @ maps.numpy() @ matrix.T, wanted, atol=1e-6)
