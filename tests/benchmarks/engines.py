"""How long engines take to build without a GPU: the sample, and AdaNAT-L with random weights.

    python tests/benchmarks/engines.py --folder FOLDER

Exports both into the folder (what is there is used again), then times `fewstep build` for
TensorRT-RTX in fp16 for compute capability 8.6, step by step: graphs, engines, and a second build,
which has nothing to do. Engines depend on shapes, so random weights take as long as trained ones.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from fewstep.export.demo import sample_checkpoints
from fewstep.export.flow import export
from fewstep.export.models import PolicyNet, UViT, VQModel
from fewstep.export.parts import part_of
from fewstep.runtime.doctor import processor_name

_SAMPLE = Path(__file__).parents[2] / "samples" / "fashion"
_ENGINES = ("--backend", "tensorrt-rtx", "--compute-capability", "8.6", "--precision", "fp16")


def random_checkpoints(folder: Path) -> dict[str, Any]:
    """AdaNAT-L for ImageNet, its policy and its tokenizer, with PyTorch's initial weights."""
    torch.manual_seed(0)
    transformer, policy, tokenizer = (
        kind(**part_of(kind).sizes[0].arguments).state_dict() for kind in (UViT, PolicyNet, VQModel)
    )
    files = {
        "transformer": folder / "nnet.pth",
        "tokenizer": folder / "vqgan.ckpt",
        "policy": folder / "policy.pth",
    }
    torch.save(transformer, files["transformer"])
    torch.save({"state_dict": tokenizer}, files["tokenizer"])
    actor = {f"policy_old.actor.{key}": value for key, value in policy.items()}
    torch.save({"model": actor}, files["policy"])
    return files


def bundles(folder: Path) -> dict[str, Path]:
    """Both bundles; exported if they are not there."""
    found = {"sample": folder / "sample", "AdaNAT-L": folder / "adanat-l"}
    if not found["sample"].exists():
        export("adanat", sample_checkpoints(_SAMPLE), found["sample"], command="benchmark")
    if not found["AdaNAT-L"].exists():
        checkpoints = random_checkpoints(folder)
        export("adanat", checkpoints, found["AdaNAT-L"], command="benchmark")
    return found


def build(bundle: Path, *options: str) -> tuple[float, dict[str, Any]]:
    """Seconds of one ``fewstep build`` as a process, and what it says."""
    command = [sys.executable, "-m", "fewstep", "build", str(bundle), *options, "--json"]
    started = time.perf_counter()
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return time.perf_counter() - started, json.loads(done.stdout)


def main() -> None:
    """Measure and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--folder", type=Path, required=True, help="where bundles go")
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    print(f"{processor_name()}\n")
    print("| bundle | graphs, s | engines, s | again, s | engines, MB | peak MB |")
    print("|---|---|---|---|---|---|")
    for name, bundle in bundles(folder).items():
        graphs, _ = build(bundle, "--precision", "fp16", "--force")
        engines, made = build(bundle, *_ENGINES, "--no-kernels", "--force")
        again, same = build(bundle, *_ENGINES, "--no-kernels")
        assert same["up_to_date"]
        size = sum(each["size_bytes"] for each in made["engines"]) / 1e6
        peak = max(each["peak_memory_bytes"] for each in made["engines"]) / 1e6
        print(f"| {name} | {graphs:.1f} | {engines:.1f} | {again:.2f} | {size:.0f} | {peak:.0f} |")


if __name__ == "__main__":
    main()
