"""The baseline of ``fewstep bench --baseline``: PyTorch eager, with the authors' passes.

``train.py`` of the official AdaNAT repository runs the transformer once on the all-masked image,
then, at every step, once without the condition and once more on the new tokens: 2T + 1 passes at
batch B where T passes at batch 2B give the same images. Everything else is done as there, with
PyTorch operators.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from fewstep.export.config import read_config
from fewstep.export.masked import load_models
from fewstep.export.models import UViT, VQModel
from fewstep.runtime.bench import Run
from fewstep.runtime.bundle import Bundle
from fewstep.runtime.errors import RequestError
from fewstep.runtime.files import sha256
from fewstep.runtime.generator import Generator
from fewstep.runtime.manifest import ClassCondition
from fewstep.runtime.request import RAMPS, schedule_of


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

    @classmethod
    def load(
        cls, bundle: Bundle, transformer: Path, tokenizer: Path, config: Path | None
    ) -> EagerSampler:
        """Load the checkpoints a bundle was exported from.

        Raises:
            RequestError: other files than the bundle's (by hash), or a text-conditional bundle.
            CheckpointError: the checkpoints do not load.
        """
        info = bundle.manifest.model.condition
        if not isinstance(info, ClassCondition):
            raise RequestError("the PyTorch baseline needs a class-conditional bundle")
        for name, path in {"transformer": transformer, "tokenizer": tokenizer}.items():
            expected = bundle.manifest.provenance.checkpoints[name]
            if not path.is_file() or sha256(path) != expected.sha256:
                raise RequestError(
                    f"{path} is not the {name} this bundle was exported from ({expected.file})"
                )
        models = load_models(transformer, tokenizer, None, read_config(config))
        return cls(models.transformer, models.tokenizer, info.unconditional_id)

    @torch.no_grad()
    def decide(self, class_ids: Tensor, parameters: Tensor) -> Tensor:
        """Decide tokens ``[B, N]`` for ``class_ids [B]`` with ``parameters [T, 4]``.

        ``class_ids`` are on the models' device, ``parameters`` on the CPU.
        """
        n, mask_token = self._transformer.num_tokens, self._transformer.codebook_size
        nothing = torch.full_like(class_ids, self._unconditional)
        tokens = torch.full((len(class_ids), n), mask_token, device=class_ids.device)
        conditional, _ = self._transformer(tokens, class_ids)
        for ratio, masking, sampling, guidance in parameters.tolist():
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
            conditional, _ = self._transformer(tokens, class_ids)
        return sampled

    @torch.no_grad()
    def decode(self, tokens: Tensor) -> Tensor:
        """Images ``[B, 3, H, W]`` in 0…1 of ``tokens [B, N]``."""
        images: Tensor = self._tokenizer(tokens)
        return images


def contender(
    sampler: EagerSampler, generator: Generator, *, batch: int, steps: int, schedule: str | None
) -> Run:
    """A run of the baseline with a fixed schedule, by default the bundle's.

    Raises:
        RequestError: the schedule is unknown, or the policy network.
    """
    model = generator.bundle.manifest.model
    assert isinstance(model.condition, ClassCondition)
    ids = torch.arange(batch) % model.condition.num_classes
    fixed = schedule_of(model, schedule, dict.fromkeys(RAMPS), steps)
    if isinstance(fixed, str):
        raise RequestError("the PyTorch baseline has fixed schedules only; name one: --schedule")
    parameters = torch.from_numpy(fixed.parameters(steps, model.num_tokens))

    def run() -> Mapping[str, float]:
        tokens, start = sampler.decide(ids, parameters), time.perf_counter()
        sampler.decode(tokens)
        return {"decoder": (time.perf_counter() - start) * 1e3}

    return run
