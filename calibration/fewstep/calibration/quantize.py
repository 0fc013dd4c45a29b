"""``fewstep calibrate quantize``: a bundle's transformer in int8 or fp8, stored as a variant.

Flow: rollouts of the bundle → ranges of activations → which products stay in higher precision →
Q/DQ graph → lint → figures on held-out rollouts → bundle. Decoder and policies stay what they are,
in fp32 or fp16. Until the bundle is updated, in one piece at the end, only the cache is written.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from fewstep.build.precision import lower
from fewstep.build.ranges import load_graph, measure_ranges
from fewstep.build.variants import Remade, is_current, out_of_range, remade, store, stored
from fewstep.calibration import activations, fp8
from fewstep.calibration.activations import CalibrationTable, Ranges
from fewstep.calibration.lint import require_clean
from fewstep.calibration.products import Product, blocks, weighted_products
from fewstep.calibration.qdq import quantized
from fewstep.calibration.rollouts import Rollouts, record
from fewstep.calibration.sensitivity import Figures, Judge, fewest_kept, rank
from fewstep.calibration.sensitivity_plot import plot_ranking, require_plot
from fewstep.calibration.settings import Settings, chosen_by_hand, from_record, recorded
from fewstep.runtime.bundle import Bundle
from fewstep.runtime.devices import Array
from fewstep.runtime.errors import BundleError, OutputError, RequestError, choose
from fewstep.runtime.records import AutoChoice, GraphInfo, Keeper, QuantizationInfo

GRAPH = "transformer"
"""What is quantized. The decoder runs once per image; policies are small and feed decisions."""

Progress = Callable[[str, float], None]
"""Takes the phase and the fraction of it that is done."""


@dataclass(frozen=True)
class QuantizeRequest:
    """What is to be done to a bundle.

    ``text``: text states ``[M, L, D]`` for text-conditional bundles. ``repeat``: take settings and
    choice of products from the bundle; those given say precision and other layers. ``cache``: a
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
    """A quantized transformer: whether this call made it, its record, what is worth knowing."""

    precision: str
    made: bool
    info: GraphInfo
    products: int
    notes: tuple[str, ...] = ()

    @property
    def record(self) -> QuantizationInfo:
        """How it was made."""
        assert self.info.quantization is not None
        return self.info.quantization

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "precision": self.precision,
            "up_to_date": not self.made,
            "file": self.info.file,
            "quantized_products": self.products - len(self.record.kept),
            **self.record.model_dump(mode="json"),
            "notes": list(self.notes),
        }


