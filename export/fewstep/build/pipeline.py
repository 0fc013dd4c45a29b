"""``fewstep build``: graphs in a precision, then their engines, then the kernels beside them.

Engines are fp16 unless the caller says otherwise: it is the one reduced precision that every GPU
here has, needs no calibration, and is held to the golden rollouts (``fewstep verify``).
"""

from __future__ import annotations

import importlib.util
import os
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fewstep.runtime.bundle import Bundle
from fewstep.runtime.errors import (
    BundleError,
    MissingDependencyError,
    OutputError,
    RequestError,
    choose,
    missing,
)
from fewstep.runtime.kernels.compile import CompiledKernels, KernelCompiler, sources_sha256
from fewstep.runtime.kernels.cubins import are_current
from fewstep.runtime.records import BuildOptions, EngineBackend, Precision

if TYPE_CHECKING:
    from fewstep.build.checklist import Checklist
    from fewstep.build.engines import EngineReport, Progress, Target
    from fewstep.build.variants import GraphReport

PRECISIONS = ("fp32", "fp16", "bf16", "int8", "fp8")
ENGINE_PRECISION: Precision = "fp16"
"""Of engines, where the caller leaves it open."""

_QUANTIZED = ("int8", "fp8")
_TURING = "7.5"


@dataclass(frozen=True)
class BuildRequest:
    """What is to be built into a bundle.

    ``precision`` ``None``: :data:`ENGINE_PRECISION` for engines, and no other graphs.
    ``fp32_heads`` ``None``: as the bundle has them, and otherwise on unless a target has no fp32
    matrix products. ``kernels`` ``None``: with engines.
    """

    bundle: Path
    backend: EngineBackend | None = None
    precision: str | None = None
    capabilities: tuple[str, ...] = ()
    options: BuildOptions = BuildOptions()
    fp32_heads: bool | None = None
    kernels: bool | None = None
    force: bool = False

    def __post_init__(self) -> None:
        if self.precision not in (None, *PRECISIONS):
            raise RequestError(choose("precision", str(self.precision), PRECISIONS))
        if self.backend is None and self.precision in (None, "fp32") and not self.kernels:
            raise RequestError(
                "nothing to build: pass --backend tensorrt or tensorrt-rtx for engines, "
                "--precision fp16 or bf16 for graphs, or --kernels"
            )
        if self.graph_precision in _QUANTIZED:
            self._check_quantized()

    @property
    def with_kernels(self) -> bool:
        """Whether kernels are wanted."""
        return self.backend is not None if self.kernels is None else self.kernels

    @property
    def graph_precision(self) -> Precision:
        """The precision of the graphs and engines."""
        known: dict[str | None, Precision] = {
            **{"fp16": "fp16", "bf16": "bf16"},
            **{"int8": "int8", "fp8": "fp8"},
        }
        default = "fp32" if self.backend is None else ENGINE_PRECISION
        return default if self.precision is None else known.get(self.precision, "fp32")

    @property
    def told_precision(self) -> Precision | None:
        """The precision, for results; ``None`` where nothing but kernels is wanted."""
        return None if self.backend is None and self.precision is None else self.graph_precision

    def _check_quantized(self) -> None:
        """Quantized graphs are made of rollouts, with options of their own, not here."""
        command = f"fewstep calibrate quantize {shlex.quote(str(self.bundle))}"
        what = f"{self.precision} graphs are made with: {command} --precision {self.precision}"
        if self.backend is None and not self.kernels:
            raise RequestError(f"{what}; to build engines of them pass --backend")
        if self.fp32_heads is not None:
            raise RequestError(f"{what}; give --fp32-heads or --no-fp32-heads there")

    def heads(self, targets: tuple[str, ...]) -> bool:
        """Whether new graphs keep their last products in fp32."""
        turing = self.backend == "tensorrt-rtx" and _TURING in targets
        return self.fp32_heads if self.fp32_heads is not None else not turing


