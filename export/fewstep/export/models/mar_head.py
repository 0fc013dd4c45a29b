"""MAR's diffusion head: the network that denoises the tokens of an iteration.

Same state-dict keys as ``models/diffloss.py`` of the official MAR repository (LTH14/mar). It is
given where a token is in the diffusion (a timestep) and what the transformer says of it (z), and
gives the noise in the token and how uncertain that is.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

TIMESTEPS = 1000
"""Of the diffusion that heads are trained with."""

_EPS = 1e-6
_FREQUENCIES = 128
_LONGEST_PERIOD = 10_000


def _modulated(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return x * (1 + scale) + shift


class TimestepEmbedder(nn.Module):
    """Timesteps ``[S]`` → ``[S, width]``: cosines, then sines, through two layers."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(2 * _FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width)
        )

    def forward(self, timesteps: Tensor) -> Tensor:
        steps = torch.arange(_FREQUENCIES, dtype=torch.float32, device=timesteps.device)
        angles = timesteps[:, None].float() * torch.exp(
            -math.log(_LONGEST_PERIOD) * steps / _FREQUENCIES
        )
        out: Tensor = self.mlp(torch.cat([angles.cos(), angles.sin()], dim=-1))
        return out


class ResBlock(nn.Module):
    """Two layers on a modulated norm, gated: ``[…, width]``, modulated by ``y`` of that shape."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.in_ln = nn.LayerNorm(width, eps=_EPS)
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 3 * width))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        shift, scale, gate = self.adaLN_modulation(y).chunk(3, dim=-1)
        out: Tensor = x + gate * self.mlp(_modulated(self.in_ln(x), shift, scale))
        return out


class FinalLayer(nn.Module):
    """A modulated norm without weights of its own, and a layer."""

    def __init__(self, width: int, channels: int) -> None:
        super().__init__()
        self.width = width
        self.linear = nn.Linear(width, channels)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        shift, scale = self.adaLN_modulation(y).chunk(2, dim=-1)
        normed = F.layer_norm(x, (self.width,), eps=_EPS)
        out: Tensor = self.linear(_modulated(normed, shift, scale))
        return out


class SimpleMLPAdaLN(nn.Module):
    """The head.

    Args:
        in_channels: numbers of a token, C.
        model_channels: width w of the blocks.
        out_channels: of what it gives, 2·C: noise, and where its variance lies.
        z_channels: numbers of z, D.
        num_res_blocks: how many blocks.
    """

    def __init__(
        self,
        in_channels: int,
        model_channels: int,
        out_channels: int,
        z_channels: int,
        num_res_blocks: int,
    ) -> None:
        super().__init__()
        self.width = model_channels
        self.time_embed = TimestepEmbedder(model_channels)
        self.cond_embed = nn.Linear(z_channels, model_channels)
        self.input_proj = nn.Linear(in_channels, model_channels)
        self.res_blocks = nn.ModuleList(ResBlock(model_channels) for _ in range(num_res_blocks))
        self.final_layer = FinalLayer(model_channels, out_channels)

    def denoise(self, x: Tensor, y: Tensor) -> Tensor:
        """Tokens ``[…, C]``, embedded timestep and z together ``[…, w]`` → ``[…, 2·C]``."""
        x = self.input_proj(x)
        for block in self.res_blocks:
            x = block(x, y)
        out: Tensor = self.final_layer(x, y)
        return out

    def forward(self, x: Tensor, t: Tensor, c: Tensor) -> Tensor:
        """Tokens ``[K, C]``, timesteps ``[K]``, z ``[K, D]`` → ``[K, 2·C]``."""
        return self.denoise(x, self.time_embed(t) + self.cond_embed(c))


class DiffLoss(nn.Module):
    """Holds the head, as the official class does.

    Args:
        target_channels: numbers of a token.
        z_channels: numbers of z.
        depth: blocks of the head.
        width: of the head.
    """

    def __init__(self, target_channels: int, z_channels: int, depth: int, width: int) -> None:
        super().__init__()
        self.in_channels = target_channels
        self.net = SimpleMLPAdaLN(target_channels, width, 2 * target_channels, z_channels, depth)
