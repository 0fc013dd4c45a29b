"""What exact savings save: whole images with and without what is known of step 0, turn by turn.

    python -m tests.benchmarks.first_step BUNDLE [--backend B] [--precision P] [--steps N …]

One image a run, of one class, so that its step 0 is kept after the first. Tokens of all are the
same. A ratio is the median of those of the rounds. Measures and prints; asserts nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import time
from pathlib import Path

from fewstep.runtime.doctor import processor_name
from fewstep.runtime.generator import Generator
from fewstep.runtime.load import OthersLoad


def main() -> None:
    """Measure and print a Markdown table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--backend", default="onnxruntime")
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--steps", type=int, nargs="+", default=[4, 8])
    parser.add_argument("--rounds", type=int, default=20)
    given = parser.parse_args()
    how = {"backend": given.backend, "precision": given.precision}
    others, times = OthersLoad(), dict[tuple[int, bool], list[float]]()
    with contextlib.ExitStack() as stack:
        opened = {
            constants: stack.enter_context(Generator.open(given.bundle, **how))
            for constants in (False, True)
        }
        opened[False]._constants = False  # which only the constructor takes
        for round_ in range(given.rounds + 2):
            for steps in given.steps:
                for constants, generator in opened.items():
                    start = time.perf_counter()
                    generator.generate(class_ids=[3], steps=steps, seed=round_)
                    if round_ >= 2:
                        taken = (time.perf_counter() - start) * 1e3
                        times.setdefault((steps, constants), []).append(taken)
    print(f"{processor_name()}, load {os.getloadavg()[0]:.1f}, others {others.share() or 0:.0%}\n")
    print("| steps | all computed, ms | step 0 kept, ms | saved |\n|---|---|---|---|")
    for steps in given.steps:
        whole, kept = times[steps, False], times[steps, True]
        ratio = statistics.median(b / a for a, b in zip(whole, kept, strict=True))
        print(f"| {steps} | {_both(whole)} | {_both(kept)} | {1 - ratio:.1%} |")


def _both(times: list[float]) -> str:
    return f"{statistics.median(times):.1f} (least {min(times):.1f})"


if __name__ == "__main__":
    main()
