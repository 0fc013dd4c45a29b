"""What quantizing costs, layer by layer, and which layers to spare.

Each layer (or block) is quantized alone, which ranks them by their KL divergence, their relative
error, or that of the images (:mod:`fewstep.calibration.quantize.judge`). Then the most expensive
stay in higher precision, as few as keep the tolerances with all others quantized together.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import onnx

from fewstep.calibration.quantize.judge import Judge
from fewstep.runtime.errors import RequestError
from fewstep.runtime.progress import Progress, no_progress
from fewstep.runtime.records import AutoChoice, LayerCost, Metrics

Build = Callable[[Sequence[str]], onnx.ModelProto]
"""Makes the graph with these matmuls quantized, and no others."""


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
        costs.append(LayerCost(nodes=tuple(group), **found.model_dump()))
        progress(what, done / len(groups))
    return tuple(sorted(costs, key=lambda cost: cost.cost, reverse=True))


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
        limits, options = _limits(tolerances)
        raise RequestError(
            f"no layer can be quantized within {limits}: the cheapest alone, "
            f"{', '.join(ranking[-1].nodes)}, comes to {measured[fewest].text}, all together to "
            f"{measured[0].text}; loosen {options}"
        )
    while fewest - too_few > 1:
        middle = (too_few + fewest) // 2
        if enough(middle):
            fewest = middle
        else:
            too_few = middle
    return fewest


def _limits(tolerances: AutoChoice) -> tuple[str, str]:
    """The tolerances that there are, and the options that set them."""
    known = {
        "--max-kl": ("KL", tolerances.max_kl),
        "--min-token-agreement": ("token agreement", tolerances.min_token_agreement),
        "--max-error": ("a relative error of", tolerances.max_error),
        "--min-psnr": ("a PSNR in dB of", tolerances.min_psnr),
    }
    given = {option: f"{what} {n:g}" for option, (what, n) in known.items() if n is not None}
    return " and ".join(given.values()), " or ".join(given)
