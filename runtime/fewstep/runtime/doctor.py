"""What this machine can run, and what to install for more."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from fewstep.runtime.errors import FewstepError

RUN_CPU, RUN_GPU = "generate, verify and bench on the CPU", "run on an NVIDIA GPU"
_RUN = ("onnxruntime", "numba")
_EXPORT = ("torch", "onnx", "onnxscript", "safetensors", *_RUN)
_CUDA = ("pycuda", "cuda-bindings")


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
        return any(each.works for each in self.abilities if each.name in (RUN_CPU, RUN_GPU))

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)


def diagnose() -> Diagnosis:
    """Look at the machine, the installed packages, the GPU driver and the kernel compiler."""
    names = dict.fromkeys((*_RUN, *_EXPORT, *_CUDA, "numpy"))
    packages = {name: _version(name) for name in names}
    if packages["onnxruntime"] is None:  # the GPU build provides the same module
        packages["onnxruntime"] = _version("onnxruntime-gpu")
    abilities = (
        _ability(RUN_CPU, _RUN, packages, "cpu"),
        _ability("export checkpoints to ONNX", _EXPORT, packages, "export"),
        _tried("compile CUDA kernels", _kernel_compiler),
        _tried(RUN_GPU, _gpus),
    )
    warnings = []
    if _version("onnxruntime") and _version("onnxruntime-gpu"):
        warnings.append(
            "onnxruntime and onnxruntime-gpu are both installed and own the same module; "
            "uninstall both, then install one"
        )
    return Diagnosis(_machine(), packages, abilities, tuple(warnings))


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


def _gpus() -> str:
    from fewstep.runtime.device.cuda_driver import describe_devices, load_bindings
    from fewstep.runtime.engine.onnxruntime import require_cuda_provider

    found = describe_devices()
    load_bindings()
    require_cuda_provider()
    return "; ".join(found)


def _machine() -> dict[str, str]:
    pages, size = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "processor": processor_name(),
        "cores": str(len(os.sched_getaffinity(0))),
        "memory": f"{pages * size / 2**30:.0f} GiB",
        "python": platform.python_version(),
        "fewstep": _version("fewstep") or "not installed",
    }


def processor_name() -> str:
    """The processor's model name, as the kernel gives it."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:  # noqa: PTH123
            for line in file:
                if line.startswith(("model name", "Model")):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or "unknown"


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
