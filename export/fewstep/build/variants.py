"""Variants of a bundle's graphs in other precisions, made by passes over the fp32 graphs."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from typing import Any

import onnx

from fewstep.build.precision import LOW, lower
from fewstep.build.ranges import load_graph, measure_ranges
from fewstep.runtime.bundle import Bundle
from fewstep.runtime.errors import RequestError, choose

LARGEST_FP16 = 65_504.0
HEADROOM = 2.0
"""How much larger a tensor may become elsewhere than on the golden rollouts."""


@dataclass(frozen=True)
class GraphReport:
    """What became of one graph.

    ``kept``: nodes that stayed in fp32. ``out_of_range``: those of them whose tensors come too
    near to the end of float16, with the largest magnitude seen.
    """

    graph: str
    precision: str
    nodes: int
    kept: tuple[str, ...]
    largest: float
    out_of_range: dict[str, float]

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)


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
        OutputError: the bundle cannot be written.
    """
    if precision not in LOW:
        raise RequestError(choose("precision", precision, LOW))
    ranges = measure_ranges(bundle)
    files, variant, reports = {}, {}, []
    for name, info in bundle.manifest.graphs.items():
        model = load_graph(bundle, name)
        limit = LARGEST_FP16 / HEADROOM if precision == "fp16" else float("inf")
        too_large = _out_of_range(model.graph, ranges.get(name, {}), limit)
        lowered = lower(model, precision, too_large, heads=heads)
        content = lowered.model.SerializeToString(deterministic=True)
        file = f"{name}.{precision}-{hashlib.sha256(content).hexdigest()[:12]}.onnx"
        files[file] = content
        changes = {"file": file, "external": (), "precision": precision, "fp32_heads": heads}
        source = {"source_sha256": bundle.graph_sha256(name)}
        variant[name] = info.model_copy(update=changes | source).model_dump()
        largest = max(ranges.get(name, {}).values(), default=0.0)
        nodes = len(model.graph.node)
        reports.append(GraphReport(name, precision, nodes, lowered.kept, largest, too_large))
    others = bundle.manifest.model_dump()["variants"]
    hashes = {hashlib.sha256(content).hexdigest() for content in files.values()}
    # Engines of other graphs than these would be refused wherever they are loaded.
    kept = [
        engine.model_dump()
        for engine in bundle.manifest.engines
        if engine.precision != precision or engine.graph_sha256 in hashes
    ]
    changed = bundle.update(files, variants={**others, precision: variant}, engines=kept)
    return changed, tuple(reports)


def is_current(bundle: Bundle, precision: str, heads: bool | None = None) -> bool:
    """Whether the bundle has intact graphs in ``precision``, made from its fp32 graphs.

    Args:
        bundle: the bundle.
        precision: theirs; fp32 always is.
        heads: what they have to be made with; ``None`` takes either.
    """
    if precision == "fp32":
        return True
    if precision not in bundle.precisions:
        return False
    made = {name: bundle.graph(name, precision) for name in bundle.manifest.graphs}
    return all(
        info.source_sha256 == bundle.graph_sha256(name)
        and heads in (None, info.fp32_heads)
        and not bundle.damage(info.files)
        for name, info in made.items()
    )


def _out_of_range(
    graph: onnx.GraphProto, largest: dict[str, float], limit: float
) -> dict[str, float]:
    """Nodes that read or write a tensor beyond the limit (or not finite), with its magnitude."""
    found = {}
    for node in graph.node:
        seen = [largest[name] for name in (*node.input, *node.output) if name in largest]
        beyond = [value for value in seen if not value <= limit]
        if beyond:
            found[node.name] = max(beyond)
    return found
