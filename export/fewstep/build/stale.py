"""Why graphs, engines and kernels of a bundle are stale: what a new build would make otherwise.

An engine has a record of how it was made (:class:`EngineInfo`). It is up to date while backend and
version, graph, profiles and options are those of a new build, its targets include those asked for,
and its file is intact. Nothing here needs onnx, a builder or a GPU.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING

from fewstep.build.profiles import profiles
from fewstep.build.target import Target
from fewstep.runtime.bundle import Bundle
from fewstep.runtime.engines.tensorrt_api import TensorRt, load
from fewstep.runtime.kernels.compile import KernelCompiler, sources_sha256
from fewstep.runtime.records import EngineInfo

if TYPE_CHECKING:
    from fewstep.build.pipeline import BuildRequest


def stale(request: BuildRequest) -> dict[str, str]:
    """What a build would do, as reasons by part; empty if nothing.

    Raises:
        FewstepError: as :func:`fewstep.build.pipeline.build`, before it builds anything.
    """
    bundle, wanted = Bundle.read(request.bundle), request.target()
    found = {}
    if reason := why_graphs_stale(bundle, request.graph_precision, request.fp32_heads):
        found[f"graphs in {request.graph_precision}"] = reason
    elif wanted is not None:
        for name, record in expected_records(bundle, wanted, load(wanted.backend)).items():
            if reason := why_engine_stale(bundle, record):
                found[f"engine of {name}"] = reason
    if request.with_kernels:
        compiler = KernelCompiler()
        capabilities = compiler.wanted(wanted.capabilities if wanted else request.capabilities)
        if reason := why_kernels_stale(bundle, capabilities, compiler.version):
            found["CUDA kernels"] = reason
    return found


def stale_contents(bundle: Bundle) -> dict[str, str]:
    """What of all that a bundle holds is damaged or was made of something else, and the remedy.

    Returns:
        Reasons by file or part. Whether the builder or the compiler here is another than theirs
        does not count.
    """
    found = {
        name: f"the file {problem}; copy or make the bundle again"
        for name, problem in bundle.damage().items()
    }
    for precision, variant in bundle.manifest.variants.items():
        for name, info in variant.items():
            if info.source_sha256 != bundle.graph_sha256(name):
                found[info.file] = (
                    f"the {precision} graph was not made from the fp32 graph here; make it again: "
                    f"{bundle.making(precision)}"
                )
    found |= stale_engines(bundle)
    kernels = bundle.manifest.kernels
    if kernels is not None and kernels.sources_sha256 != sources_sha256():
        command = f"{_build(bundle)} --kernels --compute-capability {' '.join(kernels.cubins)}"
        found["CUDA kernels"] = f"are of another version of fewstep; compile them again: {command}"
    return found


def stale_engines(bundle: Bundle) -> dict[str, str]:
    """Engines whose graph is no longer the one they were built from, by file, and the remedy."""
    found = {}
    for info in bundle.manifest.engines:
        known = info.precision in bundle.precisions
        if not known or bundle.graph_sha256(info.graph, info.precision) != info.graph_sha256:
            command = f"{_build(bundle)} --backend {info.backend} --precision {info.precision}"
            found[info.file] = (
                f"the graph {info.graph} is another than it was built from; build it again: "
                f"{command}"
            )
    return found


def why_graphs_stale(bundle: Bundle, precision: str, heads: bool | None = None) -> str:
    """Why the graphs of a precision are not intact and made from the fp32 graphs; empty if so.

    Args:
        bundle: the bundle.
        precision: theirs; those in fp32 are only looked at for damage.
        heads: whether they have to be made with fp32 heads; ``None`` takes either.
    """
    if precision not in bundle.precisions:
        return "are not there"
    for name in bundle.manifest.graphs:
        info = bundle.graph(name, precision)
        if precision != "fp32" and info.source_sha256 != bundle.graph_sha256(name):
            return f"were made of another {name} in fp32"
        if heads not in (None, info.fp32_heads) and precision != "fp32":
            return f"were made with{'out' if heads else ''} fp32 heads"
        for file, problem in bundle.damage(info.files).items():
            return f"are damaged: {file} {problem}"
    return ""


def why_kernels_stale(bundle: Bundle, capabilities: Sequence[str], compiler: str) -> str:
    """Why the CUDA kernels for compute capabilities are to be compiled; empty if they are not.

    Args:
        bundle: the bundle.
        capabilities: compute capabilities, each of which needs kernels of its own.
        compiler: that would compile them, such as ``"NVRTC 13.0"``.
    """
    info = bundle.manifest.kernels
    if info is None:
        return "are not there"
    if info.sources_sha256 != sources_sha256():
        return "are of another version of fewstep"
    if info.compiler != compiler:
        return f"were compiled by {info.compiler}, here is {compiler}"
    if absent := [each for each in capabilities if each not in info.cubins]:
        return f"are not there for {', '.join(absent)}"
    for file, problem in bundle.damage(info.cubins[each] for each in capabilities).items():
        return f"are damaged: {file} {problem}"
    return ""


def expected_records(bundle: Bundle, wanted: Target, api: TensorRt) -> dict[str, EngineInfo]:
    """The records of engines if they were built now, but for what only building tells, by graph.

    Raises:
        BundleError: no graphs in this precision, or a file that programs are made of is damaged.
    """
    return {
        name: EngineInfo(
            backend=wanted.backend,
            version=api.version,
            graph=name,
            precision=wanted.precision,
            graph_sha256=bundle.graph_sha256(name, wanted.precision),
            compute_capabilities=wanted.capabilities,
            profiles=made,
            options=wanted.options,
            gpu=wanted.gpu,
            file="-",
            seconds=0.0,
            peak_memory_bytes=0,
        )
        for name, made in profiles(bundle, wanted.options).items()
    }


def current_engine(bundle: Bundle, expected: EngineInfo) -> EngineInfo | None:
    """The bundle's engine that a new build would only repeat, if its file is intact."""
    info, reason = _nearest(bundle, expected)
    return None if reason else info


