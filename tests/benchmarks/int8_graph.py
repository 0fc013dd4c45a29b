"""What int8 in one graph does to images: by how many of its runs ranges are measured on, with each
of its matmuls spared, and with none.

    python tests/benchmarks/int8_graph.py BUNDLE GRAPH

Every int8 graph is judged as `fewstep calibrate quantize` judges, but on all runs of the held-out
rollouts. Its images are compared with those of fp32, of the same classes and seeds, all other
graphs being fp32: mean PSNR in dB. A wrong number changes all that follows, so that it wavers.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx

from fewstep.build.graph_engine import GraphEngine
from fewstep.build.graphs import load_graph
from fewstep.calibration.quantize.activations import measure
from fewstep.calibration.quantize.by_graph import matmuls_of
from fewstep.calibration.quantize.judge import Judge
from fewstep.calibration.quantize.matmuls import Matmul
from fewstep.calibration.quantize.qdq import quantized
from fewstep.calibration.quantize.readout import readout
from fewstep.calibration.quantize.rollouts import BATCH, MOST_RUNS, Pass, Rollouts, kept, record
from fewstep.runtime.bundle import Bundle
from fewstep.runtime.devices.cpu import CpuDevice
from fewstep.runtime.engines.select import open_engine
from fewstep.runtime.generator import Generator

_EVERY = 1 << 30
_SEED = 1000


class _Graph:
    """A graph of a bundle, and what its int8 forms are compared with."""

    def __init__(
        self, bundle: Bundle, name: str, rollouts: int, held_out: int, images: int
    ) -> None:
        self._bundle, self._name, self._images = bundle, name, images
        self._model = load_graph(bundle, name)
        self.every = matmuls_of(bundle, name, self._model.graph)
        self.matmuls = [each for each in self.every if not each.delicate]
        self._batches = -(-rollouts // BATCH)
        self._data, other = (
            record(bundle, [name], count, seed=seed, settings={}, most_runs=_EVERY)[name]
            for count, seed in ((rollouts, 0), (held_out, rollouts))
        )
        self._judge = Judge(self._model, readout(bundle, name), other)
        self._expected = self._made(None)

    def passes(self, most: int) -> Rollouts:
        """Runs that would be kept, were so many kept of a batch."""
        runs, found = len(self._data.passes) // self._batches, list[Pass]()
        for batch in range(self._batches):
            chosen = sorted(kept(runs, batch, most))
            found += [self._data.passes[batch * runs + each] for each in chosen]
        return Rollouts(tuple(found))

    def int8(self, passes: Rollouts, matmuls: Sequence[Matmul]) -> onnx.ModelProto:
        """The graph with ranges of these passes, and these matmuls quantized."""
        tensors = {each.activation for each in matmuls}
        ranges = measure(self._model, tensors, passes, method="min-max")
        return quantized(self._model, [each.name for each in matmuls], ranges)

    def row(self, what: str, model: onnx.ModelProto) -> str:
        """A line of a table: how near the graph and the images come to fp32."""
        error = ((self._made(model) - self._expected) ** 2).mean((1, 2, 3)) / 255**2
        psnr = -10 * np.log10(np.maximum(error, 1e-12)).mean()
        return f"| {what} | {self._judge.metrics(model).text} | {psnr:.1f} |"

    def _made(
        self, model: onnx.ModelProto | None
    ) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
        """Images ``[B, H, W, 3]`` with a graph in the place of the fp32 one."""
        bundle, device = self._bundle, CpuDevice()
        others = set(bundle.manifest.graphs) - (set() if model is None else {self._name})
        engines = {name: open_engine(bundle, name, device, 0, "fp32") for name in others}
        if model is not None:
            info = bundle.graph(self._name)
            engines[self._name] = GraphEngine(self._name, model, info)
        condition = bundle.manifest.model.condition.examples(self._images)
        with Generator(bundle, device, engines) as generator:
            made = generator.generate(class_ids=condition.tolist(), seed=_SEED)
        return np.asarray(made.images, np.float64)


def main() -> None:
    """Measure and print Markdown tables."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("graph")
    parser.add_argument("--rollouts", type=int, default=40)
    parser.add_argument("--held-out", type=int, default=8)
    parser.add_argument("--images", type=int, default=40)
    given = parser.parse_args()
    bundle = Bundle.read(given.bundle)
    graph = _Graph(bundle, given.graph, given.rollouts, given.held_out, given.images)
    print("| runs kept of a batch | int8 against fp32 | PSNR of images, dB |\n|---|---|---|")
    for most in (4, 8, 16, 32, 64, _EVERY):
        what = "all" if most == _EVERY else str(most)
        print(graph.row(what, graph.int8(graph.passes(most), graph.matmuls)), flush=True)
    print("\n| in fp32 | int8 against fp32 | PSNR of images, dB |\n|---|---|---|")
    usual = graph.passes(MOST_RUNS)
    for each in graph.matmuls:
        what = f"{each.name}, which reads {each.activation}"
        others = [other for other in graph.matmuls if other != each]
        print(graph.row(what, graph.int8(usual, others)), flush=True)
    print(graph.row("none, nor delicate ones", graph.int8(usual, graph.every)), flush=True)


if __name__ == "__main__":
    main()
