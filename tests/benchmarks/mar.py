"""MAR's decode against PyTorch eager as its authors write it, and its own step budgets.

    python -m tests.benchmarks.mar                  # at equal steps: 64 × 100 and 16 × 25
    python -m tests.benchmarks.mar --budgets        # presets against 256 × 100 and 64 × 100
    python -m tests.benchmarks.mar --lengths        # the encoder on all positions, or known ones

Random weights, 15 M parameters, 256 tokens of 16 numbers, a buffer of 64, guidance, batch 1, on the
CPU. Contenders run interleaved. Measures and prints; asserts nothing.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tests.benchmarks.mar_eager import EagerDecoder
from torch import Tensor, nn

from fewstep.export.flow import export
from fewstep.export.models.kl import AutoencoderKL
from fewstep.export.models.mar import MAR, Block
from fewstep.runtime import bench as timing
from fewstep.runtime.engines.sessions import new_session
from fewstep.runtime.families.mar.iterations import counts
from fewstep.runtime.generator import Generator

TRANSFORMER: dict[str, Any] = {
    "encoder_embed_dim": 256,
    "encoder_depth": 6,
    "encoder_num_heads": 8,
    "decoder_embed_dim": 256,
    "decoder_depth": 6,
    "decoder_num_heads": 8,
    "diffloss_d": 3,
    "diffloss_w": 512,
}
TOKENIZER: dict[str, Any] = {"ch": 32}
SCALE = 0.2325
GUIDANCE = 2.9
EQUAL = {"64 × 100": (64, 100), "16 × 25": (16, 25)}
"""Iterations and diffusion steps."""

_LAZY: dict[str, Any] = {"refresh": 9, "reuse_guidance": True}
BUDGETS: dict[str, dict[str, Any]] = {
    "256 × 100, the authors'": {"iterations": 256, "diffusion_steps": 100},
    "64 × 100": {"iterations": 64, "diffusion_steps": 100},
    "64 × 50:5 (DiSA)": {"iterations": 64, "diffusion_steps": "50:5"},
    "64 × 50:5, cached (LazyMAR)": {"iterations": 64, "diffusion_steps": "50:5", **_LAZY},
    "16 × 25:5": {"iterations": 16, "diffusion_steps": "25:5"},
    "16 × 25:5, cached": {
        "iterations": 16,
        "diffusion_steps": "25:5",
        "refresh": 3,
        "refresh_first": 3,
        "recompute": 0.5,
        "reuse_guidance": True,
    },
    "8 × 25:10": {"iterations": 8, "diffusion_steps": "25:10"},
    "4 × 25:10": {"iterations": 4, "diffusion_steps": "25:10"},
}
"""The last three are presets of the Fashion-MNIST sample: ``best``, ``balanced``, ``fast``."""


def networks() -> tuple[MAR, AutoencoderKL]:
    """Random weights."""
    torch.manual_seed(0)
    mar, tokenizer = MAR(**TRANSFORMER), AutoencoderKL(**TOKENIZER)
    head = sum(each.numel() for each in mar.diffloss.parameters())
    every = sum(each.numel() for each in mar.parameters())
    decoder = sum(each.numel() for each in tokenizer.decoder.parameters())
    print(f"transformer {(every - head) / 1e6:.1f} M, head {head / 1e6:.1f} M parameters", end=", ")
    print(f"tokenizer's decoder {decoder / 1e6:.1f} M")
    return mar.eval(), tokenizer.eval()


def bundle_of(mar: MAR, tokenizer: AutoencoderKL, folder: Path) -> Path:
    """Export the networks."""
    torch.save(mar.state_dict(), folder / "mar.pth")
    torch.save(tokenizer.state_dict(), folder / "kl.pth")
    config = {"transformer": TRANSFORMER, "tokenizer": TOKENIZER, "latent_scale": SCALE}
    (folder / "config.json").write_text(json.dumps(config))
    given = {"transformer": folder / "mar.pth", "tokenizer": folder / "kl.pth"}
    return export("mar", given | {"config": folder / "config.json"}, folder / "bundle").path


def _spent(run: Callable[[], object]) -> timing.Contender:
    def timed() -> dict[str, float]:
        run()
        return {}

    return timing.Contender(timed, 1, {})


def against_eager(generator: Generator, mar: MAR, tokenizer: AutoencoderKL, runs: int) -> None:
    """fewstep and PyTorch eager at equal steps."""
    eager, ids = EagerDecoder(mar, tokenizer, SCALE), torch.zeros(1, dtype=torch.long)
    for name, (iterations, steps) in EQUAL.items():
        settings = {"iterations": iterations, "diffusion_steps": steps, "guidance": GUIDANCE}
        contenders = {
            f"fewstep {name}": timing.contender(generator, batch=1, settings=settings),
            f"PyTorch eager {name}": _spent(
                lambda n=iterations, d=steps: eager.decode(ids, n, d, GUIDANCE)  # type: ignore[misc]
            ),
        }
        _show(timing.measure(contenders, runs=runs))


def budgets(generator: Generator, runs: int) -> None:
    """What iterations, diffusion steps and caches cost."""
    contenders = {
        name: timing.contender(generator, batch=1, settings={"guidance": GUIDANCE, **settings})
        for name, settings in BUDGETS.items()
    }
    _show(timing.measure(contenders, runs=runs))


class EveryPosition(nn.Module):
    """The encoder's blocks on all positions, of which only the known ones are looked at."""

    def __init__(self, mar: MAR) -> None:
        super().__init__()
        self.blocks = mar.encoder_blocks

    def forward(self, x: Tensor, known: Tensor) -> Tensor:
        """``[R, b + L, W]``, and how many of the positions are known, ``[1]``."""
        bias = torch.where(torch.arange(x.shape[1]) < known, 0.0, -1e9)
        for block in self.blocks:
            assert isinstance(block, Block)
            q, k, v = block.attn.split(block.norm1(x))
            rows, count, width = x.shape
            shape = rows, count, block.attn.heads, block.attn.head_width
            q, k, v = (each.reshape(shape).transpose(1, 2) for each in (q, k, v))
            scores = q @ k.transpose(2, 3) * block.attn.head_width**-0.5 + bias
            mixed = (scores.softmax(-1) @ v).transpose(1, 2).reshape(rows, count, width)
            x = block.feed_forward(x + block.attn.proj(mixed))
        return x


