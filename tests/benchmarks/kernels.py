"""What the CUDA kernels take, on paper: resources per architecture and time from bytes moved.

    python tests/benchmarks/kernels.py

Compiles for every default architecture and prints Markdown tables. The times are bytes over the
memory's bandwidth, for a step with every position masked, not measurements: no GPU is involved.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from fewstep.runtime.kernels.compile import KernelCompiler, Resources
from fewstep.runtime.kernels.launch import Launch, launch_of

BANDWIDTH_GB_S = {"Orin Nano": 68, "AGX Orin": 204.8, "Thor": 273, "RTX 4090": 1008}
"""Memory bandwidth from NVIDIA's data sheets: Jetson Orin Nano 8 GB (68 GB/s before its Super
mode), Jetson AGX Orin 64 GB, Jetson T5000, GeForce RTX 4090."""

_TOKENS, _SIDE, _WIDTH = 256, 256, 1024

# MAR-B: tokens of 16 numbers, 12 heads, and keys and values of 8 blocks in the decoder's caches;
# one of 64 iterations, between LazyMAR's refreshes, which come every 9.
_CHANNELS, _LATENT_WIDTH, _HEADS, _CACHES = 16, 768, 12, 2 * 8
_ITERATIONS, _REFRESH, _STEPS, _RECOMPUTED = 64, 9, 100, 0.15

SAMPLERS = ("sample_tokens", "sample_top_k_top_p")
"""The kernels that read logits."""


@dataclass(frozen=True)
class Shaped:
    """A buffer without memory: launches need shapes and dtypes only."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    pointer: int = 0

    def __getitem__(self, rows: int | slice) -> Shaped:
        raise TypeError("a shape has no rows")


def launches(codes: int, dtype: str, batch: int = 1) -> dict[str, Launch]:
    """One step's kernels for 256 tokens with guidance, those of the ends, and those of MAR."""
    given = arguments(codes, dtype, batch)
    return {name: launch_of(name, each) for name, each in given.items()}


def arguments(
    codes: int, dtype: str, batch: int, count: int = _TOKENS, side: int = _SIDE
) -> Mapping[str, Mapping[str, Any]]:
    """What these kernels are given, buffers as shapes; rows to copy are those of a cache.

    Those of continuous tokens are of MAR-B, whatever codes and type are.

    Args:
        codes: size of the codebook.
        dtype: of logits and image.
        batch: images.
        count: tokens per image.
        side: of an image, in pixels.
    """
    tokens, floats = _of("int32", batch, count), _of("float32", batch, count)
    error, parameters = _of("int32", 1), _of("float32", batch, 4)
    logits = _of(dtype, batch, count, codes)
    other = Shaped(logits.shape, logits.dtype, pointer=1)
    both = _of("int32", 2 * batch, count)
    offsets = ("guidance_offset", "top_k_offset", "top_p_offset", "temperature_offset")
    return {
        "initial_tokens": {
            **{"given": tokens, "mask": _of("uint8", batch, count), "codebook_size": codes},
            **{"mask_token": codes, "tokens": both, "error": error},
        },
        "sample_tokens": {
            **{"conditional": logits, "unconditional": other, "tokens": tokens, "step": 0},
            **{"parameters": parameters, "seeds": _of("uint64", batch), "mask_token": codes},
            **{"sampled": tokens, "confidence": floats, "error": error, "confidence_of": 0},
            **{"mask": _of("uint8", batch, count), "resample": 0},
        },
        "remask": {
            **{"confidence": floats, "sampled": tokens, "parameters": parameters},
            **{"mask": _of("uint8", batch, count), "at_least_one": 0},
            **{"mask_token": codes, "next_tokens": both, "ties": 0},
        },
        "policy_parameters": {
            **dict.fromkeys(("ratio_offset", "masking_offset", "sampling_offset"), 0.0),
            **{"guidance_offset": 0.0, "action": parameters},
            **{"parameters": parameters, "error": error},
        },
        "sample_top_k_top_p": {
            **{"conditional": logits, "unconditional": other, "parameters": parameters},
            **{"seeds": _of("uint64", batch), "step": 0, "given": tokens},
            **{"tokens": tokens, "error": error, "mask_token": codes},
        },
        "smooth_actions": {
            **{"action": parameters, "before": parameters, "smoothed": parameters},
            **{"smoothing": 0.8},
        },
        "choose_tokens": {
            **{"tokens": tokens, "ranks": tokens, "given": tokens},
            **{"first": _of("int32", batch), "last": _of("int32", batch)},
        },
        "sampling_parameters": {
            **dict.fromkeys(offsets, 0.0),
            **{"guidance_scale": 1.0, "action": parameters},
            **{"parameters": parameters, "error": error},
        },
        "copy_rows": {
            **{"source": _of(dtype, 1, batch, _WIDTH), "first": batch},
            "target": _of(dtype, 1, 2 * batch, _WIDTH),
        },
        "to_pixels": {
            **{"image": _of(dtype, batch, 3, side, side), "error": error},
            "pixels": _of("uint8", batch, side, side, 3),
        },
        **_of_diffusion(batch, count),
        **_of_caches(batch, count),
    }