@dataclass(frozen=True)
class Outcome:
    """What was built; nothing of what was up to date, but for engines, which say so themselves.

    ``precision``: of graphs and engines, ``None`` where only kernels were wanted. ``notes``: why
    kernels will not load here.
    """

    precision: Precision | None
    graphs: tuple[GraphReport, ...] = ()
    engines: tuple[EngineReport, ...] = ()
    kernels: CompiledKernels | None = None
    notes: tuple[str, ...] = ()

    @property
    def up_to_date(self) -> bool:
        """Whether there was nothing to do."""
        built = any(engine.built for engine in self.engines)
        return not self.graphs and not built and self.kernels is None

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "up_to_date": self.up_to_date,
            "precision": self.precision,
            "graphs": [each.as_dict() for each in self.graphs],
            "engines": [each.as_dict() for each in self.engines],
            "kernels": self.kernels.as_dict() if self.kernels else None,
            "notes": list(self.notes),
        }


@dataclass(frozen=True)
class Preflight:
    """A preflight that found nothing: for what, the graphs it made, and what comes next.

    ``notes``: why kernels that are compiled here will not load here.
    """

    wanted: Target
    graphs: tuple[GraphReport, ...]
    checklist: Checklist
    notes: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "problems": [],
            "backend": self.wanted.backend,
            "precision": self.wanted.precision,
            "compute_capabilities": list(self.wanted.capabilities),
            "graphs": [each.as_dict() for each in self.graphs],
            "notes": list(self.notes),
            **self.checklist.as_dict(),
        }


def build(request: BuildRequest, progress: Progress | None = None) -> Outcome:
    """Build what is asked for and not up to date.

    Everything that can be refused early is: names, the machine and the packages before graphs are
    made, and preflight before the builder starts.

    Args:
        request: what to build.
        progress: called with graph, phase and fraction done (−1: as before) as engines are built;
            the phase is empty once an engine is stored.

    Raises:
        FewstepError: as :func:`fewstep.build.engines.build_engines`,
            :func:`fewstep.build.variants.add_variant` and
            :func:`fewstep.build.kernels.build_kernels`.
    """
    from fewstep.build.kernels import build_kernels, kernel_notes

    bundle = Bundle.read(request.bundle)
    if not os.access(bundle.path, os.W_OK):
        raise OutputError(f"{bundle.path} is not writable; copy the bundle to a folder that is")
    wanted = _target(request)
    if request.with_kernels:
        _require_compiler(wanted.capabilities if wanted else request.capabilities, request)
    graphs = _make_graphs(request, wanted)
    engines: tuple[EngineReport, ...] = ()
    if wanted is not None:
        from fewstep.build.engines import build_engines

        engines = build_engines(request.bundle, wanted, force=request.force, progress=progress)
    kernels: CompiledKernels | None = None
    notes: tuple[str, ...] = ()
    if request.with_kernels:
        capabilities = wanted.capabilities if wanted else request.capabilities
        kernels = build_kernels(
            request.bundle, capabilities, force=request.force, keep=wanted is not None
        )
        notes = kernel_notes(capabilities)
    return Outcome(request.told_precision, graphs, engines, kernels, notes)


def preflight_only(request: BuildRequest) -> Preflight:
    """Make the graphs if they are not there, and run preflight; needs no builder and no GPU.

    Returns:
        The graphs that were made, what was checked, what only the device can tell, and the
        commands that come next.

    Raises:
        RequestError: no backend, or compute capabilities that it does not build for.
        EngineError: what preflight found.
    """
    from fewstep.build.checklist import checklist
    from fewstep.build.engines import check
    from fewstep.build.kernels import kernel_notes

    if request.backend is None:
        raise RequestError("preflight is of engines: pass --backend tensorrt or tensorrt-rtx")
    wanted = _target(request, building=False)
    assert wanted is not None
    _require_no_loss(request)
    graphs = _make_graphs(request, wanted)
    bundle = Bundle.read(request.bundle)
    check(bundle, wanted)
    notes = kernel_notes(wanted.capabilities) if request.with_kernels else ()
    return Preflight(wanted, graphs, checklist(bundle, request, wanted), notes)


def _require_no_loss(request: BuildRequest) -> None:
    """A preflight may make graphs, but not in the place of others that engines are built of.

    Raises:
        RequestError: it would.
    """
    bundle, precision = Bundle.read(request.bundle), request.graph_precision
    built = [info.file for info in bundle.manifest.engines if info.precision == precision]
    if built and not _graphs_current(bundle, request):
        raise RequestError(
            f"{bundle.path}: this preflight would make the {precision} graphs again, and remove "
            f"{len(built)} engines that were built of the present ones; give it a copy of the "
            "bundle, or leave out --fp32-heads and --no-fp32-heads"
        )


