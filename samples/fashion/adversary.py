"""The patch discriminator that every tokenizer of the sample learns against.

Hinge losses, and a weight that balances the gradients at the last layer, as in VQGAN (Esser et
al., CVPR 2021).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

WEIGHT = 0.3
RATE = 4e-4


class PatchDiscriminator(nn.Module):
    """Scores overlapping 14×14 patches: ``[B, 3, 32, 32] → [B, 1, 8, 8]``."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 32, 4, 2, 1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(32, 64, 4, 2, 1),
            nn.GroupNorm(8, 64),
            nn.LeakyReLU(0.2),
            nn.Conv2d(64, 64, 3, 1, 1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(64, 1, 1),
        )

    def forward(self, image: Tensor) -> Tensor:
        out: Tensor = self.layers(image)
        return out


class Adversary:
    """A discriminator that learns along with the tokenizer."""

    def __init__(self) -> None:
        self._critic = PatchDiscriminator()
        self._optimizer = torch.optim.Adam(self._critic.parameters(), RATE, betas=(0.5, 0.9))

    def loss(self, out: Tensor, pixel: Tensor, last_layer: Tensor) -> Tensor:
        """What a tokenizer is told of its images.

        Args:
            out: its images ``[B, 3, 32, 32]``.
            pixel: its loss on them otherwise, which this one is balanced against.
            last_layer: its weights there.
        """
        adversarial = -self._critic(out).mean()
        found: Tensor = WEIGHT * _balance(pixel, adversarial, last_layer) * adversarial
        return found

    def learn(self, image: Tensor, out: Tensor) -> float:
        """A step on images ``[B, 3, 32, 32]`` and on what the tokenizer made of them: the loss."""
        real, fake = self._critic(image), self._critic(out.detach())
        loss = (F.relu(1 - real) + F.relu(1 + fake)).mean()
        self._optimizer.zero_grad()
        torch.autograd.backward(loss)
        self._optimizer.step()
        return float(loss.item())


def _balance(loss: Tensor, adversarial: Tensor, last_layer: Tensor) -> Tensor:
    """Ratio of gradient norms at the last layer (VQGAN, equation 7), at most 10."""
    (main,) = torch.autograd.grad(loss, last_layer, retain_graph=True)
    (other,) = torch.autograd.grad(adversarial, last_layer, retain_graph=True)
    ratio: Tensor = main.norm() / (other.norm() + 1e-4)
    return ratio.clamp(max=10.0).detach()
