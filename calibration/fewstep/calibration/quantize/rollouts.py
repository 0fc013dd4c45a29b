"""Calibration data: what a bundle's transformer is fed while it makes images.

Ranges measured on random tokens belong to no image. Rollouts of the bundle itself pass through all
that the deployed transformer meets: every step with its mask ratio, both branches of guidance, and
the classes, each as often as any other (to within one rollout).

Rollout i has seed ``first seed + i``, so that calibration and held-out rollouts, whose seeds
follow, have none in common.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fewstep.runtime.bundle import Bundle
from fewstep.runtime.condition import ClassCondition
from fewstep.runtime.devices import Array
from fewstep.runtime.errors import RequestError
from fewstep.runtime.families.masked.model import MaskedModel
from fewstep.runtime.generator import Generator
from fewstep.runtime.progress import Progress, no_progress
from fewstep.runtime.request import text_condition

BATCH = 8
"""Rows per pass: enough to use every core, and little enough to keep activations small."""


@dataclass(frozen=True)
class Rollouts:
    """Recorded rollouts, R of them, of T steps.

    ``tokens [T, R, N]`` int32: ids before each step, ``mask_token`` where masked. ``sampled
    [T, R, N]`` int32: ids sampled at each step. ``condition [R]`` int32 or ``[R, L, D]`` float32,
    read by the transformer's input of the name ``condition_input``. ``unconditional``: that of the
    unconditional branch for one image, ``None`` where the rollouts had no guidance.
    """

    tokens: npt.NDArray[np.int32]
    sampled: npt.NDArray[np.int32]
    condition: Array
    unconditional: Array | None
    condition_input: str
    mask_token: int

    @property
    def sha256(self) -> str:
        """Hash of all that the transformer is fed."""
        digest = hashlib.sha256(self.condition_input.encode())
        for value in (self.tokens, self.condition, self.unconditional):
            if value is not None:
                digest.update(f"{value.dtype}{value.shape}".encode())
                digest.update(np.ascontiguousarray(value).tobytes())
        return digest.hexdigest()

    def passes(self) -> Iterator[dict[str, Array]]:
        """Inputs of the transformer, batch after batch: all steps, with guidance both branches."""
        conditions = [self.condition]
        if self.unconditional is not None:
            conditions.append(np.broadcast_to(self.unconditional, self.condition.shape))
        for tokens in self.tokens:
            for condition in conditions:
                yield from self._batches(tokens, condition)

    def conditional(self) -> Iterator[tuple[dict[str, Array], npt.NDArray[np.bool_]]]:
        """Inputs of the conditional branch, with the masked positions ``[B, N]`` of each batch."""
        for tokens in self.tokens:
            for inputs in self._batches(tokens, self.condition):
                yield inputs, inputs["tokens"] == self.mask_token

    @property
    def num_passes(self) -> int:
        """How many batches :meth:`passes` gives."""
        branches = 1 if self.unconditional is None else 2
        return len(self.tokens) * branches * -(-len(self.condition) // BATCH)

    def _batches(self, tokens: Array, condition: Array) -> Iterator[dict[str, Array]]:
        for first in range(0, len(condition), BATCH):
            rows = slice(first, first + BATCH)
            part = np.ascontiguousarray(condition[rows])
            yield {"tokens": tokens[rows], self.condition_input: part}


def record(
    bundle: Bundle,
    count: int,
    *,
    seed: int,
    steps: int,
    schedule: str,
    text: Array | None = None,
    what: str = "making rollouts",
    progress: Progress = no_progress,
) -> Rollouts:
    """Make ``count`` rollouts in fp32 on the CPU, with the bundle's default guidance and
    temperatures.

    Args:
        bundle: the bundle.
        count: rollouts, at least 1.
        seed: of the first; the others count up.
        steps: transformer passes of each.
        schedule: a mask-ratio curve or a policy.
        text: text states ``[M, L, D]`` float32 for text-conditional bundles, taken in turns.
        what: they are for, as it is reported.
        progress: called as rollouts are made.

    Raises:
        RequestError: what the bundle cannot serve, or no text for a text-conditional bundle.
        BundleError: the bundle is damaged.
        EngineError: a graph failed, or gave NaN.
        MissingDependencyError: onnxruntime or numba is not installed.
    """
    model = bundle.manifest.model
    condition = conditions(model, count, seed, text)
    name = "class_ids" if isinstance(model.condition, ClassCondition) else "text"
    traces = []
    progress(what, 0.0)
    with Generator.open(
        bundle, backend="onnxruntime", device="cpu", precision="fp32", max_batch=BATCH
    ) as generator:
        for first in range(0, count, BATCH):
            rows: Any = condition[first : first + BATCH]
            made = generator.generate(
                steps=steps, seed=seed + first, schedule=schedule, **{name: rows}
            )
            traces.append(made.trace)
            progress(what, min(1.0, (first + BATCH) / count))
        unconditional = generator.decoder.unconditional
    guided = any(trace.parameters[..., 3].any() for trace in traces)
    return Rollouts(
        tokens=np.concatenate([trace.tokens[:-1] for trace in traces], axis=1),
        sampled=np.concatenate([trace.sampled for trace in traces], axis=1),
        condition=condition,
        unconditional=unconditional if guided else None,
        condition_input=model.condition_input,
        mask_token=model.mask_token,
    )


def conditions(model: MaskedModel, count: int, seed: int, text: Array | None) -> Array:
    """What the rollouts show: classes in rounds, each round in another random order; or texts.

    Raises:
        RequestError: text for a class-conditional bundle, or none for a text-conditional one.
    """
    info = model.condition
    if not isinstance(info, ClassCondition):
        if text is None:
            raise RequestError(
                "this bundle is conditioned on text, which calibration cannot invent: give text "
                f"states [M, {info.length}, {info.width}] in a .npy file with --text"
            )
        return text_condition(info, text)[(seed + np.arange(count)) % len(text)]
    if text is not None:
        raise RequestError("this bundle is class-conditional: leave --text out")
    random = np.random.default_rng(seed)
    rounds = [random.permutation(info.num_classes) for _ in range(-(-count // info.num_classes))]
    return np.concatenate(rounds)[:count].astype(np.int32)
