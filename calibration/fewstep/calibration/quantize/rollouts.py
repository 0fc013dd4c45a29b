"""Calibration data: what a graph is fed while the bundle makes images.

Ranges measured on random inputs belong to no image. Rollouts of the bundle itself pass through all
that the deployed graph meets: every step, both branches of guidance, and the classes, each as often
as any other (to within one rollout).

Rollout i has seed ``first seed + i``, so that calibration and held-out rollouts, whose seeds
follow, have none in common.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
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
from fewstep.runtime.generator import Generator, batches
from fewstep.runtime.observe import Call, observe
from fewstep.runtime.progress import Progress, no_progress

BATCH = 4
"""Images that are made together, with guidance twice as many rows: enough to use every core, and
little enough to keep activations small."""


@dataclass(frozen=True)
class Pass:
    """One run of a graph for some images.

    ``inputs``: by name. ``own``: the same without the rows of other branches of guidance.
    ``counted [B, N]``: positions of its own logits that matter. ``beside``: where another graph
    gives the logits (:mod:`fewstep.calibration.quantize.readout`), its own rows of what that one
    reads of others.
    """

    inputs: Mapping[str, Array]
    own: Mapping[str, Array]
    counted: npt.NDArray[np.bool_]
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
    graph: str,
    count: int,
    *,
    seed: int,
    settings: Mapping[str, Any],
    text: Array | None = None,
    what: str = "making rollouts",
    progress: Progress = no_progress,
) -> Rollouts:
    """Make ``count`` rollouts in fp32 on the CPU, and keep what one graph is fed.

    Args:
        bundle: the bundle.
        graph: one that logits follow from.
        count: rollouts, at least 1.
        seed: of the first; the others count up.
        settings: as of ``Generator.generate``; the bundle's defaults where there are none.
        text: text states ``[M, L, D]`` float32 for text-conditional bundles, taken in turns.
        what: they are for, as it is reported.
        progress: called as rollouts are made.

    Raises:
        RequestError: settings that the bundle cannot serve, no text for a text-conditional bundle,
            or a graph that no logits follow from.
        BundleError: the bundle is damaged.
        EngineError: a graph failed, or gave NaN.
        MissingDependencyError: onnxruntime or numba is not installed.
    """
    info = bundle.manifest.model.condition
    name = "class_ids" if isinstance(info, ClassCondition) else "text"
    condition: Any = {name: conditions(info, count, seed, text)}
    passes, judged = list[Pass](), readout(bundle, graph)
    progress(what, 0.0)
    with Generator.open(
        bundle, backend="onnxruntime", device="cpu", precision="fp32", max_batch=BATCH
    ) as generator:
        family, model = generator.family, generator.model
        request = generator.request(seed=seed, **condition, **settings)
        for rows in batches(count, BATCH):
            images = rows.stop - rows.start
            program = family.program(model, family.key(model, request, images, constants=False))
            inputs = family.inputs(model, request, rows)
            calls = observe(program, generator.device, generator.engines, inputs)
            made = list(_passes(family, model, graph, judged, calls, images))
            passes += _shared(model.graphs[graph], made)
            progress(what, rows.stop / count)
    return Rollouts(tuple(passes))


def _passes(
    family: Family, model: Model, graph: str, judged: Readout, calls: Iterable[Call], images: int
) -> Iterator[Pass]:
    """The runs of a graph, each with the run that makes logits of it."""
    run = None
    for call in calls:
        _require_finite(call)
        if call.graph == graph:
            run = call
        if call.graph == (judged.graph or graph) and run is not None:
            yield _pass(family, model, judged, run, call, images)
            run = None


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
        if text is None:
            raise RequestError(
                "this bundle is conditioned on text, which calibration cannot invent: give text "
                f"states [M, {info.length}, {info.width}] in a .npy file with --text"
            )
        return info.array(text)[(seed + np.arange(count)) % len(text)]
    if text is not None:
        raise RequestError("this bundle is class-conditional: leave --text out")
    random = np.random.default_rng(seed)
    ids = np.array(info.ids, np.int32)
    rounds = [random.permutation(len(ids)) for _ in range(-(-count // len(ids)))]
    return ids[np.concatenate(rounds)[:count]]


def _pass(
    family: Family, model: Model, judged: Readout, run: Call, head: Call, images: int
) -> Pass:
    """A run of a graph, and the one that gives its logits; the images' own rows are the first."""
    counted = family.counted(model, run.graph, run.inputs)
    if counted is None:
        counted = np.ones(head.outputs[judged.logits].shape[:-1], bool)
    others = {name: each for name, each in head.inputs.items() if name not in judged.reads}
    beside = {} if head is run else _own(model.graphs[head.graph], others, images)
    own = _own(model.graphs[run.graph], run.inputs, images)
    return Pass(run.inputs, own, counted[:images], beside)


def _own(graph: Tensors, inputs: Mapping[str, Array], images: int) -> dict[str, Array]:
    """The first rows of inputs, in the same memory."""
    found = {}
    for name, value in inputs.items():
        axis = row_axis(graph.inputs[name])
        found[name] = value if axis is None else value[(*[slice(None)] * axis, slice(images))]
    return found


def _shared(graph: Tensors, passes: Sequence[Pass]) -> list[Pass]:
    """The passes of one batch; what an input of a later one begins with is in the same memory.

    A cache that grows from pass to pass then takes the memory of its last state.
    """
    found: list[Pass] = []
    later: dict[str, Array] = {}
    for each in reversed(passes):
        later = {name: _part(later.get(name), value) for name, value in each.inputs.items()}
        own = _own(graph, later, len(each.counted))
        found.append(replace(each, inputs=later, own=own))
    return found[::-1]


def _part(whole: Array | None, value: Array) -> Array:
    """The beginning of an array where that is equal to ``value``, else ``value`` itself."""
    part = value if whole is None or not value.ndim else whole[: len(value)]
    return part if part.dtype == value.dtype and np.array_equal(part, value) else value
