"""Models of a published size with random weights: export, fp16 and TensorRT-RTX engines, no GPU.

    python tests/benchmarks/published_size.py var --folder FOLDER     # VAR-d16
    python tests/benchmarks/published_size.py mar --folder FOLDER     # MAR-B

Writes checkpoints of the published shapes into the folder, which needs 12 GB, and times each
command on them in a process of its own: export, fp16 graphs, their verification, preflight, engines
for 8.6. Engines depend on shapes, so random weights take as long as trained ones.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from fewstep.export.models.kl import AutoencoderKL
from fewstep.export.models.mar import MAR
from fewstep.export.models.var import VAR
from fewstep.export.models.var_vae import VQVAE
from fewstep.export.parts import part_of
from fewstep.runtime.doctor import processor_name

_ENGINES = ("--backend", "tensorrt-rtx", "--compute-capability", "8.6", "--precision", "fp16")
_SPREAD = 4.0  # of VAR's logits, over those of PyTorch's initial weights


def _var() -> dict[str, nn.Module]:
    tokenizer = VQVAE(**part_of(VQVAE).sizes[0].arguments)
    transformer = VAR(**part_of(VAR).sizes[0].arguments)
    with torch.no_grad():
        for embedding in (transformer.pos_start, transformer.pos_1LC):
            torch.nn.init.normal_(embedding, std=0.02)
        transformer.head.weight.mul_(_SPREAD)
    return {"transformer": transformer, "tokenizer": tokenizer}


def _mar() -> dict[str, nn.Module]:
    return {
        "transformer": MAR(**part_of(MAR).sizes[0].arguments),
        "tokenizer": AutoencoderKL(**part_of(AutoencoderKL).sizes[0].arguments),
    }


_NETWORKS: dict[str, Callable[[], dict[str, nn.Module]]] = {"var": _var, "mar": _mar}


def checkpoints(form: str, folder: Path) -> dict[str, Path]:
    """Both files, of PyTorch's initial weights, by option."""
    files = {name: folder / f"{form}-{name}.pth" for name in ("transformer", "tokenizer")}
    if not all(map(Path.exists, files.values())):
        torch.manual_seed(0)
        for name, network in _NETWORKS[form]().items():
            torch.save(network.state_dict(), files[name])
    return files


def run(title: str, *arguments: object) -> str:
    """Run a command, print its seconds and peak memory; what it writes."""
    command = [sys.executable, "-m", "fewstep", *map(str, arguments)]
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    said = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    seconds, peak = time.perf_counter() - started, usage.ru_maxrss * 1024 / 1e9
    print(f"| {title} | {seconds:.0f} | {peak:.1f} |", flush=True)
    if status:
        sys.exit(f"{' '.join(command)} ended with {status}")
    return said


def main() -> None:
    """Measure and print Markdown tables."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("form", choices=_NETWORKS)
    parser.add_argument("--folder", type=Path, required=True, help="where everything goes")
    given_arguments = parser.parse_args()
    form, folder = given_arguments.form, given_arguments.folder
    folder.mkdir(parents=True, exist_ok=True)
    files, bundle = checkpoints(form, folder), folder / f"{form}-bundle"
    print(f"{processor_name()}\n\n| command | s | peak GB |\n|---|---|---|")
    given = [f"--{name}={path}" for name, path in files.items()]
    run("export", "export", form, *given, "--out", bundle, "--force")
    run("build --precision fp16", "build", bundle, "--precision", "fp16", "--force")
    verified = [
        json.loads(run(f"verify, {each}", "verify", bundle, "--precision", each, "--json"))
        for each in ("fp32", "fp16")
    ]
    run("preflight", "build", bundle, *_ENGINES, "--preflight")
    made = run("engines", "build", bundle, *_ENGINES, "--no-kernels", "--force", "--json")
    print("\n| engine | s | MB | builder's peak GB |\n|---|---|---|---|")
    for each in json.loads(made)["engines"]:
        size, peak = each["size_bytes"] / 1e6, each["peak_memory_bytes"] / 1e9
        print(f"| {each['graph']} | {each['seconds']:.1f} | {size:.0f} | {peak:.1f} |")
    print("\n| precision | graph | metric | value |\n|---|---|---|---|")
    for report in (found["reports"][0] for found in verified):
        for each in report["checks"]:
            what = " | ".join((report["precision"], each["graph"], each["metric"]))
            print(f"| {what} | {each['value']:.2g} |")


if __name__ == "__main__":
    main()
