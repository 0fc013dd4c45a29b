"""Opening a CUDA device: GPUs, names and kernels that do not fit are told of, and leave nothing.

Covered: how GPUs are described and numbered; cubins for others, of another time, damaged or none at
all; bundles with such kernels; a failure when the device is open already.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fewstep.runtime.bundle import Bundle
from fewstep.runtime.devices import BufferSpec
from fewstep.runtime.devices.cuda import CudaDevice
from fewstep.runtime.devices.cuda_driver import (
    compute_capability,
    cuda_version,
    load_driver,
)
from fewstep.runtime.errors import BundleError, DeviceError, FewstepError, RequestError
from fewstep.runtime.generator import Generator
from fewstep.runtime.kernels.compile import CompiledKernels
from fewstep.runtime.kernels.cubins import add_kernels
from fewstep.runtime.probe import find_driver
from fewstep.runtime.result import Result

Alike = Callable[[Result, Result], None]
Counts = Callable[[], dict[str, int]]


@pytest.fixture
def bundle_copy(tiny_cuda_bundle: Path, tmp_path: Path) -> Path:
    """A copy of the tiny bundle that a test may damage."""
    return shutil.copytree(tiny_cuda_bundle, tmp_path / "copy")


# --- GPUs


def test_the_gpu_is_described(device: CudaDevice) -> None:
    """Asked directly, without pycuda, the driver says the same."""
    found = find_driver()
    assert found is not None
    assert len(found.gpus) == load_driver().Device.count()
    assert found.gpus[0].compute_capability == compute_capability()
    assert found.gpus[0].integrated == device.integrated
    assert found.cuda == ".".join(map(str, cuda_version()))


@pytest.mark.parametrize("name", ["cuda:99", "cuda:99999999999"])
def test_a_gpu_that_is_not_there_is_refused(
    tiny_cuda_bundle: Path, live: Counts, name: str
) -> None:
    before = live()
    with pytest.raises(DeviceError, match=rf"no GPU {name[5:]}: the driver sees \d+.*use cuda:0"):
        Generator.open(tiny_cuda_bundle, device=name)
    assert live() == before


@pytest.mark.parametrize(
    "name", ["cuda:-1", "cuda:x", "cuda:0.5", "cuda:²", "gpu", "CUDA", "cpu:0", "auto:0", ""]
)
def test_device_names_that_are_none_are_refused(tiny_cuda_bundle: Path, name: str) -> None:
    with pytest.raises(RequestError, match="unknown device .*expected one of: auto, cpu, cuda"):
        Generator.open(tiny_cuda_bundle, device=name)


def test_cuda_0_is_the_first_gpu(
    tiny_cuda_bundle: Path, on_cpu: Generator, assert_alike: Alike
) -> None:
    with Generator.open(tiny_cuda_bundle, device="cuda:0", threads=1) as generator:
        request: dict[str, Any] = {"class_ids": [0, 3], "steps": 3, "schedule": "policy"}
        assert_alike(generator.generate(**request), on_cpu.generate(**request))


# --- kernels


def test_a_cubin_for_another_architecture_is_refused(
    foreign_kernels: CompiledKernels, live: Counts
) -> None:
    before = live()
    (foreign,) = foreign_kernels.cubins.values()
    with pytest.raises(DeviceError, match="CUDA failed opening the GPU: .*cuModule"):
        CudaDevice(foreign)
    assert live() == before


@pytest.mark.parametrize("damage", [b"", b"\x7fELF", b"no cubin at all" * 1000])
def test_a_cubin_that_is_none_is_refused(damage: bytes, live: Counts) -> None:
    """Padded: the driver reads as much as the header says, wherever the bytes end."""
    before, damage = live(), damage.ljust(1 << 16, b"\0")
    with pytest.raises(DeviceError, match="CUDA failed opening the GPU"):
        CudaDevice(damage)
    assert live() == before


def test_a_failed_opening_leaves_another_device_working(device: CudaDevice, cubin: bytes) -> None:
    with pytest.raises(DeviceError):
        CudaDevice(b"garbage".ljust(1 << 16, b"\0"))
    CudaDevice(cubin).close()
    with device.workspace({"x": BufferSpec((2,), "int32")}) as workspace:
        device.upload(workspace["x"], np.array([4, 5], np.int32))
        assert device.download(workspace["x"]).tolist() == [4, 5]


def _refusal(bundle: Path, live: Counts) -> str:
    before = live()
    with pytest.raises(BundleError) as refusal:
        Generator.open(bundle, device="cuda")
    assert live() == before
    return str(refusal.value)


def test_a_bundle_without_kernels_is_refused(bundle_copy: Path, live: Counts) -> None:
    Bundle.read(bundle_copy).update({}, kernels=None)
    assert "has no CUDA kernels; compile them with: fewstep build" in _refusal(bundle_copy, live)
    assert f"--kernels --compute-capability {compute_capability()}" in _refusal(bundle_copy, live)
    Generator.open(bundle_copy, device="cpu").close()  # needs none


def test_a_bundle_with_kernels_for_other_gpus_is_refused(
    bundle_copy: Path, foreign_kernels: CompiledKernels, live: Counts
) -> None:
    add_kernels(Bundle.read(bundle_copy), foreign_kernels)
    (foreign,) = foreign_kernels.cubins
    refusal = _refusal(bundle_copy, live)
    assert f"has CUDA kernels for {foreign}, this GPU is {compute_capability()}; " in refusal


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("sources_sha256", "0" * 64, "are of another version of fewstep; compile them again with"),
        ("compiler", "NVRTC 99.1", "compiled by NVRTC 99.1, this driver is for CUDA"),
    ],
)
def test_a_bundle_with_kernels_of_another_time_is_refused(
    bundle_copy: Path, live: Counts, field: str, value: str, message: str
) -> None:
    manifest = json.loads((bundle_copy / "bundle.json").read_text())
    manifest["kernels"][field] = value
    (bundle_copy / "bundle.json").write_text(json.dumps(manifest))
    refusal = _refusal(bundle_copy, live)
    assert message in refusal
    assert "fewstep build" in refusal


def test_a_damaged_cubin_in_a_bundle_is_refused(bundle_copy: Path, live: Counts) -> None:
    (cubin,) = (bundle_copy / "kernels").iterdir()
    content = bytearray(cubin.read_bytes())
    content[len(content) // 2] ^= 1
    cubin.write_bytes(content)
    assert "does not have the manifest's SHA-256" in _refusal(bundle_copy, live)


def test_an_engine_that_cannot_be_opened_leaves_nothing(bundle_copy: Path, live: Counts) -> None:
    """The device is open by then."""
    before = live()
    (bundle_copy / "decoder.onnx").write_bytes(b"damaged")
    with pytest.raises(FewstepError, match="decoder.onnx"):
        Generator.open(bundle_copy, device="cuda")
    assert live() == before
