"""Which logits a quantized graph is judged by: its own, or those of the graph that reads it.

A transformer may end with hidden states, from which another graph makes the logits. That is the
next run in the family's program that gives logits and reads a view which the transformer wrote.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from fewstep.runtime.bundle import Bundle
from fewstep.runtime.errors import RequestError
from fewstep.runtime.families import Family, Model, family_of, model_of
from fewstep.runtime.program import View


@dataclass(frozen=True)
class Readout:
    """The logits that follow from a graph.

    ``logits``: name of the output ``[B, N, V]``. ``graph``: that gives it; empty if it is the
    judged one. ``reads``: of its inputs, those that the judged graph gives, with their names there.
    """

    logits: str
    graph: str = ""
    reads: Mapping[str, str] = field(default_factory=dict)


def readout(bundle: Bundle, graph: str) -> Readout:
    """Where the logits come from that a graph of a bundle is judged by.

    Raises:
        RequestError: neither it nor a graph that reads it gives logits.
        BundleError: a file that programs are made of is damaged.
    """
    family, model = family_of(bundle.manifest.model.kind), model_of(bundle)
    if logits := _logits(family, model, graph):
        return Readout(logits)
    for key in family.corners(model, 1):
        written: dict[View, str] = {}
        for run, _ in family.program(model, key).runs():
            known = model.graphs[run.graph]
            if run.graph == graph:
                written = {run.bindings[name]: name for name in known.outputs}
                continue
            views = {name: run.bindings[name] for name in known.inputs}
            reads = {name: written[view] for name, view in views.items() if view in written}
            if reads and (logits := _logits(family, model, run.graph)):
                return Readout(logits, run.graph, reads)
    raise RequestError(
        f"graph '{graph}' gives no logits, which quantization is judged by, and no graph with "
        "logits reads what it gives"
    )


def _logits(family: Family, model: Model, graph: str) -> str:
    """The output of a graph that holds logits; empty if there is none."""
    outputs = model.graphs[graph].outputs
    return next((name for name in outputs if family.kinds.get(name) == "logits"), "")
