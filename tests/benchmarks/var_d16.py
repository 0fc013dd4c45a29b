"""VAR-d16 with random weights: export, fp16 and TensorRT-RTX engines, without a GPU.

    python tests/benchmarks/var_d16.py --folder FOLDER

Writes checkpoints of the published shapes (transformer of 16 blocks of width 1,024, tokenizer of
160 channels) into the folder, which needs 12 GB, and times each command on them in a process of its
own: export, fp16 graphs, their verification, preflight, engines for 8.6. Engines depend on shapes,
so random weights take as long as trained ones.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import torch

from fewstep.export.models.var import VAR
from fewstep.export.models.var_vae import VQVAE
from fewstep.export.parts import part_of
from fewstep.runtime.doctor import processor_name

_ENGINES = ("--backend", "tensorrt-rtx", "--compute-capability", "8.6", "--precision", "fp16")
_SPREAD = 4.0  # of the logits, over those of PyTorch's initial weights


def checkpoints(folder: Path) -> dict[str, Path]:
    """Both files, of PyTorch's initial weights, by option."""
    files = {"transformer": folder / "var_d16.pth", "tokenizer": folder / "vae.pth"}
    if not all(map(Path.exists, files.values())):
        torch.manual_seed(0)
        tokenizer = VQVAE(**part_of(VQVAE).sizes[0].arguments)
        transformer = VAR(**part_of(VAR).sizes[0].arguments)
        with torch.no_grad():
            for embedding in (transformer.pos_start, transformer.pos_1LC):
                torch.nn.init.normal_(embedding, std=0.02)
            transformer.head.weight.mul_(_SPREAD)
        torch.save(transformer.state_dict(), files["transformer"])
        torch.save(tokenizer.state_dict(), files["tokenizer"])
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
    parser.add_argument("--folder", type=Path, required=True, help="where everything goes")
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    files, bundle = checkpoints(folder), folder / "bundle"
    print(f"{processor_name()}\n\n| command | s | peak GB |\n|---|---|---|")
    given = [f"--{name}={path}" for name, path in files.items()]
    run("export", "export", "var", *given, "--out", bundle, "--force")
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
