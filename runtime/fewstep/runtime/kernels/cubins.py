"""Compiled kernels in a bundle: adding them, and finding the one for a GPU."""

from __future__ import annotations

import hashlib
import shlex

from fewstep.runtime.bundle import Bundle
from fewstep.runtime.errors import BundleError
from fewstep.runtime.kernels.compile import CompiledKernels, sources_sha256
from fewstep.runtime.records import KernelsInfo

_JETSONS = {"5.3", "6.2", "7.2", "8.7", "10.1", "11.0"}
_TOOLCHAINS = {12: ("kernels12", "-cu12"), 13: ("kernels", "")}
"""The extra with a toolchain, and what its packages' names end in, by CUDA major version."""


def add_kernels(bundle: Bundle, compiled: CompiledKernels) -> Bundle:
    """Store cubins in the bundle, in the place of any it has.

    Raises:
        OutputError: the bundle cannot be written.
    """
    files, cubins = {}, {}
    for capability, cubin in compiled.cubins.items():
        digest = hashlib.sha256(cubin).hexdigest()[:12]  # new contents, new name
        cubins[capability] = f"kernels/sm_{capability.replace('.', '')}-{digest}.cubin"
        files[cubins[capability]] = cubin
    info = KernelsInfo(
        compiler=compiled.compiler, sources_sha256=compiled.sources_sha256, cubins=cubins
    )
    return bundle.update(files, kernels=info.model_dump())


def loads(compiler: str, capability: str, cuda_version: tuple[int, int]) -> bool:
    """Whether a GPU's driver loads what a compiler makes.

    Drivers take cubins of their own CUDA version and of earlier ones. Of later ones a driver takes
    those of its own major version (CUDA Compatibility, "Minor Version Compatibility"), but NVIDIA
    states that for the drivers of desktop and data center GPUs, by their version numbers. A
    Jetson's driver is part of Jetson Linux; for a later toolkit NVIDIA has its user-mode part
    upgraded as well ("CUDA for Tegra", "CUDA Upgradable Package for Jetson"; "Simplifying CUDA
    Upgrades for NVIDIA Jetson Users"), and then it states the later version itself. So on a Jetson
    the compiler must not be newer at all.

    Args:
        compiler: as in the bundle, for example ``"NVRTC 12.6"``.
        capability: the GPU's, for example ``"8.7"``.
        cuda_version: newest CUDA version of the driver, for example ``(12, 6)``.
    """
    made_by = _version(compiler)
    return made_by <= cuda_version if capability in _JETSONS else made_by[0] <= cuda_version[0]


def toolchain_remedy(compiler: str, capability: str, cuda_version: tuple[int, int]) -> str:
    """What to install where a driver does not load what a compiler makes; "" if nothing helps.

    Args: as :func:`loads`.
    """
    major, minor = cuda_version
    if major not in _TOOLCHAINS:
        return ""
    extra, ending = _TOOLCHAINS[major]
    other = _version(compiler)[0] != major
    wanted = [f"fewstep[{extra}]"] if other else []
    if capability in _JETSONS:
        packages = (f"nvidia-cuda-nvrtc{ending}", f"nvidia-cuda-runtime{ending}")
        wanted += [f"{each}=={major}.{minor}.*" for each in packages]
    where = " in an environment of its own" if other else ""
    return f"pip install {' '.join(map(repr, wanted))}{where}"


def load_cubin(bundle: Bundle, capability: str, cuda_version: tuple[int, int]) -> bytes:
    """The kernels that a GPU of this compute capability runs.

    A cubin runs on its own capability and, except from, to and among Jetsons, on later minor ones
    of the same major (CUDA C++ Programming Guide, binary compatibility), so that of B200 (10.0) on
    B300 (10.3); under which drivers, see :func:`loads`.

    Args:
        bundle: the bundle.
        capability: the GPU's, for example ``"8.7"``.
        cuda_version: newest CUDA version of the driver, for example ``(12, 6)``.

    Raises:
        BundleError: no cubin fits, they were made of other sources or for newer drivers, or the
            file is damaged.
    """
    folder = shlex.quote(str(bundle.path))
    remedy = f"fewstep build {folder} --kernels --compute-capability {capability}"
    info = bundle.manifest.kernels
    if info is None:
        raise BundleError(f"{bundle.path} has no CUDA kernels; compile them with: {remedy}")
    if info.sources_sha256 != sources_sha256():
        raise BundleError(
            f"the CUDA kernels in {bundle.path} are of another version of fewstep; compile them "
            f"again with: {remedy}"
        )
    if not loads(info.compiler, capability, cuda_version):
        major, minor = cuda_version
        toolchain = toolchain_remedy(info.compiler, capability, cuda_version)
        mend = f"compile them with its toolchain: {toolchain}, then {remedy}"
        raise BundleError(
            f"the CUDA kernels in {bundle.path} were compiled by {info.compiler}, this driver is "
            f"for CUDA {major}.{minor}; {mend if toolchain else 'update the driver'}"
        )
    fitting = [each for each in info.cubins if _runs(each, capability)]
    if not fitting:
        raise BundleError(
            f"{bundle.path} has CUDA kernels for {', '.join(sorted(info.cubins))}, this GPU is "
            f"{capability}; compile them with: {remedy}"
        )
    best = max(fitting, key=lambda each: int(each.partition(".")[2]))
    return bundle.verified(info.cubins[best]).read_bytes()


def _version(compiler: str) -> tuple[int, int]:
    """CUDA version of a compiler such as ``NVRTC 12.6``."""
    major, _, minor = compiler.split()[-1].partition(".")
    return int(major), int(minor)


def _runs(built_for: str, capability: str) -> bool:
    if built_for == capability or {built_for, capability} & _JETSONS:
        return built_for == capability
    major, _, minor = built_for.partition(".")
    own_major, _, own_minor = capability.partition(".")
    return major == own_major and int(minor) <= int(own_minor)
