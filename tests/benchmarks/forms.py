"""MaskGIT's public forms against PyTorch eager as their authors write it; 32 tokens against 256.

    python -m tests.benchmarks.forms                # every form, and TiTok beside MaskGIT
    python -m tests.benchmarks.forms halton adagen  # some forms
    python -m tests.benchmarks.forms --tokens       # TiTok beside MaskGIT alone

Random weights, transformers of about 8 M parameters, 256 pixels, batch 1, each form's own steps and
guidance, on the CPU. Tokenizers are small, so that they do not hide the decode. Texts are read
once, before anything is timed: both sides have their states, and neither runs a text encoder. All
contenders run turn by turn, a round at a time; a ratio is the median of those of the rounds. Where
other programs share the cores, ``--threads 1`` and the ratio of CPU times mislead least: several
threads of PyTorch wait for one another. Measures and prints; asserts nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import operator
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tests.benchmarks import forms_eager as eager
from tests.benchmarks.forms_networks import FORMS, MASKGIT_256, Form
from torch import nn

from fewstep.export.conditions import UNCONDITIONAL_FILE
from fewstep.export.flow import export
from fewstep.runtime import bench as timing
from fewstep.runtime.bundle import Bundle
from fewstep.runtime.condition import ClassCondition
from fewstep.runtime.doctor import processor_name
from fewstep.runtime.families.masked.model import MaskedModel
from fewstep.runtime.generator import Generator
from fewstep.runtime.load import OthersLoad

_CLASS = 207


def _millions(network: nn.Module) -> float:
    return sum(each.numel() for each in network.parameters()) / 1e6


def prepared(form: Form, folder: Path) -> tuple[Path, Callable[[], object]]:
    """The bundle of a form with random weights, and a run of the authors' loop on the same."""
    networks = form.networks()
    folder.mkdir()
    made = export(form.name, form.write(form, networks, folder), folder / "bundle")
    model, more = made.manifest.model, dict[str, Any]()
    assert isinstance(model, MaskedModel)
    if form.policy:
        more = {"policy": networks["policy"].eval(), "info": model.policies["policy"]}
    transformer, tokenizer = (eager.fused(networks[name]) for name in ("transformer", "tokenizer"))
    print(f"{form.name}: transformer of {_millions(transformer):.1f} M parameters", flush=True)
    condition = _CLASS if isinstance(model.condition, ClassCondition) else _states(made)
    return made.path, lambda: form.decode(transformer, tokenizer, condition, **more)


def _states(bundle: Bundle) -> torch.Tensor:
    """States ``[2, L, W]`` of the empty text and of one that nobody wrote."""
    nothing = bundle.arrays(UNCONDITIONAL_FILE)["text"]
    text = np.random.default_rng(0).standard_normal(nothing.shape, np.float32)
    return torch.from_numpy(np.stack([nothing, text]))


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
