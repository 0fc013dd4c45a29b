"""The PyTorch baseline of the benchmark: the passes it makes and the images it gives."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from fewstep.export.eager import EagerSampler

from fewstep.runtime.bundle import Bundle
from fewstep.runtime.errors import RequestError
from fewstep.runtime.families.masked.schedule import Schedule

if TYPE_CHECKING:
    from fewstep.export import Checkpoints


@pytest.fixture(scope="module")
def sampler(tiny_bundle: Path, tiny_checkpoints: Checkpoints) -> EagerSampler:
    return EagerSampler.load(
        Bundle.read(tiny_bundle),
        tiny_checkpoints.transformer,
        tiny_checkpoints.tokenizer,
        tiny_checkpoints.config,
    )


@pytest.mark.parametrize("steps", [1, 3, 8])
def test_passes_are_those_of_the_authors(sampler: EagerSampler, steps: int) -> None:
    passes: list[int] = []

    def count(module: torch.nn.Module, arguments: tuple[torch.Tensor, ...]) -> None:
        passes.append(len(arguments[0]))

    hook = sampler._transformer.register_forward_pre_hook(count)
    parameters = torch.from_numpy(Schedule().parameters(steps, 16))
    try:
        tokens = sampler.decide(torch.tensor([0, 3]), parameters)
    finally:
        hook.remove()
    assert passes == [2] * (2 * steps + 1)
    assert ((tokens >= 0) & (tokens < 24)).all()
    images = sampler.decode(tokens)
    assert images.shape == (2, 3, 8, 8)
    assert ((images >= 0) & (images <= 1)).all()


def test_text_bundles_are_refused(tiny_text_bundle: Path, tiny_checkpoints: Checkpoints) -> None:
    with pytest.raises(RequestError, match="class-conditional"):
        EagerSampler.load(
            Bundle.read(tiny_text_bundle),
            tiny_checkpoints.transformer,
            tiny_checkpoints.tokenizer,
            tiny_checkpoints.config,
        )
