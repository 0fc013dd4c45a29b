"""MaskGIT's public forms in PyTorch eager, as their authors decode: baselines for benchmarks.

The passes, the sampling and the number of rows are those of maskgit-torch, 1d-tokenizer,
Halton-MaskGIT, AdaGen, AdaNAT and diffusers, one image at a time, written with PyTorch's operators.
Attention, which the networks of an export write out, is PyTorch's fused one, as the authors have
it. Text states are given, so no loop has a text encoder.

    maskgit-torch  T passes of a row: there is no guidance; logits of classes are computed too
    titok          2T − 1 passes of a row: linear guidance is 0 at the first step
    halton         T passes of two rows; every position is sampled, and those of the step are kept
    adagen         2T + 1 passes of a row, and a policy network before every step
    adanat         the same, conditioned on text states (CC3M)
    amused         T passes of two rows: the negative prompt and the prompt
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.distributions import Categorical
from torch.nn import functional as F

from fewstep.export.models import (
    PolicyNet,
    UViT,
    halton_transformer,
    image_bert,
    uvit,
    uvit2d_blocks,
)
from fewstep.export.models import maskgit_transformer as maskgit
from fewstep.export.models.uvit2d import UVit2DModel
from fewstep.runtime.families.masked.halton import halton_order
from fewstep.runtime.families.masked.model import MaskedPolicyInfo

_ANNEALING = (0.5, 0.8)  # softmax temperature at the end, and how much more at the beginning


# --- attention


def _attended(heads: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """``[B, L, C]`` each → ``[B, L, C]``."""
    q, k, v = (x.reshape(*x.shape[:2], heads, -1).transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def _of_maskgit(self: maskgit.Attention, x: Tensor) -> Tensor:
    q, k, v = F.linear(x, self.in_proj_weight, self.in_proj_bias).chunk(3, dim=-1)
    out: Tensor = self.out_proj(_attended(self.heads, q, k, v))
    return out


def _of_bert(self: image_bert._SelfAttention, x: Tensor) -> Tensor:
    return _attended(self.heads, self.query(x), self.key(x), self.value(x))


def _of_halton(self: halton_transformer.Attention, x: Tensor) -> Tensor:
    q, k = (halton_transformer.rms_normalised(layer(x)) for layer in (self.wq, self.wk))
    out: Tensor = self.wo(_attended(self.heads, q, k, self.wv(x)))
    return out


def _of_uvit(self: uvit.Attention, x: Tensor) -> Tensor:
    out: Tensor = self.proj(_attended(self.num_heads, *self.qkv(x).chunk(3, dim=-1)))
    return out


def _of_amused(self: uvit2d_blocks.Attention, x: Tensor, to: Tensor) -> Tensor:
    heads = _attended(self.heads, self.to_q(x), self.to_k(to), self.to_v(to))
    out: Tensor = self.to_out[0](heads)
    return out


_FUSED: dict[type[nn.Module], Callable[..., Tensor]] = {
    maskgit.Attention: _of_maskgit,
    image_bert._SelfAttention: _of_bert,
    halton_transformer.Attention: _of_halton,
    uvit.Attention: _of_uvit,
    uvit2d_blocks.Attention: _of_amused,
}


def fused(network: nn.Module) -> nn.Module:
    """The network in evaluation mode, with PyTorch's fused attention."""
    for module in network.modules():
        if type(module) in _FUSED:
            module.__dict__["forward"] = partial(_FUSED[type(module)], module)
    return network.eval()


# --- what the samplers share


def _gumbel(like: Tensor) -> Tensor:
    noise = torch.rand_like(like).clamp(min=1e-20)
    return -(-noise.log()).clamp(min=1e-20).log()


def _drawn(distribution: Categorical) -> Tensor:
    sampled: Tensor = distribution.sample()  # type: ignore[no-untyped-call]
    return sampled


def _masked_again(confidence: Tensor, count: int) -> Tensor:
    """Where confidence is below the one at ``count`` in ascending order."""
    ordered = confidence.sort(dim=-1).values
    return confidence < ordered[:, count : count + 1]


# --- the forms


