"""Cubins, kernels and launches that do not fit, each caught."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pycuda.driver as cuda
import pytest

Cubin = Callable[[str], bytes]
Captured = pytest.CaptureFixture[str]


@pytest.mark.parametrize("made_for", [86, 90])
def test_cubin_of_another_architecture(
    context: Any, cubin: Cubin, made_for: int, capfd: Captured
) -> None:
    with pytest.raises(cuda.RuntimeError, match="no binary for gpu"):
        cuda.module_from_buffer(cubin(f"sm_{made_for}"))
    assert f"the cubin is for sm_{made_for}, the device is sm_87" in capfd.readouterr().err


def test_images_that_are_no_cubins(context: Any) -> None:
    with pytest.raises(cuda.LogicError, match="invalid image"):
        cuda.module_from_buffer(b"something else" * 10)
    with pytest.raises(cuda.LogicError, match="not supported"):
        cuda.module_from_buffer(b"// PTX\n.version 8.0\n")


def test_missing_kernel(module: Any) -> None:
    with pytest.raises(cuda.LogicError, match="not found"):
        module.get_function("absent")


def test_kernel_that_the_host_build_lacks(context: Any, cubin: Cubin) -> None:
    more = cuda.module_from_buffer(cubin("more"))
    with pytest.raises(cuda.LogicError, match="shared object symbol not found"):
        more.get_function("only_in_the_cubin")


def test_stale_cubin(context: Any, cubin: Cubin, capfd: Captured) -> None:
    stale = cuda.module_from_buffer(cubin("stale"))
    stale.get_function("reverse")
    with pytest.raises(cuda.LogicError, match="invalid image"):
        stale.get_function("increment")
    assert "one of the two is stale" in capfd.readouterr().err


def test_arguments_of_another_size(module: Any, capfd: Captured) -> None:
    increment, values = module.get_function("increment"), cuda.mem_alloc(40)
    for arguments in ((values,), (values, np.int64(10)), (values, np.int32(1), np.int32(1))):
        with pytest.raises(cuda.LogicError, match="invalid value"):
            increment(*arguments, block=(1, 1, 1))
    assert "increment takes 12 bytes of arguments, not 8" in capfd.readouterr().err


def test_addresses_of_host_memory(module: Any, pinned: Any, capfd: Captured) -> None:
    increment, ordinary = module.get_function("increment"), np.zeros(10, np.int32)
    for values, kind in ((pinned(1, 2), "pinned memory"), (ordinary, "ordinary host memory")):
        with pytest.raises(cuda.LogicError, match="invalid value"):
            increment(np.intp(values.ctypes.data), np.int32(1), block=(1, 1, 1))
        assert f"argument 0 of increment is an address of {kind}" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("kernel", "grid", "block"),
    [
        ("reverse", (1, 1), (2048, 1, 1)),
        ("reverse", (1, 1), (1, 1, 65)),
        ("reverse", (1, 65536), (1, 1, 1)),
        ("reverse", (0, 1), (1, 1, 1)),
        ("sum", (1, 1), (65, 1, 1)),  # made for 64 at most
    ],
)
def test_impossible_shape(
    module: Any, kernel: str, grid: tuple[int, int], block: tuple[int, int, int]
) -> None:
    values = cuda.mem_alloc(4096)
    with pytest.raises(cuda.LogicError, match="invalid value"):
        module.get_function(kernel)(values, grid=grid, block=block)


def test_divergent_barrier(module: Any, capfd: Captured) -> None:
    values = cuda.mem_alloc(4096)
    module.get_function("diverge")(values, block=(32, 1, 1))
    with pytest.raises(cuda.LaunchError, match="launch failed"):
        cuda.Context.synchronize()
    said = capfd.readouterr().err
    assert "diverge" in said
    assert "deadlock" in said
