"""``fewstep build --backend``: a bundle's graphs into engines, again only when needed.

Every engine is stored with a record of how it was made (:class:`EngineInfo`). It is up to date
while backend and version, graph, profiles and options are those of a new build, and its targets
include those asked for.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fewstep.build.builder_process import build_engine
from fewstep.build.capabilities import TENSORRT_BEFORE, TENSORRT_SINCE
from fewstep.build.preflight import preflight, require
from fewstep.build.profiles import Profile, profiles
from fewstep.build.tensorrt_builder import BuiltEngine, EngineRequest
from fewstep.runtime.bundle import Bundle
from fewstep.runtime.devices.cuda_driver import compute_capability, device_name
from fewstep.runtime.engines.compatibility import RTX_CAPABILITIES
from fewstep.runtime.engines.tensorrt_api import TensorRt, load
from fewstep.runtime.errors import DeviceError, FewstepError, RequestError, choose
from fewstep.runtime.probe import find_driver
from fewstep.runtime.records import BuildOptions, EngineBackend, EngineInfo, Precision

Progress = Callable[[str, str, float], None]
"""Takes graph, phase (empty once the engine is stored) and fraction done (−1: as before)."""


@dataclass(frozen=True)
class Target:
    """What engines are wanted for.

    ``capabilities``: compute capabilities. ``gpu``: name of the GPU that builds, for the backend
    that needs one.
    """

    backend: EngineBackend
    precision: Precision
    options: BuildOptions
    capabilities: tuple[str, ...]
    gpu: str | None = None


@dataclass(frozen=True)
class EngineReport:
    """One engine: its record, whether this call built it, and what the builder warned of."""

    info: EngineInfo
    size_bytes: int
    built: bool
    warnings: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            **self.info.model_dump(mode="json"),
            "size_bytes": self.size_bytes,
            "built": self.built,
            "warnings": list(self.warnings),
        }


def target(
    backend: EngineBackend,
    precision: Precision,
    options: BuildOptions,
    capabilities: Sequence[str] = (),
    *,
    building: bool = True,
) -> Target:
    """Complete what is wanted with the GPU at hand, where the backend or the caller leaves it open.

    Args:
        backend: ``tensorrt`` or ``tensorrt-rtx``.
        precision: of graphs and engines.
        options: as the builder gets them.
        capabilities: compute capabilities, in the order given.
        building: whether engines will be built here. Where they are only checked, TensorRT needs
            no GPU, and any compute capability that it knows will do.

    Raises:
        RequestError: TensorRT cannot build for other GPUs, a compute capability that the backend
            does not know, or nothing says which are meant.
        DeviceError: TensorRT without a GPU.
    """
    wanted = tuple(dict.fromkeys(capabilities))
    if backend == "tensorrt" and wanted and not building:
        _require_tensorrt(wanted)
        return Target(backend, precision, options, wanted)
    if backend == "tensorrt":
        if find_driver() is None:  # before pycuda, whose absence is no news without a driver
            raise DeviceError(
                "TensorRT builds for the GPU at hand, and there is no CUDA driver on this machine; "
                "build on the device, or for RTX cards with --backend tensorrt-rtx; what can be "
                "checked here is: --compute-capability 8.7 --preflight (8.7 is Orin, 11.0 Thor)"
            )
        here = compute_capability()
        if wanted not in ((), (here,)):
            raise RequestError(
                f"TensorRT builds for the GPU at hand, {here}, not for {', '.join(wanted)}; build "
                "there, with --backend tensorrt-rtx, which needs no GPU, or only check with "
                "--preflight"
            )
        return Target(backend, precision, options, (here,), device_name())
    if not wanted:
        try:
            wanted = (compute_capability(),)
        except FewstepError:
            raise RequestError(
                "which GPUs are the engines for? Name their compute capabilities, for example "
                "--compute-capability 8.6 8.9 12.0"
            ) from None
    _require_known(wanted)
    if precision == "bf16" and "7.5" in wanted:
        raise RequestError(
            "compute capability 7.5 has no bf16; use --precision fp16, or leave 7.5 out"
        )
    in_order = tuple(each for each in RTX_CAPABILITIES if each in wanted)
    return Target(backend, precision, options, in_order)


def _require_tensorrt(capabilities: Sequence[str]) -> None:
    """Raise unless TensorRT 10.3 … 11 builds for all of these."""
    _require_numbers(capabilities)
    for each in capabilities:
        if each in TENSORRT_BEFORE:
            raise RequestError(
                f"compute capability {each} is too old: {TENSORRT_BEFORE[each]}, fewstep needs "
                "10.3 or newer; run the bundle there with ONNX Runtime"
            )
        if each not in TENSORRT_SINCE:
            raise RequestError(choose("compute capability for TensorRT", each, TENSORRT_SINCE))


def _require_numbers(capabilities: Sequence[str]) -> None:
    if odd := [each for each in capabilities if not re.fullmatch(r"\d+\.\d", each)]:
        raise RequestError(
            f"expected compute capabilities such as 8.6 8.9, one or more with spaces between them, "
            f"received {', '.join(odd)}"
        )


def _require_known(capabilities: Sequence[str]) -> None:
    """Before minutes are spent on graphs for GPUs that there are no engines for."""
    _require_numbers(capabilities)
    others = [each for each in capabilities if each not in RTX_CAPABILITIES]
    if others:
        raise RequestError(
            f"TensorRT-RTX builds for compute capability {', '.join(RTX_CAPABILITIES)}, received "
            f"{', '.join(others)}; build for others, Jetsons among them, on the device itself: "
            "--backend tensorrt, which --preflight checks here"
        )


def check(bundle: Bundle, wanted: Target) -> dict[str, tuple[Profile, ...]]:
    """Preflight: raise ``EngineError`` with everything that the builder would stumble over.

    Returns:
        The optimization profiles of every graph.
    """
    made = profiles(bundle, wanted.options)
    require(
        preflight(
            bundle,
            backend=wanted.backend,
            precision=wanted.precision,
            compute_capabilities=wanted.capabilities,
            profiles=made,
        )
    )
    return made


def build_engines(
    path: str | Path, wanted: Target, *, force: bool = False, progress: Progress | None = None
) -> tuple[EngineReport, ...]:
    """Build the engines of every graph into a bundle.

    Each is stored as soon as it is built, so that an interrupted build goes on where it stopped.

    Args:
        path: the bundle folder.
        wanted: of :func:`target`; the bundle must have graphs in its precision.
        force: build even what is up to date.
        progress: called as builds go on.

    Raises:
        BundleError: no bundle at ``path``, or not in this precision.
        MissingDependencyError: the backend's module, or onnx, is not installed.
        EngineError: preflight, parser or builder refuse a graph.
        OutputError: the bundle cannot be written; engines stored before stay.
        KeyboardInterrupt: the builder has ended; engines stored before stay.
    """
    bundle, api = Bundle.read(path), load(wanted.backend)
    names = tuple(bundle.manifest.graphs)
    # Looked at once: it hashes the files.
    current = {n: None if force else current_engine(bundle, n, wanted, api) for n in names}
    if all(current.values()):
        return tuple(_report(bundle, info) for info in current.values() if info)
    made, reports = check(bundle, wanted), []
    for name in names:
        info = current[name]
        if info is not None:
            reports.append(_report(bundle, info))
            continue
        request = EngineRequest(
            graph=name,
            path=bundle.graph_path(name, wanted.precision),
            profiles=made[name],
            options=wanted.options,
            capabilities=wanted.capabilities if wanted.backend == "tensorrt-rtx" else (),
        )
        built = build_engine(api, request, _told(progress, name))
        bundle, info = _store(bundle, name, wanted, made[name], api, built)
        reports.append(_report(bundle, info, built))
        if progress is not None:
            progress(name, "", 1.0)
    return tuple(reports)


def current_engine(bundle: Bundle, name: str, wanted: Target, api: TensorRt) -> EngineInfo | None:
    """The bundle's engine that a new build would only repeat, if its file is intact."""
    info, reason = _nearest(bundle, name, wanted, api)
    return None if reason else info