@torch.no_grad()
def maskgit_torch(
    transformer: maskgit.BidirectionalTransformer,
    tokenizer: nn.Module,
    class_id: int,
    *,
    steps: int = 16,
    temperature: float = 4.5,
) -> Tensor:
    """Image ``[1, 3, H, W]`` as ``parallel_decode.py`` of maskgit-torch decides it."""
    count, codes, mask = (
        transformer.num_tokens,
        transformer.codebook_size,
        transformer.mask_token_id,
    )
    ids = torch.full((1, count + 1), mask)
    ids[:, 0] = codes + class_id
    for step in range(steps):
        probabilities = transformer.sequence_logits(ids)[..., :codes].softmax(-1)
        drawn = torch.multinomial(probabilities.flatten(0, 1), 1).view_as(ids)
        unknown = ids == mask
        sampled = torch.where(unknown, drawn, ids)
        at = sampled.clamp(max=codes - 1)[..., None]
        chosen = probabilities.gather(-1, at).squeeze(-1)
        chosen = torch.where(unknown, chosen, torch.inf)
        ratio = (step + 1) / steps
        left = math.floor(count * max(math.cos(math.pi / 2 * ratio), 1e-6))
        left = min(max(1, left), int(unknown.sum()) - 1)
        confidence = chosen.log() + temperature * (1 - ratio) * _gumbel(chosen)
        ids = torch.where(_masked_again(confidence, left), mask, sampled)
    image: Tensor = tokenizer(sampled[:, 1:])
    return image


@torch.no_grad()
def titok(
    transformer: image_bert.ImageBert,
    tokenizer: nn.Module,
    class_id: int,
    *,
    steps: int = 8,
    temperature: float = 9.5,
    guidance: float = 4.5,
) -> Tensor:
    """Image ``[1, 3, H, W]`` as ``generate`` of 1d-tokenizer's ``ImageBert`` decides it, with
    linear guidance."""
    count, mask = transformer.num_tokens, transformer.codebook_size
    own, none = (torch.tensor([each]) for each in (class_id, transformer.condition_num_classes))
    ids, scale = torch.full((1, count), mask), 0.0
    for step in range(steps):
        ratio = (step + 1) / steps
        noise = temperature * (1 - ratio)
        unknown = ids == mask
        logits = transformer(ids, own)
        if scale:
            logits = logits + (logits - transformer(ids, none)) * scale
        logits = logits / (_ANNEALING[0] + _ANNEALING[1] * (1 - ratio))
        drawn = (logits + noise * _gumbel(logits)).argmax(-1)
        chosen = logits.gather(-1, drawn[..., None]).squeeze(-1)
        sampled = torch.where(unknown, drawn, ids)
        chosen = torch.where(unknown, chosen, torch.inf)
        left = math.floor(count * math.acos(ratio) / (math.pi / 2))
        left = max(1, min(int(unknown.sum()) - 1, left))
        confidence = chosen + noise * _gumbel(chosen)
        ordered = confidence.sort(dim=-1).values
        ids = torch.where(confidence <= ordered[:, left - 1 : left], mask, sampled)
        scale = ratio * guidance
    image: Tensor = tokenizer(sampled)
    return image


@torch.no_grad()
def halton(
    transformer: halton_transformer.HaltonTransformer,
    tokenizer: nn.Module,
    class_id: int,
    *,
    steps: int = 32,
    guidance: float = 1.0,
) -> Tensor:
    """Image ``[1, 3, H, W]`` as ``halton_sampler.py`` of Halton-MaskGIT decides it."""
    count, side = transformer.num_tokens, transformer.input_size
    order = torch.from_numpy(halton_order(side, side)).long()
    both = torch.tensor([class_id, transformer.nclass])
    ids = torch.full((1, count), transformer.codebook_size)
    for step in range(steps):
        part = 1 - torch.arccos(torch.tensor((step + 1) / steps)) / (math.pi / 2)
        known = torch.zeros(1, count, dtype=torch.bool)
        known[:, order[: max(step + 1, int(part * count))]] = True
        own, none = transformer(torch.cat([ids, ids]), both).chunk(2)
        logits = (1 + guidance) * own - guidance * none
        drawn = _drawn(Categorical(probs=logits.softmax(-1)))
        ids[known] = drawn[known]
    image: Tensor = tokenizer(ids)
    return image


def adagen(
    transformer: UViT,
    tokenizer: nn.Module,
    class_id: int,
    *,
    policy: PolicyNet,
    info: MaskedPolicyInfo,
    steps: int = 16,
) -> Tensor:
    """Image ``[1, 3, H, W]`` as ``generators/maskgit.py`` of AdaGen decides it.

    ``info`` has the schedule that is added to the policy's actions, and their smoothing.
    """
    own, none = torch.tensor([class_id]), torch.tensor([transformer.num_classes - 1])
    return _by_policy(transformer, tokenizer, own, none, policy, info, steps)


