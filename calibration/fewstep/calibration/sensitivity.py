"""What quantizing costs, layer by layer, and which layers to spare.

The graph is fed held-out rollouts, teacher-forced: the recorded tokens of every step, so that a
wrong token cannot change what follows. At masked positions, with p = softmax of the conditional
logits, before guidance and temperature, its figures against the fp32 graph are

- ``kl_nats``: the mean of KL(p ‖ q) = Σ p (ln p − ln q), q of the quantized graph
- ``token_agreement``: the fraction of positions with the same most likely code

Each layer (or block) is quantized alone, which ranks them. Then the most expensive stay in higher
precision, as few as meet both bars with all others quantized together.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx

from fewstep.calibration.rollouts import Rollouts, Told
from fewstep.runtime.devices import Array
from fewstep.runtime.errors import EngineError, RequestError
from fewstep.runtime.records import AutoChoice, LayerCost
from fewstep.runtime.verify import logit_figures

_MOST_LOGITS = 1 << 27
"""Reference logits that are kept, 512 MB; beyond it, every second position, or third … counts."""

Build = Callable[[Sequence[str]], onnx.ModelProto]
"""Makes the graph with these products quantized, and no others."""


@dataclass(frozen=True)
class Figures:
    """Of a graph against the fp32 one; see the module."""

    kl_nats: float
    token_agreement: float

    def meet(self, bars: AutoChoice) -> bool:
        """Whether both bars hold."""
        enough = self.token_agreement >= bars.min_token_agreement
        return self.kl_nats <= bars.max_kl and enough

    def __str__(self) -> str:
        return f"KL {self.kl_nats:.3g} nats, token agreement {self.token_agreement:.4f}"


class Judge:
    """Compares graphs with the fp32 one on held-out rollouts.

    Args:
        model: the fp32 graph.
        held_out: rollouts that ranges were not measured on.

    Raises:
        EngineError: ONNX Runtime cannot run it.
    """

    def __init__(self, model: onnx.ModelProto, held_out: Rollouts) -> None:
        self._held_out, self._every = held_out, 1
        codes = model.graph.output[0].type.tensor_type.shape.dim[-1].dim_value
        masked = sum(int(mask.sum()) for _, mask in held_out.conditional())
        self._every = max(1, math.ceil(masked * codes / _MOST_LOGITS))
        self._expected = list(self._logits(model))

    def figures(self, model: onnx.ModelProto) -> Figures:
        """A graph's figures.

        Raises:
            EngineError: ONNX Runtime cannot run it, or it gave NaN.
        """
        kl, agreement, count = 0.0, 0.0, 0
        for actual, expected in zip(self._logits(model), self._expected, strict=True):
            found = logit_figures(actual[None, None], expected[None, None])
            kl += found["kl_nats"][0] * len(actual)
            agreement += found["argmax_agreement"][0] * len(actual)
            count += len(actual)
        if not math.isfinite(kl):
            raise EngineError(
                "the quantized transformer gives NaN or infinite logits; quantize with "
                "--other-layers fp32, or find the layer with: fewstep verify --layers"
            )
        return Figures(kl / count, agreement / count)

    def _logits(self, model: onnx.ModelProto) -> Iterator[npt.NDArray[np.float32]]:
        """Logits ``[P, V]`` at the chosen masked positions of each batch that has any."""
        session = _Session(model)
        for inputs, masked in self._held_out.conditional():
            rows, columns = (each[:: self._every] for each in np.nonzero(masked))
            if len(rows):
                yield session.logits(inputs)[rows, columns]


def rank(
    judge: Judge, build: Build, groups: Sequence[Sequence[str]], told: Told | None = None
) -> tuple[LayerCost, ...]:
    """Quantize every group of products alone; the most expensive first.

    Args:
        judge: of the fp32 graph.
        build: makes the graph with these products quantized.
        groups: names of products.
        told: called as groups are measured.
    """
    costs = []
    for done, group in enumerate(groups, 1):
        figures = judge.figures(build(group))
        nodes = tuple(group)
        costs.append(
            LayerCost(nodes=nodes, kl_nats=figures.kl_nats, token_agreement=figures.token_agreement)
        )
        if told is not None:
            told(done / len(groups))
    return tuple(sorted(costs, key=lambda cost: cost.kl_nats, reverse=True))


def fewest_kept(judge: Judge, build: Build, bars: AutoChoice, told: Told | None = None) -> int:
    """How many groups at the head of the ranking have to stay in higher precision.

    Found by bisection, so that what is returned was measured to meet the bars, and one fewer not
    to.

    Args:
        judge: of the fp32 graph.
        build: makes the graph with these products quantized, as it is to be stored.
        bars: with the ranking.
        told: called as graphs are measured.

    Raises:
        RequestError: not even with the cheapest group alone quantized are the bars met.
    """
    groups = len(bars.ranking)
    rounds = max(1, math.ceil(math.log2(groups + 1)) + 1)
    measured: dict[int, Figures] = {}

    def meets(kept: int) -> bool:
        rest = [name for cost in bars.ranking[kept:] for name in cost.nodes]
        measured[kept] = judge.figures(build(rest))
        if told is not None:
            told(min(1.0, len(measured) / rounds))
        return measured[kept].meet(bars)

    if meets(0):
        return 0
    failing, meeting = 0, groups - 1
    if meeting == 0 or not meets(meeting):
        raise RequestError(
            f"no layer can be quantized within KL {bars.max_kl:g} and token agreement "
            f"{bars.min_token_agreement:g}: with only the cheapest, "
            f"{', '.join(bars.ranking[-1].nodes)}, there are {measured[meeting]}; with all, "
            f"{measured[0]}; loosen --max-kl or --min-token-agreement"
        )
    while meeting - failing > 1:
        middle = (failing + meeting) // 2
        if meets(middle):
            meeting = middle
        else:
            failing = middle
    return meeting


class _Session:
    """A graph in ONNX Runtime on the CPU."""

    def __init__(self, model: onnx.ModelProto) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        try:
            self._session = onnxruntime.InferenceSession(
                model.SerializeToString(), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # onnxruntime raises types of its own
            raise EngineError(f"ONNX Runtime refuses the quantized transformer: {error}") from error

    def logits(self, inputs: dict[str, Array]) -> Array:
        try:
            found: Array = self._session.run(["logits"], inputs)[0]
        except Exception as error:  # onnxruntime raises types of its own
            raise EngineError(f"the quantized transformer failed to run: {error}") from error
        return found
