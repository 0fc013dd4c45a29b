"""``fewstep calibrate quantize``: graphs of a bundle in int8 or fp8, stored as a variant.

Flow: rollouts of the bundle, made once for all graphs → of each graph: ranges of activations →
which matmuls stay in higher precision → Q/DQ graph → lint → metrics on held-out rollouts → bundle.
The family names the graphs; the others stay what they are, in fp32 or fp16. Until the bundle is
updated, in one piece at the end, only the cache is written.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from fewstep.build.overflow import measure_magnitudes
from fewstep.build.stale import why_graphs_stale
from fewstep.build.variants import Remade, remade, store, stored
from fewstep.calibration.quantize import fp8
from fewstep.calibration.quantize.by_graph import for_graphs, quantizable, repeated
from fewstep.calibration.quantize.cache import RangeCache
from fewstep.calibration.quantize.one_graph import Made, OneGraph
from fewstep.calibration.quantize.outcome import Outcome, QuantizedGraph
from fewstep.calibration.quantize.plots import plot_rankings, require_plot
from fewstep.calibration.quantize.rollouts import Rollouts, record
from fewstep.calibration.quantize.settings import Settings, recorded, selected_by_hand
from fewstep.runtime.bundle import Bundle
from fewstep.runtime.condition import ClassCondition
from fewstep.runtime.devices import Array
from fewstep.runtime.errors import BundleError, RequestError
from fewstep.runtime.files import require_writable, require_writable_bundle
from fewstep.runtime.progress import Progress, no_progress
from fewstep.runtime.records import GraphInfo

Asked = Mapping[str, Settings]
"""Settings by graph, with nothing left open; only keepers and tolerances differ."""


@dataclass(frozen=True)
class QuantizeRequest:
    """What is to be done to a bundle.

    ``text``: text states ``[M, L, D]`` for text-conditional bundles. ``repeat``: take settings and
    selection of matmuls from the bundle; those given say precision and other layers. ``graphs``:
    which to quantize, all that can be if none; the others stay as they are. ``cache``: a
    file for the ranges. ``plot``: a picture of the ranking. ``modelopt_python``: the interpreter
    that has nvidia-modelopt, for fp8.
    """

    bundle: Path
    settings: Settings = Settings()
    text: Array | None = None
    graphs: frozenset[str] = frozenset()
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


def quantize(request: QuantizeRequest, progress: Progress = no_progress) -> Outcome:
    """Quantize the graphs of a bundle that its family names, unless that was done with the same
    settings.

    Args:
        request: what is to be done.
        progress: called as the phases go on.

    Raises:
        RequestError: settings that do not fit, a node that is not there, tolerances that cannot be
            kept, a damaged cache, or a selection in the bundle that would be lost.
        BundleError: the bundle is damaged, or was changed meanwhile.
        MissingDependencyError: matplotlib for a plot, nvidia-modelopt for fp8.
        EngineError: ONNX Runtime or nvidia-modelopt fails.
        ExportError: a quantized graph does not pass the lint.
        OutputError: the bundle or another file cannot be written; the bundle is as before.
    """
    bundle = Bundle.read(request.bundle)
    require_writable_bundle(bundle.path)
    given = request.settings
    if request.repeat:
        asked = repeated(bundle, given, request.text_sha256)
    else:
        asked = for_graphs(bundle, given, request.graphs)
    _check_extras(bundle, request, asked)
    outcome = _as_before(bundle, request, asked)
    if outcome is None:
        outcome = _Quantization(bundle, request, asked, progress).run()
    if request.plot is not None:
        plot_rankings({each.name: each.record for each in outcome.graphs}, request.plot)
    return outcome


def _any(asked: Asked) -> Settings:
    """The settings of some graph, for what is the same of all."""
    return next(iter(asked.values()))


def _check_extras(bundle: Bundle, request: QuantizeRequest, asked: Asked) -> None:
    for place in filter(None, (request.cache, request.plot)):
        require_writable(place)
    settings = _any(asked)
    if request.plot is not None:
        require_plot(request.plot)
        if settings.auto is None:
            raise RequestError("--plot shows the ranking of --auto; pass both, or neither")
    if settings.precision == "fp8":
        if request.cache is not None:
            raise RequestError("--cache is for int8: nvidia-modelopt keeps its ranges to itself")
        for graph in asked:
            fp8.require_one_shape(graph, bundle.graph(graph))
        fp8.require_modelopt(request.modelopt_python)
    elif request.modelopt_python is not None:
        raise RequestError("--modelopt-python goes with --precision fp8")


def _as_before(bundle: Bundle, request: QuantizeRequest, asked: Asked) -> Outcome | None:
    """What is in the bundle, if that is what is asked for; refuses to lose a selection."""
    precision = _any(asked).precision
    infos = recorded(bundle, precision)
    if not infos or request.force:
        return None
    records = [each.quantization for each in infos.values() if each.quantization is not None]
    same_text = all(each.text_sha256 == request.text_sha256 for each in records)
    current = infos.keys() == asked.keys() and all(
        asked[graph].same_as(info, bundle) for graph, info in infos.items()
    )
    if same_text and current and not why_graphs_stale(bundle, precision):
        graphs = (
            QuantizedGraph(
                graph, info, len(quantizable(bundle, graph)), *_sizes(bundle, graph, info)
            )
            for graph, info in infos.items()
        )
        return Outcome(precision, False, tuple(graphs))
    by_hand = [who for each in records for who in selected_by_hand(each).values()]
    selecting = (each.keep or each.auto or each.decided is not None for each in asked.values())
    if by_hand and not any(selecting):
        who = " and ".join(f"--{'keep' if k == 'user' else k}" for k in sorted(set(by_hand)))
        raise RequestError(
            f"the {precision} graphs keep {len(by_hand)} matmuls in higher precision "
            f"that {who} selected; quantize with them again by --repeat, select again with --auto "
            "or --keep, or drop the selection with --force"
        )
    return None


def _sizes(bundle: Bundle, graph: str, info: GraphInfo) -> tuple[int, int]:
    """Bytes of the fp32 graph and of the quantized one."""
    files = bundle.manifest.files
    before, after = (
        sum(files[name].bytes for name in each.files) for each in (bundle.graph(graph), info)
    )
    return before, after


class _Quantization:
    """One run of the flow."""

    def __init__(
        self, bundle: Bundle, request: QuantizeRequest, asked: Asked, progress: Progress
    ) -> None:
        self._bundle, self._request, self._progress = bundle, request, progress
        self._settings = _any(asked)
        # What is wrong with them should be known before minutes of rollouts.
        self._graphs = [
            OneGraph(
                bundle,
                graph,
                settings,
                text_sha256=request.text_sha256,
                python=request.modelopt_python,
            )
            for graph, settings in asked.items()
        ]
        self._cache = RangeCache(request.cache)
        fp16 = self._settings.other_layers == "fp16"
        self._largest = measure_magnitudes(bundle) if fp16 else {}

    def run(self) -> Outcome:
        data, held_out = self._rollouts()
        made: dict[str, Made] = {}
        for each in self._graphs:
            largest, progress = self._largest.get(each.name, {}), self._of(each.name)
            # Taken out, so that what one graph is fed does not outlast it.
            own, judged_on = data.pop(each.name), held_out.pop(each.name)
            made[each.name] = each.made(own, judged_on, self._cache, largest, progress)
        infos = self._store(made)
        now = Bundle.read(self._bundle.path)
        graphs = tuple(
            QuantizedGraph(name, infos[name], matmuls, *_sizes(now, name, infos[name]))
            for name, matmuls in ((each.name, each.matmuls) for each in self._graphs)
        )
        return Outcome(self._settings.precision, True, graphs, self._notes(made))

    def _of(self, graph: str) -> Progress:
        """Progress that names the graph, where there are several."""
        if len(self._graphs) == 1:
            return self._progress
        return lambda what, done: self._progress(f"{graph}: {what}", done)

    def _notes(self, made: Mapping[str, Made]) -> tuple[str, ...]:
        """Of all graphs; each is named where not all are the same."""
        notes = {graph: each.notes for graph, each in made.items()}
        if len(set(notes.values())) == 1:
            return (*next(iter(notes.values())), *self._few_texts())
        named = (f"{graph}: {note}" for graph, each in notes.items() for note in each)
        return (*named, *self._few_texts())

    def _few_texts(self) -> tuple[str, ...]:
        """That the bundle's own examples are all the texts there are, if so."""
        info = self._bundle.manifest.model.condition
        if (
            isinstance(info, ClassCondition)
            or info.encoder is None
            or self._request.text is not None
        ):
            return ()
        return (
            f"the {len(info.encoder.examples)} texts of the golden rollouts are all it was judged "
            "on: give prompts with --text-file for a figure of more",
        )

    def _rollouts(self) -> tuple[dict[str, Rollouts], dict[str, Rollouts]]:
        """For ranges, and held out, by graph."""
        settings = self._settings
        make = partial(
            record,
            self._bundle,
            [each.name for each in self._graphs],
            settings=settings.generation,
            text=self._request.text,
            progress=self._progress,
        )
        data = make(settings.rollouts, seed=settings.seed, what="making rollouts")
        following = settings.seed + settings.rollouts
        return data, make(settings.held_out, seed=following, what="making held-out rollouts")

    def _store(self, made: Mapping[str, Made]) -> dict[str, GraphInfo]:
        """Into the bundle as it is now: others may have added to it meanwhile."""
        with Bundle.locked(self._bundle.path) as now:
            return self._store_in(now, made)

    def _store_in(self, now: Bundle, made: Mapping[str, Made]) -> dict[str, GraphInfo]:
        settings = self._settings
        assert settings.other_layers is not None
        for name in made:
            if now.graph_sha256(name) != self._bundle.graph_sha256(name):
                raise BundleError(f"{now.path}: the fp32 graphs were changed meanwhile; run again")
        precision, heads = settings.precision, settings.fp32_heads
        variant: dict[str, Remade] = {}
        for name in now.manifest.graphs:
            if name in made:
                own = made[name]
                described = {"fp32_heads": heads, "quantization": own.record}
                variant[name] = stored(
                    now, name, precision, own.model, precision=precision, **described
                )
            else:
                largest = self._largest.get(name)
                variant[name] = remade(
                    now, name, settings.other_layers, heads=heads, largest=largest
                )
        store(now, precision, variant)
        return {name: variant[name].info for name in made}
