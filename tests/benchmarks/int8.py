"""How much faster a transformer pass is in int8 than in fp32 on this CPU, under ONNX Runtime.

    python tests/benchmarks/int8.py --folder FOLDER

For the sample (64 tokens, 512 codes) and a U-ViT of 8 M parameters with random weights (256 tokens,
1,024 codes), both as bundles in the folder; what is there is used again. Speed depends on shapes,
so few rollouts and random weights do. Both precisions take turns in one process, batch 2 being one
image with guidance; the figures are medians.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from fewstep.calibration.quantize.flow import QuantizeRequest, quantize
from fewstep.calibration.quantize.settings import Settings
from fewstep.export.demo import sample_checkpoints
from fewstep.export.flow import export
from fewstep.runtime import Generator
from fewstep.runtime.devices import BufferSpec
from fewstep.runtime.doctor import processor_name

_SAMPLE = Path(__file__).parents[2] / "samples" / "fashion"
_FEW = Settings(rollouts=2, held_out=1, generation={"steps": 2})
_WARM_UP = 3


def bundles(folder: Path) -> dict[str, Path]:
    """Both bundles with int8 graphs; made if they are not there."""
    found = {"sample": folder / "sample", "8 M": folder / "8m" / "bundle"}
    if not found["sample"].exists():
        export("adanat", sample_checkpoints(_SAMPLE), found["sample"], command="benchmark")
    if not found["8 M"].exists():
        script = Path(__file__).with_name("measure.py")
        command = [sys.executable, str(script), "export", "8m", f"--keep={folder / '8m'}"]
        subprocess.run(command, check=True, stdout=sys.stderr)
    for path in found.values():
        quantize(QuantizeRequest(path, _FEW))
    return found


def passes(path: Path, batch: int, rounds: int) -> dict[str, float]:
    """Median milliseconds of one transformer pass by precision, taking turns."""
    opened = {each: Generator.open(path, precision=each, device="cpu") for each in ("fp32", "int8")}
    times: dict[str, list[float]] = {each: [] for each in opened}
    try:
        runs = {each: _Pass(generator, batch) for each, generator in opened.items()}
        for _ in range(rounds + _WARM_UP):
            for precision, run in runs.items():
                times[precision].append(run.milliseconds())
    finally:
        for generator in opened.values():
            generator.close()
    return {each: statistics.median(values[_WARM_UP:]) for each, values in times.items()}


class _Pass:
    """The transformer of a generator with buffers of its own."""

    def __init__(self, generator: Generator, batch: int) -> None:
        engine, model = generator.engines["transformer"], generator.model.info
        infos = {**engine.inputs, **engine.outputs}
        specs = {
            name: BufferSpec(
                tuple(batch if isinstance(size, str) else size for size in info.shape), info.dtype
            )
            for name, info in infos.items()
        }
        self._buffers = generator.device.workspace(specs)
        tokens = np.full(specs["tokens"].shape, model.mask_token, np.int32)
        tokens[:, ::2] = np.arange(tokens[:, ::2].size).reshape(batch, -1) % model.codebook_size
        generator.device.upload(self._buffers["tokens"], tokens)
        generator.device.upload(self._buffers["condition"], np.zeros(batch, np.int32))
        self._bound = engine.bind({name: self._buffers[name] for name in specs})

    def milliseconds(self) -> float:
        started = time.perf_counter()
        self._bound.run()
        return (time.perf_counter() - started) * 1e3


def main() -> None:
    """Measure and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--folder", type=Path, required=True, help="where bundles go")
    parser.add_argument("--rounds", type=int, default=40)
    chosen = parser.parse_args()
    chosen.folder.mkdir(parents=True, exist_ok=True)
    print(f"{processor_name()}\n")
    print("| transformer | batch | fp32, ms | int8, ms | fp32 / int8 |")
    print("|---|---|---|---|---|")
    for name, path in bundles(chosen.folder).items():
        for batch in (1, 2, 8):
            ms = passes(path, batch, chosen.rounds)
            ratio = ms["fp32"] / ms["int8"]
            print(f"| {name} | {batch} | {ms['fp32']:.1f} | {ms['int8']:.1f} | {ratio:.2f} |")


if __name__ == "__main__":
    main()
