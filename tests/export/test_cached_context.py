"""Exports whose transformer computes some positions beside cached ones, and decodes with them.

Covered: inputs and outputs of the graph and its size; a decode against a plain loop over the whole
network in PyTorch with frozen keys and values; the golden rollout of local steps; fp16 graphs,
profiles and estimates; and forms that have no such transformer.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.frozen_context import frozen, projected
from tests.tiny import CLASSES, TRANSFORMER
from torch import Tensor

from fewstep.build.estimate import estimate
from fewstep.build.profiles import profiles, wrong_profiles
from fewstep.build.variants import add_variant
from fewstep.export.flow import export
from fewstep.export.models import UViT
from fewstep.runtime.bundle import Bundle
from fewstep.runtime.errors import CheckpointError
from fewstep.runtime.families import family_of
from fewstep.runtime.families.masked.halton import halton_order
from fewstep.runtime.generator import Generator
from fewstep.runtime.records import BuildOptions
from fewstep.runtime.verify import verify

_SETTINGS: dict[str, Any] = {"order": "halton", "steps": 6, "sampling_temperature": 0}


@pytest.fixture(scope="module")
def generator(cached_bundle: Path) -> Iterator[Generator]:
    with Generator.open(cached_bundle, threads=1, max_batch=4) as found:
        yield found


@pytest.fixture(scope="module")
def network(tiny_checkpoints: dict[str, Any]) -> UViT:
    found = UViT(**TRANSFORMER, **CLASSES).eval().requires_grad_(False)
    found.load_state_dict(torch.load(tiny_checkpoints["transformer"]))
    return found


# --- the graph


def test_the_graph_takes_and_gives_keys_and_values(cached_bundle: Path) -> None:
    graph = Bundle.read(cached_bundle).manifest.graphs["transformer"]
    names = [f"{what}_{block}" for block in range(3) for what in ("key", "value")]
    past = {f"past_{name}": ("batch", "past", 32) for name in names}
    own = {f"new_{name}": ("batch", "length", 32) for name in names}
    place = ("batch", "length")
    inputs = {"tokens": place, "positions": place, "condition": ("batch",), **past}
    outputs = {"logits": (*place, 24), "features": (*place, 32), **own}
    assert {name: each.shape for name, each in graph.inputs.items()} == inputs
    assert {name: each.shape for name, each in graph.outputs.items()} == outputs


def test_the_graph_is_no_larger_than_the_one_without(
    cached_bundle: Path, tiny_bundle: Path
) -> None:
    """Weights are there once; the description of more inputs takes a few thousand bytes."""
    sizes = [(path / "transformer.onnx").stat().st_size for path in (cached_bundle, tiny_bundle)]
    assert abs(sizes[0] - sizes[1]) < 20_000


@pytest.mark.parametrize("form", ["halton", "maskgit-torch", "titok", "amused", "var", "mar"])
def test_other_forms_have_no_such_transformer(form: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=f"unknown option of {form} 'cached_context'"):
        export(form, {"cached_context": True}, tmp_path / "bundle")


# --- what is decoded


def _plain_loop(
    network: UViT, classes: Sequence[int], full: Sequence[bool], guidance: float
) -> Tensor:
    """Tokens ``[T + 1, B, N]``: the likeliest codes in the Halton order, with a cosine schedule.

    A step that is not full sees keys and values of the last full one at all positions but those
    that are decided from that step on, before the next full one.
    """
    steps, count = len(full), network.num_tokens
    ranks = torch.empty(count, dtype=torch.int64)
    ranks[torch.from_numpy(halton_order(4, 4)).long()] = torch.arange(count)
    masked = [int(count * np.float32(np.cos((t + 1) / steps * np.pi / 2))) for t in range(steps)]
    decided = [0, *(max(t + 1, count - left) for t, left in enumerate(masked[:-1])), count]
    condition = torch.tensor([*classes, *[5] * len(classes)])
    now = torch.full((len(classes), count), network.codebook_size)
    found, seen, first = [now], list[Tensor](), 0
    for step in range(steps):
        tokens = torch.cat([now, now])
        if full[step]:
            seen, first = projected(network, tokens, condition), step
            logits = network(tokens, condition)[0]
        else:
            end = next((n for n in range(step, steps) if full[n]), steps)
            outside = (ranks < decided[first]) | (ranks >= decided[end])
            logits, _ = frozen(network, tokens, condition, seen, outside.expand(len(tokens), -1))
        own, other = logits.chunk(2)
        turn = (ranks >= decided[step]) & (ranks < decided[step + 1])
        now = torch.where(turn, (own + guidance * (own - other)).argmax(-1), now)
        found.append(now)
    return torch.stack(found)


@pytest.mark.parametrize(
    ("local", "first", "full"),
    [(1, 0, "101010"), (2, 0, "100100"), (1, 2, "111010"), (5, 0, "100000"), (2, 1, "110010")],
)
@pytest.mark.parametrize("guidance", [0.0, 1.5])
def test_a_decode_is_that_of_the_plain_loop(
    generator: Generator, network: UViT, local: int, first: int, full: str, guidance: float
) -> None:
    classes = [0, 3, 2, 4]
    settings = {**_SETTINGS, "guidance": guidance, "schedule": "cosine"}
    trace = generator.generate(
        class_ids=classes, local_steps=local, full_first=first, **settings
    ).trace
    expected = _plain_loop(network, classes, [each == "1" for each in full], guidance)
    np.testing.assert_array_equal(trace.tokens, expected)


def test_local_steps_are_a_golden_rollout(generator: Generator) -> None:
    report = verify(generator)
    assert report.passed
    checks = {(each.graph, each.metric) for each in report.checks if each.rollout == "cached"}
    assert ("transformer", "argmax_agreement") in checks


# --- what reads programs


def test_profiles_span_whatever_is_asked_for(generator: Generator) -> None:
    bundle, options = generator.bundle, BuildOptions(max_batch=4, opt_batch=(1, 4))
    (profile, _) = profiles(bundle, options)["transformer"]
    assert not [*wrong_profiles(bundle.manifest.graphs["transformer"], [profile])]
    model, family = generator.model, family_of("masked")
    for local, first, guidance in ((1, 0, 2.0), (3, 1, 0.0), (9, 0, 1.0), (0, 0, 1.0)):
        settings = {**_SETTINGS, "local_steps": local, "full_first": first, "guidance": guidance}
        for images in 1, 4:
            request = generator.request(class_ids=[1] * images, **settings)
            program = family.program(model, family.key(model, request, images))
            for run, shapes in program.runs():
                for name, limits in profile.items() if run.graph == "transformer" else ():
                    sizes = zip(limits.min, shapes[name], limits.max, strict=True)
                    assert all(low <= size <= high for low, size, high in sizes), name


def test_fp16_graphs_decode_with_local_steps(cached_bundle: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(cached_bundle, tmp_path / "bundle"))
    add_variant(Bundle.read(path), "fp16")
    with Generator.open(path, precision="fp16", threads=1) as generator:
        assert verify(generator).passed


def test_local_steps_are_less_work(cached_bundle: Path) -> None:
    bundle, operations = Bundle.read(cached_bundle), list[int]()
    for local in 0, 1:
        found = estimate(bundle, precisions=("fp32",), local_steps=local, **_SETTINGS)
        stages = found.devices[0].precisions[0].stages
        operations.append(sum(each.stage.flops * each.stage.runs for each in stages))
    assert 0 < operations[1] < operations[0]
    assert bundle.manifest.model.describe()["cached context"] == "3 blocks"
