"""Access to the CUDA driver, with a stand-in for pycuda: what is asked of it and its errors.

Covered: absent packages, an absent driver, no usable GPU; versions and numbers of GPUs; errors of
pycuda and of cuda-bindings as fewstep's own. The driver itself: ``tests/cuda``.
"""

from __future__ import annotations

import ctypes
import re
import sys
from collections.abc import Callable, Iterator
from enum import IntEnum
from pathlib import Path

import pytest

from fewstep.runtime.devices import cuda_driver
from fewstep.runtime.errors import (
    DeviceError,
    DeviceLostError,
    MissingDependencyError,
    OutOfMemoryError,
)

Install = Callable[[str], None]

_DRIVER = """
class Error(Exception): ...
class MemoryError(Error): ...
class LogicError(Error): ...
def init(): {init}
def get_driver_version(): return {version}
class Device:
    def __init__(self, ordinal): self._ordinal = ordinal
    @staticmethod
    def count(): return {count}
    def compute_capability(self): return [(8, 7), (12, 0)][self._ordinal]
"""


class Status(IntEnum):
    """As the results of cuda-bindings."""

    CUDA_SUCCESS = 0
    CUDA_ERROR_INVALID_VALUE = 1
    CUDA_ERROR_OUT_OF_MEMORY = 2
    CUDA_ERROR_ECC_UNCORRECTABLE = 214
    CUDA_ERROR_ILLEGAL_ADDRESS = 700
    CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES = 701
    CUDA_ERROR_LAUNCH_TIMEOUT = 702
    CUDA_ERROR_CONTEXT_IS_DESTROYED = 709
    CUDA_ERROR_ASSERT = 710
    CUDA_ERROR_TOO_MANY_PEERS = 711
    CUDA_ERROR_HARDWARE_STACK_ERROR = 714
    CUDA_ERROR_ILLEGAL_INSTRUCTION = 715
    CUDA_ERROR_MISALIGNED_ADDRESS = 716
    CUDA_ERROR_INVALID_ADDRESS_SPACE = 717
    CUDA_ERROR_INVALID_PC = 718
    CUDA_ERROR_LAUNCH_FAILED = 719
    CUDA_ERROR_COOPERATIVE_LAUNCH_TOO_LARGE = 720
    CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED = 900
    CUDA_ERROR_UNKNOWN = 999


_KINDS: dict[Status, type[DeviceError]] = dict.fromkeys(Status, DeviceLostError) | {
    Status.CUDA_ERROR_INVALID_VALUE: DeviceError,
    Status.CUDA_ERROR_OUT_OF_MEMORY: OutOfMemoryError,
    Status.CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES: DeviceError,
    Status.CUDA_ERROR_TOO_MANY_PEERS: DeviceError,
    Status.CUDA_ERROR_COOPERATIVE_LAUNCH_TOO_LARGE: DeviceError,
    Status.CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED: DeviceError,
}
"""What NVIDIA's documentation of ``CUresult`` says: "the process must be terminated", or not."""
del _KINDS[Status.CUDA_SUCCESS]


class _Words:
    """cuda-bindings, as far as words for a status go."""

    CUresult = Status

    @staticmethod
    def cuGetErrorString(status: Status) -> tuple[Status, bytes]:
        return Status.CUDA_SUCCESS, f"words for {status}".encode()


def _driver(count: int = 2, version: int = 12060, init: str = "...") -> str:
    return _DRIVER.format(count=count, version=version, init=init)


@pytest.fixture
def pycuda(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Install]:
    """Put a package in the place of pycuda; the text is its module ``driver``."""

    def install(driver: str) -> None:
        (tmp_path / "pycuda").mkdir()
        (tmp_path / "pycuda" / "__init__.py").touch()
        (tmp_path / "pycuda" / "driver.py").write_text(driver)
        monkeypatch.syspath_prepend(tmp_path)

    real = {name: sys.modules.pop(name) for name in _imported()}
    yield install
    for name in _imported():
        del sys.modules[name]
    sys.modules.update(real)


def _imported() -> list[str]:
    return [name for name in sys.modules if name.partition(".")[0] == "pycuda"]


