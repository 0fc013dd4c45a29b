"""What a program of next-scale prediction begins with where tokens of a picture stay."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from fewstep.runtime.devices import Array, BufferSpec
from fewstep.runtime.editing import encoding, original_buffer
from fewstep.runtime.families.var.model import VarModel
from fewstep.runtime.families.var.request import FREE
from fewstep.runtime.program import Launch, Op, View


def encoded(info: VarModel, *, batch: int, scales: int) -> Iterator[Op]:
    """The tokens of a picture that stay, a row a scale as samples are taken."""
    ids, started = View("encoded"), View("started")
    yield encoding(ids)
    yield Launch(
        "initial_tokens",
        {
            "given": ids,
            "mask": View("mask"),
            "codebook_size": info.codebook_size,
            "mask_token": FREE,
            "tokens": started,
            "error": View("error"),
        },
        ("tokens", "error"),
    )
    size = scales * batch * info.counts[scales - 1]
    yield Launch(
        "gather_rows",
        {
            "source": started.reshaped(1, batch * info.num_tokens),
            "index": View("places"),
            "width": 1,
            "target": View("given").reshaped(1, size),
        },
        ("target",),
    )


def picture_buffers(info: VarModel, batch: int) -> dict[str, BufferSpec]:
    """Of a picture whose tokens stay."""
    shape = (batch, info.num_tokens)
    return {
        **original_buffer(info, batch),
        "mask": BufferSpec(shape, "uint8", "input"),
        "encoded": BufferSpec(shape, "int32"),
        "started": BufferSpec(shape, "int32"),
    }


def places(info: VarModel, *, batch: int, scales: int) -> Array:
    """Where the tokens of every scale lie among those of all images, ``[S·B·n, 1]``: a row a scale,
    n tokens of the largest; smaller ones fill the first places."""
    found = np.zeros((scales, batch * info.counts[scales - 1]), np.int32)
    before = np.arange(batch)[:, None] * info.num_tokens
    for row, start, count in zip(found, info.starts, info.counts, strict=False):
        row[: batch * count] = (before + start + np.arange(count)).ravel()
    return found.reshape(-1, 1)
