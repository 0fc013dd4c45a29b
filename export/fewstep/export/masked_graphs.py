"""The graphs of a masked model: transformer, decoder, and policy networks if it has any."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from fewstep.export.image_encoder import Codes, encoder_graphs
from fewstep.export.models import UViT
from fewstep.export.source import Graph
from fewstep.runtime.condition import ClassCondition
from fewstep.runtime.families.masked.model import MaskedModel


def masked_graphs(
    model: MaskedModel,
    transformer: nn.Module,
    decoder: nn.Module,
    policies: Mapping[str, nn.Module] | None = None,
) -> dict[str, Graph]:
    """Every graph, with examples of batch 2.

    Args:
        model: what the manifest says of it.
        transformer: tokens ``[B, N]`` and a condition → logits, or logits and features with
            policies. With a cache it is given the positions of the tokens after these, and keys and
            values of others last, and gives those of the tokens last.
        decoder: tokens ``[B, N]`` → image in 0…1; ``unclamped`` as it was before it was clamped.
            Of an editable model, ``encode`` is the way back.
        policies: networks by the name of their graph.

    Raises:
        CheckpointError: the way back does not fit.
    """
    generator = torch.Generator().manual_seed(0)
    n, v, policies = model.num_tokens, model.codebook_size, policies or {}
    masked = torch.randint(v + 1, (2, n), generator=generator, dtype=torch.int32)
    masked[masked == v] = model.mask_token
    tokens = torch.randint(v, (2, n), generator=generator, dtype=torch.int32)
    condition: dict[str, Tensor]
    if isinstance(model.condition, ClassCondition):
        ids = [0, model.condition.ids[-1]]
        condition = {"condition": torch.tensor(ids, dtype=torch.int32)}
    else:
        shape = (2, model.condition.length, model.condition.width)
        condition = {"text": torch.randn(shape, generator=generator)}
    outputs = ("logits", "features") if policies else ("logits",)
    inputs, dynamic = {"tokens": masked, **condition}, None
    if model.cached_blocks:
        inputs, dynamic = _with_cache(model, masked, condition, generator)
        outputs = (*outputs, *(f"new_{name}" for name in model.cache_names))
    features = torch.randn((2, n, model.feature_width), generator=generator)
    state = {"features": features, "step": torch.tensor([0, 3], dtype=torch.int32)}
    unclamped = getattr(decoder, "unclamped")  # noqa: B009 (mypy takes it for a tensor)
    return {
        "transformer": Graph(transformer, inputs, outputs, dynamic),
        **{name: Graph(network, state, ("action",)) for name, network in policies.items()},
        "decoder": Graph(decoder, {"tokens": tokens}, ("image",), unclamped=unclamped),
        **encoder_graphs(model, Codes(decoder)),
    }


def _with_cache(
    model: MaskedModel, tokens: Tensor, condition: dict[str, Tensor], random: torch.Generator
) -> tuple[dict[str, Tensor], dict[str, dict[int, str]]]:
    """Inputs of a transformer that computes some positions beside others that are cached."""
    length, past = 5, 3
    shape = (2, length)
    places = torch.randint(model.num_tokens, shape, generator=random, dtype=torch.int32)
    ids = tokens[:, torch.arange(length) % tokens.shape[1]]
    inputs = {"tokens": ids, "positions": places, **condition}
    dynamic = {"tokens": {0: "batch", 1: "length"}, "positions": {0: "batch", 1: "length"}}
    dynamic |= {name: {0: "batch"} for name in condition}
    for name in model.cache_names:
        cached = torch.randn((2, past, model.feature_width), generator=random)
        inputs[f"past_{name}"], dynamic[f"past_{name}"] = cached, {0: "batch", 1: "past"}
    return inputs, dynamic


class LogitsOnly(nn.Module):
    """The transformer without its features, which only a policy reads."""

    def __init__(self, transformer: UViT) -> None:
        super().__init__()
        self.transformer = transformer

    def forward(self, tokens: Tensor, condition: Tensor) -> Tensor:
        logits: Tensor = self.transformer(tokens, condition)[0]
        return logits


class WithCache(nn.Module):
    """The transformer for some positions beside others, whose keys and values are cached."""

    def __init__(self, transformer: UViT, *, features: bool) -> None:
        super().__init__()
        self.transformer, self.features = transformer, features

    def forward(
        self, tokens: Tensor, positions: Tensor, condition: Tensor, *past: Tensor
    ) -> tuple[Tensor, ...]:
        logits, features, own = self.transformer.with_cached(tokens, positions, condition, past)
        return (logits, features, *own) if self.features else (logits, *own)
