"""Doctor: the driver, its GPUs, what runs on them, TensorRT, and all of it on a Jetson.

Drivers and modules are put in place of the real ones; a machine for tests need not have a GPU.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fewstep.runtime import doctor, probe
from fewstep.runtime.devices import cuda_driver

_BUILD, _BUILD_RTX = "build TensorRT engines", "build TensorRT-RTX engines"


def _found(name: str) -> doctor.Ability:
    return next(each for each in doctor.diagnose().abilities if each.name == name)


# --- Driver and GPUs


_ORIN = probe.Gpu("Orin", "8.7", 64 << 30, integrated=True)
_ADA = probe.Gpu("NVIDIA RTX 2000 Ada", "8.9", 16 << 30, integrated=False)
_NO_DEVICE = """
class Error(Exception): ...
def init(): raise Error("cuInit failed: no CUDA-capable device is detected")
"""
_WORKING = """
class Error(Exception): ...
def init(): ...
"""


class _Cuda:
    """libcuda with these GPUs, as ctypes shows it."""

    def __init__(self, gpus: list[probe.Gpu], version: int = 12060, failing: str = "") -> None:
        self._gpus, self._version, self._failing = gpus, version, failing

    def _give(self, name: str, reference: Any, value: Any) -> int:
        if name == self._failing:
            return 100
        reference._obj.value = value
        return 0

    def cuInit(self, flags: int) -> int:
        return 100 if self._failing == "cuInit" else 0

    def cuDriverGetVersion(self, version: Any) -> int:
        return self._give("cuDriverGetVersion", version, self._version)

    def cuDeviceGetCount(self, count: Any) -> int:
        return self._give("cuDeviceGetCount", count, len(self._gpus))

    def cuDeviceGet(self, device: Any, ordinal: int) -> int:
        return self._give("cuDeviceGet", device, ordinal)

    def cuDeviceGetName(self, name: Any, size: int, device: ctypes.c_int) -> int:
        name.value = self._gpus[device.value].name.encode()[: size - 1]
        return 0

    def cuDeviceTotalMem_v2(self, memory: Any, device: ctypes.c_int) -> int:
        return self._give("cuDeviceTotalMem", memory, self._gpus[device.value].memory_bytes)

    def cuDeviceGetAttribute(self, value: Any, which: int, device: ctypes.c_int) -> int:
        gpu = self._gpus[device.value]
        major, minor = gpu.compute_capability.split(".")
        values = {18: int(gpu.integrated), 75: int(major), 76: int(minor)}  # as in cuda.h
        return self._give("cuDeviceGetAttribute", value, values[which])


def test_every_gpu_is_described_without_pycuda() -> None:
    found = probe.find_driver(lambda name: _Cuda([_ORIN, _ADA]))
    assert found == probe.Driver("12.6", (_ORIN, _ADA))
    assert str(_ORIN) == "Orin, compute capability 8.7, 64.0 GiB, integrated"
    assert str(_ADA) == "NVIDIA RTX 2000 Ada, compute capability 8.9, 16.0 GiB, discrete"


@pytest.mark.parametrize("failing", ["cuInit", "cuDeviceGetCount"])
def test_driver_without_a_usable_gpu(failing: str) -> None:
    found = probe.find_driver(lambda name: _Cuda([_ADA], 13000, failing))
    assert found == probe.Driver("13.0", ())


def _absent(name: str) -> Any:
    raise OSError(f"{name}: cannot open shared object file")


@pytest.mark.parametrize(
    "load", [_absent, lambda name: object(), lambda name: _Cuda([], 0, "cuDriverGetVersion")]
)
def test_no_driver(load: Callable[[str], Any]) -> None:
    assert probe.find_driver(load) is None


_OPEN = "NVRM version: NVIDIA UNIX Open Kernel Module for aarch64  540.4.0  Release Build  (b@u)\n"
_CLOSED = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  570.86.15  Wed Jan 22 2025\nGCC 12.3.0\n"


@pytest.mark.parametrize(("text", "version"), [(_OPEN, "540.4.0"), (_CLOSED, "570.86.15")])
def test_driver_version_and_gpus_are_shown(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str, version: str
) -> None:
    (tmp_path / "proc/driver/nvidia").mkdir(parents=True)
    (tmp_path / "proc/driver/nvidia/version").write_text(text)
    monkeypatch.setattr(doctor, "find_driver", lambda: probe.Driver("12.6", (_ORIN, _ADA)))
    machine = doctor.diagnose(tmp_path).machine
    assert machine["GPU driver"] == f"{version}, CUDA 12.6"
    assert machine["GPU 0"] == str(_ORIN)
    assert machine["GPU 1"] == str(_ADA)


def test_absent_driver_and_absent_gpu_are_shown(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(doctor, "find_driver", lambda: None)
    assert doctor.diagnose(tmp_path).machine["GPU driver"] == "none"
    ability = _found(doctor.RUN_GPU)
    assert (ability.works, ability.remedy) == (False, "install NVIDIA's driver")
    monkeypatch.setattr(doctor, "find_driver", lambda: probe.Driver("13.0", ()))
    machine = doctor.diagnose(tmp_path).machine
    assert (machine["GPU driver"], machine["GPU"]) == ("CUDA 13.0", "none that the driver can use")


# --- Running on a GPU


@pytest.fixture
def pycuda(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[[str], None]]:
    """Two GPUs, and a package in the place of pycuda; the text is its module ``driver``."""

    def install(driver: str) -> None:
        (tmp_path / "pycuda").mkdir()
        (tmp_path / "pycuda" / "__init__.py").touch()
        (tmp_path / "pycuda" / "driver.py").write_text(driver)
        monkeypatch.syspath_prepend(tmp_path)

    monkeypatch.setattr(doctor, "find_driver", lambda: probe.Driver("12.6", (_ORIN, _ADA)))
    real = {name: sys.modules.pop(name) for name in _imported_pycuda()}
    yield install
    for name in _imported_pycuda():
        del sys.modules[name]
    sys.modules.update(real)


def _imported_pycuda() -> list[str]:
    return [name for name in sys.modules if name.partition(".")[0] == "pycuda"]


@pytest.mark.usefixtures("pycuda")
@pytest.mark.parametrize("name", [doctor.RUN_GPU, doctor.RUN_TENSORRT, doctor.RUN_RTX])
def test_absent_pycuda_names_the_extra_for_this_driver(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setitem(sys.modules, "pycuda", None)
    monkeypatch.setattr(cuda_driver, "ctypes", SimpleNamespace(CDLL=str))  # there is a driver
    ability = _found(name)
    assert (ability.works, ability.detail) == (False, "pycuda is not installed")
    assert ability.remedy.endswith("pip install 'fewstep[cuda12]'")


def test_gpu_that_fails_says_what_to_do(pycuda: Callable[[str], None]) -> None:
    pycuda(_NO_DEVICE)
    ability = _found(doctor.RUN_GPU)
    assert not ability.works
    assert "no CUDA-capable device is detected" in ability.detail
    assert "nvidia-smi" in ability.remedy


def test_gpu_without_a_backend_for_it_does_not_count_as_working(
    pycuda: Callable[[str], None],
) -> None:
    pycuda(_WORKING)
    ability = _found(doctor.RUN_GPU)
    assert not ability.works
    assert "onnxruntime-gpu" in ability.remedy


def test_gpus_are_shown_where_they_run(
    pycuda: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    pycuda(_WORKING)
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CUDAExecutionProvider"])
    assert _found(doctor.RUN_GPU) == doctor.Ability(doctor.RUN_GPU, True, f"{_ORIN}; {_ADA}")


def test_gpu_without_the_bindings_does_not_count_as_working(
    pycuda: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Opening the device needs cuda-bindings besides pycuda."""
    pycuda(_WORKING)
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    assert not _found(doctor.RUN_GPU).works


