"""What quantizing costs: a graph against the fp32 one, on held-out rollouts.

The graph is fed what the fp32 graph was fed, so that a wrong token cannot change what follows. The
images' own half of guidance is looked at, at the positions that count (masked ones, for the masked
family). Of logits, its own or those that another graph, in fp32, makes of what it gives, with
p = softmax of them, before guidance and temperature, the metrics against the fp32 graph are

- ``kl_nats``: the mean of KL(p ‖ q) = Σ p (ln p − ln q), q of the quantized graph
- ``token_agreement``: the fraction of positions with the same most likely code
- ``cosine``: of a graph that reads texts, the mean cosine of their states

Of a graph that gives images, in 0 … 1,

- ``psnr_db``: 10 log₁₀(1 / mean squared difference), over all images together

Of another that no logits follow from, with y what the fp32 graph gives and y' what this one does,
over all outputs that it is judged by (:mod:`fewstep.calibration.quantize.readout`),

- ``relative_error``: √(Σ|y − y'|² / Σ|y|²)
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import onnx

from fewstep.build.large import session_of
from fewstep.calibration.quantize.readout import Readout
from fewstep.calibration.quantize.rollouts import Pass, Rollouts
from fewstep.runtime.devices import Array
from fewstep.runtime.errors import EngineError, FewstepError
from fewstep.runtime.records import Metrics
from fewstep.runtime.verify.metrics import argmax_agreement, cosines, kl_nats, psnr_of

_MOST_NUMBERS = 1 << 27
"""Of the reference that are kept, 512 MB; beyond it, every second position counts, or fourth …"""

Numbers = npt.NDArray[np.float32]
Pairs = Iterable[tuple[Numbers, Numbers]]
"""Of a quantized graph and of the fp32 one, ``[P, …]`` each, a pair an output of a run."""


class Judge:
    """Compares graphs with the fp32 one.

    Args:
        model: the fp32 graph.
        judged: what it is judged by.
        held_out: rollouts that ranges were not measured on.
        head: the fp32 graph that makes its logits, if it is another.

    Raises:
        EngineError: ONNX Runtime cannot run it.
    """

    def __init__(
        self,
        model: onnx.ModelProto,
        judged: Readout,
        held_out: Rollouts,
        head: onnx.ModelProto | None = None,
    ) -> None:
        self._judged, self._held_out = judged, held_out
        self._head = None if head is None else _Session(head)
        session = _Session(model)
        self._states = self._texts(session)
        self._expected, self._every = _reference(self._numbers(session))

    def metrics(self, model: onnx.ModelProto) -> Metrics:
        """A graph's metrics.

        Raises:
            EngineError: ONNX Runtime cannot run it, or it gave NaN or infinite numbers.
        """
        session = _Session(model)
        actual = (each[:: self._every] for each in self._numbers(session))
        other = _of_images if self._judged.images else _of_outputs
        compare = _of_logits if self._judged.logits else other
        found = compare(zip(actual, self._expected, strict=True))
        if self._states:
            similar = cosines(self._texts(session), self._states)
            found = found.model_copy(update={"cosine": float(np.mean(similar))})
        if not math.isfinite(found.cost):
            raise EngineError(
                "the quantized graph gives NaN or infinite numbers; quantize with "
                "--other-layers fp32, or find the layer with: fewstep verify --layers"
            )
        return found

    def _texts(self, session: _Session) -> list[Array]:
        """States of texts that a graph gives, an array an output of a run; none of other graphs."""
        names = self._judged.states
        runs = self._held_out.passes if names else ()
        return [value for each in runs for value in session.run(names, each.own)]

    def _numbers(self, session: _Session) -> Iterator[Numbers]:
        """What a graph gives at the positions that count, ``[P, …]`` an output of a run."""
        for each in self._held_out.passes:
            for value, axis in self._outputs(each, session):
                numbers = _counted(value, axis, each.counted)
                if numbers.size:
                    yield numbers

    def _outputs(self, each: Pass, session: _Session) -> Iterator[tuple[Array, int | None]]:
        """What is judged of one pass, with the axis of its rows."""
        judged = self._judged
        if not judged.logits:
            values = session.run(list(judged.own), each.own)
            yield from zip(values, judged.own.values(), strict=True)
        elif self._head is None:
            yield session.run([judged.logits], each.own)[0], 0
        else:
            given = session.run(list(judged.reads.values()), each.own)
            inputs = {**each.beside, **dict(zip(judged.reads, given, strict=True))}
            yield self._head.run([judged.logits], inputs)[0], 0


def _counted(value: Array, axis: int | None, counted: npt.NDArray[np.bool_] | None) -> Numbers:
    """The numbers of an output at the positions that count; all, where it has other positions."""
    if counted is not None and axis is not None:
        rows = np.moveaxis(value, axis, 0)
        if rows.shape[:2] == counted.shape:
            found: Numbers = rows[counted]
            return found
    return value.reshape(-1, value.shape[-1]) if value.ndim else value.reshape(1, 1)


def _reference(numbers: Iterable[Numbers]) -> tuple[list[Numbers], int]:
    """Arrays with every n-th of their positions, and n: all that can be kept."""
    found, every = list[Numbers](), 1
    for each in numbers:
        found.append(each[::every].copy())
        while sum(map(np.size, found)) > _MOST_NUMBERS and max(map(len, found)) > 1:
            found, every = [one[::2].copy() for one in found], 2 * every
    return found, every


def _of_logits(pairs: Pairs) -> Metrics:
    kl, agreement, count = 0.0, 0.0, 0
    for actual, expected in pairs:
        kl += kl_nats([actual], [expected])[0] * len(actual)
        agreement += argmax_agreement([actual], [expected])[0] * len(actual)
        count += len(actual)
    return Metrics(kl_nats=kl / count, token_agreement=agreement / count)


def _of_outputs(pairs: Pairs) -> Metrics:
    error, size = 0.0, 0.0
    with np.errstate(invalid="ignore", over="ignore"):  # what is not finite stays so
        for actual, expected in pairs:
            exact = expected.astype(np.float64)
            error += float(np.square(actual - exact).sum())
            size += float(np.square(exact).sum())
    return Metrics(relative_error=math.sqrt(error / (size or 1.0)))


def _of_images(pairs: Pairs) -> Metrics:
    error, count = 0.0, 0
    with np.errstate(invalid="ignore", over="ignore"):  # what is not finite stays so
        for actual, expected in pairs:
            error += float(np.square(actual - expected.astype(np.float64)).sum())
            count += expected.size
    return Metrics(psnr_db=psnr_of(error / count))


class _Session:
    """A graph in ONNX Runtime on the CPU."""

    def __init__(self, model: onnx.ModelProto) -> None:
        try:
            self._session = session_of(model)
        except FewstepError:
            raise
        except Exception as error:  # onnxruntime raises types of its own
            raise EngineError(f"ONNX Runtime refuses the quantized graph: {error}") from error

    def run(self, outputs: Sequence[str], inputs: Mapping[str, Array]) -> list[Array]:
        try:
            found: list[Array] = self._session.run(list(outputs), dict(inputs))
        except Exception as error:  # onnxruntime raises types of its own
            raise EngineError(f"the quantized graph failed to run: {error}") from error
        return found
