"""What the CUDA tests need: a GPU, or the emulated driver standing in for one.

Every test here runs on both. ``tests/emulated_cuda/test_suite.py`` runs this folder under the
emulated driver in ``make test``; ``make test-gpu`` and the GPU kit run it on a GPU. Anywhere else
it is left out. On both, the bundles' engines are ONNX Runtime on the host (``host_engine.py``).

Bundles come from the tests' cache, or from the folder that ``FEWSTEP_TEST_BUNDLES`` names, with
their kernels if these fit: a GPU may have neither PyTorch nor NVRTC at hand.
"""

from __future__ import annotations

import ctypes
import functools
import gc
import importlib.util
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any
from unittest import mock

import numpy as np
import pytest
from tests.cuda.kernels import kernels_for
from tests.exported import copy_of
from tests.toy.family import ToyFamily

from fewstep.runtime.bundle import Bundle
from fewstep.runtime.devices.cuda import CudaDevice
from fewstep.runtime.devices.cuda_driver import compute_capability
from fewstep.runtime.engines.compatibility import RTX_CAPABILITIES
from fewstep.runtime.engines.tensorrt_api import MODULES
from fewstep.runtime.errors import BundleError, FewstepError
from fewstep.runtime.families import register
from fewstep.runtime.generator import Generator
from fewstep.runtime.kernels.compile import CompiledKernels
from fewstep.runtime.kernels.cubins import add_kernels
from fewstep.runtime.result import Result

if TYPE_CHECKING:
    from fewstep.runtime.records import EngineBackend, Precision

_HERE = Path(__file__).parent
_EMULATED = "EMULATED_CUDA_KERNELS" in os.environ
_BUNDLES = "FEWSTEP_TEST_BUNDLES"
_AGREEMENT = 0.98

ENGINES_MAX_BATCH = 4
"""Of the engines of TensorRT and TensorRT-RTX in these tests."""


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    """Leave this folder out where there is no GPU; a file that is named says why it is skipped."""
    return True if collection_path.parent == _HERE and _why_not() else None


