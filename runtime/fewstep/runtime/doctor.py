"""What this machine can run, and what to install for more.

Looking is quick and harmless: torch is never imported, and see ``probe.py`` for the rest.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fewstep import __version__
from fewstep.runtime.errors import DeviceError, FewstepError
from fewstep.runtime.jetson import Jetson, find_jetson, read
from fewstep.runtime.machine import cores
from fewstep.runtime.probe import Driver, TensorRt, find_driver, find_tensorrt
from fewstep.runtime.records import EngineBackend

RUN_CPU = "generate, verify and bench on the CPU"
RUN_OPENVINO = "run with OpenVINO on the CPU"
RUN_GPU = "run with ONNX Runtime on an NVIDIA GPU"
RUN_TENSORRT, RUN_RTX = "run TensorRT engines", "run TensorRT-RTX engines"
BACKENDS: tuple[EngineBackend, EngineBackend] = ("tensorrt", "tensorrt-rtx")
_RUN = ("onnxruntime", "numba")
_BUILD = ("onnx", *_RUN)
_EXPORT = ("torch", "onnxscript", "safetensors", *_BUILD)
_CUDA = ("pycuda", "cuda-bindings")
# polygraphy names the node that a builder refuses; openvino is another backend for the CPU.
_OPTIONAL = ("polygraphy", "openvino")

_COMPILER = re.compile(r"NVRTC \d+\.\d+")
_DRIVER_VERSION = re.compile(r"Kernel Module(?: for \S+)?\s+(\d[\d.]+)")


@dataclass(frozen=True)
class Ability:
    """One thing that fewstep does, whether it works here, and the remedy if not."""

    name: str
    works: bool
    detail: str
    remedy: str = ""


@dataclass(frozen=True)
class Diagnosis:
    """The machine, the relevant packages and the abilities that follow."""

    machine: dict[str, str]
    packages: dict[str, str | None]
    abilities: tuple[Ability, ...]
    warnings: tuple[str, ...]

    @property
    def runs(self) -> bool:
        """Whether anything here can run a bundle."""
        running = (RUN_CPU, RUN_GPU, RUN_TENSORRT, RUN_RTX)
        return any(each.works for each in self.abilities if each.name in running)

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)


def diagnose(root: Path = Path("/")) -> Diagnosis:
    """Look at the machine, the installed packages, the GPU driver and the builders.

    Args:
        root: where the system's own files are read.
    """
    jetson, driver = find_jetson(root), find_driver()
    trt, rtx = (find_tensorrt(backend, jetson, root) for backend in BACKENDS)
    packages = _packages() | {each.backend: each.version for each in (trt, rtx)}
    abilities = (
        _ability(RUN_CPU, _RUN, packages, "cpu"),
        _tried(RUN_OPENVINO, _runs_openvino),
        _ability("export checkpoints to ONNX", _EXPORT, packages, "export"),
        _ability("preflight, graphs in fp16 and bf16", _BUILD, packages, "build"),
        _tried("compile CUDA kernels", _kernel_compiler),
        _tried("build TensorRT-RTX engines", lambda: _builds_rtx(rtx)),
        _tried("build TensorRT engines", lambda: _builds_tensorrt(trt, driver)),
        _tried(RUN_GPU, lambda: _runs_onnxruntime(driver)),
        _tried(RUN_TENSORRT, lambda: _runs(trt, driver)),
        _tried(RUN_RTX, lambda: _runs(rtx, driver)),
    )
    return Diagnosis(
        machine=_machine(root, jetson, driver),
        packages=packages,
        abilities=tuple(_for_driver(each, driver) for each in abilities),
        warnings=(
            *(() if jetson is None else jetson.warnings()),
            *_package_warnings(trt, rtx),
            *_kernel_warnings(abilities, driver),
        ),
    )


# --- What is there


def _packages() -> dict[str, str | None]:
    """Version by package; ``None`` for what is absent."""
    packages = {name: _version(name) for name in (*_EXPORT, *_CUDA, *_OPTIONAL, "numpy")}
    if packages["onnxruntime"] is None:  # the GPU build provides the same module
        packages["onnxruntime"] = _version("onnxruntime-gpu")
    return packages


# --- What it can do


def _ability(
    name: str, needs: tuple[str, ...], packages: dict[str, str | None], extra: str
) -> Ability:
    absent = [package for package in needs if packages[package] is None]
    if absent:
        remedy = f"pip install 'fewstep[{extra}]'"
        return Ability(name, False, f"missing: {', '.join(absent)}", remedy)
    found = ", ".join(f"{package} {packages[package]}" for package in needs)
    return Ability(name, True, found)


def _tried(name: str, look: Callable[[], str]) -> Ability:
    """An ability that only trying tells; the error says what to do."""
    try:
        return Ability(name, True, look())
    except FewstepError as error:
        detail, _, remedy = str(error).partition("; ")
        return Ability(name, False, detail, remedy)


def _kernel_compiler() -> str:
    from fewstep.runtime.kernels.compile import KernelCompiler

    compiler = KernelCompiler()
    return f"{compiler.version}, for {', '.join(compiler.wanted(()))}"


def _builds_rtx(engine: TensorRt) -> str:
    return f"{engine.require()}, for {', '.join(engine.targets)}; needs no GPU"


def _builds_tensorrt(engine: TensorRt, driver: Driver | None) -> str:
    if driver is None or not driver.gpus:
        raise DeviceError("no GPU here; TensorRT builds for the GPU at hand: build on the device")
    return f"{engine.require()}, for {driver.gpus[0].name}"


def _runs_openvino() -> str:
    from fewstep.runtime.engines.openvino import OpenVino

    api = OpenVino.load()
    return f"openvino {api.version}, in {', '.join(api.precisions)}"


def _runs_onnxruntime(driver: Driver | None) -> str:
    from fewstep.runtime.engines.onnxruntime import require_cuda_provider

    gpus = _gpus(driver)
    require_cuda_provider()
    return gpus


def _runs(engine: TensorRt, driver: Driver | None) -> str:
    found = f"{_gpus(driver)}; {engine.require()}"
    capabilities = {gpu.compute_capability for gpu in driver.gpus} if driver else set()
    if engine.targets and capabilities.isdisjoint(engine.targets):
        here, known = ", ".join(sorted(capabilities)), ", ".join(engine.targets)
        raise DeviceError(f"engines are for {known}, and the GPU here is {here}; use TensorRT")
    return found


def _gpus(driver: Driver | None) -> str:
    """The GPUs, if everything that opening one needs is there; else the error says what is not."""
    from fewstep.runtime.devices.cuda_driver import load_bindings, load_driver

    if driver is None:
        raise DeviceError("no CUDA driver on this machine; install NVIDIA's driver")
    load_driver()
    load_bindings()
    return "; ".join(map(str, driver.gpus))


def _for_driver(ability: Ability, driver: Driver | None) -> Ability:
    """The extras of CUDA 12 in the remedy where the driver is of CUDA 12."""
    if driver is None or not driver.cuda.startswith("12."):
        return ability
    remedy = re.sub(r"fewstep\[(cuda|kernels)\]", r"fewstep[\g<1>12]", ability.remedy)
    return Ability(ability.name, ability.works, ability.detail, remedy)


def _package_warnings(*engines: TensorRt) -> list[str]:
    """What is installed and cannot work."""
    found = [
        f"{engine.problem}; {engine.remedy}"
        for engine in engines
        if engine.installed and engine.problem
    ]
    if _version("onnxruntime") and _version("onnxruntime-gpu"):
        found.append(
            "onnxruntime and onnxruntime-gpu are both installed and own the same module; "
            "uninstall both, then install one"
        )
    return found


def _kernel_warnings(abilities: Iterable[Ability], driver: Driver | None) -> list[str]:
    """Whether the compiler here is too new for the driver here."""
    from fewstep.runtime.kernels.cubins import loads, toolchain_remedy

    compilers = [match for each in abilities if (match := _COMPILER.match(each.detail))]
    if driver is None or not compilers:
        return []
    compiler, (major, _, minor) = compilers[0][0], driver.cuda.partition(".")
    version = (int(major), int(minor))
    capabilities = {gpu.compute_capability for gpu in driver.gpus} or {""}
    refused = [each for each in sorted(capabilities) if not loads(compiler, each, version)]
    return [
        f"kernels compiled here ({compiler}) do not load with this driver (CUDA {driver.cuda}); "
        f"{toolchain_remedy(compiler, each, version) or 'update the driver'}"
        for each in refused[:1]
    ]


# --- The machine


def _machine(root: Path, jetson: Jetson | None, driver: Driver | None) -> dict[str, str]:
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "processor": processor_name(),
        "cores": str(cores()),
        "memory": _memory(),
        "python": platform.python_version(),
        "fewstep": __version__,
        **_driver_rows(root, driver),
        **({} if jetson is None else jetson.rows()),
    }


def _driver_rows(root: Path, driver: Driver | None) -> dict[str, str]:
    """Driver and GPUs, as rows of the machine."""
    if driver is None:
        return {"GPU driver": "none"}
    gpus = {f"GPU {ordinal}": str(gpu) for ordinal, gpu in enumerate(driver.gpus)}
    version = _DRIVER_VERSION.search(read(root / "proc/driver/nvidia/version") or "")
    known = f"{version[1]}, " if version else ""
    none = {"GPU": "none that the driver can use"}
    return {"GPU driver": f"{known}CUDA {driver.cuda}", **(gpus or none)}


def _memory() -> str:
    try:
        size = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):  # Windows has no such call
        return "unknown"
    return f"{size / 2**30:.0f} GiB"


def processor_name() -> str:
    """The processor's model name, as the kernel gives it."""
    for line in (read(Path("/proc/cpuinfo")) or "").splitlines():
        if line.startswith(("model name", "Model")):
            return line.partition(":")[2].strip()
    return platform.processor() or "unknown"


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