# --- TensorRT


@pytest.fixture
def tensorrt(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str], None]:
    """Put a module in the place of TensorRT's."""

    def install(text: str) -> None:
        (tmp_path / "tensorrt.py").write_text(text)
        monkeypatch.syspath_prepend(tmp_path)

    return install


_FAILURES = {
    'raise ImportError("libnvinfer.so.10: cannot open shared object file")': (
        "ImportError: libnvinfer.so.10: cannot open shared object file"
    ),
    "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)": "it crashes (SIGSEGV)",
    "import os; os._exit(3)": "it ends Python with code 3",
    "pass": "AttributeError: module 'tensorrt' has no attribute '__version__'",
}


@pytest.mark.parametrize(("text", "cause"), _FAILURES.items())
def test_broken_tensorrt_says_why(
    tensorrt: Callable[[str], None], monkeypatch: pytest.MonkeyPatch, text: str, cause: str
) -> None:
    tensorrt(text)
    monkeypatch.setattr(doctor, "find_driver", lambda: probe.Driver("12.6", (_ORIN,)))
    problem = f"tensorrt is installed but does not import: {cause}"
    diagnosis = doctor.diagnose()
    assert f"{problem}; pip install tensorrt" in diagnosis.warnings
    assert diagnosis.packages["tensorrt"] is None
    expected = doctor.Ability(_BUILD, False, problem, "pip install tensorrt")
    assert expected in diagnosis.abilities


