"""Calling a generator: Pillow's images of classes by name, progress, previews between steps."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tests.runtime.programs import SHAPE, halving, halving_engines
from tests.runtime.queue_device import QueuedEngine, QueueDevice

from fewstep.runtime.devices import Array
from fewstep.runtime.devices.cpu import CpuDevice
from fewstep.runtime.errors import DeviceError, MissingDependencyError, RequestError
from fewstep.runtime.generator import Generator
from fewstep.runtime.plan import Plan
from fewstep.runtime.preview import StepPreview


def test_the_line_of_the_documentation(generator: Generator, tmp_path: Path) -> None:
    made = generator("dress", count=4)
    made.images[0].save(tmp_path / "x.png")
    assert len(made) == 4 and made.labels == ("dress",) * 4
    expected = generator.generate(class_ids=[4] * 4).images
    np.testing.assert_array_equal(made.pixels, expected)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "x.png")), expected[0])


def test_ids_names_and_settings_mix(generator: Generator) -> None:
    made = generator(["bag", 0], count=2, seed=7, steps=3, guidance=1.0)
    again = generator.generate(class_ids=[2, 2, 0, 0], seed=7, steps=3, guidance=1.0)
    np.testing.assert_array_equal(made.result.tokens, again.tokens)
    np.testing.assert_array_equal(made.seeds, again.seeds)
    assert made.labels == ("bag", "bag", "shirt", "shirt")
    assert made.timings_ms["total"] > 0 and len(made.trace.sampled) == 3


def test_text_states(text_generator: Generator) -> None:
    states = text_generator.model.info.condition.examples(2)
    made = text_generator(states, count=2, guidance=0)
    again = text_generator.generate(text=states.repeat(2, 0), guidance=0)
    np.testing.assert_array_equal(made.pixels, again.images)
    with pytest.raises(RequestError, match="no text encoder: give text states"):
        text_generator("a cat")


@pytest.mark.parametrize("count", [10**5 + 1, 10**9, 10**13, np.int64(10**12)])
def test_too_many_images_are_refused_before_they_are_listed(
    generator: Generator, text_generator: Generator, count: int
) -> None:
    states = text_generator.model.info.condition.examples(1)
    said = "images are too many for one call, at most 100,000"
    with pytest.raises(RequestError, match=said):
        generator(0, count=count)
    with pytest.raises(RequestError, match=said):
        text_generator(states, count=count)


def test_the_other_kind_of_condition_is_refused(generator: Generator) -> None:
    with pytest.raises(RequestError, match="class-conditional: give classes, not text states"):
        generator(np.zeros((1, 3, 12), np.float32))


def test_arguments_of_diffusers_are_told_for_classes(generator: Generator) -> None:
    with pytest.raises(
        RequestError, match="arguments of diffusers; here class_labels is class_ids"
    ):
        generator.generate(class_labels=[1])
    with pytest.raises(RequestError, match="nothing to generate: give a class, or several"):
        generator()
    assert generator(np.array(1), steps=1).labels == ("shoe",)


def test_progress_is_told_after_every_batch(tiny_bundle: Path) -> None:
    told: list[tuple[str, float]] = []
    with Generator.open(tiny_bundle, threads=1, max_batch=2) as small:
        small(0, count=5, steps=2, progress=lambda phase, done: told.append((phase, done)))
    assert told == [("generating", 0.4), ("generating", 0.8), ("generating", 1.0)]


@pytest.mark.parametrize("schedule", ["cosine", "policy"])
def test_a_callback_sees_every_step_and_changes_nothing(
    generator: Generator, schedule: str
) -> None:
    seen: list[tuple[int, StepPreview]] = []
    settings: dict[str, Any] = {"steps": 4, "schedule": schedule, "seed": 3}
    made = generator([0, 4], callback=lambda *each: seen.append(each), **settings)
    plain = generator([0, 4], **settings)
    np.testing.assert_array_equal(made.pixels, plain.pixels)
    np.testing.assert_array_equal(made.trace.tokens, plain.trace.tokens)
    assert [step for step, _ in seen] == [0, 1, 2, 3]
    assert [preview.rows for _, preview in seen] == [range(2)] * 4
    np.testing.assert_array_equal(seen[-1][1].pixels, plain.pixels)
    assert seen[0][1].images[1].size == (8, 8) and "step 1 of 4" in seen[0][1].caption
    for step, preview in seen[:-1]:
        masked = plain.trace.tokens[step + 1] == plain.trace.mask_token
        np.testing.assert_array_equal(preview.undecided.reshape(masked.shape), masked)


def test_previews_come_between_the_steps(generator: Generator) -> None:
    """What a callback raises ends the request where it is, and the generator goes on."""

    class Enough(Exception):
        pass

    ended: list[int] = []

    def stop(step: int, preview: StepPreview) -> None:
        ended.append(step)
        if step == 1:
            raise Enough

    before = generator(1, steps=6).pixels
    with pytest.raises(Enough):
        generator(1, steps=6, callback=stop)
    assert ended == [0, 1]
    np.testing.assert_array_equal(generator(1, steps=6).pixels, before)


def test_a_callback_cannot_use_the_generator_itself(generator: Generator) -> None:
    with pytest.raises(DeviceError):
        generator(1, steps=2, callback=lambda *_: generator(2))


def test_every_batch_has_its_rows(tiny_bundle: Path) -> None:
    rows: list[range] = []
    with Generator.open(tiny_bundle, threads=1, max_batch=2) as small:
        small(0, count=3, steps=1, callback=lambda _, preview: rows.append(preview.rows))
    assert rows == [range(0, 2), range(2, 3)]


def test_without_pillow_pixels_are_there(
    generator: Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = generator(0, steps=1)
    monkeypatch.setitem(sys.modules, "PIL", None)
    assert made.pixels.shape == (1, 8, 8, 3)
    with pytest.raises(MissingDependencyError, match="pip install pillow"):
        _ = made.images


# --- plans that stop between steps


@pytest.mark.parametrize("queue", [False, True])
def test_a_plan_gives_what_it_has_after_every_step(queue: bool) -> None:
    engines: Any = halving_engines()
    device: Any = QueueDevice() if queue else CpuDevice()
    if queue:
        engines = {n: QueuedEngine(e, device, capturable=False) for n, e in engines.items()}
    plan = Plan(halving(2, 3, constant=False), device, engines, {})
    start = np.random.default_rng(0).random((2, *SHAPE), np.float32)
    seen: dict[int, Array] = {}
    found = plan.run(
        {"start": start, "offset": 0.25}, lambda s, out: seen.update({s: out["images"]})
    )
    assert not plan.captured and len(seen) >= 3
    np.testing.assert_array_equal(
        found["images"], plan.run({"start": start, "offset": 0.25})["images"]
    )
    for step, images in seen.items():
        np.testing.assert_array_equal(images[: step + 1], found["images"][: step + 1])


def test_what_is_shown_of_results_fits_a_line(tiny_bundle: Path) -> None:
    with Generator.open(tiny_bundle) as generator:
        assert generator.class_names == ("shirt", "shoe", "bag", "coat", "dress")
        assert repr(generator).startswith("<Generator of tiny (")
        made = generator(["dress", "bag"], count=2, steps=2)
    assert repr(made) == "<4 images of dress, bag, 8 × 8; see .images, .pixels>"
    assert made[3].size == (8, 8)
    assert repr(made.result).startswith("<Result: images [4, 8, 8, 3] uint8 in ")