def pytest_report_collectionfinish() -> str:
    """Say so, where this folder was named."""
    return f"tests/cuda is left out: {_why_not()}" if _why_not() else ""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark everything here ``gpu``."""
    for item in items:
        if item.path.parent == _HERE:
            item.add_marker(pytest.mark.gpu)
            if _why_not():
                item.add_marker(pytest.mark.skip(reason=_why_not()))


@functools.cache
def _why_not() -> str:
    try:
        compute_capability()
    except FewstepError as error:
        return f"{error} (tests/emulated_cuda/test_suite.py runs this without a GPU)"
    return ""


@pytest.fixture(autouse=True)
def _short_collections() -> None:
    """Keep what is there out of garbage collections: every capture, and every look at what is
    ``live``, begins with one, which took half of the time."""
    gc.collect()
    gc.freeze()


# --- the driver


@pytest.fixture(scope="session")
def emulated() -> bool:
    """Whether the driver is the emulated one."""
    return _EMULATED


@pytest.fixture(scope="session")
def driver_report() -> Callable[[], dict[str, dict[str, int]]]:
    """What the emulated driver says is ``live``, and its ``totals``; skips on a real GPU."""
    if not _EMULATED:
        pytest.skip("only the emulated driver counts its calls; see tests/emulated_cuda")
    return _report


@pytest.fixture(scope="session")
def live(cubin: bytes) -> Callable[[], dict[str, int]]:
    """The driver's objects by kind, to compare; empty on a real GPU, whose driver does not tell.

    The process keeps the GPU's context once it was opened, so that is done before.
    """
    CudaDevice(cubin).close()
    return _live if _EMULATED else dict


def _live() -> dict[str, int]:
    gc.collect()  # the frames of an error that was expected may hold a stream
    return _report()["live"]


def _report() -> dict[str, dict[str, int]]:
    text = ctypes.CDLL("libcuda.so.1").emulated_cuda_report
    text.restype = ctypes.c_char_p
    found: dict[str, dict[str, int]] = json.loads(text())
    return found


# --- kernels and devices


@pytest.fixture(scope="session")
def kernels() -> CompiledKernels:
    """The kernels for the GPU at hand."""
    return kernels_for(compute_capability(), _given_bundles())


@pytest.fixture(scope="session")
def foreign_kernels() -> CompiledKernels:
    """The kernels for a GPU of another kind."""
    other = "8.9" if compute_capability().startswith("9.") else "9.0"
    return kernels_for(other, _given_bundles())


def _given_bundles() -> Path | None:
    return Path(os.environ[_BUNDLES]) if _BUNDLES in os.environ else None


@pytest.fixture(scope="session")
def cubin(kernels: CompiledKernels) -> bytes:
    """The kernels for the GPU at hand, as its driver loads them."""
    return kernels.cubins[compute_capability()]


@pytest.fixture
def device(cubin: bytes) -> Iterator[CudaDevice]:
    """An open CUDA device."""
    opened = CudaDevice(cubin)
    yield opened
    opened.close()


# --- bundles


@pytest.fixture(scope="session")
def cuda_bundle(
    kernels: CompiledKernels, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    """A bundle with kernels for the GPU at hand: ``tiny``, ``tiny-cached``, ``tiny-text``,
    ``tiny-amused``, ``tiny-var``, ``tiny-mar``, ``toy`` or ``sample``."""

    @functools.cache
    def make(name: str) -> Path:
        copy = _copy_of(name, tmp_path_factory.mktemp("cuda") / name)
        return add_kernels(Bundle.read(copy), kernels).path

    return make


@pytest.fixture(scope="session")
def tiny_cuda_bundle(cuda_bundle: Callable[[str], Path]) -> Path:
    """The tiny class-conditional bundle: 4×4 tokens of 24 codes, a policy with residuals."""
    return cuda_bundle("tiny")


@pytest.fixture(scope="session")
def tiny_text_cuda_bundle(cuda_bundle: Callable[[str], Path]) -> Path:
    """The tiny text-conditional bundle, without policy."""
    return cuda_bundle("tiny-text")


@pytest.fixture(scope="session")
def sample_cuda_bundle(cuda_bundle: Callable[[str], Path]) -> Path:
    """The Fashion sample: 8×8 tokens of 512 codes, with a policy."""
    return cuda_bundle("sample")


def _copy_of(name: str, target: Path) -> Path:
    register(ToyFamily())
    if _BUNDLES not in os.environ:
        return copy_of(name, target)
    path = Path(os.environ[_BUNDLES]) / name
    try:
        Bundle.read(path)
    except BundleError as error:
        if path.exists():
            raise
        pytest.skip(f"{error} (the sample's export needs torch)")
    return Path(shutil.copytree(path, target))


# --- generators


@pytest.fixture(scope="session", autouse=True)
def _engines() -> Iterator[None]:
    """Engines that run on the host, wherever one is opened on the device."""
    from tests.cuda.host_engine import open_engine

    with mock.patch("fewstep.runtime.engines.select.open_engine", open_engine):
        yield


@pytest.fixture(scope="session")
def open_cuda(_engines: None) -> Callable[..., Generator]:
    """``Generator.open`` on the GPU at hand."""
    return functools.partial(Generator.open, device="cuda", threads=1)


@pytest.fixture(scope="session")
def on_cuda(open_cuda: Callable[..., Generator], tiny_cuda_bundle: Path) -> Iterator[Generator]:
    """The tiny class-conditional bundle on the GPU, opened once."""
    with open_cuda(tiny_cuda_bundle, max_batch=4) as generator:
        yield generator


@pytest.fixture(scope="session")
def on_cpu(tiny_cuda_bundle: Path) -> Iterator[Generator]:
    """The same on the CPU."""
    with Generator.open(tiny_cuda_bundle, device="cpu", threads=1, max_batch=4) as generator:
        yield generator


@pytest.fixture(scope="session")
def assert_alike() -> Callable[[Result, Result], None]:
    """Assert that a result from the GPU is that of the CPU.

    The engines are the CPU's, and kernels give the same bits, so all has to be equal.
    """
    return _assert_equal


@pytest.fixture(scope="session")
def assert_close() -> Callable[[Result, Result], None]:
    """The same for engines of the GPU's own.

    They round differently, and a token that flips on a tie changes later ones: 98 % of the tokens
    have to agree, and images of equal tokens within two grey levels. Those under the emulated
    driver are the CPU's.
    """
    return _assert_equal if _EMULATED else _assert_close


def _assert_equal(found: Result, expected: Result) -> None:
    for name in ("tokens", "sampled", "parameters"):
        actual, wanted = getattr(found.trace, name), getattr(expected.trace, name)
        np.testing.assert_array_equal(actual, wanted, err_msg=name, strict=True)
    for name in ("tokens", "seeds", "images"):
        actual, wanted = getattr(found, name), getattr(expected, name)
        np.testing.assert_array_equal(actual, wanted, err_msg=name, strict=True)


def _assert_close(found: Result, expected: Result) -> None:
    assert found.trace.tokens.shape == expected.trace.tokens.shape
    assert (found.tokens == expected.tokens).mean() >= _AGREEMENT
    same = (found.tokens == expected.tokens).all(axis=1)
    difference = found.images[same].astype(int) - expected.images[same]
    assert np.abs(difference).max(initial=0) <= 2


# --- TensorRT


def _backends() -> list[EngineBackend]:
    """Those that build for the GPU at hand; both where there is none and all is skipped."""
    try:
        capability = compute_capability()
    except FewstepError:
        return list(MODULES)
    if _EMULATED and capability not in RTX_CAPABILITIES:
        return ["tensorrt"]  # the mode for 8.9 has both
    return list(MODULES)


@pytest.fixture(scope="session", params=_backends())
def backend(request: pytest.FixtureRequest, emulated: bool) -> EngineBackend:
    """A backend whose module, or what stands in for it, is there."""
    name: EngineBackend = request.param
    capability = compute_capability()
    if name == "tensorrt-rtx" and capability not in RTX_CAPABILITIES:
        pytest.skip(f"TensorRT-RTX has no target for compute capability {capability}")
    needed = "onnx" if emulated else MODULES[name]
    if importlib.util.find_spec(needed) is None:
        pytest.skip(f"{name} is not here: there is no module {needed}")
    return name


@pytest.fixture(scope="session")
def tensorrt_module(backend: EngineBackend, emulated: bool) -> Iterator[ModuleType | None]:
    """The fake module, installed; ``None`` where the real one is used."""
    if not emulated:
        yield None
        return
    from tests.emulated_cuda.fake_tensorrt import installed, make

    from fewstep.build.tensorrt_builder import build_here

    version = "10.3.0" if backend == "tensorrt" else "1.7.1.116"
    # A process of the builder's own would import the real module.
    here = mock.patch("fewstep.build.engines.build_engine", build_here)
    with installed(make(backend, version, compute_capability())) as made, here:
        yield made


@pytest.fixture
def journal(tensorrt_module: Any) -> Callable[[str], list[Any]]:
    """What the fake module did since the test began, by kind; skips with the real one."""
    if tensorrt_module is None:
        pytest.skip("only the fake module keeps a journal")
    before = len(tensorrt_module.journal)
    return lambda kind: [entry for entry in tensorrt_module.journal[before:] if entry.kind == kind]


@pytest.fixture(scope="session")
def built(backend: EngineBackend, tensorrt_module: object) -> Callable[..., Path]:
    """Builds engines into a bundle: precision and what the profiles are tuned for."""
    from fewstep.build.engines import build_engines
    from fewstep.build.target import target
    from fewstep.runtime.records import BuildOptions

    def build(path: Path, precision: Precision, *opt_batch: int) -> Path:
        options = BuildOptions(max_batch=ENGINES_MAX_BATCH, opt_batch=opt_batch or (1,))
        build_engines(path, target(backend, precision, options))
        return path

    return build


@pytest.fixture(scope="session")
def engine_bundle(
    backend: EngineBackend,
    built: Callable[..., Path],
    tiny_cuda_bundle: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """The tiny bundle with engines in fp16 and, built last, fp32 with two profiles."""
    from fewstep.build.variants import add_variant

    copy = shutil.copytree(tiny_cuda_bundle, tmp_path_factory.mktemp(backend) / "tiny")
    add_variant(Bundle.read(copy), "fp16")
    built(copy, "fp16")
    return built(copy, "fp32", 1, ENGINES_MAX_BATCH)


@pytest.fixture
def engines_copy(engine_bundle: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    ignored = shutil.ignore_patterns("*.cache")  # of tests before
    return shutil.copytree(engine_bundle, tmp_path / "copy", ignore=ignored)


@pytest.fixture(scope="session")
def on_engines(engine_bundle: Path, backend: EngineBackend) -> Iterator[Generator]:
    """The tiny bundle on engines in fp32, opened once."""
    with Generator.open(
        engine_bundle, backend=backend, precision="fp32", max_batch=ENGINES_MAX_BATCH
    ) as generator:
        yield generator
