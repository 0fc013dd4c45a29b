"""Google's MaskGIT at its published size on the CPU: seconds and memory of an image, fp32 and int8.

    python -m tests.benchmarks.maskgit_full --folder FOLDER

24 blocks of width 768, 256 tokens, the VQGAN's decoder, 8 steps, no guidance, random weights, on
which neither depends. What is in the folder is used again. Both precisions take turns: ``fewstep
bench``, and ``fewstep generate`` from the class to the PNG, whose peak memory is of everything in
the process: Python, ONNX Runtime, weights, activations. Measures and prints; asserts nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
from pathlib import Path
from typing import Any

from tests.benchmarks.published_size import HEADER, Done, export, run, say

from fewstep.runtime.doctor import processor_name

_NAME, _STEPS = "maskgit-torch", 8
_PRECISIONS = ("fp32", "int8")


def prepared(folder: Path) -> Path:
    """The bundle with int8 graphs; made if it is not there."""
    bundle = folder / f"{_NAME}-bundle"
    print(HEADER)
    if not bundle.exists():
        say("export", export(_NAME, folder, {"steps": _STEPS})[1])
    few = ("--rollouts", 2, "--held-out", 1, "--steps", 2)
    say("calibrate quantize", run("calibrate", "quantize", bundle, *few))
    return bundle


def main() -> None:
    """Measure and print a Markdown table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, required=True, help="where everything goes")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--runs", type=int, default=3, help="in every round, after one unmeasured")
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    bundle = prepared(given.folder)
    benched: dict[str, list[dict[str, Any]]] = {each: [] for each in _PRECISIONS}
    generated: dict[str, list[Done]] = {each: [] for each in _PRECISIONS}
    for _ in range(given.rounds):
        for precision in _PRECISIONS:
            options = ("--device", "cpu", "--precision", precision, "--steps", _STEPS)
            said = run("bench", bundle, *options, "--runs", given.runs, "--json").said
            benched[precision].append(json.loads(said))
            png = given.folder / f"{precision}.png"
            generated[precision].append(
                run("generate", bundle, "--class", 207, *options, "--out", png)
            )
    shares = [each["others_load"] for found in benched.values() for each in found]
    busy, load = statistics.median(shares), os.getloadavg()[0]
    print(
        f"\n{processor_name()}, {os.cpu_count()} cores; other programs took {busy:.0%} of them, ",
        end="",
    )
    print(f"load {load:.1f}. Medians of the rounds.\n")
    print("| precision | image, s | least, s | transformer, s | decoder, s ", end="")
    print("| `fewstep generate`, s | peak memory, GB |\n|---|---|---|---|---|---|---|")
    for precision, found in benched.items():
        each = [report["measurements"][0] for report in found]
        image = [one["total_ms"]["p50"] for one in each]
        parts = (
            statistics.median(one["stages_ms"][name]["p50"] for one in each)
            for name in ("transformer", "decoder")
        )
        seconds = [ms / 1e3 for ms in (statistics.median(image), min(image), *parts)]
        seconds.append(statistics.median(done.seconds for done in generated[precision]))
        row = [precision, *(f"{each:.2f}" for each in seconds)]
        print(f"| {' | '.join(row)} | {max(done.peak for done in generated[precision]):.2f} |")


if __name__ == "__main__":
    main()
