"""What a quantized graph is judged by: logits, its own or those of the graph that reads it; its
images, if it gives any; where no logits follow from it otherwise, what it gives itself.

A transformer may end with hidden states, from which another graph makes the logits. That is the
next run in the family's program that gives logits and reads a view which the transformer wrote.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from fewstep.build.recorded_inputs import row_axis
from fewstep.runtime.bundle import Bundle
from fewstep.runtime.errors import RequestError
from fewstep.runtime.families import Family, Model, TensorKind, family_of, model_of
from fewstep.runtime.program import View

OWN: tuple[TensorKind, ...] = ("latents", "noise", "features")
"""Kinds of outputs that a graph is judged by where no logits follow from it."""


@dataclass(frozen=True)
class Readout:
    """What a graph is judged by.

    ``logits``: name of the output ``[B, N, V]``; empty if no logits follow. ``graph``: that gives
    them; empty if it is the judged one. ``reads``: of its inputs, those that the judged graph
    gives, with their names there. ``states``: names of those of them that are states of
    texts, which are compared besides. ``own``: without logits, the outputs of the judged graph, and
    along which axis each has rows for images, if along any. ``images``: whether these are images.
    """

    logits: str = ""
    graph: str = ""
    reads: Mapping[str, str] = field(default_factory=dict)
    states: tuple[str, ...] = ()
    own: Mapping[str, int | None] = field(default_factory=dict)
    images: bool = False


def readout(bundle: Bundle, graph: str) -> Readout:
    """What a graph of a bundle is judged by.

    Raises:
        RequestError: neither it nor a graph that reads it gives logits, and it gives nothing of
            :data:`OWN`.
        BundleError: a file that programs are made of is damaged.
    """
    family, model = family_of(bundle.manifest.model.kind), model_of(bundle)
    if logits := _logits(family, model, graph):
        return Readout(logits)
    if following := _following(family, model, graph):
        return following
    outputs = model.graphs[graph].outputs
    for kinds in (("image",), OWN):
        own = {n: row_axis(each) for n, each in outputs.items() if family.kinds.get(n) in kinds}
        if own:
            return Readout(own=own, images="image" in kinds)
    raise RequestError(
        f"graph '{graph}' gives no logits, which quantization is judged by, and no graph with "
        f"logits reads what it gives; nor does it give {', '.join(('image', *OWN))}"
    )


def _following(family: Family, model: Model, graph: str) -> Readout | None:
    """The next graph that makes logits of what this one gives, if there is one."""
    if not any(_logits(family, model, name) for name in model.graphs):
        return None
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
                states = (name for name in reads.values() if family.kinds.get(name) == "states")
                return Readout(logits, run.graph, reads, tuple(states))
    return None


def _logits(family: Family, model: Model, graph: str) -> str:
    """The output of a graph that holds logits; empty if there is none."""
    outputs = model.graphs[graph].outputs
    return next((name for name in outputs if family.kinds.get(name) == "logits"), "")
