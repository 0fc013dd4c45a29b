"""Measurements behind the figures in ``docs/performance.md``, on random weights of a named size.

    python tests/benchmarks/measure.py export adanat-l     # time and peak memory of one export
    python tests/benchmarks/measure.py bench 8m            # the loop against PyTorch and raster

Measures and prints; asserts nothing. Not collected by pytest.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from fewstep.export.models import PolicyNet, UViT, VQModel
from fewstep.export.published import POLICIES, TOKENIZERS, TRANSFORMERS

SIZES: dict[str, dict[str, Any]] = {
    "8m": {"embed_dim": 256, "depth": 8, "num_heads": 8, "num_classes": 1001},
    "adanat-l": dict(TRANSFORMERS[0].arguments),
}


def make_checkpoints(size: str, folder: Path) -> None:
    """Write random weights of ``size`` and their configuration."""
    torch.manual_seed(0)
    arguments = {
        "transformer": SIZES[size],
        "tokenizer": TOKENIZERS[0].arguments,
        "policy": {**POLICIES[0].arguments, "in_channels": SIZES[size]["embed_dim"]},
    }
    for name, model in {
        "transformer": UViT(**arguments["transformer"]),
        "tokenizer": VQModel(**arguments["tokenizer"]),
        "policy": PolicyNet(**arguments["policy"]),
    }.items():
        count = sum(parameter.numel() for parameter in model.parameters())
        print(f"{name}: {count / 1e6:.1f} M parameters")
        save_file(model.state_dict(), folder / f"{name}.safetensors")
    (folder / "config.json").write_text(json.dumps(arguments))


def export(size: str, folder: Path) -> Path:
    """Export in a process of its own and print its time and peak memory."""
    make_checkpoints(size, folder)
    bundle = folder / "bundle"
    start = time.perf_counter()
    _fewstep("export", "adanat", *_files(folder, "policy"), "--out", str(bundle), "--force")
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    print(f"export {size}: {seconds:.0f} s, peak memory {peak / 1e9:.1f} GB")
    return bundle


def bench(size: str, folder: Path, runs: int) -> None:
    """Export, then ``fewstep bench --baseline``."""
    bundle, report = export(size, folder), f"--json={folder / 'bench.json'}"
    _fewstep("bench", str(bundle), "--baseline", *_files(folder), f"--runs={runs}", report)
    measured = json.loads((folder / "bench.json").read_text())["measurements"]
    for other in measured[1:]:
        whole = other["total_ms"]["p50"] / measured[0]["total_ms"]["p50"]
        tokens = other["tokens_ms"] / measured[0]["tokens_ms"]
        print(f"{other['name']}: {tokens:.2f} × the time for all tokens, {whole:.2f} × in all")


def _files(folder: Path, *more: str) -> list[str]:
    names = ("transformer", "tokenizer", *more)
    options = [f"--{name}={folder / name}.safetensors" for name in names]
    return [*options, f"--config={folder / 'config.json'}"]


def _fewstep(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "fewstep", *arguments], check=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["export", "bench"])
    parser.add_argument("size", choices=list(SIZES))
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--keep", type=Path, help="keep files in this folder")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        where = chosen.keep or Path(temporary)
        where.mkdir(parents=True, exist_ok=True)
        if chosen.what == "export":
            export(chosen.size, where)
        else:
            bench(chosen.size, where, chosen.runs)
