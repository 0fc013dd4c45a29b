"""``fewstep build``: graphs in a precision, then their engines, then the kernels beside them.

Engines are fp16 unless the caller says otherwise: it is the one reduced precision that every GPU
here has, needs no calibration, and is held to the golden rollouts (``fewstep verify``).
"""

from __future__ import annotations

import importlib.util
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast, get_args

from fewstep.build.kernels import build_kernels, dropped_kernels, kernel_notes
from fewstep.build.stale import why_graphs_stale
from fewstep.build.target import Target, target
from fewstep.runtime.bundle import Bundle
from fewstep.runtime.engines.tensorrt_api import load
from fewstep.runtime.errors import (
    BundleError,
    MissingDependencyError,
    RequestError,
    choose,
    missing,
)
from fewstep.runtime.files import require_writable_bundle
from fewstep.runtime.kernels.compile import CompiledKernels, KernelCompiler
from fewstep.runtime.progress import Progress, no_progress
from fewstep.runtime.records import BuildOptions, EngineBackend, Precision

if TYPE_CHECKING:
    from fewstep.build.checklist import Checklist
    from fewstep.build.engines import EngineReport
    from fewstep.build.variants import GraphReport

PRECISIONS: tuple[Precision, ...] = get_args(Precision)
ENGINE_PRECISION: Precision = "fp16"
"""Of engines, where the caller leaves it open."""

_QUANTIZED = ("int8", "fp8")
_TURING = "7.5"


@dataclass(frozen=True)
class BuildRequest:
    """What is to be built into a bundle.

    ``precision`` ``None``: :data:`ENGINE_PRECISION` for engines, and no other graphs.
    ``fp32_heads`` ``None``: as the bundle has them, and otherwise on unless a target has no fp32
    matmuls. ``kernels`` ``None``: with engines.
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
        if self.precision is None:
            return "fp32" if self.backend is None else ENGINE_PRECISION
        return cast(Precision, self.precision)

    @property
    def shown_precision(self) -> Precision | None:
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
        """Whether new graphs keep their last matmuls in fp32."""
        turing = self.backend == "tensorrt-rtx" and _TURING in targets
        return self.fp32_heads if self.fp32_heads is not None else not turing

    def target(self, *, building: bool = True) -> Target | None:
        """What engines are wanted for, ``None`` if none are.

        Raises:
            RequestError: as :func:`fewstep.build.target.target`.
            DeviceError: likewise.
        """
        if self.backend is None:
            return None
        precision, options = self.graph_precision, self.options
        return target(self.backend, precision, options, self.capabilities, building=building)


@dataclass(frozen=True)
class Outcome:
    """What was built; nothing of what was up to date, but for engines, which say so themselves.

    ``precision``: of graphs and engines, ``None`` where only kernels were wanted. ``notes``: why
    kernels will not load here, and which had to go.
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


def build(request: BuildRequest, progress: Progress = no_progress) -> Outcome:
    """Build what is asked for and not up to date.

    Everything that can be refused early is: names, the machine and the packages before graphs are
    made, and preflight before the builder starts.

    Args:
        request: what to build.
        progress: called as graphs, engines and kernels are made.

    Raises:
        FewstepError: as :func:`fewstep.build.engines.build_engines`,
            :func:`fewstep.build.variants.add_variant` and
            :func:`fewstep.build.kernels.build_kernels`.
    """
    bundle = Bundle.read(request.bundle)
    require_writable_bundle(bundle.path)
    if request.backend is not None:
        _require_onnx()
    wanted = request.target()
    if wanted is not None:
        load(wanted.backend)
    capabilities = wanted.capabilities if wanted else request.capabilities
    if request.with_kernels:
        _require_compiler(capabilities, request)
    graphs = _make_graphs(request, wanted, progress)
    engines: tuple[EngineReport, ...] = ()
    if wanted is not None:
        from fewstep.build.engines import build_engines

        engines = build_engines(request.bundle, wanted, force=request.force, progress=progress)
    kernels: CompiledKernels | None = None
    notes: tuple[str, ...] = ()
    if request.with_kernels:
        progress("compiling the CUDA kernels", 0.0)
        kernels = build_kernels(request.bundle, capabilities, force=request.force)
        dropped = dropped_kernels(bundle.manifest.kernels, kernels)
        notes = (*kernel_notes(capabilities), *([dropped] if dropped else []))
    return Outcome(request.shown_precision, graphs, engines, kernels, notes)


def preflight_only(request: BuildRequest, progress: Progress = no_progress) -> Preflight:
    """Make the graphs if they are not there, and run preflight; needs no builder and no GPU.

    Returns:
        The graphs that were made, what was checked, what only the device can tell, and the
        commands that come next.

    Raises:
        RequestError: no backend, or compute capabilities that it does not build for.
        EngineError: what preflight found.
    """
    if request.backend is None:
        raise RequestError("preflight is of engines: pass --backend tensorrt or tensorrt-rtx")
    _require_onnx()
    from fewstep.build.checklist import checklist
    from fewstep.build.preflight import require_buildable

    wanted = request.target(building=False)
    assert wanted is not None
    _require_no_loss(request)
    graphs = _make_graphs(request, wanted, progress)
    bundle = Bundle.read(request.bundle)
    require_buildable(bundle, wanted)
    notes = kernel_notes(wanted.capabilities) if request.with_kernels else ()
    return Preflight(wanted, graphs, checklist(bundle, request, wanted), notes)


def _require_no_loss(request: BuildRequest) -> None:
    """A preflight may make graphs, but not in the place of others that engines are built of.

    Raises:
        RequestError: it would.
    """
    bundle, precision = Bundle.read(request.bundle), request.graph_precision
    built = [info.file for info in bundle.manifest.engines if info.precision == precision]
    if precision == "fp32" or not built:
        return
    if reason := why_graphs_stale(bundle, precision, request.fp32_heads):
        raise RequestError(
            f"{bundle.path}: the {precision} graphs {reason}; this preflight would make them "
            f"again, and remove {len(built)} engines that were built of the present ones; give it "
            "a copy of the bundle, or leave out --fp32-heads and --no-fp32-heads"
        )


def _make_graphs(
    request: BuildRequest, wanted: Target | None, progress: Progress
) -> tuple[GraphReport, ...]:
    """The graphs of the precision, if it is not fp32 and they are not up to date.

    Raises:
        BundleError: graphs that only ``fewstep calibrate quantize`` makes.
    """
    bundle, precision = Bundle.read(request.bundle), request.graph_precision
    if precision == "fp32":
        return ()
    # With engines, --force means the engines: the graphs they are made of follow their source.
    forced = request.force and request.backend is None and precision not in _QUANTIZED
    reason = why_graphs_stale(bundle, precision, request.fp32_heads)
    if not (forced or reason):
        return ()
    if precision in _QUANTIZED:
        again = " again" if precision in bundle.precisions else ""
        raise BundleError(
            f"{bundle.path}: the {precision} graphs {reason}; make them{again} with: "
            f"{bundle.making(precision)}"
        )
    _require_onnx()
    from fewstep.build.variants import add_variant

    progress(f"making the {precision} graphs", 0.0)
    heads = request.heads(wanted.capabilities if wanted else ())
    return add_variant(bundle, precision, heads=heads)[1]


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
