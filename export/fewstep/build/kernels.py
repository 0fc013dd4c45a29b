"""``fewstep build --kernels``: the CUDA kernels, compiled ahead of time into the bundle."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fewstep.build.stale import why_kernels_stale
from fewstep.runtime.bundle import Bundle
from fewstep.runtime.errors import MissingDependencyError
from fewstep.runtime.kernels.compile import CompiledKernels, KernelCompiler
from fewstep.runtime.kernels.cubins import add_kernels, loads, toolchain_remedy
from fewstep.runtime.probe import find_driver
from fewstep.runtime.records import KernelsInfo


def build_kernels(
    path: str | Path, capabilities: Sequence[str] = (), *, force: bool = False
) -> CompiledKernels | None:
    """Compile the CUDA kernels into a bundle, and again those that it has for other GPUs.

    All kernels of a bundle are of the same sources and compiler, so what this compiler does not
    know is dropped: :func:`dropped_kernels` says so.

    Args:
        path: the bundle folder.
        capabilities: compute capabilities such as ``"8.7"``; empty takes all that are supported.
        force: compile even if the bundle has current kernels for all of them.

    Returns:
        What was compiled; ``None`` if everything was up to date.

    Raises:
        BundleError: no bundle at ``path``.
        MissingDependencyError: NVRTC or its headers are not installed.
        RequestError: a capability that this NVRTC does not know.
        OutputError: the bundle cannot be written.
    """
    before = Bundle.read(path)
    compiler = KernelCompiler()
    wanted = compiler.wanted(capabilities)
    if not force and not why_kernels_stale(before, wanted, compiler.version):
        return None
    with Bundle.locked(path) as bundle:  # seconds, and what others have added is compiled too
        known, kernels = compiler.known(), bundle.manifest.kernels
        others = [each for each in kernels.cubins if each in known] if kernels is not None else []
        compiled = compiler.compile(tuple(dict.fromkeys((*wanted, *others))))
        add_kernels(bundle, compiled)
    return compiled


def dropped_kernels(before: KernelsInfo | None, compiled: CompiledKernels | None) -> str:
    """Which of a bundle's kernels had to go as others were compiled, and why; empty if none."""
    if before is None or compiled is None:
        return ""
    gone = [each for each in before.cubins if each not in compiled.cubins]
    if not gone:
        return ""
    return (
        f"kernels for {', '.join(gone)} are no longer in the bundle: {compiled.compiler} does not "
        f"compile for them, and they were compiled by {before.compiler}"
    )


def kernel_notes(capabilities: Sequence[str]) -> tuple[str, ...]:
    """Why the driver here will not load what the compiler here makes for the GPUs here.

    Args:
        capabilities: compute capabilities that are compiled for; empty means all.

    Returns:
        A line, with the remedy, for each of them that a GPU here has; none without a driver or
        without a compiler. Kernels may be compiled for other machines, so none is an error.
    """
    driver = find_driver()
    if driver is None:
        return ()
    try:
        compiler = KernelCompiler().version
    except MissingDependencyError:
        return ()
    major, _, minor = driver.cuda.partition(".")
    version = (int(major), int(minor))
    here = dict.fromkeys(gpu.compute_capability for gpu in driver.gpus)
    wanted = [each for each in here if each in capabilities or not capabilities]
    return tuple(
        f"kernels for {each} compiled by {compiler} do not load with the driver here, which is for "
        f"CUDA {driver.cuda}; {toolchain_remedy(compiler, each, version) or 'update the driver'}"
        for each in wanted
        if not loads(compiler, each, version)
    )
