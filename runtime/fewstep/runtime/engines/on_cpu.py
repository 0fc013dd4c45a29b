"""Which backend runs a bundle on the CPU: ONNX Runtime, or OpenVINO where it is installed.

Where both are, ``auto`` takes the one whose graphs take less time, measured once for each bundle,
precision, machine and versions (``trial.py``). ``FEWSTEP_CPU_BACKEND`` names one instead.
"""

from __future__ import annotations

import importlib.metadata
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from fewstep.runtime.bundle import Bundle
from fewstep.runtime.doctor import processor_name
from fewstep.runtime.engines import Engine
from fewstep.runtime.engines.compiled_cache import FOLDER, CompiledCache
from fewstep.runtime.engines.openvino import OpenVino, OpenVinoEngine
from fewstep.runtime.errors import RequestError, choose
from fewstep.runtime.machine import cores

BACKENDS = ("openvino", "onnxruntime")
VARIABLE = "FEWSTEP_CPU_BACKEND"


@dataclass(frozen=True)
class Choice:
    """The backend to open on the CPU, why not the others, and what to tell of it."""

    backend: str
    passed_over: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def named() -> str:
    """The backend that the environment names; empty if it names none.

    Raises:
        RequestError: it names one that there is not.
    """
    name = os.environ.get(VARIABLE, "")
    if name not in ("", *BACKENDS):
        raise RequestError(choose(f"backend in {VARIABLE}", name, BACKENDS))
    return name


def chosen(bundle: Bundle, precision: str, threads: int, measure: Callable[[str], float]) -> Choice:
    """The backend for the CPU where the caller leaves it open.

    Args:
        bundle: to run.
        precision: asked for.
        threads: asked for; 0 is as many as cores.
        measure: opens a backend, and gives milliseconds of an image's graphs.

    Raises:
        RequestError: as :func:`named`.
    """
    if name := named():
        return Choice(name)
    if not _version("openvino"):
        return Choice("onnxruntime", {"openvino": "it is not installed"})
    from fewstep.runtime.trial import tried

    precision = "fp32" if precision == "auto" else precision
    key = {
        "graphs": _hash(bundle, precision),
        "precision": precision,
        "processor": processor_name(),
        "threads": str(threads or cores()),
        **{f"{package} version": _version(package) for package in ("fewstep", *BACKENDS)},
    }
    trial = tried(bundle.path / FOLDER, key, BACKENDS, measure)
    if not trial.times_ms:
        return Choice("onnxruntime", trial.refused)  # whose own error says what to do
    best, others = trial.fastest, trial.why_not()
    if len(trial.times_ms) == 1 or not trial.fresh:
        return Choice(best, others)
    if trial.kept is None:  # the next run may measure otherwise, and make other images
        busy = "the machine was busy, or the bundle is not writable: times are not kept"
        return Choice("onnxruntime", {"openvino": busy})
    why = "; ".join(f"{name}: {reason}" for name, reason in others.items())
    note = f"backend {best} is the fastest here ({why}); kept in {trial.kept}"
    return Choice(best, others, (note,))


def open_openvino(bundle: Bundle, graph: str, precision: str, threads: int) -> Engine:
    """OpenVINO's engine of one graph; in fp32 of one whose weights alone are int8.

    Raises:
        MissingDependencyError: OpenVINO is not installed.
        EngineError: the CPU does not compute in the precision, or OpenVINO refuses the graph.
        BundleError: the bundle has no such graph, or it is damaged.
    """
    api = OpenVino.load()
    of = api.graphs(precision)
    record = bundle.graph(graph, of).quantization
    if record is not None and record.weights_only:
        of, precision = "fp32", "fp32"  # OpenVINO 2026.4 crashes on tables of embeddings in int8
    path, info = bundle.graph_path(graph, of), bundle.graph(graph, of)
    key = (bundle.graph_sha256(graph, of), api.hint(precision), api.version, processor_name())
    cache = CompiledCache(bundle.path, f"{graph}-{precision}", key)
    return OpenVinoEngine(api, graph, path, info, precision=precision, threads=threads, cache=cache)


def _hash(bundle: Bundle, precision: str) -> str:
    """Of all graphs that the bundle has in a precision, or of those in fp32."""
    of = precision if precision in bundle.precisions else "fp32"
    return " ".join(bundle.graph_sha256(name, of) for name in sorted(bundle.manifest.graphs))


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""
