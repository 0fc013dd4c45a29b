"""Stand-ins for cubins: a few bytes each, which tell what they were made for."""

from __future__ import annotations

from fewstep.runtime.bundle import Bundle
from fewstep.runtime.kernels.compile import CompiledKernels, sources_sha256
from fewstep.runtime.records import KernelsInfo

COMPILER = "NVRTC 13.0"


def compiled_for(*capabilities: str, salt: str = "") -> CompiledKernels:
    """Cubins whose contents name their capability, by :data:`COMPILER` from today's sources."""
    contents = {name: f"cubin for {name}{salt}".encode() for name in capabilities}
    return CompiledKernels(contents, COMPILER, sources_sha256(), ())


def kernels_of(bundle: Bundle) -> KernelsInfo:
    """What the manifest says of its cubins."""
    assert bundle.manifest.kernels is not None
    return bundle.manifest.kernels
