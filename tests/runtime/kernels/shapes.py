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
    }


def remask(batch: int = 2, rows: int = 4, count: int = 256) -> dict[str, Argument]:
    """What ``remask`` is given."""
    return {
        "confidence": Memory(20, (batch, count)),
        "sampled": Memory(21, (batch, count), "int32"),
        "parameters": Memory(22, (batch, 4)),
        "mask": Memory(24, (batch, count), "uint8"),
        "mask_token": 77,
        "at_least_one": 0,
        "next_tokens": Memory(23, (rows, count), "int32"),
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
