"""One contender of ``peers.py`` in a process of its own, so that it has its own threads and memory.

    python -m tests.benchmarks.peers_worker KIND HOW THREADS

Reads what there is to know as a line of JSON, then names of tasks, a line each. Answers each line
with a line of JSON: ``{}`` when the contender is open, then milliseconds of an image and seconds of
CPU time of the process so far; or why there is no image, and ends.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np


def _fewstep(prepared: Mapping[str, Any], how: str, threads: int) -> Callable[[str], Any]:
    """fewstep in ``BACKEND-PRECISION``."""
    import fewstep

    backend, precision = how.split("-")
    generator = fewstep.open(
        prepared["bundle"], backend=backend, precision=precision, device="cpu", threads=threads
    )

    def run(task: str) -> Any:
        settings = prepared["tasks"][task]["settings"]
        return generator.generate(class_ids=[prepared["class_id"]], **settings).images

    return run


def _opened(kind: str, prepared: Mapping[str, Any], how: str, threads: int) -> Callable[[str], Any]:
    if kind == "fewstep":
        return _fewstep(prepared, how, threads)
    if kind == "pytorch":
        from tests.benchmarks import peers_torch

        return peers_torch.opened(prepared, how, threads)
    from tests.benchmarks import peers_openvino

    return peers_openvino.opened(prepared, how, threads)


def main() -> None:
    """Serve until the input ends."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print is no answer
    kind, how, threads = sys.argv[1], sys.argv[2], int(sys.argv[3])
    prepared = json.loads(sys.stdin.readline())
    try:
        run = _opened(kind, prepared, how, threads)
        print("{}", file=answers)
        for line in sys.stdin:
            print(json.dumps(_timed(run, line.strip(), prepared)), file=answers)
    except Exception as error:  # of any library: the table says that this one is not here
        lines = str(error).splitlines() or [""]
        print(json.dumps({"absent": f"{type(error).__name__}: {lines[0]}"}), file=answers)


def _timed(run: Callable[[str], Any], task: str, prepared: Mapping[str, Any]) -> dict[str, float]:
    start = time.perf_counter()
    image = run(task)
    taken = (time.perf_counter() - start) * 1e3
    shape = (1, *prepared["image_size"], 3)
    if image.shape != shape or image.dtype != np.uint8:
        raise ValueError(f"expected an image {shape} of uint8, got {image.dtype} {image.shape}")
    return {"ms": taken, "cpu_s": time.process_time()}


if __name__ == "__main__":
    main()
