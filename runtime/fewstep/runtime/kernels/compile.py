"""CUDA kernels to cubins through NVRTC: needs neither a GPU nor a driver, only its wheel.

One cubin per compute capability holds every kernel. The sources and their headers are handed over
in memory, and nothing of this machine but NVRTC and its ``cuda_fp16.h`` enters, so compiling twice
with the same toolkit gives the same bytes anywhere.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.resources import files
from typing import Any

from fewstep.runtime.errors import EngineError, RequestError, choose, missing

CAPABILITIES = ("7.5", "8.0", "8.6", "8.7", "8.9", "9.0", "10.0", "10.3", "11.0", "12.0")
"""Compiled for unless told otherwise, as far as the toolchain knows them: Turing to Blackwell, Orin
(8.7) and Thor (11.0) among them. The 12.x toolchain knows Xavier (7.2) as well and Thor under
another number; it knows B200 (10.0) and RTX 50 (12.0) from 12.8 on, B300 (10.3) from 12.9 on."""

_XAVIER = "7.2"
_MAIN = "kernels.cu"
# Contracting a·b + c into one rounding would give other bits than the CPU kernels.
_OPTIONS = ("--std=c++17", "--fmad=false", "--ptxas-options=-v")
_RESOURCES = re.compile(
    r"Function properties for (?P<kernel>\w+)\s+ptxas\s+\.\s+(?P<stack>\d+) bytes stack frame, "
    r"(?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads\s+"
    r"ptxas info\s+: Used (?P<registers>\d+) registers(?P<rest>[^\n]*)"
)
_SHARED = re.compile(r"(\d+) bytes smem")


@dataclass(frozen=True)
class Resources:
    """What the compiler says a kernel takes, per thread and (shared memory) per block."""

    kernel: str
    capability: str
    registers: int
    shared_bytes: int
    spill_bytes: int
    stack_bytes: int


@dataclass(frozen=True)
class CompiledKernels:
    """Cubins by compute capability, with what they were made from and what they take."""

    cubins: dict[str, bytes]
    compiler: str
    sources_sha256: str
    resources: tuple[Resources, ...]

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON: sizes instead of the cubins themselves."""
        return {
            "compiler": self.compiler,
            "sources_sha256": self.sources_sha256,
            "cubin_bytes": {name: len(cubin) for name, cubin in self.cubins.items()},
            "resources": [asdict(each) for each in self.resources],
        }


def kernel_sources() -> dict[str, bytes]:
    """The CUDA sources of this package by file name."""
    folder = files("fewstep.runtime") / "kernels"
    return {
        entry.name: entry.read_bytes()
        for entry in sorted(folder.iterdir(), key=lambda entry: entry.name)
        if entry.name.endswith((".cu", ".cuh"))
    }


def sources_sha256() -> str:
    """Hash of the CUDA sources and how they are compiled, by which a cubin is known as current."""
    digest = hashlib.sha256(" ".join(_OPTIONS).encode())
    for name, text in kernel_sources().items():
        digest.update(name.encode() + b"\0" + text + b"\0")
    return digest.hexdigest()


class KernelCompiler:
    """NVRTC through cuda-bindings.

    Raises:
        MissingDependencyError: NVRTC, its bindings or the CUDA headers are not installed.
    """

    def __init__(self) -> None:
        try:
            from cuda.bindings import nvrtc
            from cuda.pathfinder import find_nvidia_header_directory
        except ImportError as error:
            raise missing("cuda-bindings", "kernels") from error
        self._nvrtc = nvrtc
        try:
            major, minor = self._checked(nvrtc.nvrtcVersion())
        except RuntimeError as error:  # the bindings are there, the library is not
            raise missing("nvidia-cuda-nvrtc", "kernels") from error
        self.version = f"NVRTC {major}.{minor}"
        self._headers = find_nvidia_header_directory("cudart")
        if self._headers is None:
            raise missing("nvidia-cuda-runtime (for cuda_fp16.h)", "kernels")

    def known(self) -> list[str]:
        """Compute capabilities that this NVRTC compiles for."""
        return [
            f"{number // 10}.{number % 10}"
            for number in self._checked(self._nvrtc.nvrtcGetSupportedArchs())
        ]

    def wanted(self, capabilities: Sequence[str]) -> tuple[str, ...]:
        """The capabilities to compile for: those given, or the defaults as far as known.

        Raises:
            RequestError: one that this NVRTC does not know.
        """
        known = self.known()
        for capability in capabilities:
            if capability not in known:
                what = f"compute capability (this is {self.version})"
                raise RequestError(choose(what, capability, known))
        defaults = (each for each in (_XAVIER, *CAPABILITIES) if each in known)
        return tuple(dict.fromkeys(capabilities)) or tuple(defaults)

    def compile(self, capabilities: Sequence[str]) -> CompiledKernels:
        """Compile every kernel for every capability.

        Raises:
            EngineError: NVRTC refuses the sources.
        """
        cubins, resources = {}, []
        for capability in capabilities:
            cubins[capability], log = self._compile(capability)
            resources += _resources(log, capability)
        return CompiledKernels(cubins, self.version, sources_sha256(), tuple(resources))

    def _compile(self, capability: str) -> tuple[bytes, str]:
        """Cubin and compiler log."""
        sources = kernel_sources()
        headers = [name for name in sources if name != _MAIN]
        program = self._checked(
            self._nvrtc.nvrtcCreateProgram(
                sources[_MAIN],
                _MAIN.encode(),
                len(headers),
                [sources[name] for name in headers],
                [name.encode() for name in headers],
            )
        )
        try:
            return self._build(program, capability)
        finally:
            self._nvrtc.nvrtcDestroyProgram(program)

    def _build(self, program: Any, capability: str) -> tuple[bytes, str]:
        architecture = f"--gpu-architecture=sm_{capability.replace('.', '')}"
        options = [
            option.encode()
            for option in (architecture, f"--include-path={self._headers}", *_OPTIONS)
        ]
        status = self._nvrtc.nvrtcCompileProgram(program, len(options), options)[0]
        log = self._text(program, "ProgramLog").decode(errors="replace").strip("\0 \n")
        if int(status) != 0:
            raise EngineError(f"{self.version} refuses the kernels for {capability}: {log}")
        return self._text(program, "CUBIN"), log

    def _text(self, program: Any, what: str) -> bytes:
        size = self._checked(getattr(self._nvrtc, f"nvrtcGet{what}Size")(program))
        text: bytes = bytes(size + 1)  # written in place, so never one that Python shares
        self._checked(getattr(self._nvrtc, f"nvrtcGet{what}")(program, text))
        return text[:size]

    def _checked(self, result: tuple[Any, ...]) -> Any:
        status, *values = result
        if int(status) != 0:
            raise EngineError(f"NVRTC failed: {status.name}")
        return values[0] if len(values) == 1 else tuple(values)


def _resources(log: str, capability: str) -> list[Resources]:
    """Read ptxas's summary of every kernel; functions that are no kernels have no registers."""
    found = []
    for match in _RESOURCES.finditer(log):
        shared = _SHARED.search(match["rest"])
        found.append(
            Resources(
                kernel=match["kernel"],
                capability=capability,
                registers=int(match["registers"]),
                shared_bytes=int(shared[1]) if shared else 0,
                spill_bytes=int(match["stores"]) + int(match["loads"]),
                stack_bytes=int(match["stack"]),
            )
        )
    return sorted(found, key=lambda each: each.kernel)