def stale(request: BuildRequest | None, path: Path) -> dict[str, str]:
    """What a build would do, as reasons by file or part; empty if nothing.

    Args:
        request: what is wanted; ``None`` looks at all that the bundle holds.
        path: the bundle folder.
    """
    bundle = Bundle.read(path)
    if request is None:
        return _stale_contents(bundle)
    found = {}
    if not _graphs_current(bundle, request):
        found[f"graphs in {request.graph_precision}"] = (
            "are not made of these fp32 graphs, or damaged"
        )
    elif request.graph_precision == "fp32":
        files = [file for info in bundle.manifest.graphs.values() for file in info.files]
        found |= {name: f"the file {problem}" for name, problem in bundle.damage(files).items()}
    wanted = _target(request)
    if wanted is not None and not found:
        from fewstep.build.engines import why_stale
        from fewstep.runtime.engines.tensorrt_api import load

        api = load(wanted.backend)
        for name in bundle.manifest.graphs:
            if reason := why_stale(bundle, name, wanted, api):
                found[f"engine of {name}"] = reason
    if request.with_kernels:
        compiler = KernelCompiler()
        capabilities = compiler.wanted(wanted.capabilities if wanted else request.capabilities)
        if not are_current(bundle, capabilities, compiler.version):
            found["CUDA kernels"] = f"are not of these sources, of {compiler.version}, or not all"
    return found


def _stale_contents(bundle: Bundle) -> dict[str, str]:
    _require_onnx()
    from fewstep.build.engines import stale_engines

    found = {name: f"the file {problem}" for name, problem in bundle.damage().items()}
    for precision, variant in bundle.manifest.variants.items():
        for name, info in variant.items():
            if info.source_sha256 != bundle.graph_sha256(name):
                found[info.file] = f"the {precision} graph was not made from the fp32 graph here"
    found |= stale_engines(bundle)
    kernels = bundle.manifest.kernels
    if kernels is not None and kernels.sources_sha256 != sources_sha256():
        found["CUDA kernels"] = "are of another version of fewstep"
    return found


def _target(request: BuildRequest, *, building: bool = True) -> Target | None:
    if request.backend is None:
        return None
    _require_onnx()
    from fewstep.build.engines import target
    from fewstep.runtime.engines.tensorrt_api import load

    wanted = target(
        request.backend,
        request.graph_precision,
        request.options,
        request.capabilities,
        building=building,
    )
    if building:
        load(request.backend)
    return wanted


def _graphs_current(bundle: Bundle, request: BuildRequest) -> bool:
    _require_onnx()
    from fewstep.build.variants import is_current

    return is_current(bundle, request.graph_precision, request.fp32_heads)


def _make_graphs(request: BuildRequest, wanted: Target | None) -> tuple[GraphReport, ...]:
    if request.graph_precision == "fp32":
        return ()
    bundle = Bundle.read(request.bundle)
    # With engines, --force means the engines: the graphs they are made of follow their source.
    of_graphs = request.backend is None and request.graph_precision not in _QUANTIZED
    if not (request.force and of_graphs) and _graphs_current(bundle, request):
        return ()
    _require_onnx()
    if request.graph_precision in _QUANTIZED:
        raise _not_quantized(bundle, request.graph_precision)
    from fewstep.build.variants import add_variant

    heads = request.heads(wanted.capabilities if wanted else ())
    return add_variant(bundle, request.graph_precision, heads=heads)[1]


def _not_quantized(bundle: Bundle, precision: str) -> BundleError:
    what = f"there are no {precision} graphs; make them with"
    if precision in bundle.precisions:
        what = f"the {precision} graphs are damaged, or not of these fp32 graphs; make them again"
        what += " with"
    return BundleError(f"{bundle.path}: {what}: {bundle.making(precision)}")


def _require_compiler(capabilities: tuple[str, ...], request: BuildRequest) -> None:
    try:
        KernelCompiler().wanted(capabilities)
    except MissingDependencyError as error:
        if request.kernels:
            raise
        raise MissingDependencyError(
            f"{error}; or build the engines alone with --no-kernels, and the kernels elsewhere"
        ) from error


def _require_onnx() -> None:
    if importlib.util.find_spec("onnx") is None:
        raise missing("onnx", "build")