def why_stale(bundle: Bundle, name: str, wanted: Target, api: TensorRt) -> str:
    """Why the engine of a graph has to be built; empty if it has not."""
    return _nearest(bundle, name, wanted, api)[1]


def _nearest(
    bundle: Bundle, name: str, wanted: Target, api: TensorRt
) -> tuple[EngineInfo | None, str]:
    """The engine that a device would take, and why it is not what is wanted."""
    options = profiles(bundle, wanted.options)[name]
    fresh = _record(bundle, name, wanted, options, api)
    for info in reversed(bundle.manifest.engines):
        if not _rivals(fresh, info):
            continue
        # A device takes the newest engine that runs there, so no older one counts.
        if differing := _differences(info, fresh):
            return info, differing
        if set(wanted.capabilities) <= set(info.compute_capabilities):
            return info, "".join(bundle.damage([info.file]).values())
        missing = [each for each in wanted.capabilities if each not in info.compute_capabilities]
        return info, f"is not for {', '.join(missing)}"
    return None, f"is not there for {', '.join(wanted.capabilities)} by {api}"


def _differences(info: EngineInfo, fresh: EngineInfo) -> str:
    """What an engine was built with and what is wanted, where they differ."""
    if info.graph_sha256 != fresh.graph_sha256:
        return "was built from another graph"
    old, new = (each.options.model_dump() | {"gpu": each.gpu} for each in (info, fresh))
    told = [f"{key} {old[key]}, asked for {new[key]}" for key in old if old[key] != new[key]]
    if not told and info.profiles != fresh.profiles:
        told = ["other optimization profiles"]
    return f"was built with {'; '.join(told)}" if told else ""


