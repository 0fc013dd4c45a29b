"""A U-ViT of which keys and values at some positions are those of another pass, in plain PyTorch.

The whole network runs, and every block's projection to queries, keys and values is overwritten
where positions are frozen: so what a local step has to compute is known without any of its code.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from fewstep.export.models import UViT

Hook = Callable[[int, Tensor], Tensor | None]


def projected(model: UViT, tokens: Tensor, condition: Tensor) -> list[Tensor]:
    """Queries, keys and values ``[B, E + N, 3·C]`` of every block in a pass."""
    seen: list[Tensor] = []

    def keep(_: int, out: Tensor) -> None:
        seen.append(out.clone())

    with _hooked(model, keep), torch.no_grad():
        model(tokens, condition)
    return seen


def frozen(
    model: UViT, tokens: Tensor, condition: Tensor, seen: list[Tensor], where: Tensor
) -> tuple[Tensor, Tensor]:
    """Logits and features of a pass whose keys and values are those of :func:`projected` where
    ``where [B, N]`` is true; at these positions they mean nothing."""

    def freeze(index: int, out: Tensor) -> Tensor:
        taken = torch.zeros(out.shape, dtype=torch.bool)
        taken[:, model.extras :, model.embed_dim :] = where[..., None]
        return torch.where(taken, seen[index], out)

    with _hooked(model, freeze), torch.no_grad():
        logits, features = model(tokens, condition)
    return logits, features


@contextmanager
def _hooked(model: UViT, hook: Hook) -> Iterator[None]:
    """With the output of every block's projection through a hook, in the order of the blocks."""
    blocks = nn.ModuleList([*model.in_blocks, model.mid_block, *model.out_blocks])
    found = [module for name, module in blocks.named_modules() if name.endswith("qkv")]
    assert len(found) == model.num_blocks
    handles = [
        each.register_forward_hook(lambda _, __, out, index=index: hook(index, out))
        for index, each in enumerate(found)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
