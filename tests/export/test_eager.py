"""The PyTorch baseline of the benchmarks: the passes it makes and the images it gives."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.benchmarks.eager import EagerSampler, parameters
from tests.cuda.torch_engine import load

from fewstep.export.config import read_config
from fewstep.export.masked import describe


@pytest.mark.parametrize("steps", [1, 3, 8])
def test_passes_are_those_of_the_authors(tiny_checkpoints: dict[str, Any], steps: int) -> None:
    models, passes = load(tiny_checkpoints), []

    def count(module: torch.nn.Module, arguments: tuple[torch.Tensor, ...]) -> None:
        passes.append(len(arguments[0]))

    models.transformer.register_forward_pre_hook(count)
    sampler = EagerSampler(models.transformer, models.tokenizer, 5)
    config = read_config(tiny_checkpoints["config"])
    model, _ = describe(models, config, at_least_one=False)
    tokens = sampler.decide(torch.tensor([0, 3]), parameters(model, "cosine", steps))
    assert passes == [2] * (2 * steps + 1)
    assert ((tokens >= 0) & (tokens < 24)).all()
    images = sampler.decode(tokens)
    assert images.shape == (2, 3, 8, 8)
    assert ((images >= 0) & (images <= 1)).all()
