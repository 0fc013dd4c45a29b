"""What is asked for, graph by graph: tolerances by what each is judged by, and whose matmuls names
are of."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

import onnx

from fewstep.build.graphs import load_graph
from fewstep.calibration.quantize.matmuls import Matmul, weighted_matmuls
from fewstep.calibration.quantize.readout import Readout, readout
from fewstep.calibration.quantize.settings import (
    MAX_ERROR,
    MAX_KL,
    MIN_PSNR,
    MIN_TOKEN_AGREEMENT,
    Settings,
    from_record,
    recorded,
)
from fewstep.calibration.quantize.weights import stored_weights
from fewstep.runtime.bundle import Bundle
from fewstep.runtime.errors import RequestError, choose
from fewstep.runtime.families import family_of, quantized_graphs
from fewstep.runtime.records import AutoChoice

_DEFAULTS: Mapping[str, Mapping[str, float]] = {
    "logits": {"max_kl": MAX_KL, "min_token_agreement": MIN_TOKEN_AGREEMENT},
    "images": {"min_psnr": MIN_PSNR},
    "a relative error, without logits": {"max_error": MAX_ERROR},
}
"""Tolerances by what a graph is judged by."""


def for_graphs(
    bundle: Bundle, settings: Settings, chosen: Collection[str] = ()
) -> dict[str, Settings]:
    """The settings of every graph that is to be quantized, with nothing left open.

    Args:
        bundle: the bundle.
        settings: of all graphs.
        chosen: names of graphs; if none, all that the family names and that have matmuls with
            weights.

    Raises:
        RequestError: a graph that cannot be quantized, settings that the bundle cannot serve, a
            matmul to keep that is not there or in several graphs, a tolerance on what no graph is
            judged by, or a graph that cannot be judged.
        BundleError: the bundle is damaged.
    """
    complete = settings.for_bundle(bundle)
    graphs = _graphs(bundle, chosen, settings.precision)
    keep = dict.fromkeys(graphs, frozenset[str]())
    if settings.keep:
        keep = named(settings.keep, {each: _matmuls(bundle, each) for each in graphs})
    auto = _tolerances(settings.auto, {graph: readout(bundle, graph) for graph in graphs})
    return {graph: replace(complete, keep=keep[graph], auto=auto[graph]) for graph in graphs}


def _graphs(bundle: Bundle, chosen: Collection[str], precision: str) -> tuple[str, ...]:
    """Names of the graphs to quantize, in the order of the family."""
    known = quantized_graphs(bundle, precision)
    for each in chosen:
        if each not in known:
            raise RequestError(choose("graph to quantize", each, known))
    if chosen:
        return tuple(each for each in known if each in chosen)
    usual = family_of(bundle.manifest.model.kind).quantized
    named = tuple(each for each in known if each in usual)
    return tuple(each for each in named if _matmuls(bundle, each)) or named


def quantizable(bundle: Bundle, graph: str) -> tuple[Matmul, ...]:
    """The matmuls with weights of a graph of a bundle."""
    return matmuls_of(bundle, graph, load_graph(bundle, graph).graph)


def matmuls_of(bundle: Bundle, name: str, graph: onnx.GraphProto) -> tuple[Matmul, ...]:
    """The matmuls with weights of a graph that is loaded; of one that gives images convolutions
    too, of one whose weights alone are quantized tables too.

    Args:
        bundle: the bundle.
        name: of the graph.
        graph: its contents.
    """
    if name in family_of(bundle.manifest.model.kind).weights_only:
        return stored_weights(graph)
    return weighted_matmuls(graph, convolutions=readout(bundle, name).images)


def repeated(bundle: Bundle, given: Settings, text_sha256: str | None) -> dict[str, Settings]:
    """The settings of the graphs that are there, with the other layers that are given.

    Args:
        bundle: the bundle.
        given: precision, and other layers if they are to be others.
        text_sha256: of the text that is given.

    Raises:
        RequestError: there are no such graphs, or they were made with another text.
    """
    infos = recorded(bundle, given.precision)
    records = [each.quantization for each in infos.values() if each.quantization is not None]
    if not records:
        raise RequestError(
            f"there are no {given.precision} graphs in {bundle.path} to repeat; make them without "
            "--repeat"
        )
    if any(each.text_sha256 != text_sha256 for each in records):
        raise RequestError("--repeat needs the --text-file that was given before")
    again = {graph: from_record(info, given.precision) for graph, info in infos.items()}
    if given.other_layers is not None:
        layers, heads = given.other_layers, given.fp32_heads
        again = {
            graph: replace(each, other_layers=layers, fp32_heads=heads)
            for graph, each in again.items()
        }
    return {graph: each.for_bundle(bundle) for graph, each in again.items()}


def named(
    given: Collection[str], matmuls: Mapping[str, Sequence[str]]
) -> dict[str, frozenset[str]]:
    """The matmuls that are given, by the graph that each is of.

    Args:
        given: a name, or GRAPH/NAME, which any may be called by.
        matmuls: names by graph.

    Raises:
        RequestError: no matmul is called so, or those of several graphs are.
    """
    found: dict[str, set[str]] = {graph: set() for graph in matmuls}
    every = [(graph, name) for graph, names in matmuls.items() for name in names]
    for each in sorted(given):
        fitting = {(g, n): f"{g}/{n}" for g, n in every if each in (n, f"{g}/{n}")}
        if not fitting:
            alone = len(matmuls) == 1
            known = [name if alone else f"{graph}/{name}" for graph, name in every]
            raise RequestError(choose("matmul to keep", each, known))
        if len(fitting) > 1:
            raise RequestError(
                f"several graphs have a matmul to keep '{each}'; expected one of: "
                f"{', '.join(fitting.values())}"
            )
        for graph, name in fitting:
            found[graph].add(name)
    return {graph: frozenset(names) for graph, names in found.items()}


def _matmuls(bundle: Bundle, graph: str) -> list[str]:
    return [each.name for each in quantizable(bundle, graph)]


def _tolerances(
    auto: AutoChoice | None, judged: Mapping[str, Readout]
) -> dict[str, AutoChoice | None]:
    """The tolerances of every graph, on what it is judged by.

    Raises:
        RequestError: one is given that would be ignored.
    """
    if auto is None:
        return dict.fromkeys(judged)
    used = {graph: _measure(each) for graph, each in judged.items()}
    given = {
        name for each in _DEFAULTS.values() for name in each if getattr(auto, name) is not None
    }
    if ignored := sorted(given - {name for each in used.values() for name in _DEFAULTS[each]}):
        options = ", ".join(f"--{name.replace('_', '-')}" for name in ignored)
        verb, by = "is" if len(used) == 1 else "are", " and ".join(dict.fromkeys(used.values()))
        raise RequestError(f"leave {options} out: {', '.join(used)} {verb} judged by {by}")
    return {graph: _on(auto, _DEFAULTS[each]) for graph, each in used.items()}


def _measure(judged: Readout) -> str:
    """A key of :data:`_DEFAULTS`."""
    if judged.logits:
        return "logits"
    return "images" if judged.images else "a relative error, without logits"


def _on(auto: AutoChoice, defaults: Mapping[str, float]) -> AutoChoice:
    """Tolerances of these names alone, by default where none is given."""
    given = {name: getattr(auto, name) for name in defaults}
    known = {name: each for name, each in given.items() if each is not None}
    return AutoChoice.model_validate({"by": auto.by, **defaults, **known})
