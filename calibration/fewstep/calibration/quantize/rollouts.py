"""Calibration data: what a graph is fed while the bundle makes images.

Ranges measured on random inputs belong to no image. Rollouts of the bundle itself pass through all
that the deployed graph meets: every step, both branches of guidance, and the classes, each as often
as any other (to within one rollout).

Rollout i has seed ``first seed + i``, so that calibration and held-out rollouts, whose seeds
follow, have none in common.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fewstep.build.recorded_inputs import row_axis
from fewstep.runtime.bundle import Bundle
from fewstep.runtime.condition import ClassCondition, Condition
from fewstep.runtime.devices import Array
from fewstep.runtime.errors import EngineError, RequestError
from fewstep.runtime.families import Family, Model
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
    ``counted [B, N]``: positions of its own logits that matter.
    """

    inputs: Mapping[str, Array]
    own: Mapping[str, Array]
    counted: npt.NDArray[np.bool_]


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
        graph: one that gives logits.
        count: rollouts, at least 1.
        seed: of the first; the others count up.
        settings: as of ``Generator.generate``; the bundle's defaults where there are none.
        text: text states ``[M, L, D]`` float32 for text-conditional bundles, taken in turns.
        what: they are for, as it is reported.
        progress: called as rollouts are made.

    Raises:
        RequestError: settings that the bundle cannot serve, or no text for a text-conditional
            bundle.
        BundleError: the bundle is damaged.
        EngineError: a graph failed, or gave NaN.
        MissingDependencyError: onnxruntime or numba is not installed.
    """
    info = bundle.manifest.model.condition
    name = "class_ids" if isinstance(info, ClassCondition) else "text"
    condition: Any = {name: conditions(info, count, seed, text)}
    passes = list[Pass]()
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
            for call in observe(program, generator.device, generator.engines, inputs):
                _require_finite(call)
                if call.graph == graph:
                    passes.append(_pass(family, model, call, images))
            progress(what, rows.stop / count)
    return Rollouts(tuple(passes))


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


def _pass(family: Family, model: Model, call: Call, images: int) -> Pass:
    """A run of a graph; its first rows are the images' own."""
    known = model.graphs[call.graph].inputs

    def own(name: str) -> Array:
        value, axis = call.inputs[name], row_axis(known[name])
        return value if axis is None else np.take(value, range(images), axis)

    counted = family.counted(model, call.graph, call.inputs)
    if counted is None:
        logits = next(name for name in call.outputs if family.kinds.get(name) == "logits")
        counted = np.ones(call.outputs[logits].shape[:-1], bool)
    return Pass(call.inputs, {name: own(name) for name in call.inputs}, counted[:images])
