"""Calibration data: what a graph is fed while the bundle makes images.

Ranges measured on random inputs belong to no image. Rollouts of the bundle itself pass through all
that the deployed graph meets: every step, both branches of guidance, and the classes, each as often
as any other (to within one rollout). Of a graph that runs more than ``MOST_RUNS`` times in a
rollout, so many runs are kept of every batch, evenly spread.

Rollout i has seed ``first seed + i``, so that calibration and held-out rollouts, whose seeds
follow, have none in common.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from fewstep.build.recorded_inputs import row_axis
from fewstep.calibration.quantize.readout import Readout, readout
from fewstep.runtime.bundle import Bundle
from fewstep.runtime.condition import ClassCondition, Condition
from fewstep.runtime.devices import Array
from fewstep.runtime.errors import EngineError, RequestError
from fewstep.runtime.families import Family, Model, Tensors
from fewstep.runtime.generator import Generator
from fewstep.runtime.observe import Call, observe
from fewstep.runtime.program import Run
from fewstep.runtime.progress import Progress, no_progress
from fewstep.runtime.request import batches

BATCH = 4
"""Images that are made together, with guidance twice as many rows: enough to use every core, and
little enough to keep activations small."""

MOST_RUNS = 16
"""Of one graph that are kept of a batch. Memory and time go by them, and more make no better graph:
docs/calibration.md."""

_GOLDEN = (math.sqrt(5) - 1) / 2


@dataclass(frozen=True)
class Pass:
    """One run of a graph for some images.

    ``inputs``: by name. ``own``: the same without the rows of other branches of guidance.
    ``counted [B, N]``: positions of its own rows that matter; ``None`` if all do. ``beside``: where
    another graph gives the logits (:mod:`fewstep.calibration.quantize.readout`), its own rows of
    what that one reads of others.
    """

    inputs: Mapping[str, Array]
    own: Mapping[str, Array]
    counted: npt.NDArray[np.bool_] | None = None
    beside: Mapping[str, Array] = field(default_factory=dict)


@dataclass(frozen=True)
class Rollouts:
    """What a graph was fed by whole rollouts, pass after pass."""

    passes: tuple[Pass, ...]

    @property
    def sha256(self) -> str:
        """Hash of all that the graph is fed."""
        digest = hashlib.sha256()
        for each in self.passes:
            for name, value in sorted(each.inputs.items()):
                digest.update(f"{name}{value.dtype}{value.shape}".encode())
                digest.update(np.ascontiguousarray(value).tobytes())
        return digest.hexdigest()


def record(
    bundle: Bundle,
    graphs: Sequence[str],
    count: int,
    *,
    seed: int,
    settings: Mapping[str, Any],
    text: Array | None = None,
    most_runs: int = MOST_RUNS,
    what: str = "making rollouts",
    progress: Progress = no_progress,
) -> dict[str, Rollouts]:
    """Make ``count`` rollouts in fp32 on the CPU, and keep what some graphs are fed.

    Args:
        bundle: the bundle.
        graphs: their names; each is one that can be judged.
        count: rollouts, at least 1.
        seed: of the first; the others count up.
        settings: as of ``Generator.generate``; the bundle's defaults where there are none.
        text: text states ``[M, L, D]`` float32 for text-conditional bundles, taken in turns.
        most_runs: of a graph that are kept of a batch.
        what: they are for, as it is reported.
        progress: called as rollouts are made.

    Raises:
        RequestError: settings that the bundle cannot serve, no text for a text-conditional bundle,
            a graph that cannot be judged, or one that does not run.
        BundleError: the bundle is damaged.
        EngineError: a graph failed, or gave NaN.
        MissingDependencyError: onnxruntime or numba is not installed.
    """
    info = bundle.manifest.model.condition
    name = "class_ids" if isinstance(info, ClassCondition) else "text"
    condition: Any = {name: conditions(info, count, seed, text)}
    judged = {graph: readout(bundle, graph) for graph in graphs}
    found: dict[str, list[Pass]] = {graph: [] for graph in graphs}
    progress(what, 0.0)
    with Generator.open(
        bundle, backend="onnxruntime", device="cpu", precision="fp32", max_batch=BATCH
    ) as generator:
        family, model = generator.family, generator.model
        request = generator.request(seed=seed, **condition, **settings)
        for batch, rows in enumerate(batches(count, BATCH)):
            images = rows.stop - rows.start
            program = family.program(model, family.key(model, request, images, constants=False))
            inputs = family.inputs(model, request, rows)
            runs = Counter(op.graph for op in program.unrolled() if isinstance(op, Run))
            recorders = {
                graph: _Recorder(
                    family, model, graph, each, images, kept(runs[graph], batch, most_runs)
                )
                for graph, each in judged.items()
            }
            for call in observe(program, generator.device, generator.engines, inputs):
                _require_finite(call)
                for recorder in recorders.values():
                    recorder.see(call)
            for graph, recorder in recorders.items():
                found[graph] += _shared(model.graphs[graph], recorder.passes, images)
            progress(what, rows.stop / count)
    if idle := [graph for graph, passes in found.items() if not passes]:
        raise RequestError(
            f"no rollout ran {', '.join(idle)}: text states leave nothing to encode, and a request "
            "draws with one decoder; give prompts with --text-file, choose the decoder with "
            "--decoder, or name the graphs to quantize with --graph"
        )
    return {graph: Rollouts(tuple(passes)) for graph, passes in found.items()}


def kept(runs: int, batch: int, most: int = MOST_RUNS) -> frozenset[int]:
    """Which runs of a graph are kept of a batch: all, or one of each of ``most`` equal parts.

    Where in its part goes by multiples of the golden ratio, which fill it evenly: so what recurs
    within a rollout, such as the timesteps of a diffusion in every iteration, is met evenly too.

    Args:
        runs: there are in the program.
        batch: which one, so that another batch has other runs.
        most: that are kept.
    """
    if runs <= most:
        return frozenset(range(runs))
    first, part = batch * most, runs / most
    places = (each + (first + each) * _GOLDEN % 1 for each in range(most))
    return frozenset(int(place * part) for place in places)


class _Recorder:
    """Keeps passes of one graph, each with the run that makes logits of it."""

    def __init__(
        self,
        family: Family,
        model: Model,
        graph: str,
        judged: Readout,
        images: int,
        wanted: frozenset[int],
    ) -> None:
        self._family, self._model, self._graph, self._judged = family, model, graph, judged
        self._images, self._wanted = images, wanted
        self._seen = 0
        self._run: Call | None = None
        self.passes = list[Pass]()

    def see(self, call: Call) -> None:
        """Keep a run if it belongs to a pass that is wanted."""
        if call.graph == self._graph:
            self._run = call if self._seen in self._wanted else None
            self._seen += 1
        if self._run is not None and call.graph == (self._judged.graph or self._graph):
            self.passes.append(self._pass(self._run, call))
            self._run = None

    def _pass(self, run: Call, last: Call) -> Pass:
        """A run of the graph, and the one that gives its logits, if that is another; the images'
        own rows are the first."""
        judged, graphs = self._judged, self._model.graphs
        counted = self._family.counted(self._model, run.graph, run.inputs)
        others = {name: each for name, each in last.inputs.items() if name not in judged.reads}
        return Pass(
            run.inputs,
            _own(graphs[run.graph], run.inputs, self._images),
            None if counted is None else counted[: self._images],
            {} if last is run else _own(graphs[last.graph], others, self._images),
        )


def _require_finite(call: Call) -> None:
    """Raise ``EngineError`` if a graph gave NaN or +∞; −∞ excludes a code."""
    for name, value in call.outputs.items():
        if value.dtype.kind == "f" and not (value < np.inf).all():
            raise EngineError(
                f"graph '{call.graph}' gave NaN or infinite numbers in '{name}' while rollouts "
                "were made; see which layer with: fewstep verify --layers"
            )


def conditions(info: Condition, count: int, seed: int, text: Array | None) -> Array:
    """What the rollouts show: classes in rounds, each round in another random order; or texts.

    Raises:
        RequestError: text for a class-conditional bundle, or none for a text-conditional one.
    """
    if not isinstance(info, ClassCondition):
        if text is None and info.encoder is not None:
            text = info.examples(len(info.encoder.examples))
        if text is None:
            raise RequestError(
                "this bundle is conditioned on text, which calibration cannot invent: give text "
                f"states [M, {info.length}, {info.width}] in a .npy file with --text-file"
            )
        return info.array(text)[(seed + np.arange(count)) % len(text)]
    if text is not None:
        raise RequestError("this bundle is class-conditional: leave --text-file out")
    random = np.random.default_rng(seed)
    ids = np.array(info.ids, np.int32)
    rounds = [random.permutation(len(ids)) for _ in range(-(-count // len(ids)))]
    return ids[np.concatenate(rounds)[:count]]


def _own(graph: Tensors, inputs: Mapping[str, Array], images: int) -> dict[str, Array]:
    """The first rows of inputs, in the same memory."""
    found = {}
    for name, value in inputs.items():
        axis = row_axis(graph.inputs[name])
        found[name] = value if axis is None else value[(*[slice(None)] * axis, slice(images))]
    return found


def _shared(graph: Tensors, passes: Sequence[Pass], images: int) -> list[Pass]:
    """The passes of one batch; what an input of a later one begins with is in the same memory.

    A cache that grows from pass to pass then takes the memory of its last state.
    """
    found: list[Pass] = []
    later: dict[str, Array] = {}
    for each in reversed(passes):
        later = {name: _part(later.get(name), value) for name, value in each.inputs.items()}
        own = _own(graph, later, images)
        found.append(replace(each, inputs=later, own=own))
    return found[::-1]


def _part(whole: Array | None, value: Array) -> Array:
    """The beginning of an array where that is equal to ``value``, else ``value`` itself."""
    part = value if whole is None or not value.ndim else whole[: len(value)]
    return part if part.dtype == value.dtype and np.array_equal(part, value) else value