@pytest.mark.parametrize(
    ("module", "load"),
    [("pycuda", cuda_driver.load_driver), ("cuda.bindings", cuda_driver.load_bindings)],
)
def test_absent_package_names_the_extra(
    monkeypatch: pytest.MonkeyPatch, module: str, load: Callable[[], object]
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setattr(ctypes, "CDLL", lambda name: name)  # there is a driver
    with pytest.raises(MissingDependencyError, match=r"pip install 'fewstep\[cuda\]'"):
        load()


def test_absent_driver_is_said_before_an_absent_package(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setitem(sys.modules, "pycuda", None)
    monkeypatch.setattr(ctypes, "CDLL", absent)
    with pytest.raises(DeviceError, match="no CUDA driver.*libcuda.*install NVIDIA's driver"):
        cuda_driver.load_driver()


def test_absent_driver_is_not_an_absent_package(pycuda: Install) -> None:
    pycuda('raise ImportError("libcuda.so.1: cannot open shared object file")')
    with pytest.raises(DeviceError, match="no CUDA driver.*libcuda.*install NVIDIA's driver"):
        cuda_driver.load_driver()


def test_driver_without_a_gpu_says_how_to_look(pycuda: Install) -> None:
    pycuda(_driver(init='raise LogicError("no CUDA-capable device is detected")'))
    with pytest.raises(DeviceError, match="no CUDA-capable device.*nvidia-smi"):
        cuda_driver.load_driver()


@pytest.mark.parametrize(
    ("number", "version"),
    [(11040, (11, 4)), (12000, (12, 0)), (12060, (12, 6)), (13010, (13, 1)), (12120, (12, 12))],
)
def test_version_of_the_driver(pycuda: Install, number: int, version: tuple[int, int]) -> None:
    """``cuDriverGetVersion``: 1000 · major + 10 · minor."""
    pycuda(_driver(version=number))
    assert cuda_driver.cuda_version() == version


def test_compute_capability_is_that_of_the_gpu_asked_for(pycuda: Install) -> None:
    pycuda(_driver())
    assert cuda_driver.compute_capability() == "8.7"
    assert cuda_driver.compute_capability(1) == "12.0"


@pytest.mark.parametrize(("ordinal", "count"), [(2, 2), (-1, 2), (10**20, 2), (0, 0)])
def test_gpu_that_is_not_there_is_refused(pycuda: Install, ordinal: int, count: int) -> None:
    pycuda(_driver(count=count))
    with pytest.raises(DeviceError, match=f"no GPU {ordinal}: the driver sees {count}"):
        cuda_driver.compute_capability(ordinal)


@pytest.mark.parametrize(
    ("name", "kind"),
    [("MemoryError", OutOfMemoryError), ("LogicError", DeviceError), ("Error", DeviceError)],
)
def test_errors_of_pycuda_say_what_was_being_done(
    pycuda: Install, name: str, kind: type[DeviceError]
) -> None:
    pycuda(_driver())
    driver = cuda_driver.load_driver()
    doing = cuda_driver.translated(driver, "while testing")
    with pytest.raises(DeviceError, match="while testing.*what happened") as caught, doing:
        raise getattr(driver, name)("what happened")
    assert type(caught.value) is kind
    assert ("smaller batch" in str(caught.value)) == (kind is OutOfMemoryError)


def test_other_errors_pass(pycuda: Install) -> None:
    pycuda(_driver())
    driver = cuda_driver.load_driver()
    with pytest.raises(ZeroDivisionError), cuda_driver.translated(driver, "while testing"):
        raise ZeroDivisionError


@pytest.mark.parametrize(("values", "expected"), [((), ()), ((5,), 5), ((5, 6), (5, 6))])
def test_values_of_successful_calls(values: tuple[int, ...], expected: object) -> None:
    assert cuda_driver.checked((Status.CUDA_SUCCESS, *values), "testing") == expected


def test_failed_calls_name_status_and_what_was_being_done() -> None:
    message = re.escape("CUDA failed while testing: CUDA_ERROR_INVALID_VALUE")
    with pytest.raises(DeviceError, match=message):
        cuda_driver.checked((Status.CUDA_ERROR_INVALID_VALUE, 5), "while testing")


@pytest.mark.parametrize(("status", "kind"), _KINDS.items())
def test_what_no_later_call_survives_is_told_apart_by_the_status(
    status: Status, kind: type[DeviceError]
) -> None:
    with pytest.raises(DeviceError, match=rf"launching the graph.*{status.name}") as caught:
        cuda_driver.checked((status,), "launching the graph")
    assert type(caught.value) is kind
    assert ("start a new one" in str(caught.value)) == (kind is DeviceLostError)


@pytest.mark.parametrize(("status", "kind"), _KINDS.items())
@pytest.mark.parametrize("more", ["", " - of the third stream"])
def test_pycudas_errors_are_told_apart_by_the_drivers_words(
    pycuda: Install,
    monkeypatch: pytest.MonkeyPatch,
    status: Status,
    kind: type[DeviceError],
    more: str,
) -> None:
    """They carry no number; running out of memory has a class of its own."""
    pycuda(_driver())
    driver = cuda_driver.load_driver()
    monkeypatch.setattr(cuda_driver, "load_bindings", _Words)
    cuda_driver._fatal_words.cache_clear()
    error = driver.MemoryError if kind is OutOfMemoryError else driver.LogicError
    with (
        pytest.raises(DeviceError, match="testing") as caught,
        cuda_driver.translated(driver, "testing"),
    ):
        raise error(f"cuStreamSynchronize failed: words for {status}{more}")
    cuda_driver._fatal_words.cache_clear()
    assert type(caught.value) is kind
