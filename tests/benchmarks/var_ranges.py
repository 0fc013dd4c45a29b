"""int8 for VAR: ranges of activations over all scales, against ranges of each scale.

    python tests/benchmarks/var_ranges.py BUNDLE

One graph runs every scale, so that `fewstep calibrate quantize` gives its activations one range
each, over all scales. Here every scale also gets a graph with ranges of its own, and both are
judged on the held-out passes of that scale, as `fewstep calibrate quantize` judges: KL divergence
from fp32 in nats per token, and the fraction of tokens with the same likeliest code.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from operator import mul
from pathlib import Path

import onnx

from fewstep.build.graphs import load_graph
from fewstep.calibration.quantize.activations import measure
from fewstep.calibration.quantize.judge import Judge
from fewstep.calibration.quantize.matmuls import weighted_matmuls
from fewstep.calibration.quantize.qdq import quantized
from fewstep.calibration.quantize.readout import readout
from fewstep.calibration.quantize.rollouts import Pass, Rollouts, record
from fewstep.runtime.bundle import Bundle
from fewstep.runtime.families import family_of
from fewstep.runtime.records import Metrics


def by_scale(rollouts: Rollouts) -> dict[int, Rollouts]:
    """Passes by how many tokens an image has in them."""
    found: dict[int, list[Pass]] = {}
    for each in rollouts.passes:
        found.setdefault(each.own["embeds"].shape[1], []).append(each)
    return {count: Rollouts(tuple(found[count])) for count in sorted(found)}


def main() -> None:
    """Measure and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--rollouts", type=int, default=40)
    parser.add_argument("--held-out", type=int, default=20)
    given = parser.parse_args()
    bundle = Bundle.read(given.bundle)
    (graph,) = family_of(bundle.manifest.model.kind).quantized
    judged, model = readout(bundle, graph), load_graph(bundle, graph)
    head = load_graph(bundle, judged.graph) if judged.graph else None
    data = record(bundle, [graph], given.rollouts, seed=0, settings={})[graph]
    held_out = record(bundle, [graph], given.held_out, seed=given.rollouts, settings={})[graph]
    selected = [each for each in weighted_matmuls(model.graph) if not each.delicate]

    def int8(passes: Rollouts) -> onnx.ModelProto:
        ranges = measure(model, {each.activation for each in selected}, passes, method="min-max")
        return quantized(model, [each.name for each in selected], ranges)

    shared, scales, rows = int8(data), by_scale(data), list[tuple[int, Metrics, Metrics]]()
    print("| tokens of a scale | KL, shared | KL, own | agreement, shared | agreement, own |")
    print("|---|---|---|---|---|")
    for count, passes in by_scale(held_out).items():
        judge = Judge(model, judged, passes, head)
        rows.append((count, judge.metrics(shared), judge.metrics(int8(scales[count]))))
        _print(str(count), *rows[-1][1:])
    counts, of_shared, of_own = zip(*rows, strict=True)
    _print("all", _mean(counts, of_shared), _mean(counts, of_own))


def _mean(counts: Sequence[int], found: Sequence[Metrics]) -> Metrics:
    """Over all tokens of all scales."""
    kl, agreement = (
        sum(map(mul, counts, values)) / sum(counts)
        for values in zip(
            *((each.cost, each.token_agreement or 0.0) for each in found), strict=True
        )
    )
    return Metrics(kl_nats=kl, token_agreement=agreement)


def _print(what: str, shared: Metrics, own: Metrics) -> None:
    agreement = f"{shared.token_agreement:.4f} | {own.token_agreement:.4f}"
    print(f"| {what} | {shared.kl_nats:.2e} | {own.kl_nats:.2e} | {agreement} |", flush=True)


if __name__ == "__main__":
    main()
