"""Measurements behind the figures in ``docs/performance.md``, on random weights of a named size.

    python -m tests.benchmarks.measure export adanat-l   # time and peak memory of one export
    python -m tests.benchmarks.measure bench 8m          # the loop against PyTorch eager

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
from fewstep.export.parts import part_of
from fewstep.runtime import bench as timing
from fewstep.runtime.generator import Generator

_STEPS = 8

SIZES: dict[str, dict[str, Any]] = {
    "8m": {"embed_dim": 256, "depth": 8, "num_heads": 8, "num_classes": 1001},
    "adanat-l": dict(part_of(UViT).sizes[0].arguments),
}


def make_checkpoints(size: str, folder: Path) -> None:
    """Write random weights of ``size`` and their configuration."""
    torch.manual_seed(0)
    arguments = {
        "transformer": SIZES[size],
        "tokenizer": part_of(VQModel).sizes[0].arguments,
        "policy": {
            **part_of(PolicyNet).sizes[0].arguments,
            "in_channels": SIZES[size]["embed_dim"],
        },
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
    bundle, policy = folder / "bundle", {"policy": folder / "policy.safetensors"}
    files = [f"--{name}={path}" for name, path in (_given(folder) | policy).items()]
    start = time.perf_counter()
    _fewstep("export", "adanat", *files, "--out", str(bundle), "--force")
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    print(f"export {size}: {seconds:.0f} s, peak memory {peak / 1e9:.1f} GB")
    return bundle


def bench(size: str, folder: Path, runs: int) -> None:
    """Export, then the loop, the authors' procedure in PyTorch, and a pass for every token."""
    with Generator.open(export(size, folder), device="cpu", profile=True) as generator:
        tokens = generator.model.info.num_tokens
        each = {"steps": tokens, "schedule": "linear"}
        contenders = {
            f"fewstep, {_STEPS} steps": timing.contender(
                generator, batch=1, settings={"steps": _STEPS, "schedule": "cosine"}
            ),
            f"PyTorch eager, {_STEPS} steps": _eager(generator, folder),
            f"a token per pass, {tokens} passes": timing.contender(
                generator, batch=1, settings=each
            ),
        }
        measured = timing.measure(contenders, runs=runs)
    for found in measured:
        whole, decoder = found.total_ms.p50, found.stages_ms["decoder"].p50
        print(f"{found.name}: tokens {whole - decoder:.0f} ms, in all {whole:.0f} ms")


def _eager(generator: Generator, folder: Path) -> timing.Contender:
    from tests.benchmarks.eager import EagerSampler, parameters
    from tests.cuda.torch_engine import load

    models = load(_given(folder))
    info = generator.model.info
    sampler = EagerSampler(models.transformer, models.tokenizer, info.condition.unconditional_id)
    ids, schedule = torch.zeros(1, dtype=torch.long), parameters(info, "cosine", _STEPS)

    def run() -> dict[str, float]:
        tokens, start = sampler.decide(ids, schedule), time.perf_counter()
        sampler.decode(tokens)
        return {"decoder": (time.perf_counter() - start) * 1e3}

    return timing.Contender(run, 1, {"steps": _STEPS})


def _given(folder: Path) -> dict[str, Path]:
    files = {name: folder / f"{name}.safetensors" for name in ("transformer", "tokenizer")}
    return files | {"config": folder / "config.json"}


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
