"""``fewstep calibrate quantize``: one graph of a bundle in int8 or fp8, stored as a variant.

Flow: rollouts of the bundle → ranges of activations → which matmuls stay in higher precision →
Q/DQ graph → lint → metrics on held-out rollouts → bundle. The family names the graph; the others
stay what they are, in fp32 or fp16. Until the bundle is updated, in one piece at the end, only the
cache is written.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from fewstep.build.graphs import load_graph
from fewstep.build.overflow import measure_magnitudes, out_of_range
from fewstep.build.precision import lower
from fewstep.build.stale import why_graphs_stale
from fewstep.build.variants import Remade, remade, store, stored
from fewstep.calibration.quantize import activations, fp8
from fewstep.calibration.quantize.activations import CalibrationTable, Ranges
from fewstep.calibration.quantize.lint import require_clean
from fewstep.calibration.quantize.matmuls import Matmul, blocks, weighted_matmuls
from fewstep.calibration.quantize.plots import plot_ranking, require_plot
from fewstep.calibration.quantize.qdq import quantized
from fewstep.calibration.quantize.readout import readout
from fewstep.calibration.quantize.rollouts import Rollouts, record
from fewstep.calibration.quantize.sensitivity import Judge, Metrics, fewest_kept, rank
from fewstep.calibration.quantize.settings import (
    Settings,
    from_record,
    recorded,
    selected_by_hand,
)
from fewstep.runtime.bundle import Bundle
from fewstep.runtime.devices import Array
from fewstep.runtime.errors import BundleError, OutputError, RequestError, choose
from fewstep.runtime.families import family_of
from fewstep.runtime.files import require_writable
from fewstep.runtime.progress import Progress, no_progress
from fewstep.runtime.records import AutoChoice, GraphInfo, Keeper, QuantizationInfo


@dataclass(frozen=True)
class QuantizeRequest:
    """What is to be done to a bundle.

    ``text``: text states ``[M, L, D]`` for text-conditional bundles. ``repeat``: take settings and
    selection of matmuls from the bundle; those given say precision and other layers. ``cache``: a
    file for the ranges. ``plot``: a picture of the ranking. ``modelopt_python``: the interpreter
    that has nvidia-modelopt, for fp8.
    """

    bundle: Path
    settings: Settings = Settings()
    text: Array | None = None
    repeat: bool = False
    force: bool = False
    cache: Path | None = None
    plot: Path | None = None
    modelopt_python: Path | None = None

    @property
    def text_sha256(self) -> str | None:
        """Hash of the text states."""
        if self.text is None:
            return None
        return hashlib.sha256(np.ascontiguousarray(self.text).tobytes()).hexdigest()


@dataclass(frozen=True)
class Outcome:
    """A quantized graph: whether this call made it, its record, what is worth knowing."""

    graph: str
    precision: str
    made: bool
    info: GraphInfo
    matmuls: int
    notes: tuple[str, ...] = ()

    @property
    def record(self) -> QuantizationInfo:
        """How it was made."""
        assert self.info.quantization is not None
        return self.info.quantization

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "graph": self.graph,
            "precision": self.precision,
            "up_to_date": not self.made,
            "file": self.info.file,
            "quantized_matmuls": self.matmuls - len(self.record.kept),
            **self.record.model_dump(mode="json"),
            "notes": list(self.notes),
        }


def quantize(request: QuantizeRequest, progress: Progress = no_progress) -> Outcome:
    """Quantize a graph of a bundle, unless that was done with the same settings.

    Args:
        request: what is to be done.
        progress: called as the phases go on.

    Raises:
        RequestError: settings that do not fit, a node that is not there, tolerances that cannot be
            kept, a damaged cache, or a selection in the bundle that would be lost.
        BundleError: the bundle is damaged, or was changed meanwhile.
        MissingDependencyError: matplotlib for a plot, nvidia-modelopt for fp8.
        EngineError: ONNX Runtime or nvidia-modelopt fails.
        ExportError: the quantized graph does not pass the lint.
        OutputError: the bundle or another file cannot be written; the bundle is as before.
    """
    bundle = Bundle.read(request.bundle)
    if not os.access(bundle.path, os.W_OK):
        raise OutputError(f"{bundle.path} is not writable; copy the bundle to a folder that is")
    settings = _settings(bundle, request)
    _check_extras(bundle, request, settings)
    outcome = _as_before(bundle, request, settings)
    if outcome is None:
        outcome = _Quantization(bundle, request, settings, progress).run()
    if request.plot is not None:
        plot_ranking(outcome.record, request.plot)
    return outcome


def _settings(bundle: Bundle, request: QuantizeRequest) -> Settings:
    if not request.repeat:
        return request.settings.for_bundle(bundle)
    precision = request.settings.precision
    info = recorded(bundle, precision)
    if info is None or info.quantization is None:
        raise RequestError(
            f"there are no {precision} graphs in {bundle.path} to repeat; make them without "
            "--repeat"
        )
    if info.quantization.text_sha256 != request.text_sha256:
        raise RequestError("--repeat needs the --text that was given before")
    again, given = from_record(info, precision), request.settings
    if given.other_layers is not None:
        heads = given.fp32_heads
        again = replace(again, other_layers=given.other_layers, fp32_heads=heads)
    return again.for_bundle(bundle)


def _check_extras(bundle: Bundle, request: QuantizeRequest, settings: Settings) -> None:
    for place in filter(None, (request.cache, request.plot)):
        require_writable(place)
    if request.plot is not None:
        require_plot(request.plot)
        if settings.auto is None:
            raise RequestError("--plot shows the ranking of --auto; pass both, or neither")
    if settings.precision == "fp8":
        if request.cache is not None:
            raise RequestError("--cache is for int8: nvidia-modelopt keeps its ranges to itself")
        fp8.require_one_shape(bundle.graph(_graph(bundle)))
        fp8.require_modelopt(request.modelopt_python)
    elif request.modelopt_python is not None:
        raise RequestError("--modelopt-python goes with --precision fp8")


def _as_before(bundle: Bundle, request: QuantizeRequest, settings: Settings) -> Outcome | None:
    """What is in the bundle, if that is what is asked for; refuses to lose a selection."""
    info = recorded(bundle, settings.precision)
    if info is None or info.quantization is None or request.force:
        return None
    same_text = info.quantization.text_sha256 == request.text_sha256
    current = same_text and settings.same_as(info, bundle)
    if current and not why_graphs_stale(bundle, settings.precision):
        graph = _graph(bundle)
        matmuls = weighted_matmuls(load_graph(bundle, graph).graph)
        return Outcome(graph, settings.precision, False, info, len(matmuls))
    by_hand = selected_by_hand(info.quantization)
    if by_hand and settings.decided is None and not settings.keep and settings.auto is None:
        who = " and ".join(
            f"--{'keep' if k == 'user' else k}" for k in sorted(set(by_hand.values()))
        )
        raise RequestError(
            f"the {settings.precision} graphs keep {len(by_hand)} matmuls in higher precision "
            f"that {who} selected; quantize with them again by --repeat, select again with --auto "
            "or --keep, or drop the selection with --force"
        )
    return None


def _graph(bundle: Bundle) -> str:
    """The graph that is quantized."""
    return family_of(bundle.manifest.model.kind).quantized


class _Quantization:
    """One run of the flow."""

    def __init__(
        self, bundle: Bundle, request: QuantizeRequest, settings: Settings, progress: Progress
    ) -> None:
        self._bundle, self._request, self._settings = bundle, request, settings
        self._progress, self._notes = progress, list[str]()
        self._graph = _graph(bundle)
        self._judged = readout(bundle, self._graph)
        self._model = load_graph(bundle, self._graph)
        self._matmuls = weighted_matmuls(self._model.graph)
        self._kept = _kept(self._matmuls, settings)
        self._candidates = [each for each in self._matmuls if each.name not in self._kept]
        if not self._candidates:
            raise RequestError(
                f"nothing is left to quantize: all {len(self._matmuls)} matmuls with weights "
                "stay in higher precision; leave out a --keep"
            )
        # What is wrong with it should be known before minutes of rollouts.
        self._cached = activations.read(request.cache) if request.cache else None
        fp16 = settings.other_layers == "fp16"
        self._largest = measure_magnitudes(bundle) if fp16 else {}

    def run(self) -> Outcome:
        data, held_out = self._rollouts()
        head = load_graph(self._bundle, self._judged.graph) if self._judged.graph else None
        judge = Judge(self._model, self._judged, held_out, head)
        auto = self._settings.auto
        if self._settings.precision == "fp8":
            final = self._fp8(data)
        else:
            ranges = self._ranges(data)
            if auto is not None and self._settings.decided is None:
                auto = self._select(judge, auto, ranges)
            final = self._int8([each.name for each in self._candidates], ranges)
        require_clean(final, self._settings.precision, self._graph)
        self._progress("comparing with fp32", 0.0)
        info = self._record(data, auto, judge.metrics(final))
        made, notes = self._store(final, info), tuple(self._notes)
        precision, matmuls = self._settings.precision, len(self._matmuls)
        return Outcome(self._graph, precision, True, made, matmuls, notes)

    def _rollouts(self) -> tuple[Rollouts, Rollouts]:
        """For ranges, and held out."""
        settings = self._settings
        make = partial(
            record,
            self._bundle,
            self._graph,
            settings=settings.generation,
            text=self._request.text,
            progress=self._progress,
        )
        data = make(settings.rollouts, seed=settings.seed, what="making rollouts")
        following = settings.seed + settings.rollouts
        return data, make(settings.held_out, seed=following, what="making held-out rollouts")

    def _ranges(self, data: Rollouts) -> Ranges:
        """Of the cache, if it is of this graph, these rollouts and these options."""
        settings, path = self._settings, self._request.cache
        tensors = {each.activation for each in self._matmuls if not each.delicate}
        table = CalibrationTable(
            tool=activations.tool(),
            graph_sha256=self._bundle.graph_sha256(self._graph),
            data_sha256=data.sha256,
            method=settings.method,
            percentile=settings.percentile,
            ranges=dict.fromkeys(sorted(tensors), (0.0, 0.0)),
        )
        if self._cached is not None:
            if not (differing := self._cached.same_origin(table)):
                self._notes.append(f"ranges are those of {path}")
                return self._cached.ranges
            self._notes.append(f"the ranges in {path} were of another {differing}: made again")
        ranges = activations.measure(
            self._model,
            tensors,
            data,
            method=settings.method,
            percentile=settings.percentile,
            progress=self._progress,
        )
        if path is not None:
            activations.write(path, table.model_copy(update={"ranges": ranges}))
        return ranges

    def _select(self, judge: Judge, auto: AutoChoice, ranges: Ranges) -> AutoChoice:
        """Rank the candidates and move the most expensive to what is kept."""
        groups = [[each.name] for each in self._candidates]
        if auto.by == "block":
            graph, candidates = self._model.graph, self._candidates
            groups = [[each.name for each in block] for block in blocks(graph, candidates)]
        alone = partial(quantized, self._model, ranges=ranges)
        what = f"quantizing each {auto.by} alone"
        ranking = rank(judge, alone, groups, what, self._progress)
        auto = auto.model_copy(update={"ranking": ranking})
        count = fewest_kept(judge, partial(self._int8, ranges=ranges), auto, self._progress)
        kept = [name for cost in ranking[:count] for name in cost.nodes]
        self._kept |= dict.fromkeys(kept, "auto")
        self._candidates = [each for each in self._candidates if each.name not in self._kept]
        return auto

    def _int8(self, selected: Sequence[str], ranges: Ranges) -> onnx.ModelProto:
        fp16 = self._settings.other_layers == "fp16"
        return self._lowered(quantized(self._model, selected, ranges, fp16_scales=fp16))

    def _fp8(self, data: Rollouts) -> onnx.ModelProto:
        self._progress("quantizing with nvidia-modelopt", 0.0)
        selected = [each.name for each in self._candidates]
        python = self._request.modelopt_python
        return self._lowered(fp8.quantized(self._model, selected, data, python=python))

    def _lowered(self, model: onnx.ModelProto) -> onnx.ModelProto:
        """With what is not quantized in the type of the other layers."""
        if self._settings.other_layers == "fp32":
            return model
        keep = out_of_range(self._model.graph, self._largest.get(self._graph, {}), "fp16")
        return lower(model, "fp16", keep, heads=bool(self._settings.fp32_heads)).model

    def _record(
        self, data: Rollouts, auto: AutoChoice | None, metrics: Metrics
    ) -> QuantizationInfo:
        settings, is_fp8 = self._settings, self._settings.precision == "fp8"
        assert settings.other_layers
        return QuantizationInfo(
            tool=fp8.tool(self._request.modelopt_python) if is_fp8 else activations.tool(),
            method=settings.method,
            percentile=settings.percentile,
            rollouts=settings.rollouts,
            held_out=settings.held_out,
            seed=settings.seed,
            settings=dict(settings.generation),
            text_sha256=self._request.text_sha256,
            data_sha256=data.sha256,
            other_layers=settings.other_layers,
            kept=self._kept,
            auto=auto,
            kl_nats=metrics.kl_nats,
            token_agreement=metrics.token_agreement,
        )

    def _store(self, final: onnx.ModelProto, info: QuantizationInfo) -> GraphInfo:
        """Into the bundle as it is now: others may have added to it meanwhile."""
        with Bundle.locked(self._bundle.path) as now:
            return self._store_in(now, final, info)

    def _store_in(self, now: Bundle, final: onnx.ModelProto, info: QuantizationInfo) -> GraphInfo:
        settings = self._settings
        assert settings.other_layers is not None
        if now.graph_sha256(self._graph) != self._bundle.graph_sha256(self._graph):
            raise BundleError(f"{now.path}: the fp32 graph was changed meanwhile; run again")
        precision, heads = settings.precision, settings.fp32_heads
        made: dict[str, Remade] = {}
        for name in now.manifest.graphs:
            if name == self._graph:
                made[name] = stored(
                    now,
                    name,
                    precision,
                    final,
                    precision=precision,
                    fp32_heads=heads,
                    quantization=info,
                )
            else:
                largest = self._largest.get(name)
                made[name] = remade(now, name, settings.other_layers, heads=heads, largest=largest)
        store(now, precision, made)
        return made[self._graph].info


def _kept(matmuls: Sequence[Matmul], settings: Settings) -> dict[str, Keeper]:
    """What stays in higher precision before ``auto`` selects.

    Raises:
        RequestError: a name that is no matmul with weights.
    """
    known = [each.name for each in matmuls]
    decided: Mapping[str, Keeper] = settings.decided or dict.fromkeys(settings.keep, "user")
    for name in decided:
        if name not in known:
            hint = " (its graph is another than that of the selection)" if settings.decided else ""
            raise RequestError(choose("matmul to keep", name, known) + hint)
    if settings.decided is not None:
        return dict(settings.decided)
    rules: dict[str, Keeper] = {each.name: "rules" for each in matmuls if each.delicate}
    user: dict[str, Keeper] = {name: "user" for name in decided if name not in rules}
    return rules | user
