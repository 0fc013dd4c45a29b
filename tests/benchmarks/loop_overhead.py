"""What the loop adds to its engines, in this tree and in a clone of another commit, in turn.

    git worktree add ../before COMMIT
    python tests/benchmarks/loop_overhead.py ../before BUNDLE [--rounds 6] [--runs 30]

Every round is a process for each tree, on the CPU, with one bundle that both can read. Prints, for
batch 1 and 4 in 4 and 8 steps, the time that is neither engine nor sampling kernel, and that with
the kernels, as medians and minima in milliseconds. Measures; asserts nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
_FOLDERS = ("export", "runtime", "calibration")
_WARM_UP = 5
_MEASURE = """
import json, sys, time
from pathlib import Path
bundle, runs, warm_up, tree = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
# Of an editable installation, so that no other tree brings parts of the package.
sys.path = [p for p in sys.path if p.startswith(tree) or not Path(p, "fewstep").is_dir()]
from fewstep.runtime import Generator
found = {}
with Generator.open(bundle, device="cpu") as generator:
    for batch in (1, 4):
        for steps in (4, 8):
            times = []
            for seed in range(runs + warm_up):
                request = dict(class_ids=[1] * batch, steps=steps, schedule="cosine", seed=seed)
                start = time.perf_counter()
                taken = generator.generate(**request).timings_ms
                engines = taken["transformer"] + taken["decoder"]
                whole = (time.perf_counter() - start) * 1e3 - engines
                times.append((whole - taken["sampling"], whole))
            found[f"batch {batch}, {steps} steps"] = times[warm_up:]
print(json.dumps(found))
"""


def measure(tree: Path, bundle: Path, runs: int) -> dict[str, list[tuple[float, float]]]:
    """Milliseconds of every run in a process of this tree's."""
    path = os.pathsep.join(str(tree / folder) for folder in _FOLDERS)
    command = [sys.executable, "-c", _MEASURE, str(bundle), str(runs), str(_WARM_UP), str(tree)]
    done = subprocess.run(
        command,
        env=os.environ | {"PYTHONPATH": path},
        cwd=tree,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    found: dict[str, list[tuple[float, float]]] = json.loads(done.stdout)
    return found


def main() -> None:
    """Measure and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("other", type=Path, help="a clone of the commit to compare with")
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--runs", type=int, default=30)
    options = parser.parse_args()
    trees = {"that tree": options.other.resolve(), "this tree": ROOT}
    taken: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for turn in range(options.rounds):
        for name in list(trees)[:: 1 if turn % 2 else -1]:
            measured = measure(trees[name], options.bundle.resolve(), options.runs)
            for case, times in measured.items():
                taken.setdefault((case, name), []).extend(times)
    print("| | tree | other, median | minimum | with kernels, median | minimum |")
    print("|---|---|---|---|---|---|")
    for (case, name), times in sorted(taken.items()):
        other, whole = zip(*times, strict=True)
        cells = (statistics.median(other), min(other), statistics.median(whole), min(whole))
        print(f"| {case} | {name} | {' | '.join(f'{each:.3f}' for each in cells)} |")


if __name__ == "__main__":
    main()
