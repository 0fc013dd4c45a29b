"""``fewstep build --backend``: a bundle's graphs into engines, again only when needed.

Every engine is stored with a record of how it was made (:class:`EngineInfo`), by which ``stale.py``
knows whether it is up to date.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fewstep.build.builder_process import build_engine
from fewstep.build.preflight import require_buildable
from fewstep.build.stale import current_engine, expected_records
from fewstep.build.target import Target
from fewstep.build.tensorrt_builder import BuiltEngine, EngineRequest
from fewstep.runtime.bundle import Bundle
from fewstep.runtime.engines.tensorrt_api import load
from fewstep.runtime.errors import BundleError
from fewstep.runtime.progress import Progress, no_progress
from fewstep.runtime.records import EngineInfo


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


def build_engines(
    path: str | Path, wanted: Target, *, force: bool = False, progress: Progress = no_progress
) -> tuple[EngineReport, ...]:
    """Build the engines of every graph into a bundle.

    Each is stored as soon as it is built, so that an interrupted build goes on where it stopped.

    Args:
        path: the bundle folder.
        wanted: of :func:`fewstep.build.target.target`; the bundle must have graphs in its
            precision.
        force: build even what is up to date.
        progress: called with the graph and the builder's phase; an engine is done once it is
            stored.

    Raises:
        BundleError: no bundle at ``path``, or not in this precision, or its graphs were changed
            while engines were built.
        MissingDependencyError: the backend's module, or onnx, is not installed.
        EngineError: preflight, parser or builder refuse a graph.
        OutputError: the bundle cannot be written; engines stored before stay.
        KeyboardInterrupt: the builder has ended; engines stored before stay.
    """
    bundle, api = Bundle.read(path), load(wanted.backend)
    expected = expected_records(bundle, wanted, api)
    # Looked at once: it hashes the files.
    current = {
        name: None if force else current_engine(bundle, record) for name, record in expected.items()
    }
    if all(current.values()):
        return tuple(_report(bundle, info) for info in current.values() if info)
    profiles, reports = require_buildable(bundle, wanted), []
    for name, info in current.items():
        if info is not None:
            reports.append(_report(bundle, info))
            continue
        request = EngineRequest(
            graph=name,
            path=bundle.graph_path(name, wanted.precision),
            profiles=profiles[name],
            options=wanted.options,
            capabilities=wanted.capabilities if wanted.backend == "tensorrt-rtx" else (),
        )
        record = expected_records(bundle, wanted, api)[name]  # the bundle may have changed
        built = build_engine(api, request, _phases(progress, name))
        bundle, complete = _store(bundle, record, built)
        reports.append(_report(bundle, complete, built))
        progress(f"stored the engine of {name}", 1.0)
    return tuple(reports)


def _phases(progress: Progress, name: str) -> Progress:
    """Reports the builder's phases as those of a graph, which are not its end."""
    return lambda phase, done: progress(f"{name}: {phase}", min(done, 0.99))


def _store(bundle: Bundle, record: EngineInfo, built: BuiltEngine) -> tuple[Bundle, EngineInfo]:
    """Add an engine, in the place of those that it makes superfluous.

    The manifest is read again: others may have added to the bundle while this one was built.

    Raises:
        BundleError: the graph is another by now.
        OutputError: the bundle cannot be written.
    """
    digest = hashlib.sha256(built.content).hexdigest()[:12]  # new contents, new name
    file = f"engines/{record.graph}.{record.precision}.{record.backend}-{digest}.engine"
    complete = record.model_copy(
        update={
            "file": file,
            "seconds": round(built.seconds, 2),
            "peak_memory_bytes": built.peak_memory_bytes,
        }
    )
    with Bundle.locked(bundle.path) as now:
        if now.graph_sha256(record.graph, record.precision) != record.graph_sha256:
            raise BundleError(
                f"{now.path}: the {record.precision} graph of {record.graph} was changed while its "
                "engine was built; run the command again"
            )
        others = [each for each in now.manifest.engines if now.locate(each.file).is_file()]
        kept = [each for each in others if not _replaces(complete, each)]
        engines = [each.model_dump() for each in (*kept, complete)]
        return now.update({file: built.content}, engines=engines), complete


def _replaces(new: EngineInfo, old: EngineInfo) -> bool:
    same = (new.backend, new.graph, new.precision) == (old.backend, old.graph, old.precision)
    return same and set(old.compute_capabilities) <= set(new.compute_capabilities)


def _report(bundle: Bundle, info: EngineInfo, built: BuiltEngine | None = None) -> EngineReport:
    size = bundle.manifest.files[info.file].bytes
    return EngineReport(info, size, built is not None, built.warnings if built else ())
