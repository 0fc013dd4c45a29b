"""PyTorch eager with the authors' passes, as a baseline for benchmarks.

``train.py`` of the official AdaNAT repository runs the transformer once on the all-masked image,
then, at every step, once without the condition and once more on the new tokens: 2T + 1 passes at
batch B where T passes at batch 2B give the same images. Everything else is done as there, with
PyTorch operators.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import softplus

from fewstep.export.models import UViT, VQModel
from fewstep.runtime.families.masked.model import MaskedModel
from fewstep.runtime.families.masked.schedule import Schedule


def parameters(model: MaskedModel, schedule: str, steps: int) -> Tensor:
    """Parameters ``[T, 4]`` of a fixed schedule with the model's default ramps."""
    ramps = model.defaults
    fixed = Schedule(
        schedule, ramps.guidance, ramps.sampling_temperature, ramps.masking_temperature
    )
    return torch.tensor(fixed.parameters(steps, model.num_tokens))


class EagerSampler:
    """The official sampling procedure for a class-conditional masked model.

    Args:
        transformer: in evaluation mode, on any device in any float type; sampling is in fp32.
        tokenizer: in evaluation mode.
        unconditional_id: the class id that means "no class".
    """

    def __init__(self, transformer: UViT, tokenizer: VQModel, unconditional_id: int) -> None:
        self._transformer, self._tokenizer = transformer, tokenizer
        self._unconditional = unconditional_id

    @torch.no_grad()
    def decide(
        self,
        class_ids: Tensor,
        parameters: Tensor,
        policy: Callable[[Tensor, Tensor], Tensor] | None = None,
    ) -> Tensor:
        """Decide tokens ``[B, N]`` for ``class_ids [B]`` with ``parameters [T, 4]``.

        ``class_ids`` are on the models' device, ``parameters`` on the CPU. A ``policy``, for one
        image, gives actions ``[1, 4]`` of features and the step ``[1]``; ``parameters`` are then
        what is added to these.
        """
        n, mask_token = self._transformer.num_tokens, self._transformer.codebook_size
        nothing = torch.full_like(class_ids, self._unconditional)
        tokens = torch.full((len(class_ids), n), mask_token, device=class_ids.device)
        conditional, features = self._transformer(tokens, class_ids)
        for step, row in enumerate(parameters):
            if policy is not None:
                action = policy(features.float(), torch.tensor([step]))[0] + row
                row = torch.cat([action[:1].sigmoid(), softplus(action[1:])])
            ratio, masking, sampling, guidance = row.tolist()
            unconditional, _ = self._transformer(tokens, nothing)
            logits = (conditional + guidance * (conditional - unconditional)).float()
            known = tokens != mask_token
            # A temperature of 0 is the most likely code, which the smallest number gives too.
            probabilities = (logits / max(sampling, 1e-4)).softmax(-1).flatten(0, 1)
            drawn = torch.multinomial(probabilities, 1).view_as(tokens)
            sampled = torch.where(known, tokens, drawn)
            confidence = logits.log_softmax(-1).gather(-1, sampled[..., None]).squeeze(-1)
            gumbel = -(-torch.rand_like(confidence).clamp_min(1e-20).log()).log()
            confidence = (confidence + masking * gumbel).masked_fill(known, torch.inf)
            kth = min(int(n * ratio), n - 1)
            threshold = confidence.sort(-1).values[:, kth : kth + 1]
            tokens = sampled.masked_fill(confidence < threshold, mask_token)
            conditional, features = self._transformer(tokens, class_ids)
        return sampled

    @torch.no_grad()
    def decode(self, tokens: Tensor) -> Tensor:
        """Images ``[B, 3, H, W]`` in 0…1 of ``tokens [B, N]``."""
        images: Tensor = self._tokenizer(tokens)
        return images