def lengths(mar: MAR, folder: Path, runs: int) -> None:
    """The encoder's blocks of one image at all 64 iterations: on all positions, and on the known
    ones alone, in ONNX Runtime."""
    every = mar.seq_len + mar.buffer_size
    x = torch.randn(2, every, mar.encoder_width)
    dims = {"x": {1: torch.export.Dim.DYNAMIC}, "known": None}
    path = folder / "every.onnx"
    options: dict[str, Any] = {"dynamo": True, "opset_version": 20, "verbose": False}
    inputs = (x, torch.tensor([300], dtype=torch.int32))
    torch.onnx.export(
        EveryPosition(mar).eval(),
        inputs,
        path,
        input_names=["x", "known"],
        output_names=["out"],
        dynamic_shapes=dims,
        **options,
    )
    session = new_session(path, threads=2)
    known = np.cumsum([0, *counts(mar.seq_len, 64)])[:-1] + mar.buffer_size

    def on_all() -> None:
        for count in known:
            session.run(None, {"x": x.numpy(), "known": np.array([count], np.int32)})

    def on_known() -> None:
        for count in known:
            part = np.ascontiguousarray(x.numpy()[:, :count])
            session.run(None, {"x": part, "known": np.array([count], np.int32)})

    contenders = {"known positions": _spent(on_known), "all positions": _spent(on_all)}
    _show(timing.measure(contenders, runs=runs))


def _show(measured: list[timing.Measurement]) -> None:
    for each in measured:
        stages = ", ".join(f"{n} {p.p50:.1f}" for n, p in each.stages_ms.items() if p.p50 > 0.05)
        print(f"{each.name}: {each.total_ms.p50:.1f} ms, {each.ratio:.2f} ×  {stages}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--budgets", action="store_true")
    parser.add_argument("--lengths", action="store_true")
    chosen = parser.parse_args()
    torch.set_num_threads(2)
    with tempfile.TemporaryDirectory() as temporary:
        both = networks()
        if chosen.lengths:
            lengths(both[0], Path(temporary), chosen.runs)
        else:
            start = time.perf_counter()
            path = bundle_of(*both, Path(temporary))
            with Generator.open(path, device="cpu", profile=True) as opened:
                print(f"{opened}, ready after {time.perf_counter() - start:.0f} s")
                if chosen.budgets:
                    budgets(opened, chosen.runs)
                else:
                    against_eager(opened, *both, chosen.runs)
