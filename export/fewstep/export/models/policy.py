"""AdaNAT's policy network: transformer features and the step → four raw actions.

Same constructor arguments and state-dict keys as ``libs/policy.py`` of the official AdaNAT
repository, generalised from its 16×16 token grid to any even square grid (only
``linear1.weight`` changes its width with the grid), and from the widths of its last layers, which
are constants there. The actions are raw: the decode loop turns them into mask ratio, masking
temperature, sampling temperature and guidance scale.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_MAX_PERIOD = 10_000.0


class TimestepEmbedder(nn.Module):
    """Sinusoidal embedding (cosines first, then sines) and a two-layer MLP: ``[B] → [B, C]``."""

    def __init__(self, hidden_size: int, frequency_embedding_size: int = 256) -> None:
        super().__init__()
        self.half_width = frequency_embedding_size // 2
        self.mlp = nn.Sequential(
            nn.Linear(frequency_embedding_size, hidden_size),
            nn.SiLU(),
            nn.Linear(hidden_size, hidden_size),
        )

    def forward(self, step: Tensor) -> Tensor:
        exponent = torch.arange(self.half_width, dtype=torch.float32, device=step.device)
        frequencies = torch.exp(-math.log(_MAX_PERIOD) * exponent / self.half_width)
        angles = step.float()[:, None] * frequencies
        out: Tensor = self.mlp(torch.cat([angles.cos(), angles.sin()], dim=-1))
        return out


class AdaLN(nn.Module):
    """LayerNorm without affine (eps 1e-6), shifted and scaled by a condition ``c [B, C]``."""

    def __init__(self, dim: int, condition_dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim, elementwise_affine=False, eps=1e-6)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(condition_dim, 2 * dim))

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        shift, scale = self.adaLN_modulation(condition).chunk(2, dim=1)
        if x.ndim == 3:
            shift, scale = shift.unsqueeze(1), scale.unsqueeze(1)
        out: Tensor = self.norm(x) * (1 + scale) + shift
        return out


class PolicyNet(nn.Module):
    """The policy (actor) network of AdaNAT.

    Args:
        in_channels: width of the transformer's features.
        out_channels: number of actions (4).
        hidden_size: width of the network; ``x_embedder`` exists only if it differs from
            ``in_channels``.
        grid_size: side of the token grid, even (16 in the official class).
        channels: of the feature map that is flattened (128 in the official class).
        widths: of the two layers after it (1024 and 512 in the official class). Most of the
            network's parameters are there: ``(grid_size / 2)² · channels · widths[0]`` in one
            layer.

    Raises:
        ValueError: an odd grid, or ``channels`` and ``widths`` that are not one and two positive
            integers.
    """

    def __init__(
        self,
        in_channels: int = 512,
        out_channels: int = 4,
        hidden_size: int = 1152,
        grid_size: int = 16,
        channels: int = 128,
        widths: Sequence[int] = (1024, 512),
    ) -> None:
        super().__init__()
        if grid_size % 2:
            raise ValueError(f"grid_size must be even, got {grid_size}")
        _check_widths(channels, widths)
        first, second = widths
        self.in_channels, self.grid_size = in_channels, grid_size
        same = in_channels == hidden_size
        self.x_embedder = None if same else nn.Linear(in_channels, hidden_size)
        self.t_embedder = TimestepEmbedder(hidden_size)
        self.adaLN1 = AdaLN(hidden_size, hidden_size)
        self.dw_conv = nn.Conv2d(
            hidden_size, hidden_size, kernel_size=3, stride=2, padding=1, groups=hidden_size
        )
        self.pw_conv = nn.Conv2d(hidden_size, channels, kernel_size=1)
        self.linear1 = nn.Linear((grid_size // 2) ** 2 * channels, first)
        self.adaLN2 = AdaLN(first, hidden_size)
        self.linear2 = nn.Linear(first, second)
        self.adaLN3 = AdaLN(second, hidden_size)
        self.linear3 = nn.Linear(second, out_channels)
        self._init_weights()

    @property
    def sizes(self) -> dict[str, Any]:
        """Constructor arguments that neither features nor actions decide."""
        return {
            "hidden_size": self.dw_conv.out_channels,
            "channels": self.pw_conv.out_channels,
            "widths": (self.linear1.out_features, self.linear2.out_features),
        }

    def _init_weights(self) -> None:
        """As ``initialize_weights`` of the official class: Xavier-uniform, biases 0.

        Exceptions: weights of the step embedding normal with deviation 0.02, convolutions as
        PyTorch initialises them, and all of the modulations and of the output layer 0.
        """
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        for name, parameter in self.named_parameters():
            if name.startswith("t_embedder") and name.endswith("weight"):
                nn.init.normal_(parameter, std=0.02)
            # So every action is 0: an untrained policy is exactly its residual schedule.
            if "adaLN_modulation" in name or name == "linear3.weight":
                nn.init.zeros_(parameter)

    def forward(self, features: Tensor, step: Tensor) -> Tensor:
        """Map ``features [B, N, C]`` and ``step [B]`` to raw actions ``[B, 4]``."""
        x = features if self.x_embedder is None else self.x_embedder(features)
        condition = self.t_embedder(step)
        x = self.adaLN1(x, condition)  # [B, N, C]
        x = x.transpose(1, 2).unflatten(2, (self.grid_size, self.grid_size))  # [B, C, H, W]
        x = F.gelu(self.pw_conv(F.gelu(self.dw_conv(x)))).flatten(1)  # [B, channels·H/2·W/2]
        x = F.gelu(self.adaLN2(self.linear1(x), condition))
        x = F.gelu(self.adaLN3(self.linear2(x), condition))
        out: Tensor = self.linear3(x)
        return out


def _check_widths(channels: object, widths: object) -> None:
    if not _positive(channels):
        raise ValueError(f"channels must be a positive integer, got {channels!r}")
    pair = isinstance(widths, (list, tuple)) and len(widths) == 2
    if not (pair and all(_positive(each) for each in widths)):  # type: ignore[attr-defined]
        raise ValueError(f"widths must be two positive integers, got {widths!r}")


def _positive(value: object) -> bool:
    return type(value) is int and value > 0


class FixedPolicy(nn.Module):
    """One action per step, the same for every image: AdaNAT's "learnable, not adaptive" policy.

    Steps beyond the last take the last one's action. Features are read, as a policy's graph must,
    and change nothing.

    Args:
        steps: rows of the table.
        actions: columns, A.
    """

    def __init__(self, steps: int, actions: int = 4) -> None:
        super().__init__()
        self.actions = nn.Parameter(torch.zeros(steps, actions))

    def forward(self, features: Tensor, step: Tensor) -> Tensor:
        """Map ``features [B, N, C]`` and ``step [B]`` to raw actions ``[B, A]``."""
        rows = step.long().clamp(max=len(self.actions) - 1)
        out: Tensor = self.actions[rows] + 0 * features[:, 0, :1]
        return out