def quantize(request: QuantizeRequest, progress: Progress | None = None) -> Outcome:
    """Quantize the transformer of a bundle, unless that was done with the same settings.

    Args:
        request: what is to be done.
        progress: called as the phases go on.

    Raises:
        RequestError: settings that do not fit, a node that is not there, bars that cannot be met,
            a damaged cache, or a choice in the bundle that would be lost.
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
    _check_extras(request, settings)
    outcome = _as_before(bundle, request, settings)
    if outcome is None:
        outcome = _Quantization(bundle, request, settings, progress or (lambda *_: None)).run()
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


def _check_extras(request: QuantizeRequest, settings: Settings) -> None:
    if request.plot is not None:
        require_plot(request.plot)
        if settings.auto is None:
            raise RequestError("--plot shows the ranking of --auto; pass both, or neither")
    if settings.precision == "fp8":
        if request.cache is not None:
            raise RequestError("--cache is for int8: nvidia-modelopt keeps its ranges to itself")
        fp8.require_modelopt(request.modelopt_python)
    elif request.modelopt_python is not None:
        raise RequestError("--modelopt-python goes with --precision fp8")


def _as_before(bundle: Bundle, request: QuantizeRequest, settings: Settings) -> Outcome | None:
    """What is in the bundle, if that is what is asked for; refuses to lose a choice."""
    info = recorded(bundle, settings.precision)
    if info is None or info.quantization is None or request.force:
        return None
    same_text = info.quantization.text_sha256 == request.text_sha256
    if same_text and settings.same_as(info) and is_current(bundle, settings.precision):
        products = weighted_products(load_graph(bundle, GRAPH).graph)
        return Outcome(settings.precision, False, info, len(products))
    by_hand = chosen_by_hand(info.quantization)
    if by_hand and settings.decided is None and not settings.keep and settings.auto is None:
        who = " and ".join(
            f"--{'keep' if k == 'user' else k}" for k in sorted(set(by_hand.values()))
        )
        raise RequestError(
            f"the {settings.precision} graphs keep {len(by_hand)} products in higher precision "
            f"that {who} chose; quantize with them again by --repeat, choose again with --auto or "
            "--keep, or drop the choice with --force"
        )
    return None


class _Quantization:
    """One run of the flow."""

    def __init__(
        self, bundle: Bundle, request: QuantizeRequest, settings: Settings, progress: Progress
    ) -> None:
        self._bundle, self._request, self._settings = bundle, request, settings
        self._progress, self._notes = progress, list[str]()
        self._model = load_graph(bundle, GRAPH)
        self._products = weighted_products(self._model.graph)
        self._kept = _kept(self._products, settings)
        self._candidates = [each for each in self._products if each.name not in self._kept]
        if not self._candidates:
            raise RequestError(
                f"nothing is left to quantize: all {len(self._products)} products with weights "
                "stay in higher precision; leave out a --keep"
            )
        # What is wrong with it should be known before minutes of rollouts.
        self._cached = activations.read(request.cache) if request.cache else None
        fp16 = settings.other_layers == "fp16"
        self._largest = measure_ranges(bundle) if fp16 else {}

    def run(self) -> Outcome:
        data, held_out = self._rollouts()
        judge = Judge(self._model, held_out)
        auto = self._settings.auto
        if self._settings.precision == "fp8":
            final = self._fp8(data)
        else:
            ranges = self._ranges(data)
            if auto is not None and self._settings.decided is None:
                auto = self._choose(judge, auto, ranges)
            final = self._int8([each.name for each in self._candidates], ranges)
        require_clean(final, self._settings.precision)
        self._progress("comparing with fp32", 0.0)
        info = self._record(data, auto, judge.figures(final))
        made = self._store(final, info)
        return Outcome(
            self._settings.precision, True, made, len(self._products), tuple(self._notes)
        )

    def _rollouts(self) -> tuple[Rollouts, Rollouts]:
        """For ranges, and held out."""
        settings = self._settings
        assert settings.steps and settings.schedule
        make = partial(
            record,
            self._bundle,
            steps=settings.steps,
            schedule=settings.schedule,
            text=self._request.text,
        )
        held_out_seed = settings.seed + settings.rollouts
        data = make(settings.rollouts, seed=settings.seed, told=self._told("making rollouts"))
        return data, make(
            settings.held_out, seed=held_out_seed, told=self._told("making held-out rollouts")
        )

    def _ranges(self, data: Rollouts) -> Ranges:
        """Of the cache, if it is of this graph, these rollouts and these options."""
        settings, path = self._settings, self._request.cache
        tensors = {each.activation for each in self._products if not each.delicate}
        table = CalibrationTable(
            tool=activations.tool(),
            graph_sha256=self._bundle.graph_sha256(GRAPH),
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
            told=self._told("measuring ranges"),
        )
        if path is not None:
            activations.write(path, table.model_copy(update={"ranges": ranges}))
        return ranges

    def _choose(self, judge: Judge, auto: AutoChoice, ranges: Ranges) -> AutoChoice:
        """Rank the candidates and move the most expensive to what is kept."""
        groups = [[each.name] for each in self._candidates]
        if auto.by == "block":
            graph, candidates = self._model.graph, self._candidates
            groups = [[each.name for each in block] for block in blocks(graph, candidates)]
        alone = partial(quantized, self._model, ranges=ranges)
        ranking = rank(judge, alone, groups, self._told(f"quantizing each {auto.by} alone"))
        auto = auto.model_copy(update={"ranking": ranking})
        final = partial(self._int8, ranges=ranges)
        count = fewest_kept(judge, final, auto, self._told("choosing what to keep"))
        kept = [name for cost in ranking[:count] for name in cost.nodes]
        self._kept |= dict.fromkeys(kept, "auto")
        self._candidates = [each for each in self._candidates if each.name not in self._kept]
        return auto

    def _int8(self, chosen: Sequence[str], ranges: Ranges) -> onnx.ModelProto:
        fp16 = self._settings.other_layers == "fp16"
        return self._lowered(quantized(self._model, chosen, ranges, fp16_scales=fp16))

    def _fp8(self, data: Rollouts) -> onnx.ModelProto:
        self._progress("quantizing with nvidia-modelopt", 0.0)
        chosen = [each.name for each in self._candidates]
        python = self._request.modelopt_python
        return self._lowered(fp8.quantized(self._model, chosen, data, python=python))

    def _lowered(self, model: onnx.ModelProto) -> onnx.ModelProto:
        """With what is not quantized in the type of the other layers."""
        if self._settings.other_layers == "fp32":
            return model
        keep = out_of_range(self._model.graph, self._largest.get(GRAPH, {}), "fp16")
        return lower(model, "fp16", keep, heads=bool(self._settings.fp32_heads)).model

    def _record(
        self, data: Rollouts, auto: AutoChoice | None, figures: Figures
    ) -> QuantizationInfo:
        settings, is_fp8 = self._settings, self._settings.precision == "fp8"
        assert settings.steps and settings.schedule and settings.other_layers
        return QuantizationInfo(
            tool=fp8.tool(self._request.modelopt_python) if is_fp8 else activations.tool(),
            method=settings.method,
            percentile=settings.percentile,
            rollouts=settings.rollouts,
            held_out=settings.held_out,
            seed=settings.seed,
            steps=settings.steps,
            schedule=settings.schedule,
            text_sha256=self._request.text_sha256,
            data_sha256=data.sha256,
            other_layers=settings.other_layers,
            kept=self._kept,
            auto=auto,
            kl_nats=figures.kl_nats,
            token_agreement=figures.token_agreement,
        )

    def _store(self, final: onnx.ModelProto, info: QuantizationInfo) -> GraphInfo:
        """Into the bundle as it is now: others may have added to it meanwhile."""
        settings, now = self._settings, Bundle.read(self._bundle.path)
        assert settings.other_layers is not None
        if now.graph_sha256(GRAPH) != self._bundle.graph_sha256(GRAPH):
            raise BundleError(f"{now.path}: the fp32 transformer was changed meanwhile; run again")
        heads = settings.fp32_heads
        made: dict[str, Remade] = {}
        for name in now.manifest.graphs:
            if name == GRAPH:
                described = {"fp32_heads": heads, "quantization": info}
                precision = settings.precision
                made[name] = stored(now, name, precision, final, precision=precision, **described)
            else:
                largest = self._largest.get(name)
                made[name] = remade(now, name, settings.other_layers, heads=heads, largest=largest)
        store(now, settings.precision, made)
        return made[GRAPH].info

    def _told(self, phase: str) -> Callable[[float], None]:
        self._progress(phase, 0.0)
        return partial(self._progress, phase)


def _kept(products: Sequence[Product], settings: Settings) -> dict[str, Keeper]:
    """What stays in higher precision before ``auto`` chooses.

    Raises:
        RequestError: a name that is no product with weights.
    """
    known = [each.name for each in products]
    decided: Mapping[str, Keeper] = settings.decided or dict.fromkeys(settings.keep, "user")
    for name in decided:
        if name not in known:
            hint = " (its graph is another than that of the choice)" if settings.decided else ""
            raise RequestError(choose("product to keep", name, known) + hint)
    if settings.decided is not None:
        return dict(settings.decided)
    rules: dict[str, Keeper] = {each.name: "rules" for each in products if each.delicate}
    user: dict[str, Keeper] = {name: "user" for name in decided if name not in rules}
    return rules | user
