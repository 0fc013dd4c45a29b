"""VAR's decode against PyTorch eager as its authors write it, and against a token per pass.

    python -m tests.benchmarks.var                 # random weights, 13 M parameters, 256 pixels
    python -m tests.benchmarks.var --savings       # what the savings save there
    python -m tests.benchmarks.var --bundle BUNDLE --savings

The published ten scales, 4,096 codes, guidance, top-k 900 and top-p 0.96, batch 1, on the CPU.
Contenders run interleaved. "A token per pass" is the same transformer on the same engines, each
scale's tokens in raster order, one pass each. Measures and prints; asserts nothing.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tests.benchmarks.var_eager import EagerDecoder

from fewstep.export.flow import export
from fewstep.export.models.var import VAR
from fewstep.export.models.var_vae import VQVAE
from fewstep.runtime import bench as timing
from fewstep.runtime.devices import BufferSpec
from fewstep.runtime.families.var.model import VarModel
from fewstep.runtime.families.var.program import VarKey, var_program
from fewstep.runtime.generator import Generator
from fewstep.runtime.plan import Plan
from fewstep.runtime.program import Copy, Launch, Op, Program, Run, View

TRANSFORMER: dict[str, Any] = {
    "depth": 10,
    "embed_dim": 256,
    "num_heads": 8,
    "attn_l2_norm": True,
}
TOKENIZER: dict[str, Any] = {"ch": 32}
SETTINGS: dict[str, Any] = {"guidance": 1.5, "top_k": 900, "top_p": 0.96}
SAVINGS: dict[str, dict[str, Any]] = {
    "everything": {},
    "the first scale's unconditional half kept": {"reuse_first": True},
    "the last two scales not guided": {"guided_scales": -2},
    "the last scale skipped": {"scales": -1},
    "no guidance": {"guidance": 0},
}
"""Negative counts are from the end."""


def networks() -> tuple[VAR, VQVAE]:
    """Random weights."""
    torch.manual_seed(0)
    vae = VQVAE(**TOKENIZER)
    var = VAR(vae, **TRANSFORMER)
    with torch.no_grad():
        for parameter in (var.pos_start, var.pos_1LC):
            torch.nn.init.normal_(parameter, std=0.1)
    for name, model in {"transformer": var, "tokenizer": vae}.items():
        count = sum(each.numel() for each in model.parameters())
        print(f"{name}: {count / 1e6:.1f} M parameters")
    return var.eval(), vae.eval()


def bundle_of(var: VAR, vae: VQVAE, folder: Path) -> Path:
    """Export the networks."""
    torch.save(var.state_dict(), folder / "var.pth")
    torch.save(vae.state_dict(), folder / "vae.pth")
    config = {"transformer": TRANSFORMER, "tokenizer": TOKENIZER}
    (folder / "config.json").write_text(json.dumps(config))
    given = {"transformer": folder / "var.pth", "tokenizer": folder / "vae.pth"}
    return export("var", given | {"config": folder / "config.json"}, folder / "bundle").path


def raster(model: Any, key: VarKey) -> Program:
    """The same decode of one image with a pass for every token."""
    whole, info = var_program(model, key), model.info
    rows, width = key.rows(0), info.width
    buffers = {**whole.buffers, "one": BufferSpec((rows, 1, width), "float32")}
    ops = [each for op in whole.different() for each in _one_by_one(op, info, rows)]
    return replace(whole, buffers=buffers, ops=tuple(ops))


def _one_by_one(op: Op, info: VarModel, rows: int) -> Iterator[Op]:
    """The passes and samples that stand for an operation; the trunk's stand for the head's too."""
    scale = op.step
    count, width, codes = info.counts[scale], info.width, info.codebook_size
    if isinstance(op, Run) and op.graph == "head":
        return
    if not (isinstance(op, Run) and op.graph == "trunk"):
        if not (isinstance(op, Launch) and op.kernel == "sample_top_k_top_p"):
            yield op
        return
    before = info.starts[scale]
    source, one = View("embeds").reshaped(rows * count, width), View("one").reshaped(rows, width)
    logits = View("logits").reshaped(rows, 1, codes)
    for token in range(count):
        for row in range(rows):
            at = row * count + token
            yield Copy(one[row : row + 1], source[at : at + 1], scale)
        past = before + token
        cached: dict[str, View] = {}
        for index, name in enumerate(info.cache_names):
            own = View("cache", index).reshaped(past + 1, rows, info.cache_width)
            cached |= {f"past_{name}": own[:past], f"new_{name}": own[past : past + 1]}
        hidden = View("hidden").reshaped(rows, 1, width)
        modulation = View("modulation")[:rows]
        bindings = {"embeds": View("one"), "modulation": modulation, "hidden": hidden, **cached}
        yield Run("trunk", bindings, scale)
        head = {"hidden": hidden, "head_modulation": View("head_modulation")[:rows]}
        yield Run("head", {**head, "logits": logits}, scale)
        arguments: dict[str, View | int | float] = {
            "conditional": logits[:1],
            "unconditional": logits[rows - 1 : rows],
            "parameters": View("parameters", scale),
            "seeds": View("seeds"),
            "step": scale,
            "given": View("given", scale).reshaped(count, 1)[token : token + 1],
            "tokens": View("tokens", scale).reshaped(count, 1)[token : token + 1],
            "error": View("error"),
        }
        yield Launch("sample_top_k_top_p", arguments, ("tokens", "error"), scale, "sampling")


def _spent(run: Callable[[], object]) -> timing.Contender:
    def timed() -> dict[str, float]:
        run()
        return {}

    return timing.Contender(timed, 1, {})


def against_others(generator: Generator, var: VAR, vae: VQVAE, runs: int) -> None:
    """fewstep, PyTorch eager, and a token per pass."""
    family, model, eager = generator.family, generator.model, EagerDecoder(var, vae)
    request = generator.request(class_ids=[0], **SETTINGS)
    key, inputs = family.key(model, request, 1), family.inputs(model, request, slice(0, 1))
    plan = Plan(raster(model, key), generator.device, generator.engines, {})
    ids = torch.zeros(1, dtype=torch.long)
    contenders = {
        "fewstep": timing.contender(generator, batch=1, settings=SETTINGS),
        "PyTorch eager": _spent(lambda: eager.decode(ids, 1.5, 900, 0.96)),
        "a token per pass": _spent(lambda: plan.run(inputs)),
    }
    _show(timing.measure(contenders, runs=runs))


def savings(generator: Generator, runs: int) -> None:
    """What each saving saves."""
    scales = generator.model.info.scales
    contenders = {
        name: timing.contender(
            generator,
            batch=1,
            settings={
                each: scales + value if isinstance(value, int) and value < 0 else value
                for each, value in settings.items()
            },
        )
        for name, settings in SAVINGS.items()
    }
    _show(timing.measure(contenders, runs=runs))


def _show(measured: list[timing.Measurement]) -> None:
    for each in measured:
        stages = ", ".join(f"{n} {p.p50:.1f}" for n, p in each.stages_ms.items() if p.p50 > 0.05)
        print(f"{each.name}: {each.total_ms.p50:.1f} ms, {each.ratio:.2f} ×  {stages}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--savings", action="store_true")
    parser.add_argument("--bundle", type=Path)
    chosen = parser.parse_args()
    torch.set_num_threads(2)
    with tempfile.TemporaryDirectory() as temporary:
        start = time.perf_counter()
        both = None if chosen.bundle else networks()
        path = chosen.bundle if both is None else bundle_of(*both, Path(temporary))
        with Generator.open(path, device="cpu", profile=True) as opened:
            print(f"{opened}, ready after {time.perf_counter() - start:.0f} s")
            if chosen.savings:
                savings(opened, chosen.runs)
            elif both is not None:
                against_others(opened, *both, chosen.runs)