def why_engine_stale(bundle: Bundle, expected: EngineInfo) -> str:
    """Why an engine has to be built; empty if it has not.

    Args:
        bundle: the bundle.
        expected: its record, of :func:`expected_records`.
    """
    return _nearest(bundle, expected)[1]


def _nearest(bundle: Bundle, expected: EngineInfo) -> tuple[EngineInfo | None, str]:
    """The engine that a device would take, and why it is not what is wanted."""
    wanted = expected.compute_capabilities
    for info in reversed(bundle.manifest.engines):
        # A device takes the newest engine that runs there, so no older one counts.
        if not _same_place(expected, info):
            continue
        if differing := _differences(info, expected):
            return info, differing
        if absent := [each for each in wanted if each not in info.compute_capabilities]:
            return info, f"is not for {', '.join(absent)}"
        return info, "".join(bundle.damage([info.file]).values())
    return None, f"is not there for {', '.join(wanted)} by {expected.backend} {expected.version}"


def _same_place(one: EngineInfo, other: EngineInfo) -> bool:
    """Whether some device could take either."""
    kinds = [(each.backend, each.version, each.graph, each.precision) for each in (one, other)]
    shared = set(one.compute_capabilities) & set(other.compute_capabilities)
    return kinds[0] == kinds[1] and bool(shared)


def _differences(info: EngineInfo, expected: EngineInfo) -> str:
    """What an engine was built with and what is wanted, where they differ."""
    if info.graph_sha256 != expected.graph_sha256:
        return "was built from another graph"
    old, new = (each.options.model_dump() | {"gpu": each.gpu} for each in (info, expected))
    differing = [f"{key} {old[key]}, asked for {new[key]}" for key in old if old[key] != new[key]]
    if not differing and info.profiles != expected.profiles:
        differing = ["other optimization profiles"]
    return f"was built with {'; '.join(differing)}" if differing else ""


def _build(bundle: Bundle) -> str:
    return f"fewstep build {shlex.quote(str(bundle.path))}"