def _rivals(one: EngineInfo, other: EngineInfo) -> bool:
    """Whether some device could take either."""
    kinds = [(each.backend, each.version, each.graph, each.precision) for each in (one, other)]
    shared = set(one.compute_capabilities) & set(other.compute_capabilities)
    return kinds[0] == kinds[1] and bool(shared)


def _record(
    bundle: Bundle,
    name: str,
    wanted: Target,
    ranges: tuple[Profile, ...],
    api: TensorRt,
) -> EngineInfo:
    """The record of an engine, but for what only building tells."""
    return EngineInfo(
        backend=wanted.backend,
        version=api.version,
        graph=name,
        precision=wanted.precision,
        graph_sha256=bundle.graph_sha256(name, wanted.precision),
        compute_capabilities=wanted.capabilities,
        profiles=ranges,
        options=wanted.options,
        gpu=wanted.gpu,
        file="-",
        seconds=0.0,
        peak_memory_bytes=0,
    )


def _store(
    bundle: Bundle,
    name: str,
    wanted: Target,
    ranges: tuple[Profile, ...],
    api: TensorRt,
    built: BuiltEngine,
) -> tuple[Bundle, EngineInfo]:
    """Add an engine, in the place of those that it makes superfluous.

    The manifest is read again: others may have added to the bundle while this one was built.
    """
    digest = hashlib.sha256(built.content).hexdigest()[:12]  # new contents, new name
    file = f"engines/{name}.{wanted.precision}.{wanted.backend}-{digest}.engine"
    told = {"file": file, "seconds": round(built.seconds, 2)}
    told["peak_memory_bytes"] = built.peak_memory_bytes
    record = _record(bundle, name, wanted, ranges, api).model_copy(update=told)
    now = Bundle.read(bundle.path)
    others = [each for each in now.manifest.engines if now.locate(each.file).is_file()]
    kept = [each for each in others if not _replaces(record, each)]
    engines = [each.model_dump() for each in (*kept, record)]
    return now.update({file: built.content}, engines=engines), record


def _replaces(new: EngineInfo, old: EngineInfo) -> bool:
    same = (new.backend, new.graph, new.precision) == (old.backend, old.graph, old.precision)
    return same and set(old.compute_capabilities) <= set(new.compute_capabilities)


def _report(bundle: Bundle, info: EngineInfo, built: BuiltEngine | None = None) -> EngineReport:
    size = bundle.manifest.files[info.file].bytes
    return EngineReport(info, size, built is not None, built.warnings if built else ())


def _told(progress: Progress | None, name: str) -> Callable[[str, float], None]:
    if progress is None:
        return lambda phase, done: None
    return lambda phase, done: progress(name, phase, done)


def stale_engines(bundle: Bundle) -> dict[str, str]:
    """Engines whose graph is no longer the one they were built from, by file."""
    found = {}
    for info in bundle.manifest.engines:
        known = info.precision in bundle.precisions
        if not known or bundle.graph_sha256(info.graph, info.precision) != info.graph_sha256:
            found[info.file] = f"the graph {info.graph} is another than it was built from"
    return found