def _of_diffusion(batch: int, count: int) -> Mapping[str, Mapping[str, Any]]:
    """Of both halves: the order of all tokens, and a diffusion for those of an iteration."""
    rows, decided = 2 * batch, max(1, count // _ITERATIONS)
    seeds, positions = _of("uint64", batch), _of("int32", decided, rows)
    tokens = _of("float32", batch, count, _CHANNELS)
    x = _of("float32", rows, decided, _CHANNELS)
    state = {name: _of("int32", 1) for name in ("counter", "timestep")}
    timesteps = _of("int32", _STEPS)
    return {
        "random_order": {
            **{"seeds": seeds, "given": _of("uint8", batch, count)},
            "order": _of("int32", count, rows),
        },
        "gather_tokens": {
            **{"source": tokens, "index": positions},
            "target": _of("float32", decided, rows, _CHANNELS),
        },
        "scatter_tokens": {
            "source": _of("float32", count, rows, _CHANNELS),
            **{"index": _of("int32", count, rows), "target": tokens},
        },
        "start_diffusion": {
            **{"seeds": seeds, "positions": positions, "timesteps": timesteps, "first": 0},
            **{"x": x, **state},
        },
        "diffusion_step": {
            "denoised": _of("float32", rows, decided, 2 * _CHANNELS),
            **{"coefficients": _of("float32", _STEPS, 5), **state, "seeds": seeds},
            **{"positions": positions, "parameters": _of("float32", 2), "x": x},
            "error": _of("int32", 1),
        },
        "advance": {"timesteps": timesteps, **state},
    }


def _of_caches(batch: int, count: int) -> Mapping[str, Mapping[str, Any]]:
    """Of one half, where the other comes from a difference: what has changed, and the caches."""
    places, decided = count + count // 4, max(1, count // _ITERATIONS)
    some = max(2 * decided, int(places * _RECOMPUTED))
    width = batch * _LATENT_WIDTH
    values = _of("float32", places, batch, _LATENT_WIDTH)
    alike = _of("float32", batch, 1, places)
    selected, rest = _of("int32", some, batch), _of("int32", places - some, batch)
    caches = _of("float32", _CACHES, places * width)
    output = _of("float32", _REFRESH * decided, batch, _LATENT_WIDTH)
    own = _of("float32", decided, batch, _LATENT_WIDTH)
    return {
        "similarity": {
            **{"values": values, "cached": values, "heads": _HEADS},
            **{"similarity": alike, "error": _of("int32", 1)},
        },
        "select_rows": {
            **{"similarity": alike, "known": count // 2, "previous": decided},
            **{"following": decided, "selected": selected, "rest": rest},
        },
        "gather_rows": {
            **{"source": caches, "index": rest, "width": _LATENT_WIDTH},
            "target": _of("float32", _CACHES, (places - some) * width),
        },
        "scatter_rows": {
            "source": _of("float32", _CACHES, some * width),
            **{"index": selected, "width": _LATENT_WIDTH, "target": caches},
        },
        "subtract": {"a": output, "b": output, "out": output},
        "add_half": {
            **{"own": own, "difference": own},
            "both": _of("float32", decided, 2 * batch, _LATENT_WIDTH),
        },
    }


def _of(dtype: str, *shape: int) -> Shaped:
    return Shaped(shape, np.dtype(dtype))


def bounds_table() -> list[str]:
    """Microseconds per kernel and device, batch 1."""
    lines = [f"| kernel | bytes | {' | '.join(BANDWIDTH_GB_S)} |", "|---" * 6 + "|"]
    for codes, dtype in ((1024, "float32"), (1024, "float16"), (16384, "float32")):
        for name, launch in launches(codes, dtype).items():
            if codes == 16384 and name not in SAMPLERS:
                continue
            times = (launch.bytes_moved / speed / 1e3 for speed in BANDWIDTH_GB_S.values())
            row = " | ".join(f"{time:.2f}" for time in times)
            of = f"{launch.entry}, {codes:,} codes" if name in SAMPLERS else launch.entry
            lines.append(f"| {of} | {launch.bytes_moved:,} | {row} |")
    return list(dict.fromkeys(lines))


def resources_table(resources: tuple[Resources, ...]) -> list[str]:
    """Registers per kernel and architecture; shared memory; the largest spill."""
    capabilities = list(dict.fromkeys(each.capability for each in resources))
    lines = [
        f"| kernel | {' | '.join(capabilities)} | shared memory | spills |",
        "|---" * (len(capabilities) + 3) + "|",
    ]
    for kernel in dict.fromkeys(each.kernel for each in resources):
        own = [each for each in resources if each.kernel == kernel]
        registers = " | ".join(str(each.registers) for each in own)
        spills = max(each.spill_bytes for each in own)
        lines.append(f"| {kernel} | {registers} | {own[0].shared_bytes:,} | {spills} |")
    return lines


if __name__ == "__main__":
    compiler = KernelCompiler()
    compiled = compiler.compile(compiler.wanted(()))
    print(f"Registers per thread, {compiled.compiler}:\n")
    print("\n".join(resources_table(compiled.resources)))
    print(
        "\nTime at the memory's bandwidth in µs, batch 1, 256 tokens, guidance, 256 × 256 pixels; "
        "those of diffusion and of caches for one of MAR-B's 64 iterations:\n"
    )
    print("\n".join(bounds_table()))
