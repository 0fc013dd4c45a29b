"""What quantizing costs, layer by layer, and which layers to spare.

The graph is fed what the fp32 graph was fed in held-out rollouts, so that a wrong token cannot
change what follows. Where another graph makes the logits of what it gives, that one is fp32. At the
positions that count (masked ones, for the masked family), with p = softmax of the conditional
logits, before guidance and temperature, its metrics against the fp32 graph are

- ``kl_nats``: the mean of KL(p ‖ q) = Σ p (ln p − ln q), q of the quantized graph
- ``token_agreement``: the fraction of positions with the same most likely code

Each layer (or block) is quantized alone, which ranks them. Then the most expensive stay in higher
precision, as few as keep both tolerances with all others quantized together.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx

from fewstep.calibration.quantize.readout import Readout
from fewstep.calibration.quantize.rollouts import Pass, Rollouts
from fewstep.runtime.devices import Array
from fewstep.runtime.engines.sessions import new_session
from fewstep.runtime.errors import EngineError, FewstepError, RequestError
from fewstep.runtime.progress import Progress, no_progress
from fewstep.runtime.records import AutoChoice, LayerCost
from fewstep.runtime.verify.metrics import argmax_agreement, kl_nats

_MOST_LOGITS = 1 << 27
"""Reference logits that are kept, 512 MB; beyond it, every second position, or third … counts."""

Build = Callable[[Sequence[str]], onnx.ModelProto]
"""Makes the graph with these matmuls quantized, and no others."""


@dataclass(frozen=True)
class Metrics:
    """Of a graph against the fp32 one; see the module."""

    kl_nats: float
    token_agreement: float

    def within(self, tolerances: AutoChoice) -> bool:
        """Whether both tolerances are kept."""
        enough = self.token_agreement >= tolerances.min_token_agreement
        return self.kl_nats <= tolerances.max_kl and enough

    def __str__(self) -> str:
        return f"KL {self.kl_nats:.3g} nats, token agreement {self.token_agreement:.4f}"


class Judge:
    """Compares graphs with the fp32 one on held-out rollouts.

    Args:
        model: the fp32 graph.
        judged: the logits that follow from it.
        held_out: rollouts that ranges were not measured on.
        head: the fp32 graph that makes them, if it is another.

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
        self._judged, self._held_out, self._every = judged, held_out, 1
        self._head = None if head is None else _Session(head)
        outputs = (model if head is None else head).graph.output
        output = next(each for each in outputs if each.name == judged.logits)
        codes = output.type.tensor_type.shape.dim[-1].dim_value
        counted = sum(int(each.counted.sum()) for each in held_out.passes)
        self._every = max(1, math.ceil(counted * codes / _MOST_LOGITS))
        self._expected = list(self._logits(model))

    def metrics(self, model: onnx.ModelProto) -> Metrics:
        """A graph's metrics.

        Raises:
            EngineError: ONNX Runtime cannot run it, or it gave NaN.
        """
        kl, agreement, count = 0.0, 0.0, 0
        for actual, expected in zip(self._logits(model), self._expected, strict=True):
            kl += kl_nats([actual], [expected])[0] * len(actual)
            agreement += argmax_agreement([actual], [expected])[0] * len(actual)
            count += len(actual)
        if not math.isfinite(kl):
            raise EngineError(
                "the quantized graph gives NaN or infinite logits; quantize with "
                "--other-layers fp32, or find the layer with: fewstep verify --layers"
            )
        return Metrics(kl / count, agreement / count)

    def _logits(self, model: onnx.ModelProto) -> Iterator[npt.NDArray[np.float32]]:
        """Logits ``[P, V]`` at the selected positions of each pass that has any."""
        session = _Session(model)
        for each in self._held_out.passes:
            rows, columns = (found[:: self._every] for found in np.nonzero(each.counted))
            if len(rows):
                yield self._logits_of(each, session)[rows, columns]

    def _logits_of(self, each: Pass, session: _Session) -> Array:
        """Logits ``[B, N, V]`` of one pass."""
        judged = self._judged
        if self._head is None:
            return session.run([judged.logits], each.own)[0]
        given = session.run(list(judged.reads.values()), each.own)
        inputs = {**each.beside, **dict(zip(judged.reads, given, strict=True))}
        return self._head.run([judged.logits], inputs)[0]


def rank(
    judge: Judge,
    build: Build,
    groups: Sequence[Sequence[str]],
    what: str = "quantizing each layer alone",
    progress: Progress = no_progress,
) -> tuple[LayerCost, ...]:
    """Quantize every group of matmuls alone; the most expensive first.

    Args:
        judge: of the fp32 graph.
        build: makes the graph with these matmuls quantized.
        groups: names of matmuls.
        what: this is, as it is reported.
        progress: called as groups are measured.
    """
    costs = []
    progress(what, 0.0)
    for done, group in enumerate(groups, 1):
        found = judge.metrics(build(group))
        cost = LayerCost(
            nodes=tuple(group), kl_nats=found.kl_nats, token_agreement=found.token_agreement
        )
        costs.append(cost)
        progress(what, done / len(groups))
    return tuple(sorted(costs, key=lambda cost: cost.kl_nats, reverse=True))


def fewest_kept(
    judge: Judge, build: Build, tolerances: AutoChoice, progress: Progress = no_progress
) -> int:
    """How many groups at the head of the ranking have to stay in higher precision.

    Found by bisection, so that what is returned was measured to keep the tolerances, and one fewer
    not to.

    Args:
        judge: of the fp32 graph.
        build: makes the graph with these matmuls quantized, as it is to be stored.
        tolerances: with the ranking.
        progress: called as graphs are measured.

    Raises:
        RequestError: not even with the cheapest group alone quantized are the tolerances kept.
    """
    ranking = tolerances.ranking
    rounds = max(1, math.ceil(math.log2(len(ranking) + 1)) + 1)
    measured: dict[int, Metrics] = {}

    def enough(kept: int) -> bool:
        rest = [name for cost in ranking[kept:] for name in cost.nodes]
        measured[kept] = judge.metrics(build(rest))
        progress("selecting what to keep", min(1.0, len(measured) / rounds))
        return measured[kept].within(tolerances)

    progress("selecting what to keep", 0.0)
    if enough(0):
        return 0
    too_few, fewest = 0, len(ranking) - 1
    if fewest == 0 or not enough(fewest):
        raise RequestError(
            f"no layer can be quantized within KL {tolerances.max_kl:g} and token agreement "
            f"{tolerances.min_token_agreement:g}: with only the cheapest, "
            f"{', '.join(ranking[-1].nodes)}, there are {measured[fewest]}; with all, "
            f"{measured[0]}; loosen --max-kl or --min-token-agreement"
        )
    while fewest - too_few > 1:
        middle = (too_few + fewest) // 2
        if enough(middle):
            fewest = middle
        else:
            too_few = middle
    return fewest


class _Session:
    """A graph in ONNX Runtime on the CPU."""

    def __init__(self, model: onnx.ModelProto) -> None:
        try:
            self._session = new_session(model.SerializeToString())
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
