"""Compiled kernels in a bundle: adding them, and finding the one for a GPU."""

from __future__ import annotations

import hashlib
import shlex
from collections.abc import Sequence

from fewstep.runtime.bundle import Bundle
from fewstep.runtime.errors import BundleError
from fewstep.runtime.kernels.compile import CompiledKernels, sources_sha256
from fewstep.runtime.manifest import KernelsInfo

_JETSONS = {"5.3", "6.2", "7.2", "8.7", "10.1", "11.0"}
_EXTRAS = {12: "kernels12", 13: "kernels"}
"""What installs a toolchain, by CUDA major version."""


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


def are_current(bundle: Bundle, capabilities: Sequence[str], compiler: str) -> bool:
    """Whether the bundle has intact cubins of this package's sources for all ``capabilities``."""
    info = bundle.manifest.kernels
    if info is None or (info.sources_sha256, info.compiler) != (sources_sha256(), compiler):
        return False
    return all(
        capability in info.cubins and _is_intact(bundle, info.cubins[capability])
        for capability in capabilities
    )


def load_cubin(bundle: Bundle, capability: str, cuda_version: tuple[int, int]) -> bytes:
    """The kernels that a GPU of this compute capability runs.

    A cubin runs on its own capability and, except from, to and among Jetsons, on later minor ones
    of the same major (CUDA C++ Programming Guide, binary compatibility), under drivers for its
    compiler's CUDA major version or a later one (CUDA Compatibility, minor version compatibility).

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
    if int(info.compiler.split()[-1].partition(".")[0]) > cuda_version[0]:
        major, minor = cuda_version
        extra = _EXTRAS.get(major)
        toolchain = (
            f"compile them with that toolchain: pip install 'fewstep[{extra}]' in an environment "
            f"of its own, then {remedy}"
        )
        raise BundleError(
            f"the CUDA kernels in {bundle.path} were compiled by {info.compiler}, this driver is "
            f"for CUDA {major}.{minor}; {toolchain if extra else 'update the driver'}"
        )
    fitting = [each for each in info.cubins if _runs(each, capability)]
    if not fitting:
        raise BundleError(
            f"{bundle.path} has CUDA kernels for {', '.join(sorted(info.cubins))}, this GPU is "
            f"{capability}; compile them with: {remedy}"
        )
    best = max(fitting, key=lambda each: int(each.partition(".")[2]))
    return bundle.verified(info.cubins[best]).read_bytes()


def _is_intact(bundle: Bundle, file: str) -> bool:
    try:
        bundle.verified(file)
    except BundleError:
        return False
    return True


def _runs(built_for: str, capability: str) -> bool:
    if built_for == capability or {built_for, capability} & _JETSONS:
        return built_for == capability
    major, _, minor = built_for.partition(".")
    own_major, _, own_minor = capability.partition(".")
    return major == own_major and int(minor) <= int(own_minor)