def test_tensorrt_that_hangs_is_given_up(
    tensorrt: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    tensorrt("import time; time.sleep(60)")
    monkeypatch.setattr(probe, "_PATIENCE_S", 0.2)
    assert probe.find_tensorrt("tensorrt").problem.endswith("does not import: not within 0.2 s")


def test_absent_tensorrt_is_no_warning(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    diagnosis = doctor.diagnose(tmp_path)
    assert diagnosis.warnings == ()
    expected = ("tensorrt_rtx is not installed", "pip install 'fewstep[rtx]'")
    ability = next(each for each in diagnosis.abilities if each.name == _BUILD_RTX)
    assert (ability.detail, ability.remedy) == expected


def test_tensorrt_rtx_builds_for_its_targets_without_a_gpu() -> None:
    targets = "7.5, 8.0, 8.6, 8.9, 12.0, 12.1"
    assert _found(_BUILD_RTX).detail.endswith(f", for {targets}; needs no GPU")


@pytest.mark.parametrize(("version", "works"), [("8.6.1", False), ("10.3.0", True), ("11.0", True)])
def test_tensorrt_builds_for_the_gpu_at_hand(
    tensorrt: Callable[[str], None], monkeypatch: pytest.MonkeyPatch, version: str, works: bool
) -> None:
    tensorrt(f"print('noise'); __version__ = '{version}'")
    monkeypatch.setattr(doctor, "find_driver", lambda: None)
    assert _found(_BUILD).detail == "no GPU here"
    monkeypatch.setattr(doctor, "find_driver", lambda: probe.Driver("12.6", (_ORIN,)))
    ability = _found(_BUILD)
    assert ability.works is works
    old = f"tensorrt {version} is older than 10.3"
    assert ability.detail == (f"tensorrt {version}, for Orin" if works else old)


@pytest.mark.parametrize(("gpus", "works"), [((_ORIN,), False), ((_ORIN, _ADA), True)])
def test_tensorrt_rtx_runs_on_its_targets_only(
    pycuda: Callable[[str], None],
    monkeypatch: pytest.MonkeyPatch,
    gpus: tuple[probe.Gpu, ...],
    works: bool,
) -> None:
    pycuda(_WORKING)
    monkeypatch.setattr(doctor, "find_driver", lambda: probe.Driver("13.0", gpus))
    ability = _found(doctor.RUN_RTX)
    assert ability.works is works
    assert ability.detail.endswith("and the GPU here is 8.7") is not works
    assert ability.remedy == ("" if works else "use TensorRT")


def test_tensorrt_alone_runs(
    pycuda: Callable[[str], None],
    tensorrt: Callable[[str], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pycuda(_WORKING)
    tensorrt("__version__ = '10.3.0'")
    monkeypatch.setattr(doctor, "_version", lambda package: None)
    diagnosis = doctor.diagnose()
    working = {ability.name for ability in diagnosis.abilities if ability.works}
    assert {doctor.RUN_CPU, doctor.RUN_GPU}.isdisjoint(working)
    assert doctor.RUN_TENSORRT in working
    assert diagnosis.runs


def test_jetson_is_described_and_its_remedies_are_apts(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    files = {
        "proc/device-tree/model": "NVIDIA Jetson AGX Orin Developer Kit\0",
        "etc/nv_tegra_release": "# R36 (release), REVISION: 4.3, GCID: 1\n",
        "etc/nvpmodel.conf": "< POWER_MODEL ID=0 NAME=MAXN >\n< POWER_MODEL ID=2 NAME=30W >\n",
        "var/lib/nvpmodel/status": "pmode:0002\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(doctor, "find_driver", lambda: probe.Driver("13.0", (_ORIN,)))
    for module in ("tensorrt", "tensorrt_rtx"):
        monkeypatch.setitem(sys.modules, module, None)
    diagnosis = doctor.diagnose(tmp_path)
    assert diagnosis.machine["JetPack"] == "6"
    assert diagnosis.machine["power mode"] == "30W"
    assert any("sudo nvpmodel -m 0 (MAXN)" in each for each in diagnosis.warnings)
    remedies = {ability.name: ability.remedy for ability in diagnosis.abilities}
    assert remedies[_BUILD].startswith("sudo apt install python3-libnvinfer, and ")
    assert remedies[_BUILD_RTX] == "not for Jetsons: use tensorrt"
