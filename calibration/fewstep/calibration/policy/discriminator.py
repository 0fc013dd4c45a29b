"""The projected discriminator: small heads on the maps of a frozen feature network.

After Sauer et al., "StyleGAN-T" (ICML 2023), figure 3 and section 4.1, as AdaNAT uses it: one
head for every map, each a 1×1 block and a residual block of a wide kernel, spectrally normalised;
the condition enters by projection (Miyato and Koyama, ICLR 2018). Two things differ: maps are
two-dimensional, so the wide kernel is 3×3; and groups of channels are normalised instead of groups
of images, so that the reward of an image does not depend on its neighbours in a batch.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from fewstep.calibration.policy.features import Features
from fewstep.runtime.condition import ClassCondition
from fewstep.runtime.families import ModelInfo

_WIDTH = 64
_GROUPS = 8


def _block(inputs: int, kernel: int) -> nn.Sequential:
    padding = {"padding": kernel // 2, "padding_mode": "circular" if kernel > 1 else "zeros"}
    convolution = nn.Conv2d(inputs, _WIDTH, kernel, **padding)  # type: ignore[arg-type]
    return nn.Sequential(
        spectral_norm(convolution), nn.GroupNorm(_GROUPS, _WIDTH), nn.LeakyReLU(0.2)
    )


class Head(nn.Module):
    """Logits ``[B, h·w]`` of one map ``[B, C, h, w]`` under an embedded condition ``[B, W]``."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first, self.residual = _block(channels, 1), _block(_WIDTH, 3)
        self.project = spectral_norm(nn.Conv2d(_WIDTH, _WIDTH, 1))

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        x = self.first(x)
        x = (x + self.residual(x)) / math.sqrt(2)
        out: Tensor = (self.project(x) * condition[:, :, None, None]).sum(1) / math.sqrt(_WIDTH)
        return out.flatten(1)


class Discriminator(nn.Module):
    """Heads for every map of a feature network, and for its pooled features as a map of one place.

    Args:
        channels: of the network's maps.
        width: of the pooled features.
        model: of the bundle: what the condition is.
    """

    def __init__(self, channels: tuple[int, ...], width: int, model: ModelInfo) -> None:
        super().__init__()
        info = model.condition
        self.by_class = isinstance(info, ClassCondition)
        self.embed: nn.Module
        if isinstance(info, ClassCondition):
            self.embed = nn.Embedding(info.num_classes, _WIDTH)
        else:
            self.embed = nn.Linear(info.width, _WIDTH)
        self.heads = nn.ModuleList(Head(each) for each in (*channels, width))

    def forward(self, features: Features, condition: Tensor) -> list[Tensor]:
        """Logits ``[B, h·w]`` of every head; positive means real."""
        given = condition.long() if self.by_class else condition.mean(1)
        embedded = self.embed(given)
        maps = (*features.maps, features.pooled[:, :, None, None])
        return [head(x, embedded) for head, x in zip(self.heads, maps, strict=True)]


def mean_logit(logits: list[Tensor]) -> Tensor:
    """Mean ``[B]`` over heads of the mean over positions: a fine map weighs no more than others."""
    return torch.stack([each.mean(1) for each in logits]).mean(0)
