"""VAR's decode as its authors write it: eager PyTorch, keys and values concatenated.

Independent of the program: no cache of ours, no graphs, no matrices for resizing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fewstep.export.models.var import VAR
from fewstep.export.models.var_vae import VQVAE


@dataclass
class Decoded:
    """Token maps ``[B, n]``, f̂ of every scale, and the image in 0…1."""

    tokens: list[Tensor]
    f_hat: list[Tensor]
    image: Tensor


@torch.no_grad()
def decode(
    var: VAR,
    vae: VQVAE,
    classes: Sequence[int],
    guidance: Sequence[float],
    fixed: Sequence[Tensor] = (),
) -> Decoded:
    """The likeliest tokens of every scale.

    Args:
        var: the transformer.
        vae: the tokenizer.
        classes: of the images.
        guidance: scale of every scale.
        fixed: tokens ``[B, n]`` of the first scales, which are not decoded.
    """
    batch, sides = len(classes), var.patch_nums
    ids = torch.tensor([*classes, *[var.num_classes] * batch])
    condition = var.class_emb(ids)
    positions = var.positions()
    x = condition[:, None] + var.pos_start + positions[None, : sides[0] ** 2]
    past: list[list[Tensor]] = [[] for _ in var.blocks]
    f_hat = torch.zeros(batch, vae.Cvae, sides[-1], sides[-1])
    tokens, seen, first = [], [], 0
    for scale, side in enumerate(sides):
        hidden = x
        for index, each in enumerate(var.blocks):
            block: Any = each
            shared = var.shared_ada_lin(condition)
            gains = block.modulation(shared).unbind(1)
            g1, g2, s1, s2, h1, h2 = (each[:, None] for each in gains)
            q, k, v = block.attn.qkv(block.norm(hidden, s1, h1))
            past[index].append(torch.stack([k, v]))
            keys, values = torch.cat(past[index], 2).transpose(2, 3)
            attended = F.scaled_dot_product_attention(q.transpose(1, 2), keys, values, scale=1.0)
            hidden = hidden + block.attn.proj(attended.transpose(1, 2).flatten(2)) * g1
            hidden = hidden + block.ffn(block.norm(hidden, s2, h2)) * g2
        logits = var.head(var.head_nm(hidden, var.head_nm.modulation(condition)))
        t = guidance[scale]
        chosen = ((1 + t) * logits[:batch] - t * logits[batch:]).argmax(-1)
        if scale < len(fixed):
            chosen = fixed[scale]
        tokens.append(chosen)
        maps = vae.quantize.embedding(chosen).transpose(1, 2).reshape(batch, -1, side, side)
        if scale < len(sides) - 1:
            maps = F.interpolate(maps, size=(sides[-1], sides[-1]), mode="bicubic")
        f_hat = f_hat + vae.quantize.phi(scale)(maps)
        seen.append(f_hat)
        first += side * side
        if scale < len(sides) - 1:
            words = F.interpolate(f_hat, size=(sides[scale + 1],) * 2, mode="area")
            x = var.word_embed(words.flatten(2).transpose(1, 2))
            x = (x + positions[first : first + sides[scale + 1] ** 2]).repeat(2, 1, 1)
    return Decoded(tokens, seen, (vae.unclamped(f_hat).clamp(-1, 1) + 1) / 2)
