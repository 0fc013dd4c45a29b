"""PyTorch as a contender of ``peers.py``: the authors' sampler, eager or compiled.

Attention is PyTorch's fused one, as the authors have it. Weights may be in bf16; sampling and
policies are in fp32.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_file
from tests.benchmarks.eager import EagerSampler
from torch import nn
from torch.nn import functional as F

from fewstep.export.models import PolicyNet, UViT, VQModel
from fewstep.export.models.uvit import Attention

Pixels = npt.NDArray[np.uint8]


def opened(prepared: Mapping[str, Any], how: str, threads: int) -> Callable[[str], Pixels]:
    """What makes an image for the name of a task.

    Args:
        prepared: of ``peers_models.Prepared``.
        how: ``eager-fp32``, ``eager-bf16`` or ``compile-bf16``.
        threads: 0 leaves PyTorch's default.
    """
    if threads:
        torch.set_num_threads(threads)
    files = prepared["checkpoints"]
    config = json.loads(Path(files["config"]).read_text())
    transformer: Any = _loaded(UViT(**config["transformer"]), files["transformer"])
    tokenizer: Any = _loaded(VQModel(**config["tokenizer"]), files["tokenizer"])
    for module in transformer.modules():
        if isinstance(module, Attention):
            module.forward = _Fused(module)  # type: ignore[method-assign]
    if how.endswith("bf16"):
        transformer, tokenizer = transformer.bfloat16(), tokenizer.bfloat16()
    tasks = prepared["tasks"]
    policies: dict[str, nn.Module] = {
        name: _loaded(PolicyNet(**config["policy"]), task["weights"])
        for name, task in tasks.items()
        if task["weights"]
    }
    if how.startswith("compile"):
        transformer, tokenizer = torch.compile(transformer), torch.compile(tokenizer)
    sampler = EagerSampler(transformer, tokenizer, prepared["unconditional_id"])
    sampler_sizes = (prepared["tokens"], prepared["codes"])
    assert (transformer.num_tokens, transformer.codebook_size) == sampler_sizes
    class_ids = torch.tensor([prepared["class_id"]])

    def run(task: str) -> Pixels:
        rows = torch.tensor(tasks[task]["parameters"])
        tokens = sampler.decide(class_ids, rows, policies.get(task))
        image = sampler.decode(tokens).float().clamp(0, 1)
        return (image * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()

    return run


class _Fused:
    """Attention of U-ViT by PyTorch's fused kernel."""

    def __init__(self, module: Attention) -> None:
        self._module = module

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """``[B, L, C]`` → ``[B, L, C]``."""
        q, k, v = (
            each.unflatten(-1, (self._module.num_heads, -1)).transpose(1, 2)
            for each in self._module.qkv(x).chunk(3, dim=-1)
        )
        out: torch.Tensor = self._module.proj(
            F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        )
        return out


def _loaded(network: nn.Module, file: str) -> nn.Module:
    network.load_state_dict({key: each.float() for key, each in load_file(file).items()})
    return network.eval()
