"""What is asked for, graph by graph: tolerances by what each is judged by, and whose matmuls names
are of."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from fewstep.build.graphs import load_graph
from fewstep.calibration.quantize.matmuls import Matmul, weighted_matmuls
from fewstep.calibration.quantize.readout import readout
from fewstep.calibration.quantize.settings import (
    MAX_ERROR,
    MAX_KL,
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


def for_graphs(
    bundle: Bundle, settings: Settings, chosen: Collection[str] = ()
) -> dict[str, Settings]:
    """The settings of every graph that is to be quantized, with nothing left open.

    Args:
        bundle: the bundle.
        settings: of all graphs.
        chosen: names of graphs; if none, all that can be quantized and have matmuls with weights.

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
    by_logits = {graph: bool(readout(bundle, graph).logits) for graph in graphs}
    auto = _tolerances(settings.auto, by_logits)
    return {graph: replace(complete, keep=keep[graph], auto=auto[graph]) for graph in graphs}


def _graphs(bundle: Bundle, chosen: Collection[str], precision: str) -> tuple[str, ...]:
    """Names of the graphs to quantize, in the order of the family."""
    known = quantized_graphs(bundle, precision)
    for each in chosen:
        if each not in known:
            raise RequestError(choose("graph to quantize", each, known))
    if chosen:
        return tuple(each for each in known if each in chosen)
    return tuple(each for each in known if _matmuls(bundle, each)) or known


def quantizable(bundle: Bundle, graph: str) -> tuple[Matmul, ...]:
    """The matmuls with weights of a graph; of one whose weights alone are quantized, tables too."""
    weights_only = graph in family_of(bundle.manifest.model.kind).weights_only
    found = stored_weights if weights_only else weighted_matmuls
    return found(load_graph(bundle, graph).graph)


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
    auto: AutoChoice | None, by_logits: Mapping[str, bool]
) -> dict[str, AutoChoice | None]:
    """The tolerances of every graph, on what it is judged by.

    Raises:
        RequestError: one is given that would be ignored.
    """
    if auto is None:
        return dict.fromkeys(by_logits)
    on_logits = {"max_kl": MAX_KL, "min_token_agreement": MIN_TOKEN_AGREEMENT}
    on_others = {"max_error": MAX_ERROR}
    given = {name for name in (*on_logits, *on_others) if getattr(auto, name) is not None}
    used = [on_logits if logits else on_others for logits in by_logits.values()]
    if ignored := sorted(given - {name for each in used for name in each}):
        options = ", ".join(f"--{name.replace('_', '-')}" for name in ignored)
        judged = "logits" if all(by_logits.values()) else "a relative error, without logits"
        verb = "is" if len(by_logits) == 1 else "are"
        raise RequestError(f"leave {options} out: {', '.join(by_logits)} {verb} judged by {judged}")
    return {graph: _on(auto, own) for graph, own in zip(by_logits, used, strict=True)}


def _on(auto: AutoChoice, defaults: Mapping[str, float]) -> AutoChoice:
    """Tolerances of these names alone, by default where none is given."""
    given = {name: getattr(auto, name) for name in defaults}
    known = {name: each for name, each in given.items() if each is not None}
    return AutoChoice.model_validate({"by": auto.by, **defaults, **known})
