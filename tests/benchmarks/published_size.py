"""Models of a published size with random weights: export, fp16 and TensorRT-RTX engines, no GPU.

    python -m tests.benchmarks.published_size var --folder FOLDER     # VAR-d16
    python -m tests.benchmarks.published_size mar --folder FOLDER     # MAR-B
    python -m tests.benchmarks.published_size maskgit-torch --folder FOLDER   # MaskGIT, 256 pixels
    python -m tests.benchmarks.published_size titok --folder FOLDER           # TiTok-L-32
    python -m tests.benchmarks.published_size halton-base --folder FOLDER     # 384 pixels
    python -m tests.benchmarks.published_size halton-large --folder FOLDER    # 384 pixels
    python -m tests.benchmarks.published_size amused --folder FOLDER          # 256 pixels

Writes checkpoints of the published shapes into the folder, which needs 12 GB, and times each
command on them in a process of its own: export, fp16 graphs, their verification, preflight, engines
for 8.6. *Load* is the system's, of the last minute, when a command has ended. Engines depend on
shapes, so random weights take as long as trained ones. ``--few-steps`` records golden rollouts of
two steps, where those of the form take long; ``--preflight`` ends after the preflight, of the fp32
graphs.
"""

from __future__ import annotations

import argparse
import inspect
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tests.tiny_amused import write_pipeline
from torch import nn

from fewstep.export.models.amused_vq import VQModel as AmusedVQ
from fewstep.export.models.clip_text import CLIPTextModelWithProjection
from fewstep.export.models.halton_transformer import HaltonTransformer
from fewstep.export.models.halton_vq import LlamaGenVQ
from fewstep.export.models.image_bert import ImageBert
from fewstep.export.models.kl import AutoencoderKL
from fewstep.export.models.mar import MAR
from fewstep.export.models.maskgit_tokenizer import VQVAE as MaskgitVQVAE
from fewstep.export.models.maskgit_transformer import BidirectionalTransformer
from fewstep.export.models.titok import TiTok
from fewstep.export.models.uvit2d import UVit2DModel
from fewstep.export.models.var import VAR
from fewstep.export.models.var_vae import VQVAE
from fewstep.export.parts import Kind, part_of
from fewstep.runtime.doctor import processor_name

_TARGET = ("--backend", "tensorrt-rtx", "--compute-capability", "8.6")
_ENGINES = (*_TARGET, "--precision", "fp16")
_SPREAD = 4.0  # of VAR's logits, over those of PyTorch's initial weights


def _write_files(networks: Mapping[str, nn.Module], folder: Path) -> None:
    for part, network in networks.items():
        torch.save(network.state_dict(), folder / f"{part}.pth")


@dataclass(frozen=True)
class Published:
    """A form and its networks, of PyTorch's initial weights.

    Args:
        form: of ``fewstep export``.
        networks: makes them.
        write: puts them into a folder.
        options: of the command, and what they name in that folder.
    """

    form: str
    networks: Callable[[], dict[str, nn.Module]]
    write: Callable[[Mapping[str, nn.Module], Path], object] = _write_files
    options: tuple[tuple[str, str], ...] = (
        ("transformer", "transformer.pth"),
        ("tokenizer", "tokenizer.pth"),
    )


@dataclass(frozen=True)
class Done:
    """A command that was run: what it wrote, its seconds, its peak memory in GB, and the system's
    load when it had ended."""

    said: str
    seconds: float
    peak: float
    load: float


def _var() -> dict[str, nn.Module]:
    tokenizer = VQVAE(**part_of(VQVAE).sizes[0].arguments)
    transformer = VAR(**part_of(VAR).sizes[0].arguments)
    with torch.no_grad():
        for embedding in (transformer.pos_start, transformer.pos_1LC):
            torch.nn.init.normal_(embedding, std=0.02)
        transformer.head.weight.mul_(_SPREAD)
    return {"transformer": transformer, "tokenizer": tokenizer}


def _sized(transformer: Kind, size: str, tokenizer: Kind) -> dict[str, nn.Module]:
    """A transformer of the published size whose name begins so, and the first tokenizer."""
    sizes = part_of(transformer).sizes
    own = next(each.arguments for each in sizes if each.name.startswith(size))
    return {
        "transformer": transformer(**own),
        "tokenizer": tokenizer(**part_of(tokenizer).sizes[0].arguments),
    }


