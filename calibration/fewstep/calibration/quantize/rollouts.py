"""Calibration data: what a graph of a bundle is fed while the bundle makes images.

Ranges measured on random tokens belong to no image. Rollouts of the bundle itself pass through all
that the deployed graph meets: every step, both halves of guidance, and the classes, each as often
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

from fewstep.runtime.bundle import Bundle
from fewstep.runtime.condition import ClassCondition, Condition
from fewstep.runtime.devices import Array
from fewstep.runtime.errors import RequestError
from fewstep.runtime.generator import Generator, batches
from fewstep.runtime.observe import observe
from fewstep.runtime.progress import Progress, no_progress

BATCH = 4
"""Images made together, 8 rows with guidance: enough to use every core, and little enough to keep
activations small."""


@dataclass(frozen=True)
class Rollouts:
    """Inputs of every run of one graph in some rollouts, in the order of the runs.

    ``inputs``: arrays by name, a run each. ``counted``: of the same run, at which positions
    ``[rows, N]`` its outputs matter; ``None`` where all do.
    """

    inputs: tuple[Mapping[str, Array], ...]
    counted: tuple[Array | None, ...]

    @property
    def sha256(self) -> str:
        """Hash of all that the graph is fed."""
        digest = hashlib.sha256()
        for run in self.inputs:
            for name, value in sorted(run.items()):
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
        graph: whose inputs are kept.
        count: rollouts, at least 1.
        seed: of the first; the others count up.
        settings: of the requests, as of ``Generator.generate``.
        text: text states ``[M, L, D]`` float32 for text-conditional bundles, taken in turns.
        what: this is, as it is reported.
        progress: called as rollouts are made.

    Raises:
        RequestError: what the bundle cannot serve, or no text for a text-conditional bundle.
        BundleError: the bundle is damaged.
        EngineError: a graph failed.
        MissingDependencyError: onnxruntime or numba is not installed.
    """
    info = bundle.manifest.model.condition
    condition = conditions(info, count, seed, text)
    name = "class_ids" if isinstance(info, ClassCondition) else "text"
    inputs: list[Mapping[str, Array]] = []
    counted: list[Array | None] = []
    progress(what, 0.0)
    with Generator.open(
        bundle, backend="onnxruntime", device="cpu", precision="fp32", max_batch=BATCH
    ) as generator:
        family, model = generator.family, generator.model
        for rows in batches(count, BATCH):
            shown: dict[str, Any] = {name: condition[rows]}
            request = generator.request(seed=seed + rows.start, **shown, **settings)
            key = family.key(model, request, rows.stop - rows.start, constants=False)
            program, written = (
                family.program(model, key),
                family.inputs(model, request, slice(None)),
            )
            for call in observe(program, generator.device, generator.engines, written):
                if call.graph == graph:
                    inputs.append(call.inputs)
                    counted.append(family.counted(model, graph, call.inputs))
            progress(what, rows.stop / count)
    return Rollouts(tuple(inputs), tuple(counted))


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
    rounds = [random.permutation(info.num_classes) for _ in range(-(-count // info.num_classes))]
    return np.concatenate(rounds)[:count].astype(np.int32)
