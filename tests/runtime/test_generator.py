"""The public entrance: determinism, requests that are refused, and the life of a generator.

Covered: an image depends on its seed, condition and settings alone; results and their shapes;
every RequestError; opening, closing and using after closing; generators side by side.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fewstep.runtime.bundle import Bundle
from fewstep.runtime.devices import Buffer
from fewstep.runtime.devices.cpu import CpuDevice
from fewstep.runtime.engines import BoundEngine
from fewstep.runtime.engines.onnxruntime import OnnxRuntimeEngine
from fewstep.runtime.errors import BundleError, DeviceError, RequestError
from fewstep.runtime.families.masked.settings import MaskedSettings
from fewstep.runtime.generator import Generator

_SCHEDULES = ("cosine", "policy")
_SEEDS = [3, 11, 2**64 - 1, 0, 8]
_CLASSES = [0, 4, 2, 2, 1]


# --- determinism


@pytest.mark.parametrize("schedule", _SCHEDULES)
def test_same_seed_gives_the_same_image_alone_and_in_any_order(
    generator: Generator, schedule: str
) -> None:
    together = generator.generate(class_ids=_CLASSES, seed=_SEEDS, schedule=schedule, steps=5)
    for order in ([4, 3, 2, 1, 0], [2, 0, 2], [1], [3]):
        part = generator.generate(
            class_ids=[_CLASSES[i] for i in order],
            seed=[_SEEDS[i] for i in order],
            schedule=schedule,
            steps=5,
        )
        assert (part.tokens == together.tokens[order]).all()
        assert _largest_difference(part.images, together.images[order]) <= 1


@pytest.mark.parametrize("schedule", _SCHEDULES)
@pytest.mark.parametrize("max_batch", [1, 2, 5, 64])
def test_max_batch_does_not_change_the_tokens(
    generator: Generator, tiny_bundle: Path, schedule: str, max_batch: int
) -> None:
    request: dict[str, Any] = {"class_ids": _CLASSES, "seed": 0, "schedule": schedule, "steps": 4}
    with Generator.open(tiny_bundle, max_batch=max_batch, threads=1) as other:
        assert (other.generate(**request).tokens == generator.generate(**request).tokens).all()


@pytest.mark.parametrize("schedule", _SCHEDULES)
@pytest.mark.parametrize("steps", [1, 2, 8])
def test_reusing_the_first_logits_does_not_change_the_tokens(
    generator: Generator, tiny_bundle: Path, schedule: str, steps: int
) -> None:
    bundle = Bundle.read(tiny_bundle)
    engines = {
        name: OnnxRuntimeEngine(name, bundle.graph_path(name), info, threads=1)
        for name, info in bundle.manifest.graphs.items()
    }
    request: dict[str, Any] = {"class_ids": _CLASSES, "schedule": schedule, "steps": steps}
    with Generator(bundle, CpuDevice(), engines, constants=False) as plain:
        expected = plain.generate(**request).tokens
    assert (generator.generate(**request).tokens == expected).all()


def test_repeating_a_request_repeats_the_result(generator: Generator) -> None:
    first, second = (generator.generate(class_ids=[1, 2], seed=6, steps=3) for _ in range(2))
    assert (first.tokens == second.tokens).all()
    assert (first.images == second.images).all()
    assert (first.trace.tokens == second.trace.tokens).all()


def test_results_do_not_change_when_the_generator_is_used_again(generator: Generator) -> None:
    result = generator.generate(class_ids=[0, 1], seed=1, steps=2)
    kept = {name: getattr(result, name).copy() for name in ("images", "tokens", "seeds")}
    traced = result.trace.tokens.copy()
    generator.generate(class_ids=[3, 4], seed=77, steps=2)
    assert all((getattr(result, name) == value).all() for name, value in kept.items())
    assert (result.trace.tokens == traced).all()


@pytest.mark.parametrize("schedule", _SCHEDULES)
def test_other_seeds_give_other_tokens(generator: Generator, schedule: str) -> None:
    seeds = [0, 1, 2, 2**32, 2**32 + 1, 2**63, 2**64 - 1]
    tokens = generator.generate(
        class_ids=[1] * len(seeds), seed=seeds, schedule=schedule, steps=4
    ).tokens
    assert len({row.tobytes() for row in tokens}) == len(seeds)


def test_one_seed_counts_up_from_image_to_image(generator: Generator) -> None:
    counted = generator.generate(class_ids=[2, 2, 2], seed=40, steps=2)
    given = generator.generate(class_ids=[2, 2, 2], seed=[40, 41, 42], steps=2)
    assert counted.seeds.tolist() == [40, 41, 42]
    assert (counted.tokens == given.tokens).all()


def test_plans_thrown_out_and_made_again_give_the_same_tokens(generator: Generator) -> None:
    before = generator.generate(class_ids=[3], seed=2, steps=3).tokens
    for steps in range(1, 13):
        generator.generate(class_ids=[0], steps=steps)
    assert (generator.generate(class_ids=[3], seed=2, steps=3).tokens == before).all()


# --- results


def test_result_shapes_and_types(generator: Generator) -> None:
    result = generator.generate(class_ids=np.array([0, 1, 2], np.uint8), steps=2, seed=0)  # type: ignore[arg-type]
    found = [(a.shape, a.dtype.name) for a in (result.images, result.tokens, result.seeds)]
    assert found == [((3, 8, 8, 3), "uint8"), ((3, 16), "int32"), ((3,), "uint64")]
    assert result.images.std() > 5  # a picture, not one colour


def test_images_are_the_decoder_applied_to_the_tokens(
    generator: Generator, tiny_bundle: Path
) -> None:
    import onnxruntime

    result = generator.generate(class_ids=[0, 3], steps=4)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    decoder = onnxruntime.InferenceSession(tiny_bundle / "decoder.onnx", options)
    (image,) = decoder.run(["image"], {"tokens": result.tokens})
    expected = np.round(np.clip(image, 0, 1) * 255).transpose(0, 2, 3, 1).astype(np.uint8)
    assert _largest_difference(result.images, expected) <= 1


@pytest.mark.parametrize(
    ("schedule", "stages"),
    [("cosine", {"transformer", "sampling", "decoder"})]
    + [("policy", {"transformer", "sampling", "decoder", "policy"})],
)
def test_timings_cover_the_request(generator: Generator, schedule: str, stages: set[str]) -> None:
    timings = generator.generate(class_ids=[0], steps=2, schedule=schedule).timings_ms
    assert set(timings) == stages | {"other", "total"}
    assert all(value >= 0 for value in timings.values())
    parts = sum(value for stage, value in timings.items() if stage != "total")
    assert parts == pytest.approx(timings["total"])


def test_defaults_are_those_of_the_bundle(generator: Generator) -> None:
    defaults = generator.bundle.manifest.model.defaults.model_dump()
    assert defaults.keys() == MaskedSettings.model_fields.keys()
    bare = generator.generate(class_ids=[0])
    spelt = generator.generate(class_ids=[0], seed=0, **defaults)
    assert (bare.trace.parameters == spelt.trace.parameters).all()
    assert (bare.tokens == spelt.tokens).all()


def test_no_temperatures_and_no_guidance_need_no_seed(generator: Generator) -> None:
    tokens = generator.generate(
        class_ids=[1, 1],
        seed=[0, 123],
        steps=4,
        sampling_temperature=0,
        masking_temperature=0,
        guidance=0,
    ).tokens
    assert (tokens[0] == tokens[1]).all()


# --- refused requests


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"class_ids": [5]}, "class ids must be 0 … 4, got 5 .5 stands for no class"),
        ({"class_ids": [0, -1, 9, 2]}, "class ids must be 0 … 4, got -1, 9"),
        ({"class_ids": [2**70]}, "class_ids must be a list of integers"),
        ({"class_ids": []}, "class_ids must be a list of integers"),
        ({"class_ids": [1.5]}, "class_ids must be a list of integers"),
        ({"class_ids": ["shoe"]}, "class_ids must be a list of integers"),
        ({"class_ids": [[0, 1]]}, "class_ids must be a list of integers"),
        ({"class_ids": None}, "class-conditional: give class_ids"),
        ({"class_ids": None, "text": np.zeros((1, 3, 12))}, "class-conditional: give class_ids"),
        ({"text": np.zeros((1, 3, 12))}, "class-conditional: give class_ids"),
        ({"steps": 0}, "steps must be 1 … 16 .*, got 0"),
        ({"steps": -3}, "steps must be 1 … 16 .*, got -3"),
        ({"steps": 17}, "steps must be 1 … 16 .*, got 17"),
        ({"seed": -1}, "seeds must be 0 … 2.64 − 1, got -1"),
        ({"seed": 2**64}, "seeds must be 0 … 2.64 − 1, got 18446744073709551616"),
        ({"seed": [0]}, "expected 2 seeds, one per image, got 1"),
        ({"seed": [0, 1, 2]}, "expected 2 seeds, one per image, got 3"),
        ({"seed": []}, "expected 2 seeds, one per image, got 0"),
        ({"seed": [0, 2**64]}, "seeds must be 0 … 2.64 − 1"),
        ({"seed": 2**64 - 1}, "seeds must be 0 … 2.64 − 1"),  # the second image's is too large
        ({"schedule": "cosin"}, "unknown schedule 'cosin'.*Did you mean 'cosine'"),
        ({"schedule": "polciy"}, "unknown schedule 'polciy'.*Did you mean 'policy'"),
        ({"guidance": -1}, "guidance must be finite and at least 0"),
        ({"guidance": float("nan")}, "guidance must be finite and at least 0"),
        ({"guidance": (0, float("inf"))}, "guidance must be finite and at least 0"),
        ({"guidance": (1, 2, 3)}, "lists need one value for every step"),
        ({"sampling_temperature": -0.1}, "sampling_temperature must be finite"),
        ({"masking_temperature": -0.1}, "masking_temperature must be finite"),
        ({"schedule": "policy", "guidance": 3}, "the policy decides guidance"),
        ({"schedule": "policy", "sampling_temperature": 1}, "policy decides sampling_temperature"),
        ({"schedule": "policy", "masking_temperature": 0}, "policy decides masking_temperature"),
        (
            {"schedule": "policy", "guidance": 0, "masking_temperature": 0},
            "the policy decides guidance, masking_temperature: leave it out",
        ),
    ],
)
def test_requests_that_are_refused(
    generator: Generator, request_: dict[str, Any], message: str
) -> None:
    complete: dict[str, Any] = {"class_ids": None if "text" in request_ else [0, 1], **request_}
    with pytest.raises(RequestError, match=message):
        generator.generate(**complete)


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"class_ids": [0]}, "text-conditional: give text, not class_ids"),
        ({}, "nothing to generate; this bundle is text-conditional: give text"),
        ({"text": np.zeros((3, 12))}, r"shape \[B, 3, 12\], got \[3, 12\]"),
        ({"text": np.zeros((1, 3, 13))}, r"shape \[B, 3, 12\], got \[1, 3, 13\]"),
        ({"text": np.zeros((0, 3, 12))}, r"shape \[B, 3, 12\], got \[0, 3, 12\]"),
        ({"text": np.full((1, 3, 12), np.nan)}, "finite"),
        ({"text": np.zeros((1, 3, 12)), "schedule": "policy"}, "has no policy network.*cosine"),
    ],
)
def test_text_requests_that_are_refused(
    text_generator: Generator, request_: dict[str, Any], message: str
) -> None:
    with pytest.raises(RequestError, match=message):
        text_generator.generate(**request_)


def test_guidance_needs_an_unconditional_text(text_generator: Generator) -> None:
    bundle = text_generator.bundle
    condition = bundle.manifest.model.condition.model_copy(update={"unconditional_file": None})
    model = bundle.manifest.model.model_copy(update={"condition": condition})
    without = Bundle(bundle.path, bundle.manifest.model_copy(update={"model": model}))
    text = np.zeros((1, 3, 12), np.float32)
    with Generator.open(without, threads=1) as generator:
        with pytest.raises(RequestError, match="no unconditional text: use guidance 0"):
            generator.generate(text=text, guidance=1)
        found = generator.generate(text=text, guidance=0, steps=2)
    expected = text_generator.generate(text=text, guidance=0, steps=2)
    assert (found.tokens == expected.tokens).all()


def test_refused_request_leaves_the_generator_usable(generator: Generator) -> None:
    with pytest.raises(RequestError):
        generator.generate(class_ids=[99])
    assert generator.generate(class_ids=[0], steps=1).images.shape == (1, 8, 8, 3)


# --- opening and closing


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backend": "onnxruntme"}, "unknown backend 'onnxruntme'.*Did you mean 'onnxruntime'"),
        ({"device": "cpuu"}, "unknown device 'cpuu'.*Did you mean 'cpu'"),
    ],
)
def test_unknown_backend_or_device_is_refused_before_reading(
    tmp_path: Path, options: dict[str, str], message: str
) -> None:
    with pytest.raises(RequestError, match=message):
        Generator.open(tmp_path / "no bundle here", **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("max_batch", [0, -1])
def test_max_batch_must_be_positive(tiny_bundle: Path, max_batch: int) -> None:
    with pytest.raises(RequestError, match=f"max_batch must be at least 1, got {max_batch}"):
        Generator.open(tiny_bundle, max_batch=max_batch)


def test_opening_nothing_says_how_to_make_a_bundle(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=re.escape(str(tmp_path)) + ".*fewstep export"):
        Generator.open(tmp_path)


def test_string_path_and_bundle_open_alike(generator: Generator, tiny_bundle: Path) -> None:
    expected = generator.generate(class_ids=[2], steps=2).tokens
    for source in (str(tiny_bundle), Bundle.read(tiny_bundle)):
        with Generator.open(source, backend="onnxruntime", device="cpu", threads=1) as opened:
            assert (opened.generate(class_ids=[2], steps=2).tokens == expected).all()


def test_closed_generator_refuses_and_closes_again(tiny_bundle: Path) -> None:
    generator = Generator.open(tiny_bundle, threads=1)
    with generator as entered:
        assert entered is generator
        generator.generate(class_ids=[0], steps=1)
    with pytest.raises(DeviceError, match="this Generator is closed; open another"):
        generator.generate(class_ids=[0], steps=1)
    generator.close()
    generator.close()


def test_with_block_closes_on_an_error_and_lets_it_through(tiny_bundle: Path) -> None:
    generator = Generator.open(tiny_bundle, threads=1)
    with pytest.raises(KeyError), generator:
        raise KeyError
    with pytest.raises(DeviceError, match="closed"):
        generator.generate(class_ids=[0], steps=1)


def test_closing_one_of_two_leaves_the_other_working(
    generator: Generator, tiny_bundle: Path
) -> None:
    expected = generator.generate(class_ids=[0, 1], seed=4, steps=3).tokens
    one, two = (Generator.open(tiny_bundle, threads=1) for _ in range(2))
    assert (one.generate(class_ids=[0, 1], seed=4, steps=3).tokens == expected).all()
    two.generate(class_ids=[3, 4], seed=5, steps=3)
    assert (one.generate(class_ids=[0, 1], seed=4, steps=3).tokens == expected).all()
    one.close()
    with two:
        assert (two.generate(class_ids=[0, 1], seed=4, steps=3).tokens == expected).all()


def test_generators_in_two_threads_do_not_disturb_each_other(
    generator: Generator, tiny_bundle: Path
) -> None:
    expected = [generator.generate(class_ids=[0, 1], seed=seed, steps=4).tokens for seed in (0, 9)]
    found: dict[int, list[bool]] = {0: [], 1: []}

    def work(index: int) -> None:
        with Generator.open(tiny_bundle, threads=1) as own:
            for _ in range(5):
                tokens = own.generate(class_ids=[0, 1], seed=(0, 9)[index], steps=4).tokens
                found[index].append(bool((tokens == expected[index]).all()))

    threads = [threading.Thread(target=work, args=(index,)) for index in found]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {0: [True] * 5, 1: [True] * 5}


def _largest_difference(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> int:
    """In grey levels; a decoder at another batch size may round the last bit differently."""
    assert a.shape == b.shape
    return int(np.abs(a.astype(int) - b.astype(int)).max())


def test_a_generator_in_use_refuses_another_thread(tiny_bundle: Path) -> None:
    """The second call comes from inside the first one's engine, on another thread."""
    refused: list[BaseException] = []
    with Generator.open(tiny_bundle, threads=1, wait=False) as generator:
        bind = generator.engines["decoder"].bind

        def intrude() -> None:
            try:
                generator.generate(class_ids=[0], steps=1)
            except DeviceError as error:
                refused.append(error)

        def slow(bound: BoundEngine) -> None:
            thread = threading.Thread(target=intrude)
            thread.start()
            thread.join()
            bound.run()

        def bind_slow(bindings: Mapping[str, Buffer]) -> BoundEngine:
            bound = bind(bindings)
            return replace(bound, run=lambda: slow(bound))

        generator.engines["decoder"].bind = bind_slow  # type: ignore[method-assign]
        assert generator.generate(class_ids=[0], steps=1).tokens.shape == (1, 16)
    assert "in use by another thread" in str(refused[0])