def adanat(
    transformer: UViT,
    tokenizer: nn.Module,
    states: Tensor,
    *,
    policy: PolicyNet,
    info: MaskedPolicyInfo,
    steps: int = 8,
) -> Tensor:
    """Image ``[1, 3, H, W]`` as ``train.py`` of AdaNAT decides it for CC3M.

    ``states [2, L, D]``: those of the empty text, then those of the prompt.
    """
    none, own = states.chunk(2)
    return _by_policy(transformer, tokenizer, own, none, policy, info, steps)


@torch.no_grad()
def _by_policy(
    transformer: UViT,
    tokenizer: nn.Module,
    own: Tensor,
    none: Tensor,
    policy: PolicyNet,
    info: MaskedPolicyInfo,
    steps: int,
) -> Tensor:
    """AdaNAT's loop and AdaGen's, which smooths the actions."""
    count, mask = transformer.num_tokens, transformer.codebook_size
    ids, before = torch.full((1, count), mask), None
    logits, features = transformer(ids, own)
    for step in range(steps):
        action = policy(features, torch.tensor([step]))
        if before is not None:
            action = info.smoothing * before + (1 - info.smoothing) * action
        before = action
        # Added to smoothed actions, which is the same as the official residuals before.
        action = action + torch.tensor([[*info.offsets(step, steps).values()]])
        ratio = action[:, 0].sigmoid()
        noise, sampling, guidance = F.softplus(action[:, 1:])[0]
        logits = logits + guidance * (logits - transformer(ids, none)[0])
        unknown = ids == mask
        drawn = _drawn(Categorical(logits=logits / sampling))
        chosen = logits.log_softmax(-1).gather(-1, drawn[..., None]).squeeze(-1)
        sampled = torch.where(unknown, drawn, ids)
        chosen = torch.where(unknown, chosen, torch.inf)
        left = int((count * ratio).floor().clamp(max=count - 1))
        ids = torch.where(_masked_again(chosen + noise * _gumbel(chosen), left), mask, sampled)
        logits, features = transformer(ids, own)
    image: Tensor = tokenizer(sampled)
    return image


@torch.no_grad()
def amused(
    transformer: UVit2DModel,
    tokenizer: nn.Module,
    states: Tensor,
    *,
    steps: int = 12,
    guidance: float = 10.0,
    temperatures: tuple[float, float] = (2.0, 0.0),
    pixels: int = 256,
) -> Tensor:
    """Image ``[1, 3, H, W]`` as ``AmusedPipeline`` and ``AmusedScheduler`` of diffusers decide it.

    ``states [2, 1 + L, W]``: the negative prompt and the prompt, each as
    :func:`fewstep.export.models.uvit2d.packed` has it. ``pixels``: the side that the network is
    told of the image; the crop is 0, 0 and the aesthetic score 6.
    """
    side, mask = transformer.sample_size, transformer.vocab_size - 1
    count = side * side
    pooled = states[:, 0, : transformer.cond_embed_dim]
    text = states[:, 1:, : transformer.encoder_hidden_size]
    micro = torch.tensor([[pixels, pixels, 0, 0, 6]]).expand(2, -1)
    ids = torch.full((1, count), mask)
    for step, temperature in enumerate(torch.linspace(*temperatures, steps)):
        rows = ids.view(1, side, side).repeat(2, 1, 1)
        none, own = transformer(rows, text, pooled, micro).flatten(2).transpose(1, 2).chunk(2)
        probabilities = (none + guidance * (own - none)).softmax(-1)
        drawn = torch.multinomial(probabilities.flatten(0, 1), 1).view_as(ids)
        unknown = ids == mask
        sampled = torch.where(unknown, drawn, ids)
        if step == steps - 1:
            break
        ratio = torch.cos(torch.tensor((step + 1) / steps) * math.pi / 2)
        left = max(1, min(int(unknown.sum()) - 1, int((count * ratio).floor())))
        chosen = probabilities.gather(-1, sampled[..., None]).squeeze(-1)
        chosen = torch.where(unknown, chosen, torch.finfo(chosen.dtype).max)
        confidence = chosen.clamp(min=1e-20).log() + temperature * _gumbel(chosen)
        ids = torch.where(_masked_again(confidence, left), mask, sampled)
    image: Tensor = tokenizer(sampled)
    return image