_AMUSED: Mapping[str, Kind] = {
    "transformer": UVit2DModel,
    "vqvae": AmusedVQ,
    "text_encoder": CLIPTextModelWithProjection,
}


def _write_amused(networks: Mapping[str, nn.Module], folder: Path) -> None:
    """A pipeline of diffusers, whose tokenizer knows few words; the mask token is the last id."""
    arguments = {name: part_of(kind).sizes[0].arguments for name, kind in _AMUSED.items()}
    mask = inspect.signature(UVit2DModel).parameters["vocab_size"].default - 1
    write_pipeline(folder, networks, arguments, {"mask_token_id": mask})


PUBLISHED = {
    "var": Published("var", _var),
    "mar": Published("mar", lambda: _sized(MAR, "MAR-B", AutoencoderKL)),
    "maskgit-torch": Published(
        "maskgit-torch",
        lambda: _sized(BidirectionalTransformer, "MaskGIT, ImageNet 256", MaskgitVQVAE),
    ),
    "titok": Published("titok", lambda: _sized(ImageBert, "TiTok-L-32", TiTok)),
    "halton-base": Published(
        "halton", lambda: _sized(HaltonTransformer, "Halton-MaskGIT base, ImageNet 384", LlamaGenVQ)
    ),
    "halton-large": Published(
        "halton",
        lambda: _sized(HaltonTransformer, "Halton-MaskGIT large, ImageNet 384", LlamaGenVQ),
    ),
    "amused": Published(
        "amused",
        lambda: {name: kind(**part_of(kind).sizes[0].arguments) for name, kind in _AMUSED.items()},
        _write_amused,
        (("folder", ""),),
    ),
}


def export(name: str, folder: Path, defaults: Mapping[str, Any]) -> tuple[Path, Done]:
    """Write checkpoints, if they are not there, and export them, without sizes in ``--config``."""
    published, checkpoints = PUBLISHED[name], folder / name
    if not checkpoints.exists():
        torch.manual_seed(0)
        checkpoints.mkdir()
        published.write(published.networks(), checkpoints)
    config, bundle = folder / f"{name}.json", folder / f"{name}-bundle"
    config.write_text(json.dumps({"defaults": defaults}))
    given = [f"--{option}={checkpoints / file}" for option, file in published.options]
    done = run("export", published.form, *given, "--config", config, "--out", bundle, "--force")
    return bundle, done


def run(*arguments: object) -> Done:
    """Run a command of fewstep in a process of its own; one that fails ends this program."""
    command = [sys.executable, "-m", "fewstep", *map(str, arguments)]
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    said = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"{' '.join(command)} ended with {status}")
    seconds, peak = time.perf_counter() - started, usage.ru_maxrss * 1024 / 1e9
    return Done(said, seconds, peak, os.getloadavg()[0])


HEADER = "| command | s | peak GB | load |\n|---|---|---|---|"
"""Of the rows that :func:`say` prints."""


def say(title: str, done: Done) -> str:
    """Print the row of a command; what it wrote."""
    print(f"| {title} | {done.seconds:.0f} | {done.peak:.1f} | {done.load:.1f} |", flush=True)
    return done.said


def main() -> None:
    """Measure and print Markdown tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", choices=PUBLISHED)
    parser.add_argument("--folder", type=Path, required=True, help="where everything goes")
    parser.add_argument("--few-steps", action="store_true")
    parser.add_argument("--preflight", action="store_true")
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    print(f"{processor_name()}, {os.cpu_count()} cores\n\n{HEADER}", flush=True)
    bundle, done = export(given.name, given.folder, {"steps": 2} if given.few_steps else {})
    say("export", done)
    if given.preflight:
        say("preflight, fp32", run("build", bundle, *_TARGET, "--precision", "fp32", "--preflight"))
        return
    say("build --precision fp16", run("build", bundle, "--precision", "fp16", "--force"))
    verified = [
        json.loads(say(f"verify, {each}", run("verify", bundle, "--precision", each, "--json")))
        for each in ("fp32", "fp16")
    ]
    say("preflight", run("build", bundle, *_ENGINES, "--preflight"))
    made = say("engines", run("build", bundle, *_ENGINES, "--no-kernels", "--force", "--json"))
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
