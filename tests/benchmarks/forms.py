"""MaskGIT's public forms against PyTorch eager as their authors write it; 32 tokens against 256.

    python -m tests.benchmarks.forms                # every form, and TiTok beside MaskGIT
    python -m tests.benchmarks.forms halton adagen  # some forms
    python -m tests.benchmarks.forms --tokens       # TiTok beside MaskGIT alone

Random weights, transformers of about 8 M parameters, 256 pixels, batch 1, each form's own steps and
guidance, on the CPU. Tokenizers are small, so that they do not hide the decode. All contenders
run turn by turn, a round at a time; a ratio is the median of those of the rounds. Where other
programs share the cores, ``--threads 1`` and the ratio of CPU times mislead least: several threads
of PyTorch wait for one another. Measures and prints; asserts nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import operator
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from tests.benchmarks import forms_eager as eager
from torch import nn

from fewstep.export.flow import export
from fewstep.export.masked import Recipe
from fewstep.export.models import PolicyNet, UViT, VQModel
from fewstep.export.models.halton_transformer import HaltonTransformer
from fewstep.export.models.halton_vq import LlamaGenVQ
from fewstep.export.models.image_bert import ImageBert
from fewstep.export.models.maskgit_tokenizer import VQVAE
from fewstep.export.models.maskgit_transformer import BidirectionalTransformer
from fewstep.export.models.titok import TiTok
from fewstep.export.parts import part_of
from fewstep.runtime import bench as timing
from fewstep.runtime.doctor import processor_name
from fewstep.runtime.families.masked.model import MaskedPolicyInfo
from fewstep.runtime.generator import Generator
from fewstep.runtime.load import OthersLoad

_WIDTH, _CLASS = 256, 207


@dataclass(frozen=True)
class Form:
    """What is exported, and the authors' loop.

    Args:
        name: of the command.
        transformer: its class.
        arguments: of the transformer.
        tokenizer: its class.
        tokenizer_arguments: of the tokenizer.
        decode: the authors' loop, given transformer, tokenizer, class and ``more``.
        passes: how many rows the transformer computes there, for the table.
        policy: arguments of a policy network, if there is one.
    """

    name: str
    transformer: Callable[..., nn.Module]
    arguments: Mapping[str, Any]
    tokenizer: Callable[..., nn.Module]
    tokenizer_arguments: Mapping[str, Any]
    decode: Callable[..., object]
    passes: str
    policy: Mapping[str, Any] = field(default_factory=dict)


_VQGAN = {
    **part_of(VQModel).sizes[0].arguments,
    "ddconfig": {**part_of(VQModel).sizes[0].arguments["ddconfig"], "ch": 32},
}
_BERT = {
    "codebook_size": 4096,
    "condition_num_classes": 1000,
    "hidden_size": _WIDTH,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "intermediate_size": 4 * _WIDTH,
    "num_steps": 8,
    "randomize_temperature": 9.5,
    "guidance_scale": 4.5,
    "guidance_decay": "linear",
}
_TITOK = {
    "codebook_size": 4096,
    "token_size": 12,
    "num_latent_tokens": 32,
    "vit_enc_model_size": [_WIDTH, 1, 8],
    "vit_dec_model_size": [_WIDTH, 4, 8],
    "use_l2_norm": False,
    "is_legacy": False,
    "finetune_decoder": False,
}
FORMS = (
    Form(
        "maskgit-torch",
        BidirectionalTransformer,
        {"dim": _WIDTH, "hidden_dim": 4 * _WIDTH, "num_heads": 8, "n_layers": 8},
        VQVAE,
        {"filters": 32},
        eager.maskgit_torch,
        "16 × 1",
    ),
    Form(
        "titok",
        ImageBert,
        {**_BERT, "image_seq_len": 32},
        TiTok,
        _TITOK,
        eager.titok,
        "15 × 1",
    ),
    Form(
        "halton",
        HaltonTransformer,
        {"hidden_dim": 192, "codebook_size": 16384, "depth": 8, "heads": 6, "mlp_dim": 768},
        LlamaGenVQ,
        {"ch": 32, "z_channels": 64},
        eager.halton,
        "32 × 2",
    ),
    Form(
        "adagen",
        UViT,
        {"embed_dim": _WIDTH, "depth": 8, "num_heads": 8, "num_classes": 1001},
        VQModel,
        _VQGAN,
        eager.adagen,
        "33 × 1",
        policy={"in_channels": _WIDTH, "hidden_size": 512},
    ),
)
MASKGIT_256 = Form(
    "titok",
    ImageBert,
    {**_BERT, "image_seq_len": 256},
    VQModel,
    {**_VQGAN, "n_embed": 4096},
    eager.titok,
    "15 × 1",
)


def _millions(network: nn.Module) -> float:
    return sum(each.numel() for each in network.parameters()) / 1e6


def prepared(form: Form, folder: Path) -> tuple[Path, Callable[[], object]]:
    """The bundle of a form with random weights, and a run of the authors' loop on the same."""
    torch.manual_seed(0)
    networks = {
        "transformer": form.transformer(**form.arguments),
        "tokenizer": form.tokenizer(**form.tokenizer_arguments),
    }
    config: dict[str, Any] = {
        "transformer": form.arguments,
        "tokenizer": form.tokenizer_arguments,
    }
    more: dict[str, Any] = {}
    if form.policy:
        networks["policy"] = more["policy"] = PolicyNet(**form.policy).eval()
        more["info"] = MaskedPolicyInfo(residual=True, **vars(Recipe()))
        config["policy"] = form.policy
    folder.mkdir()
    given = {name: folder / f"{name}.pth" for name in networks}
    for name, network in networks.items():
        torch.save(network.state_dict(), given[name])
    (folder / "config.json").write_text(json.dumps(config))
    made = export(form.name, {**given, "config": folder / "config.json"}, folder / "bundle")
    transformer, tokenizer = (eager.fused(networks[name]) for name in ("transformer", "tokenizer"))
    print(f"{form.name}: transformer of {_millions(transformer):.1f} M parameters", flush=True)
    return made.path, lambda: form.decode(transformer, tokenizer, _CLASS, **more)


