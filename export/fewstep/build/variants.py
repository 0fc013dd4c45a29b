"""Variants of a bundle's graphs in other precisions, made by passes over the fp32 graphs.

A variant holds every graph of the bundle. In fp16 and bf16 all are lowered; in int8 and fp8
those that the family names are quantized, and the others are in fp32 or fp16 (:func:`remade`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import onnx

from fewstep.build.graphs import load_graph
from fewstep.build.large import files_of
from fewstep.build.norms import fp16_norms, reasons_for_fp32, shortfall
from fewstep.build.overflow import measure_magnitudes, out_of_range
from fewstep.build.precision import LOW, lower
from fewstep.runtime.bundle import Bundle, graph_hash
from fewstep.runtime.errors import RequestError, choose
from fewstep.runtime.records import GraphInfo


@dataclass(frozen=True)
class GraphReport:
    """What became of one graph.

    ``kept``: nodes that stayed in fp32. ``out_of_range``: those of them whose tensors come too
    near to the end of float16, with the largest magnitude seen. ``fp32_norms``: norms over
    channels that stayed for another reason, with that reason (:mod:`fewstep.build.norms`).
    """

    graph: str
    precision: str
    nodes: int
    kept: tuple[str, ...]
    largest: float
    out_of_range: dict[str, float]
    fp32_norms: dict[str, str]

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Remade:
    """A graph for a variant: its description, and its files by name; none if they are fp32's."""

    info: GraphInfo
    files: dict[str, bytes | memoryview]
    report: GraphReport | None = None


def remade(
    bundle: Bundle,
    name: str,
    precision: str,
    *,
    heads: bool | None = None,
    largest: Mapping[str, float] | None = None,
) -> Remade:
    """A graph of the bundle in a precision, for a variant.

    Args:
        bundle: the bundle.
        name: of the graph.
        precision: ``fp32``, which shares the file of the fp32 graph, or one of ``LOW``.
        heads: as in :func:`fewstep.build.precision.lower`.
        largest: magnitudes of the graph's tensors, from :func:`measure_magnitudes`. Without them
            norms stay fp32.

    Raises:
        BundleError: the graph is damaged, or the golden rollouts are.
        EngineError: ONNX Runtime cannot run the graph that was made.
    """
    source = {"source_sha256": bundle.graph_sha256(name)}
    if precision == "fp32":
        return Remade(bundle.graph(name).model_copy(update=source), {})
    model, seen = load_graph(bundle, name), largest or {}
    too_large = out_of_range(model.graph, seen, precision)
    in_fp32 = reasons_for_fp32(bundle, name, model.graph, seen, precision)
    released = fp16_norms(model.graph, {*in_fp32, *too_large})
    lowered = lower(model, precision, too_large, heads=bool(heads), released=released)
    if released and (why := shortfall(bundle, name, lowered.model)):
        in_fp32 |= dict.fromkeys(released, why)
        lowered = lower(model, precision, too_large, heads=bool(heads))
    made = stored(bundle, name, precision, lowered.model, precision=precision, fp32_heads=heads)
    report = GraphReport(
        graph=name,
        precision=precision,
        nodes=len(model.graph.node),
        kept=lowered.kept,
        largest=max(seen.values(), default=0.0),
        out_of_range=too_large,
        fp32_norms=in_fp32,
    )
    return Remade(made.info, made.files, report)


def stored(
    bundle: Bundle, name: str, variant: str, model: onnx.ModelProto, **described: Any
) -> Remade:
    """A graph made from the fp32 graph ``name``, under a file name of its contents.

    Args:
        bundle: the bundle.
        name: of the graph.
        variant: what goes into the file name.
        model: its contents.
        described: fields of its :class:`GraphInfo`.
    """
    digest = hashlib.sha256()
    for content in files_of(model, name).values():
        digest.update(content)
    file, *external = files = files_of(model, f"{name}.{variant}-{digest.hexdigest()[:12]}.onnx")
    source = bundle.graph_sha256(name)
    changes = {"file": file, "external": tuple(external), "source_sha256": source}
    return Remade(bundle.graph(name).model_copy(update=changes | described), files)


def store(bundle: Bundle, precision: str, made: Mapping[str, Remade]) -> Bundle:
    """Store a variant, in the place of any of its precision, without engines of other graphs.

    Args:
        bundle: as :meth:`Bundle.locked` gives it, so that nothing of others is lost.
        precision: of the variant.
        made: its graphs by name.

    Raises:
        OutputError: the bundle cannot be written; it is as before.
    """
    files = {file: content for each in made.values() for file, content in each.files.items()}
    variant = {name: each.info.model_dump() for name, each in made.items()}
    others = bundle.manifest.model_dump()["variants"]
    hashes = {
        graph_hash(hashlib.sha256(content).hexdigest() for content in each.files.values())
        if each.files
        else bundle.graph_sha256(name)
        for name, each in made.items()
    }
    # Engines of other graphs than these would be refused wherever they are loaded.
    kept = [
        engine.model_dump()
        for engine in bundle.manifest.engines
        if engine.precision != precision or engine.graph_sha256 in hashes
    ]
    return bundle.update(files, variants={**others, precision: variant}, engines=kept)


def add_variant(
    bundle: Bundle, precision: str, *, heads: bool = True
) -> tuple[Bundle, tuple[GraphReport, ...]]:
    """Make every graph of a bundle in ``precision`` and store them, in the place of any it has.

    Engines that were built from graphs which are replaced by others go with them.

    Args:
        bundle: a bundle with fp32 graphs and golden rollouts.
        precision: ``fp16`` or ``bf16``.
        heads: as in :func:`fewstep.build.precision.lower`.

    Raises:
        RequestError: another precision.
        BundleError: no golden rollouts, or damage.
        EngineError: ONNX Runtime cannot run a graph.
        OutputError: the bundle cannot be written.
    """
    if precision not in LOW:
        raise RequestError(choose("precision", precision, LOW))
    made = _lowered(bundle, precision, heads)
    with Bundle.locked(bundle.path) as now:
        if _sources(now) != _sources(bundle):  # others have changed graphs meanwhile
            made = _lowered(now, precision, heads)
        changed = store(now, precision, made)
    return changed, tuple(each.report for each in made.values() if each.report is not None)


def _lowered(bundle: Bundle, precision: str, heads: bool) -> dict[str, Remade]:
    """Every graph of a bundle in a lower precision."""
    largest = measure_magnitudes(bundle)
    return {
        name: remade(bundle, name, precision, heads=heads, largest=largest.get(name))
        for name in bundle.manifest.graphs
    }


def _sources(bundle: Bundle) -> dict[str, str]:
    """Hashes of the fp32 graphs."""
    return {name: bundle.graph_sha256(name) for name in bundle.manifest.graphs}
