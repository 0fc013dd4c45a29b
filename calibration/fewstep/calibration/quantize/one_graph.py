"""Quantizing one graph of a bundle: ranges, what stays in higher precision, Q/DQ, lint, metrics."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import onnx

from fewstep.build.graphs import CONVOLUTIONS, load_graph
from fewstep.build.norms import fp16_norms, reasons_for_fp32, shortfall
from fewstep.build.overflow import out_of_range
from fewstep.build.precision import lower
from fewstep.calibration.quantize import activations, fp8, weights
from fewstep.calibration.quantize.activations import Ranges
from fewstep.calibration.quantize.by_graph import matmuls_of
from fewstep.calibration.quantize.cache import CalibrationTable, RangeCache
from fewstep.calibration.quantize.judge import Judge
from fewstep.calibration.quantize.lint import require_clean
from fewstep.calibration.quantize.matmuls import Matmul, blocks
from fewstep.calibration.quantize.qdq import quantized
from fewstep.calibration.quantize.readout import readout
from fewstep.calibration.quantize.rollouts import Rollouts
from fewstep.calibration.quantize.sensitivity import Build, fewest_kept, rank
from fewstep.calibration.quantize.settings import Settings
from fewstep.runtime.bundle import Bundle
from fewstep.runtime.errors import RequestError, choose
from fewstep.runtime.families import family_of
from fewstep.runtime.progress import Progress
from fewstep.runtime.records import AutoChoice, Keeper, Metrics, QuantizationInfo


@dataclass(frozen=True)
class Made:
    """A quantized graph, how it was made, and what is worth knowing."""

    model: onnx.ModelProto
    record: QuantizationInfo
    notes: tuple[str, ...]


class OneGraph:
    """A graph that is to be quantized.

    Args:
        bundle: the bundle.
        name: of the graph.
        settings: its own, with nothing left open.
        text_sha256: hash of the text that rollouts are made of.
        python: the interpreter that has nvidia-modelopt, for fp8.

    Raises:
        RequestError: a matmul to keep that is not there, or nothing is left to quantize.
        BundleError: the graph is damaged.
    """

    def __init__(
        self,
        bundle: Bundle,
        name: str,
        settings: Settings,
        *,
        text_sha256: str | None = None,
        python: Path | None = None,
    ) -> None:
        self.name = name
        self._bundle, self._settings = bundle, settings
        self._text_sha256, self._python = text_sha256, python
        self._judged = readout(bundle, name)
        self._model = load_graph(bundle, name)
        self._weights_only = name in family_of(bundle.manifest.model.kind).weights_only
        self._matmuls = matmuls_of(bundle, name, self._model.graph)
        self._kept = _kept(self._matmuls, settings)
        self._candidates = [each for each in self._matmuls if each.name not in self._kept]
        self._notes = list[str]()
        if not self._matmuls:
            what = "matmuls or convolutions" if self._judged.images else "matmuls"
            raise RequestError(f"{name} has no {what} with weights, so nothing to quantize")
        if not self._candidates:
            raise RequestError(
                f"nothing is left to quantize in {name}: all {len(self._matmuls)} matmuls with "
                "weights stay in higher precision; leave out a --keep"
            )

    @property
    def matmuls(self) -> int:
        """How many matmuls with weights there are."""
        return len(self._matmuls)

    def made(
        self,
        data: Rollouts,
        held_out: Rollouts,
        cache: RangeCache,
        largest: Mapping[str, float],
        progress: Progress,
    ) -> Made:
        """The quantized graph.

        Args:
            data: rollouts that ranges are measured on.
            held_out: rollouts that it is judged on.
            cache: of ranges.
            largest: magnitudes of its tensors on the golden rollouts, for other layers in fp16.
            progress: called as the phases go on.

        Raises:
            RequestError: tolerances that cannot be kept.
            EngineError: ONNX Runtime or nvidia-modelopt fails.
            ExportError: the graph does not pass the lint.
            OutputError: a file cannot be written.
        """
        head = load_graph(self._bundle, self._judged.graph) if self._judged.graph else None
        judge = Judge(self._model, self._judged, held_out, head)
        auto = self._settings.auto
        lowered = self._lowering(largest)
        if self._settings.precision == "fp8":
            final = lowered(self._fp8(data, progress))
        else:
            ranges = {} if self._weights_only else self._ranges(data, cache, progress)
            fp16 = self._settings.other_layers == "fp16"
            quantized = partial(self._quantized, ranges=ranges, fp16_scales=fp16)

            def build(selected: Sequence[str]) -> onnx.ModelProto:
                return lowered(quantized(selected))

            if auto is not None and self._settings.decided is None:
                auto = self._select(judge, auto, ranges, build, progress)
            final = build([each.name for each in self._candidates])
        require_clean(final, self._settings.precision, self.name, weights_only=self._weights_only)
        progress("comparing with fp32", 0.0)
        record = self._record(data, auto, judge.metrics(final))
        if record.convolutions:
            self._notes.append(
                "ONNX Runtime runs convolutions in int8 slower than in fp32, so with it this graph "
                "stays fp32; OpenVINO and TensorRT run it in int8"
            )
        return Made(final, record, tuple(self._notes))

    def _ranges(self, data: Rollouts, cache: RangeCache, progress: Progress) -> Ranges:
        """Of the cache, if it is of this graph, these rollouts and these options."""
        settings = self._settings
        tensors = {each.activation for each in self._matmuls if not each.delicate}
        table = CalibrationTable(
            tool=activations.tool(),
            graph_sha256=self._bundle.graph_sha256(self.name),
            data_sha256=data.sha256,
            method=settings.method,
            percentile=settings.percentile,
            ranges=dict.fromkeys(sorted(tensors), (0.0, 0.0)),
        )
        ranges, note = cache.find(self.name, table)
        self._notes += [note] if note else []
        if ranges is None:
            ranges = activations.measure(
                self._model,
                tensors,
                data,
                method=settings.method,
                percentile=settings.percentile,
                progress=progress,
            )
            cache.keep(self.name, table.model_copy(update={"ranges": ranges}))
        return ranges

    def _select(
        self,
        judge: Judge,
        auto: AutoChoice,
        ranges: Ranges,
        build: Build,
        progress: Progress,
    ) -> AutoChoice:
        """Rank the candidates and move the most expensive to what is kept."""
        groups = [[each.name] for each in self._candidates]
        if auto.by == "block":
            graph, candidates = self._model.graph, self._candidates
            groups = [[each.name for each in block] for block in blocks(graph, candidates)]
        alone = partial(self._quantized, ranges=ranges)
        what = f"quantizing each {auto.by} alone"
        ranking = rank(judge, alone, groups, what, progress)
        auto = auto.model_copy(update={"ranking": ranking})
        try:
            count = fewest_kept(judge, build, auto, progress)
        except RequestError as error:
            raise RequestError(f"{self.name}: {error}") from error
        kept = [name for cost in ranking[:count] for name in cost.nodes]
        self._kept |= dict.fromkeys(kept, "auto")
        self._candidates = [each for each in self._candidates if each.name not in self._kept]
        return auto

    def _quantized(
        self, selected: Sequence[str], ranges: Ranges, *, fp16_scales: bool = False
    ) -> onnx.ModelProto:
        if self._weights_only:
            return weights.quantized(self._model, selected, fp16_scales=fp16_scales)
        return quantized(self._model, selected, ranges, fp16_scales=fp16_scales)

    def _fp8(self, data: Rollouts, progress: Progress) -> onnx.ModelProto:
        progress("quantizing with nvidia-modelopt", 0.0)
        selected = [each.name for each in self._candidates]
        return fp8.quantized(self._model, selected, data, python=self._python)

    def _lowering(
        self, largest: Mapping[str, float]
    ) -> Callable[[onnx.ModelProto], onnx.ModelProto]:
        """What puts all that is not quantized into the type of the other layers."""
        if self._settings.other_layers == "fp32":
            return lambda model: model
        graph, heads = self._model.graph, bool(self._settings.fp32_heads)
        keep = out_of_range(graph, largest, "fp16")
        in_fp32 = reasons_for_fp32(self._bundle, self.name, graph, largest, "fp16")
        released = fp16_norms(graph, {*in_fp32, *keep})
        if released:  # as in fp16, or not at all
            fp16 = lower(self._model, "fp16", keep, heads=heads, released=released).model
            released = () if shortfall(self._bundle, self.name, fp16) else released
        return lambda model: lower(model, "fp16", keep, heads=heads, released=released).model

    def _convolutions(self) -> bool:
        """Whether any is quantized."""
        operators = {node.name: node.op_type for node in self._model.graph.node}
        return any(operators[each.name] in CONVOLUTIONS for each in self._candidates)

    def _record(
        self, data: Rollouts, auto: AutoChoice | None, metrics: Metrics
    ) -> QuantizationInfo:
        settings, is_fp8 = self._settings, self._settings.precision == "fp8"
        assert settings.other_layers
        return QuantizationInfo(
            tool=fp8.tool(self._python) if is_fp8 else activations.tool(),
            method=settings.method,
            percentile=settings.percentile,
            rollouts=settings.rollouts,
            held_out=settings.held_out,
            seed=settings.seed,
            settings=dict(settings.generation),
            text_sha256=self._text_sha256,
            data_sha256=data.sha256,
            other_layers=settings.other_layers,
            weights_only=self._weights_only,
            convolutions=self._convolutions(),
            kept=self._kept,
            auto=auto,
            **metrics.model_dump(),
        )


def _kept(matmuls: Sequence[Matmul], settings: Settings) -> dict[str, Keeper]:
    """What stays in higher precision before ``auto`` selects.

    Raises:
        RequestError: it was decided of a matmul that is not there.
    """
    if settings.decided is not None:
        known = [each.name for each in matmuls]
        for name in settings.decided:
            if name not in known:
                raise RequestError(
                    choose("matmul to keep", name, known)
                    + " (its graph is another than that of the selection)"
                )
        return dict(settings.decided)
    rules: dict[str, Keeper] = {each.name: "rules" for each in matmuls if each.delicate}
    asked = [each.name for each in matmuls if each.name in settings.keep]
    user: dict[str, Keeper] = {name: "user" for name in asked if name not in rules}
    return rules | user