@dataclass
class Times:
    """Milliseconds of every round: by the clock, and of CPU time."""

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    def of(self, run: Callable[[], object]) -> None:
        """Time one run."""
        wall, cpu = time.perf_counter(), time.process_time()
        run()
        self.wall.append((time.perf_counter() - wall) * 1e3)
        self.cpu.append((time.process_time() - cpu) * 1e3)

    def __str__(self) -> str:
        return f"{statistics.median(self.wall):.0f} ({min(self.wall):.0f})"

    def over(self, others: Times) -> str:
        """How many times as long as others, in the median round; and of CPU time."""
        pairs = ((self.wall, others.wall), (self.cpu, others.cpu))
        ratios = (statistics.median(map(operator.truediv, *pair)) for pair in pairs)
        return " | ".join(f"{ratio:.2f} ×" for ratio in ratios)


def interleaved(runs: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, Times]:
    """Times of every run, turn by turn after a round of warm-up; says what else was running."""
    times, load = {name: Times() for name in runs}, OthersLoad()
    for round_ in range(rounds + 1):
        for name, run in runs.items():
            (times[name] if round_ else Times()).of(run)
    others = load.share()
    share = "an unknown part" if others is None else f"{others:.0%}"
    print(
        f"\n{processor_name()}, {torch.get_num_threads()} threads, {rounds} rounds. Other programs"
    )
    print(f"took {share} of the cores, load {os.getloadavg()[0]:.1f}. Median (minimum).\n")
    return times


class _Opened:
    """A bundle's generator, and where the time of its runs went."""

    def __init__(self, path: Path, stack: contextlib.ExitStack) -> None:
        threads = torch.get_num_threads()
        generator = stack.enter_context(Generator.open(path, device="cpu", threads=threads))
        self._run = timing.contender(generator, batch=1, settings={}).run
        self._stages: list[Mapping[str, float]] = []

    def run(self) -> None:
        self._stages.append(self._run())

    def stages(self, *names: str) -> str:
        """Median milliseconds of each stage."""
        medians = (statistics.median(each.get(n, 0.0) for each in self._stages) for n in names)
        return " | ".join(f"{each:.0f}" for each in medians)


def against_eager(forms: list[Form], folder: Path, rounds: int) -> None:
    """Every form, fewstep and the authors' loop in turn."""
    with contextlib.ExitStack() as stack:
        runs: dict[str, Callable[[], object]] = {}
        opened: dict[str, _Opened] = {}
        for form in forms:
            path, loop = prepared(form, folder / form.name)
            opened[form.name] = _Opened(path, stack)
            runs |= {f"{form.name} fewstep": opened[form.name].run, f"{form.name} eager": loop}
        times = interleaved(runs, rounds)
    print(
        "| form | authors' passes × rows | fewstep, ms | PyTorch eager, ms | eager / fewstep ",
        end="",
    )
    print(
        "| of CPU time | transformer | sampling | decoder |\n|---|---|---|---|---|---|---|---|---|"
    )
    for form in forms:
        own, loop_times = (times[f"{form.name} {who}"] for who in ("fewstep", "eager"))
        stages = opened[form.name].stages("transformer", "sampling", "decoder")
        ratios = loop_times.over(own)
        print(f"| {form.name} | {form.passes} | {own} | {loop_times} | {ratios} | {stages} |")


def tokens(folder: Path, rounds: int) -> None:
    """32 tokens of TiTok and 256 of a VQGAN from the same network, in the same 8 steps."""
    forms = {"TiTok, 32 tokens": FORMS[1], "MaskGIT, 256 tokens": MASKGIT_256}
    with contextlib.ExitStack() as stack:
        opened = {
            name: _Opened(prepared(form, folder / f"tokens-{index}")[0], stack)
            for index, (name, form) in enumerate(forms.items())
        }
        times = interleaved({name: each.run for name, each in opened.items()}, rounds)
    print(
        "| 8 steps, guidance | image, ms | relative | of CPU time | transformer, ms | decoder, ms |"
    )
    print("|---|---|---|---|---|---|")
    first = times["TiTok, 32 tokens"]
    for name, each in opened.items():
        stages = each.stages("transformer", "decoder")
        print(f"| {name} | {times[name]} | {times[name].over(first)} | {stages} |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    known = [form.name for form in FORMS]
    parser.add_argument("forms", nargs="*", metavar="FORM", help=", ".join(known))
    parser.add_argument("--tokens", action="store_true", help="32 tokens against 256 alone")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2, help="of either side")
    chosen = parser.parse_args()
    if unknown := {*chosen.forms} - {*known}:
        parser.error(f"no form {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    torch.set_num_threads(chosen.threads)
    with tempfile.TemporaryDirectory() as temporary:
        asked = [form for form in FORMS if not chosen.forms or form.name in chosen.forms]
        if not chosen.tokens:
            against_eager(asked, Path(temporary), chosen.rounds)
        if chosen.tokens or not chosen.forms:
            tokens(Path(temporary), chosen.rounds)
