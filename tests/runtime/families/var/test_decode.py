"""What a VAR bundle decodes, against eager PyTorch as the authors write it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests import tiny_var
from tests.runtime.families.var.eager import decode

from fewstep.runtime.errors import RequestError
from fewstep.runtime.generator import Generator
from fewstep.runtime.program import Run

GREEDY: dict[str, Any] = {"sampling_temperature": 0.0, "top_k": 40, "top_p": 1}
RAMP = [2.0 * scale / 3 for scale in range(4)]


@pytest.fixture(scope="module")
def generator(var_bundle: Path) -> Iterator[Generator]:
    with Generator.open(var_bundle, max_batch=4, threads=1) as made:
        yield made


def _tokens(result: Any, image: int) -> list[list[int]]:
    tokens = result.trace.tokens[:, image]
    return [row[: n * n].tolist() for row, n in zip(tokens, tiny_var.SCALES, strict=False)]


@pytest.mark.parametrize("guidance", [2, "0:2", "1,0,2,3", 0])
def test_tokens_and_images_are_those_of_eager_pytorch(generator: Generator, guidance: Any) -> None:
    scales = {2: RAMP, "0:2": RAMP, "1,0,2,3": [1.0, 0.0, 2.0, 3.0], 0: [0.0] * 4}[guidance]
    made = generator.generate(class_ids=[0, 3, 4], guidance=guidance, **GREEDY)
    var, vae, _ = tiny_var.models()
    wanted = decode(var, vae, [0, 3, 4], scales)
    for image in range(3):
        assert _tokens(made, image) == [each[image].tolist() for each in wanted.tokens]
    for scale, f_hat in enumerate(wanted.f_hat):
        np.testing.assert_allclose(made.trace.f_hat[scale], f_hat, atol=2e-5)
    pixels = wanted.image.permute(0, 2, 3, 1).mul(255).round().numpy()
    assert np.abs(made.images - pixels).max() <= 1


def test_an_image_depends_on_no_other_of_its_batch(generator: Generator) -> None:
    for schedule in ("fixed", "policy"):
        together = generator.generate(class_ids=[0, 1, 2], seed=7, schedule=schedule)
        for index in range(3):
            alone = generator.generate(class_ids=[index], seed=7 + index, schedule=schedule)
            np.testing.assert_array_equal(alone.images[0], together.images[index])
            assert _tokens(alone, 0) == _tokens(together, index)


def test_seeds_and_classes_matter(generator: Generator) -> None:
    made = generator.generate(class_ids=[0, 0, 1], seed=[1, 2, 1])
    assert not np.array_equal(made.images[0], made.images[1])
    assert not np.array_equal(made.images[0], made.images[2])


def _passes(generator: Generator, batch: int, **settings: Any) -> list[tuple[int, int]]:
    """Rows and tokens of every run of the trunk."""
    request = generator.request(class_ids=[0] * batch, **settings)
    key = generator.family.key(generator.model, request, batch)
    program = generator.family.program(generator.model, key)
    found = (shapes["embeds"] for run, shapes in program.runs() if run.graph == "trunk")
    return [(rows, count) for rows, count, _ in found]


def test_every_token_passes_the_transformer_once(generator: Generator) -> None:
    counts = [side * side for side in tiny_var.SCALES]
    assert _passes(generator, 3) == [(6, n) for n in counts]  # both halves of guidance
    assert _passes(generator, 3, guidance=0) == [(3, n) for n in counts]
    assert sum(rows * n for rows, n in _passes(generator, 1, guidance=0)) == 30  # not 1+5+14+30
    assert _passes(generator, 1, guided_scales=3) == [(2, 1), (2, 4), (2, 9), (1, 16)]
    assert _passes(generator, 1, guidance="0,1,1,0") == [(2, 1), (2, 4), (2, 9), (1, 16)]
    assert _passes(generator, 1, scales=2) == [(2, 1), (2, 4)]
    assert _passes(generator, 1, reuse_first=True) == [(1, 1), (2, 4), (2, 9), (2, 16)]


def test_scales_without_guidance_need_no_unconditional_half(generator: Generator) -> None:
    with_half, dropped = (
        generator.generate(class_ids=[0, 1, 2], seed=3, guidance=f"0,1,0,{last}")
        for last in ("1e-30", "0")  # the half is dropped where no later scale is guided
    )
    np.testing.assert_array_equal(dropped.trace.tokens, with_half.trace.tokens)
    np.testing.assert_array_equal(dropped.images, with_half.images)


def test_the_first_scales_constants_change_nothing(generator: Generator) -> None:
    settings: tuple[dict[str, Any], ...] = (
        *({}, {"guidance": "1,1,1,1"}, {"schedule": "policy"}, {"guided_scales": 2}),
    )
    for more in settings:
        plain, kept = (
            generator.generate(class_ids=[4, 1, 0], seed=5, reuse_first=reuse, **more)
            for reuse in (False, True)
        )
        np.testing.assert_array_equal(kept.trace.tokens, plain.trace.tokens)
        np.testing.assert_allclose(kept.trace.f_hat, plain.trace.f_hat, atol=1e-5)


def test_fewer_scales_are_the_first_of_all(generator: Generator) -> None:
    every = generator.generate(class_ids=[2], seed=1)
    three = generator.generate(class_ids=[2], seed=1, scales=3)
    assert _tokens(three, 0)[:3] == _tokens(every, 0)[:3]
    assert len(three.trace.tokens) == 3
    np.testing.assert_allclose(three.trace.final, every.trace.f_hat[2], atol=1e-6)


def test_given_tokens_stay_and_the_others_follow_from_them(generator: Generator) -> None:
    var, vae, _ = tiny_var.models()
    random = torch.Generator().manual_seed(4)
    fixed = [torch.randint(40, (2, n * n), generator=random) for n in (1, 2, 3)]
    tokens = np.full((2, 30), -1)
    tokens[:, :14] = torch.cat(fixed, 1)
    request = generator.request(class_ids=[0, 2], edit={"tokens": tokens}, guidance=2, **GREEDY)
    made = generator.run(request)
    wanted = decode(var, vae, [0, 2], RAMP, fixed)
    for image in range(2):
        assert _tokens(made, image) == [each[image].tolist() for each in wanted.tokens]


def test_tokens_of_a_generation_give_it_again(generator: Generator) -> None:
    made = generator.generate(class_ids=[3, 1], seed=8)
    ids = made.trace.ids
    assert ids.shape == (2, 30)
    assert ids[0].tolist() == [token for scale in _tokens(made, 0) for token in scale]
    again = generator.run(generator.request(class_ids=[3, 1], seed=0, edit={"tokens": ids}))
    np.testing.assert_array_equal(again.images, made.images)
    assert (generator.generate(class_ids=[3], scales=2).trace.ids[:, 5:] == -1).all()


def test_single_positions_can_be_given(generator: Generator) -> None:
    tokens = np.full((1, 30), -1)
    tokens[0, 14 + 5], tokens[0, 1 + 2] = 17, 8  # of scales 3 and 1
    made = generator.run(generator.request(class_ids=[1], seed=2, edit={"tokens": tokens}))
    assert made.trace.tokens[3, 0, 5] == 17
    assert made.trace.tokens[1, 0, 2] == 8


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"top_k": 0}, "top_k must be at least 1"),
        ({"top_k": "5,5,5"}, "a value for each of the 4 scales, got top_k 3"),
        ({"top_p": 0}, "top_p must be above 0 and at most 1"),
        ({"top_p": 1.5}, "top_p must be above 0 and at most 1"),
        ({"scales": 5}, "scales must be 1 … 4, got 5"),
        ({"guided_scales": -1}, "guided_scales must be 0 … 4, got -1"),
        ({"schedule": "cosine"}, "expected one of: fixed, policy, policy-exported"),
        ({"top_k": 2.5}, "top_k must be whole numbers"),
        ({"schedule": "policy", "top_k": 5}, "the policy decides top_k"),
        ({"guidance": -1}, "guidance"),
        ({"steps": 3}, "steps"),
    ],
)
def test_what_cannot_be_served_is_said(
    generator: Generator, settings: dict[str, Any], words: str
) -> None:
    with pytest.raises(RequestError, match=words):
        generator.request(class_ids=[0], **settings)


@pytest.mark.parametrize(
    ("tokens", "words"),
    [
        (np.zeros((1, 29), int), r"must be integers \[1, 30\]"),
        (np.zeros((2, 30), int), r"got int64 \[2, 30\]"),
        (np.zeros((1, 30)), "must be integers"),
        (np.full((1, 30), 40), "must be codes, 0 … 39"),
        (np.full((1, 30), -2), "or -1 where one is decoded"),
    ],
)
def test_given_tokens_are_checked(generator: Generator, tokens: Any, words: str) -> None:
    with pytest.raises(RequestError, match=words):
        generator.request(class_ids=[0], edit={"tokens": tokens})


def test_the_cache_is_the_one_thing_that_grows(generator: Generator) -> None:
    """Keys and values of every token, once: what ``inspect --plan`` says."""

    def bytes_of(**settings: Any) -> dict[str, int]:
        request = generator.request(class_ids=[0, 1], **settings)
        key = generator.family.key(generator.model, request, 2)
        buffers = generator.family.program(generator.model, key).buffers
        return {name: spec.bytes for name, spec in buffers.items()}

    whole, width = bytes_of(), 128  # 48, padded
    assert whole["cache"] == 2 * 2 * 30 * 4 * width * 4  # keys and values, blocks, tokens, rows
    assert bytes_of(guidance=0)["cache"] == whole["cache"] // 2
    assert "conditional_cache" not in whole
    half = bytes_of(guided_scales=2)
    assert half["cache"] + half["conditional_cache"] < whole["cache"]


def test_nothing_is_copied_between_the_scales_but_what_guidance_needs(generator: Generator) -> None:
    request = generator.request(class_ids=[0])
    program = generator.family.program(
        generator.model, generator.family.key(generator.model, request, 1)
    )
    others = [op for op in program.ops if not isinstance(op, Run)]
    assert [type(op).__name__ for op in others].count("Copy") == 3  # embeds of scales 1, 2, 3
    assert all(getattr(op, "kernel", "") != "copy_rows" for op in others)
