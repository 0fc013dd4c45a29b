"""What each kernel is given, with buffers that are nowhere."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from fewstep.runtime.kernels.launch import Argument


@dataclass
class Memory:
    """A buffer that is nowhere: an address and what it would hold."""

    pointer: int
    shape: tuple[int, ...]
    type: str = "float32"

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype(self.type)

    def __getitem__(self, rows: int | slice) -> Memory:
        raise AssertionError("nobody asks for rows")

    def view(self, shape: tuple[int, ...]) -> Memory:
        raise AssertionError("nobody asks for another shape")


def initial(batch: int = 2, rows: int = 4, count: int = 300) -> dict[str, Argument]:
    """What ``initial_tokens`` is given."""
    return {
        "given": Memory(1, (batch, count), "int32"),
        "mask": Memory(2, (batch, count), "uint8"),
        "codebook_size": 24,
        "mask_token": 25,
        "tokens": Memory(3, (rows, count), "int32"),
        "error": Memory(4, (1,), "int32"),
    }


def sample(
    batch: int = 2, count: int = 16, codes: int = 1024, dtype: str = "float32", shared: bool = False
) -> dict[str, Argument]:
    """What ``sample_tokens`` is given."""
    return {
        "conditional": Memory(10, (batch, count, codes), dtype),
        "unconditional": Memory(11, (1 if shared else batch, count, codes), dtype),
        "tokens": Memory(12, (batch, count), "int32"),
        "parameters": Memory(13, (batch, 4)),
        "seeds": Memory(14, (batch,), "uint64"),
        "step": 3,
        "mask_token": 9999,
        "sampled": Memory(15, (batch, count), "int32"),
        "confidence": Memory(16, (batch, count)),
        "error": Memory(17, (1,), "int32"),
        "confidence_of": 2,
        "mask": Memory(18, (batch, count), "uint8"),
        "resample": 1,
    }


def chosen(batch: int = 2, count: int = 300) -> dict[str, Argument]:
    """What ``choose_tokens`` is given."""
    return {
        "tokens": Memory(80, (batch, count), "int32"),
        "ranks": Memory(81, (batch, count), "int32"),
        "first": Memory(82, (batch,), "int32"),
        "last": Memory(83, (batch,), "int32"),
        "given": Memory(84, (batch, count), "int32"),
    }


def remask(batch: int = 2, rows: int = 4, count: int = 256) -> dict[str, Argument]:
    """What ``remask`` is given."""
    return {
        "confidence": Memory(20, (batch, count)),
        "sampled": Memory(21, (batch, count), "int32"),
        "parameters": Memory(22, (batch, 4)),
        "mask": Memory(24, (batch, count), "uint8"),
        "mask_token": 77,
        "at_least_one": 2,
        "next_tokens": Memory(23, (rows, count), "int32"),
        "ties": 1,
    }


def policy(batch: int = 3) -> dict[str, Argument]:
    """What ``policy_parameters`` is given."""
    return {
        "action": Memory(30, (batch, 4)),
        "ratio_offset": 0.25,
        "masking_offset": -0.5,
        "sampling_offset": 0.75,
        "guidance_offset": -1.0,
        "parameters": Memory(31, (batch, 4)),
        "error": Memory(32, (1,), "int32"),
    }


def actions(batch: int = 40) -> dict[str, Argument]:
    """What ``smooth_actions`` is given."""
    return {
        "action": Memory(90, (batch, 4)),
        "before": Memory(91, (batch, 4)),
        "smoothing": 0.8,
        "smoothed": Memory(92, (batch, 4)),
    }


def filtered(
    batch: int = 2, count: int = 16, codes: int = 4096, dtype: str = "float32", shared: bool = False
) -> dict[str, Argument]:
    """What ``sample_top_k_top_p`` is given."""
    return {
        "conditional": Memory(50, (batch, count, codes), dtype),
        "unconditional": Memory(51, (1 if shared else batch, count, codes), dtype),
        "parameters": Memory(52, (batch, 4)),
        "seeds": Memory(53, (batch,), "uint64"),
        "step": 3,
        "given": Memory(54, (batch, count), "int32"),
        "tokens": Memory(55, (batch, count), "int32"),
        "error": Memory(56, (1,), "int32"),
        "mask_token": 4096,
    }


def of_a_scale(batch: int = 3) -> dict[str, Argument]:
    """What ``sampling_parameters`` is given."""
    return {
        "action": Memory(60, (batch, 4)),
        "guidance_offset": 0.25,
        "top_k_offset": -0.5,
        "top_p_offset": 0.75,
        "temperature_offset": -1.0,
        "guidance_scale": 0.5,
        "parameters": Memory(61, (batch, 4)),
        "error": Memory(62, (1,), "int32"),
    }


def rows(
    groups: int = 2, period: int = 1, rows: int = 5, width: int = 128, dtype: str = "float32"
) -> dict[str, Argument]:
    """What ``copy_rows`` is given."""
    return {
        "source": Memory(512, (groups, period, width), dtype),
        "target": Memory(1024, (groups, rows, width), dtype),
        "first": 2,
    }


def pixels(
    batch: int = 2, height: int = 20, width: int = 30, dtype: str = "float32"
) -> dict[str, Argument]:
    """What ``to_pixels`` is given."""
    return {
        "image": Memory(40, (batch, 3, height, width), dtype),
        "pixels": Memory(41, (batch, height, width, 3), "uint8"),
        "error": Memory(42, (1,), "int32"),
    }


def order(batch: int = 2, halves: int = 2, count: int = 256) -> dict[str, Argument]:
    """What ``random_order`` is given."""
    return {
        "seeds": Memory(70, (batch,), "uint64"),
        "given": Memory(71, (batch, count), "uint8"),
        "order": Memory(72, (count, halves * batch), "int32"),
    }


def gathered(
    batch: int = 2, halves: int = 2, count: int = 256, decided: int = 5, channels: int = 16
) -> dict[str, Argument]:
    """What ``gather_tokens`` is given."""
    rows = halves * batch
    return {
        "source": Memory(80, (batch, count, channels)),
        "index": Memory(81, (decided, rows), "int32"),
        "target": Memory(82, (decided, rows, channels)),
    }


def scattered(
    batch: int = 2, halves: int = 2, count: int = 256, channels: int = 16
) -> dict[str, Argument]:
    """What ``scatter_tokens`` is given."""
    rows = halves * batch
    return {
        "source": Memory(90, (count, rows, channels)),
        "index": Memory(91, (count, rows), "int32"),
        "target": Memory(92, (batch, count, channels)),
    }


def start(
    batch: int = 2, halves: int = 2, decided: int = 5, channels: int = 16
) -> dict[str, Argument]:
    """What ``start_diffusion`` is given."""
    rows = halves * batch
    return {
        "seeds": Memory(100, (batch,), "uint64"),
        "positions": Memory(101, (decided, rows), "int32"),
        "timesteps": Memory(102, (100,), "int32"),
        "first": 40,
        "x": Memory(103, (rows, decided, channels)),
        "counter": Memory(104, (1,), "int32"),
        "timestep": Memory(105, (1,), "int32"),
    }


def diffusion(
    batch: int = 2, halves: int = 2, decided: int = 5, channels: int = 16
) -> dict[str, Argument]:
    """What ``diffusion_step`` is given."""
    rows = halves * batch
    return {
        "denoised": Memory(110, (rows, decided, 2 * channels)),
        "coefficients": Memory(111, (100, 5)),
        "counter": Memory(112, (1,), "int32"),
        "timestep": Memory(113, (1,), "int32"),
        "seeds": Memory(114, (batch,), "uint64"),
        "positions": Memory(115, (decided, rows), "int32"),
        "parameters": Memory(116, (2,)),
        "x": Memory(117, (rows, decided, channels)),
        "error": Memory(118, (1,), "int32"),
    }


def next_step(steps: int = 100) -> dict[str, Argument]:
    """What ``advance`` is given."""
    return {
        "timesteps": Memory(120, (steps,), "int32"),
        "counter": Memory(121, (1,), "int32"),
        "timestep": Memory(122, (1,), "int32"),
    }


def cached(
    groups: int = 3,
    count: int = 320,
    some: int = 48,
    rows: int = 2,
    width: int = 768,
    more: int = 0,
) -> dict[str, Argument]:
    """What ``gather_rows`` is given; groups are ``more`` numbers longer than their rows."""
    return {
        "source": Memory(130, (groups, count * rows * width + more)),
        "index": Memory(131, (some, rows), "int32"),
        "width": width,
        "target": Memory(132, (groups, some * rows * width + 2 * more)),
    }


def put_back(**sizes: int) -> dict[str, Argument]:
    """What ``scatter_rows`` is given; arguments of :func:`cached`."""
    given = cached(**sizes)
    return given | {"source": given["target"], "target": given["source"]}


def alike(
    batch: int = 2, halves: int = 2, count: int = 320, heads: int = 12, own: int = 64
) -> dict[str, Argument]:
    """What ``similarity`` is given."""
    shape = count, halves * batch, heads * own
    return {
        "values": Memory(140, shape),
        "cached": Memory(141, shape),
        "heads": heads,
        "similarity": Memory(142, (batch, halves, count)),
        "error": Memory(143, (1,), "int32"),
    }


def selection(
    batch: int = 2, halves: int = 2, count: int = 320, most: int = 48
) -> dict[str, Argument]:
    """What ``select_rows`` is given."""
    rows = halves * batch
    return {
        "similarity": Memory(150, (batch, halves, count)),
        "known": 100,
        "previous": 4,
        "following": 5,
        "selected": Memory(151, (most, rows), "int32"),
        "rest": Memory(152, (count - most, rows), "int32"),
    }


def difference(*shape: int) -> dict[str, Argument]:
    """What ``subtract`` is given."""
    shape = shape or (36, 2, 768)
    return {"a": Memory(160, shape), "b": Memory(161, shape), "out": Memory(162, shape)}


def halves(count: int = 5, batch: int = 2, width: int = 768) -> dict[str, Argument]:
    """What ``add_half`` is given."""
    return {
        "own": Memory(170, (count, batch, width)),
        "difference": Memory(171, (count, batch, width)),
        "both": Memory(172, (count, 2 * batch, width)),
    }
