"""VAR in PyTorch eager, as its authors decode: a baseline for benchmarks.

``autoregressive_infer_cfg`` of the official VAR repository: both halves of guidance in one batch,
keys and values of every block concatenated scale by scale, modulations computed in every block at
every scale, top-k and top-p by sorting, f̂ by interpolation. Written with PyTorch's operators.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from fewstep.export.models.var import VAR
from fewstep.export.models.var_vae import VQVAE


class EagerDecoder:
    """The official procedure.

    Args:
        var: the transformer, in evaluation mode.
        vae: the tokenizer.
    """

    def __init__(self, var: VAR, vae: VQVAE) -> None:
        self._var, self._vae = var, vae

    @torch.no_grad()
    def decode(self, class_ids: Tensor, guidance: float, top_k: int, top_p: float) -> Tensor:
        """Images ``[B, 3, H, W]`` in 0…1 of ``class_ids [B]``."""
        var, vae, batch = self._var, self._vae, len(class_ids)
        sides = var.patch_nums
        nothing = torch.full_like(class_ids, var.num_classes)
        condition = var.class_emb(torch.cat([class_ids, nothing]))
        positions = var.positions()[None]
        x = condition[:, None] + var.pos_start + positions[:, : sides[0] ** 2]
        past: list[tuple[Tensor, Tensor] | None] = [None] * var.depth
        f_hat = torch.zeros(batch, vae.Cvae, sides[-1], sides[-1])
        done = 0
        for scale, side in enumerate(sides):
            done += side * side
            shared = var.shared_ada_lin(condition)
            for index, block in enumerate(var.blocks):
                x, past[index] = _block(block, x, shared, past[index])
            logits = var.head(var.head_nm(x, var.head_nm.modulation(condition)))
            t = guidance * scale / (len(sides) - 1)
            tokens = _sampled((1 + t) * logits[:batch] - t * logits[batch:], top_k, top_p)
            maps = vae.quantize.embedding(tokens).transpose(1, 2).reshape(batch, -1, side, side)
            if scale == len(sides) - 1:
                f_hat = f_hat + vae.quantize.phi(scale)(maps)
                break
            maps = F.interpolate(maps, size=(sides[-1], sides[-1]), mode="bicubic")
            f_hat = f_hat + vae.quantize.phi(scale)(maps)
            words = F.interpolate(f_hat, size=(sides[scale + 1],) * 2, mode="area")
            x = var.word_embed(words.flatten(2).transpose(1, 2))
            x = (x + positions[:, done : done + sides[scale + 1] ** 2]).repeat(2, 1, 1)
        image: Tensor = (vae.unclamped(f_hat).clamp(-1, 1) + 1) / 2
        return image


def _block(
    block: torch.nn.Module, x: Tensor, shared: Tensor, past: tuple[Tensor, Tensor] | None
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    parts = (m[:, None] for m in block.modulation(shared).unbind(1))  # type: ignore[operator]
    gain1, gain2, scale1, scale2, shift1, shift2 = parts
    attention = block.attn
    normed = block.norm(x, scale1, shift1)  # type: ignore[operator]
    q, k, v = (each.transpose(1, 2) for each in attention.qkv(normed))  # type: ignore[operator, union-attr]
    if past is not None:
        k, v = torch.cat([past[0], k], 2), torch.cat([past[1], v], 2)
    attended = F.scaled_dot_product_attention(q, k, v, scale=1.0)
    x = x + attention.proj(attended.transpose(1, 2).flatten(2)) * gain1  # type: ignore[operator, union-attr]
    normed = block.norm(x, scale2, shift2)  # type: ignore[operator]
    return x + block.ffn(normed) * gain2, (k, v)  # type: ignore[operator]


def _sampled(logits: Tensor, top_k: int, top_p: float) -> Tensor:
    """Tokens ``[B, n]`` of ``logits [B, n, V]``."""
    lowest = logits.topk(top_k, largest=True, sorted=False).values.amin(-1, keepdim=True)
    logits = logits.masked_fill(logits < lowest, -torch.inf)
    ordered, order = logits.sort(-1)
    drop = ordered.softmax(-1).cumsum(-1) <= 1 - top_p
    drop[..., -1] = False
    logits = logits.masked_fill(drop.scatter(-1, order, drop), -torch.inf)
    batch, count, codes = logits.shape
    return torch.multinomial(logits.softmax(-1).reshape(-1, codes), 1).reshape(batch, count)
