"""The kernels that tests and benchmarks load: those of the bundles at hand, or compiled now."""

from __future__ import annotations

import contextlib
from pathlib import Path

from fewstep.runtime.bundle import Bundle
from fewstep.runtime.errors import BundleError
from fewstep.runtime.kernels.compile import CompiledKernels, KernelCompiler
from fewstep.runtime.kernels.cubins import load_cubin

_ANY_DRIVER = (99, 0)
"""The driver itself says whether it loads them."""


def kernels_for(capability: str, bundles: Path | None) -> CompiledKernels:
    """The kernels for a compute capability.

    Args:
        capability: for example ``"9.0"``.
        bundles: folder of exported bundles; the kernels of ``tiny`` are taken if they are of this
            package's sources. ``None`` if there is none.

    Raises:
        MissingDependencyError: they have to be compiled, and there is no NVRTC.
    """
    if bundles is not None:
        bundle = Bundle.read(bundles / "tiny")
        info = bundle.manifest.kernels
        with contextlib.suppress(BundleError):
            cubin = load_cubin(bundle, capability, _ANY_DRIVER)
            assert info is not None
            return CompiledKernels({capability: cubin}, info.compiler, info.sources_sha256, ())
    return KernelCompiler().compile([capability])
