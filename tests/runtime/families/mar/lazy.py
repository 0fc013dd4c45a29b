"""LazyMAR's caches in eager PyTorch, over positions in the image: buffer first, then tokens.

As ``models/mar_cache.py`` and ``models/basic.py`` of feihongyan1/LazyMAR have them, for any number
of blocks and positions. Different from there: tokens that are decided now or were decided last are
always computed, and both halves may be computed between refreshes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from tests.runtime.families.mar.eager import (
    attended,
    decoder_input,
    encoder_input,
    fed_forward,
    read_out,
    with_buffer,
)
from torch import Tensor
from torch.nn import functional as F

from fewstep.export.models.mar import MAR

_SURPLUS = 15
_ALIKE = 3e-6


class Lazy:
    """A transformer that computes everything only at refreshes.

    Args:
        mar: the networks.
        orders: of the tokens, as the official code has them; of positions that changed alike those
            that are decided first come first, and the buffer last.
        full_blocks: of the decoder, those that always run for all positions.
        refresh: in how many iterations everything is computed once.
        first: iterations at the start that compute everything.
        parts: of all positions, that every iteration computes at least.
        reuse_guidance: whether the unconditional half is the conditional one and the difference at
            the last refresh.
        similarity: as a trace has it. It is compared with what is found here and then taken, as
            rounding decides which of two positions changed more that changed alike.
    """

    def __init__(
        self,
        mar: MAR,
        orders: Tensor,
        *,
        full_blocks: int,
        refresh: int,
        first: int,
        parts: Sequence[float],
        reuse_guidance: bool = False,
        similarity: npt.NDArray[np.float32] | None = None,
    ) -> None:
        self._mar, self._full_blocks, self._parts = mar, full_blocks, parts
        self._refresh, self._first, self._reuse = refresh, first, reuse_guidance
        buffer = torch.arange(mar.buffer_size).repeat(len(orders), 1)
        # Positions in the order of their decision, for both halves.
        self._order = torch.cat([orders.flip(1) + mar.buffer_size, buffer], 1).repeat(2, 1)
        self._recorded = None if similarity is None else torch.from_numpy(similarity)
        self._encoder: list[list[Tensor]] = []
        self._decoder: list[list[Tensor]] = []
        self._embedded, self._difference = torch.zeros(0), torch.zeros(0)
        self._values, self._before = torch.zeros(0), torch.zeros(0)

    def __call__(
        self, step: int, tokens: Tensor, mask: Tensor, now: Tensor, classes: Tensor
    ) -> Tensor:
        if step < self._first or (step - self._first) % self._refresh == 0:
            out = self._full(tokens, mask, classes)
        else:
            half = slice(0, len(tokens) // 2 if self._reuse else None)
            given = (each[half] for each in (tokens, mask, now, classes))
            out = self._partial(step, *given)
            if self._reuse:
                out = torch.cat([out, out + self._difference])
        self._before = now
        return read_out(self._mar, out)

    def _full(self, tokens: Tensor, mask: Tensor, classes: Tensor) -> Tensor:
        """All positions. What is kept is of all rows; with ``reuse_guidance`` of the first half."""
        mar, rows = self._mar, len(tokens)
        kept = slice(0, rows // 2 if self._reuse else None)
        visible = with_buffer(mar, ~mask, True)
        x = encoder_input(mar, tokens, classes)[visible].reshape(rows, -1, mar.encoder_width)
        self._encoder, self._decoder = [], []
        for each in mar.encoder_blocks:
            block: Any = each
            q, k, v = block.attn.qkv(block.norm1(x)).chunk(3, dim=2)
            places = torch.zeros(2, *visible.shape, x.shape[2])
            places[0][visible], places[1][visible] = k.flatten(0, 1), v.flatten(0, 1)
            self._encoder.append([places[0, kept], places[1, kept]])
            x = fed_forward(block, x + attended(block, q, k, v))
        x = decoder_input(mar, mar.decoder_embed(mar.encoder_norm(x)), visible)
        self._embedded = x[kept].clone()
        x = x + mar.decoder_pos_embed_learned
        for index, each in enumerate(mar.decoder_blocks):
            block = each
            q, k, v = block.attn.qkv(block.norm1(x)).chunk(3, dim=2)
            self._decoder.append([k[kept].clone(), v[kept].clone()])
            if index == self._full_blocks:
                self._values = v[kept].clone()
            x = fed_forward(block, x + attended(block, q, k, v))
        self._difference = x[rows // 2 :] - x[: rows // 2]
        return x

    def _partial(
        self, step: int, tokens: Tensor, mask: Tensor, now: Tensor, classes: Tensor
    ) -> Tensor:
        mar, rows = self._mar, len(tokens)
        before = self._before[:rows]
        fresh = with_buffer(mar, before, True)
        x = encoder_input(mar, tokens, classes)[fresh].reshape(rows, -1, mar.encoder_width)
        visible = with_buffer(mar, ~mask, True)
        for each, cached in zip(mar.encoder_blocks, self._encoder, strict=True):
            block: Any = each
            q, k, v = block.attn.qkv(block.norm1(x)).chunk(3, dim=2)
            cached[0][fresh], cached[1][fresh] = k.flatten(0, 1), v.flatten(0, 1)
            keys, values = (every[visible].reshape(rows, -1, q.shape[2]) for every in cached)
            x = fed_forward(block, x + attended(block, q, keys, values))
        x = mar.decoder_embed(mar.encoder_norm(x))
        self._embedded[fresh] = x.flatten(0, 1)
        x = self._embedded + mar.decoder_pos_embed_learned
        chosen = torch.ones_like(visible)
        for index, each in enumerate(mar.decoder_blocks):
            block, cached = each, self._decoder[index]
            q, k, v = block.attn.qkv(block.norm1(x)).chunk(3, dim=2)
            cached[0][chosen], cached[1][chosen] = k.flatten(0, 1), v.flatten(0, 1)
            x = x + attended(block, q, *cached)
            if index == self._full_blocks:
                chosen = self._chosen(step, block.attn.heads, v, now, before)
                self._values = v
                x = x[chosen].reshape(rows, -1, x.shape[2])
            x = fed_forward(block, x)
        every = torch.zeros(*chosen.shape, x.shape[2])
        every[chosen] = x.flatten(0, 1)
        return every

    def _chosen(self, step: int, heads: int, values: Tensor, now: Tensor, before: Tensor) -> Tensor:
        """The positions that the rest of the decoder is computed for, ``[R, buffer + L]``."""
        own, kept = (each.reshape(*each.shape[:2], heads, -1) for each in (values, self._values))
        order, chosen = self._order[: len(values)], torch.zeros(values.shape[:2], dtype=torch.bool)
        needed = with_buffer(self._mar, now | before, False).gather(1, order)
        score = F.cosine_similarity(own, kept, dim=3).mean(dim=2).gather(1, order)
        least = int(now[0].sum()) + int(before[0].sum()) + _SURPLUS
        count = max(least, int(score.shape[1] * self._parts[step]))
        if self._recorded is not None and count < score.shape[1]:
            batch = len(self._order) // 2
            recorded = self._recorded[step].reshape(batch, -1, score.shape[1])
            recorded = recorded.transpose(0, 1).flatten(0, 1)  # [H·B, N]
            known = recorded[: len(score)]
            assert len(recorded) in (batch, 2 * batch)
            torch.testing.assert_close(score[: len(known)], known, rtol=0, atol=_ALIKE)
            score[: len(known)] = known
        score[needed] = -2.0
        ranked = order.gather(1, torch.sort(score, dim=1, stable=True).indices)
        return chosen.scatter_(1, ranked[:, :count], value=True)
