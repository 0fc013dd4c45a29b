"""The emulated CUDA driver catches what a program does wrong.

The cases are in `scripts/misuse_*.py` and run in processes of their own.
"""

from __future__ import annotations

import pytest
from tests.emulated_cuda.build import CannotBuild
from tests.emulated_cuda.checks import Prepared, prepare


@pytest.fixture(scope="module")
def emulated() -> Prepared:
    try:
        return prepare()
    except CannotBuild as error:
        pytest.skip(str(error))


def test_memory(emulated: Prepared) -> None:
    """Old output before synchronizing, writes out of bounds, use after free, out of memory."""
    emulated.check("misuse_memory", memory_mb=64)


def test_capture(emulated: Prepared) -> None:
    """Waiting, asking, allocating and copying at once while a stream is being captured."""
    emulated.check("misuse_capture")


def test_handles(emulated: Prepared) -> None:
    """Handles after their end, threads without a context, host functions that call CUDA."""
    emulated.check("misuse_handles")


def test_modules(emulated: Prepared) -> None:
    """Wrong architecture, missing kernel, stale cubin, wrong arguments, divergent barrier."""
    emulated.check("misuse_modules")


def test_use_before_init(emulated: Prepared) -> None:
    script = "from cuda.bindings import driver; print(driver.cuCtxGetCurrent()[0].name)"
    assert emulated.python("-c", script).stdout == "CUDA_ERROR_NOT_INITIALIZED\n"


def test_what_a_destroyed_context_took_along(emulated: Prepared) -> None:
    released = emulated.report("leaves_things_behind")["released_with_context"]
    assert {name: count for name, count in released.items() if count} == {
        "device_allocations": 1,
        "device_bytes": 100,
        "streams": 1,
    }


def test_kernel_on_freed_memory(emulated: Prepared) -> None:
    done = emulated.python(f"{emulated.scripts}/frees_what_a_kernel_uses.py")
    assert done.returncode == -11
    assert "the kernel increment touched 0x" in done.stderr
    assert "memory that was freed" in done.stderr
