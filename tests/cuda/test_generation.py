"""Whole generations on the GPU are those of the CPU device, whose tests compare it with others.

Covered: fixed schedules and the policy, one step and as many as there are tokens, with and without
guidance, class and text conditions, batches and more images than one, given tokens, the trace,
rules of other forms, golden rollouts and the bench. The engines are the CPU's (``host_engine.py``),
so everything has to be equal.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fewstep.runtime import bench
from fewstep.runtime.bundle import Bundle
from fewstep.runtime.errors import FewstepError
from fewstep.runtime.families.masked.program import MaskedKey
from fewstep.runtime.families.masked.schedule import MASK_RATIOS
from fewstep.runtime.generator import Generator
from fewstep.runtime.result import Result
from fewstep.runtime.verify import verify

Alike = Callable[[Result, Result], None]
Open = Callable[..., Generator]

_RAMP = st.one_of(st.just(0.0), st.floats(0, 8), st.tuples(st.floats(0, 8), st.floats(0, 8)))
_SEEDS = st.integers(0, 2**64 - 16)
_CLASSES = st.lists(st.integers(0, 4), min_size=1, max_size=6)


@pytest.fixture(scope="module")
def text_pair(
    open_cuda: Open, tiny_text_cuda_bundle: Path
) -> Iterator[tuple[Generator, Generator]]:
    """The text bundle on the GPU and on the CPU."""
    with (
        open_cuda(tiny_text_cuda_bundle, max_batch=4) as on_cuda,
        Generator.open(tiny_text_cuda_bundle, device="cpu", threads=1, max_batch=4) as on_cpu,
    ):
        yield on_cuda, on_cpu


@pytest.fixture(scope="module")
def sample_pair(open_cuda: Open, sample_cuda_bundle: Path) -> Iterator[tuple[Generator, Generator]]:
    """The Fashion sample on the GPU and on the CPU."""
    with (
        open_cuda(sample_cuda_bundle, threads=0) as on_cuda,
        Generator.open(sample_cuda_bundle, device="cpu") as on_cpu,
    ):
        yield on_cuda, on_cpu


# --- the Fashion sample


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize(
    "settings_",
    [
        {"schedule": "cosine", "steps": 8},
        {"schedule": "policy", "steps": 4},
        {"schedule": "linear", "steps": 3, "guidance": 0.0},
        {"schedule": "cosine", "steps": 1, "guidance": 2.0},
    ],
)
def test_the_sample_gives_the_same_images(
    sample_pair: tuple[Generator, Generator],
    assert_alike: Alike,
    settings_: dict[str, Any],
    batch: int,
) -> None:
    on_cuda, on_cpu = sample_pair
    request = settings_ | {"class_ids": [9, 0, 4, 4][:batch], "seed": 2**63 + batch}
    found, expected = on_cuda.generate(**request), on_cpu.generate(**request)
    assert_alike(found, expected)
    assert found.images.std() > 20  # pictures


def test_sixteen_steps_of_the_sample_give_the_same_images(
    sample_pair: tuple[Generator, Generator], assert_alike: Alike
) -> None:
    on_cuda, on_cpu = sample_pair
    request: dict[str, Any] = {"class_ids": [7], "schedule": "policy", "steps": 16, "seed": 5}
    assert_alike(on_cuda.generate(**request), on_cpu.generate(**request))


# --- tiny bundles: every setting


@settings(max_examples=40)
@given(
    class_ids=_CLASSES,
    seed=_SEEDS,
    steps=st.integers(1, 16),
    schedule=st.sampled_from(sorted(MASK_RATIOS)),
    guidance=_RAMP,
    sampling_temperature=_RAMP,
    masking_temperature=_RAMP,
)
def test_fixed_schedules_give_the_same_images(
    on_cuda: Generator, on_cpu: Generator, assert_alike: Alike, **request: Any
) -> None:
    assert_alike(on_cuda.generate(**request), on_cpu.generate(**request))


@settings(max_examples=20)
@given(class_ids=_CLASSES, seed=_SEEDS, steps=st.integers(1, 16))
def test_the_policy_gives_the_same_images(
    on_cuda: Generator, on_cpu: Generator, assert_alike: Alike, **request: Any
) -> None:
    request["schedule"] = "policy"
    assert_alike(on_cuda.generate(**request), on_cpu.generate(**request))


@pytest.mark.parametrize(
    ("rules", "request_"),
    [
        ({"last_token": "decided"}, {"masking_temperature": (4.5, 0.0), "guidance": 0.0}),
        (
            {
                "confidence": "logit",
                "ties": "masked",
                "precision": "float64",
                "guidance_at": "before",
            },
            {"schedule": "arccos", "masking_temperature": (9.5, 0.0)},
        ),
        (
            {
                "confidence": "tempered-log-probability",
                "known": "resampled",
                "counted": "decided",
                "precision": "float32",
                **dict.fromkeys(("mask_ratio_at", "guidance_at", "temperature_at"), "inclusive"),
                "sampling_temperature": "multiplies",
            },
            {"schedule": "arccos", "sampling_temperature": (1.0, 1.2)},
        ),
        ({"known": "resampled", "counted": "decided"}, {"order": "halton", "top_k": 20}),
    ],
    ids=["maskgit-torch", "titok", "halton, confidence", "halton"],
)
def test_rules_of_other_forms_give_the_same_images(
    open_cuda: Open,
    tiny_cuda_bundle: Path,
    assert_alike: Alike,
    tmp_path: Path,
    rules: dict[str, Any],
    request_: dict[str, Any],
) -> None:
    bundle = Bundle.read(Path(shutil.copytree(tiny_cuda_bundle, tmp_path / "bundle")))
    model = json.loads(bundle.manifest.model.model_dump_json())
    changed = bundle.update({}, model={**model, "rules": rules, "at_least_one": True})
    with (
        open_cuda(changed, max_batch=2) as on_cuda,
        Generator.open(changed, device="cpu", threads=1, max_batch=2) as on_cpu,
    ):
        for steps in (1, 7, 16):
            request: dict[str, Any] = {"class_ids": [0, 3, 3], "seed": 11, "steps": steps}
            assert_alike(*(each.generate(**request, **request_) for each in (on_cuda, on_cpu)))


@settings(max_examples=15)
@given(
    batch=st.integers(1, 6), seed=_SEEDS, steps=st.integers(1, 16), guidance=_RAMP, text=st.data()
)
def test_text_gives_the_same_images(
    text_pair: tuple[Generator, Generator],
    assert_alike: Alike,
    batch: int,
    text: st.DataObject,
    **request: Any,
) -> None:
    on_cuda, on_cpu = text_pair
    random = np.random.default_rng(text.draw(st.integers(0, 2**32)))
    request["text"] = random.standard_normal((batch, 3, 12), np.float32)
    assert_alike(on_cuda.generate(**request), on_cpu.generate(**request))


@pytest.mark.parametrize("schedule", ["cosine", "policy"])
def test_images_depend_on_their_own_seed_and_class_alone(on_cuda: Generator, schedule: str) -> None:
    """Eleven images in batches of four, against each alone: other plans, other places."""
    seeds, classes = [*range(9), 2**64 - 1, 3], [0, 1, 2, 3, 4] * 2 + [3]
    request: dict[str, Any] = {"steps": 3, "schedule": schedule}
    together = on_cuda.generate(class_ids=classes, seed=seeds, **request).tokens
    alone = [
        on_cuda.generate(class_ids=[each], seed=[seed], **request).tokens[0]
        for each, seed in zip(classes, seeds, strict=True)
    ]
    assert (together == np.stack(alone)).all()
    assert len({row.tobytes() for row in together}) == 10  # the last repeats the fourth
    assert (together[3] == together[10]).all()


@pytest.mark.parametrize("schedule", ["cosine", "policy"])
@pytest.mark.parametrize("steps", [1, 2, 7])
def test_computing_the_first_logits_every_time_gives_the_same_images(
    on_cuda: Generator, on_cpu: Generator, assert_alike: Alike, schedule: str, steps: int
) -> None:
    plain = Generator(on_cuda.bundle, on_cuda.device, on_cuda.engines, constants=False)
    request: dict[str, Any] = {"class_ids": [4, 1, 1], "schedule": schedule, "steps": steps}
    assert_alike(plain.generate(**request), on_cpu.generate(**request))
    plain.plans.close()  # engines and device are another's


# --- editing


@settings(max_examples=25)
@given(
    batch=st.integers(1, 3),
    steps=st.integers(1, 6),
    guidance=st.sampled_from([0.0, 3.0, (4.0, 1.0)]),
    policy=st.booleans(),
    seed=st.integers(0, 2**32),
)
def test_given_tokens_stay_and_the_others_are_the_cpus(
    on_cuda: Generator,
    on_cpu: Generator,
    assert_alike: Alike,
    batch: int,
    steps: int,
    guidance: Any,
    policy: bool,
    seed: int,
) -> None:
    random = np.random.default_rng(seed)
    given = random.integers(0, 24, (batch, 16), np.int32)
    mask = random.integers(0, 2, (batch, 16), np.uint8) * np.uint8(random.integers(1, 256))
    schedule: dict[str, Any] = {"schedule": "policy"}
    if not policy:
        schedule = {"schedule": "linear", "guidance": guidance, "sampling_temperature": (1.3, 0.5)}
    request = on_cpu.request(
        class_ids=random.integers(0, 5, batch, np.int32),  # type: ignore[arg-type]
        seed=random.integers(0, 2**64, batch, np.uint64),  # type: ignore[arg-type]
        steps=steps,
        edit={"given": given, "mask": mask},
        **schedule,
    )
    found = on_cuda.run(request)
    assert (found.trace.sampled[:, mask == 0] == given[mask == 0]).all()
    assert (found.trace.tokens[:, mask == 0] == given[mask == 0]).all()
    assert_alike(found, on_cpu.run(request))


def test_a_given_token_that_is_no_code_is_refused(on_cuda: Generator) -> None:
    """By the kernel, which a caller of the plan alone has not asked before."""
    plan = on_cuda.plans.get(MaskedKey(1, 2, guided=False, policy=None, reuse=False))
    with pytest.raises(FewstepError):
        plan.run({"given": 24, "mask": 0})
    right = np.arange(16)[None]
    assert (plan.run({"given": right, "mask": 0})["sampled"] == right).all()


def test_text_images_can_be_edited_too(
    text_pair: tuple[Generator, Generator], assert_alike: Alike
) -> None:
    given = np.arange(32, dtype=np.int32).reshape(2, 16) % 24
    mask = np.tile(np.arange(16) % 3 > 0, (2, 1)).astype(np.uint8)
    request = text_pair[0].request(
        text=np.random.default_rng(1).standard_normal((2, 3, 12), np.float32),
        steps=3,
        guidance=2,
        edit={"given": given, "mask": mask},
    )
    found, expected = (each.run(request) for each in text_pair)
    assert (found.trace.sampled[:, :, ::3] == given[:, ::3]).all()
    assert_alike(found, expected)


# --- commands


@pytest.mark.parametrize("name", ["tiny", "tiny-text", "sample"])
def test_golden_rollouts_of_pytorch_are_reproduced(
    open_cuda: Open, cuda_bundle: Callable[[str], Path], name: str
) -> None:
    with open_cuda(cuda_bundle(name)) as generator:
        report = verify(generator)
    assert report.checks
    assert report.passed, [check for check in report.checks if not check.passed]


@pytest.mark.parametrize("profile", [False, True])
def test_the_bench_times_generations(
    open_cuda: Open, tiny_cuda_bundle: Path, profile: bool
) -> None:
    settings_ = {"steps": 3, "schedule": "policy"}
    with open_cuda(tiny_cuda_bundle, profile=profile) as generator:
        contenders = {
            str(batch): bench.contender(generator, batch=batch, settings=settings_)
            for batch in (1, 2)
        }
        found = bench.measure(contenders, runs=2)
        report = bench.report(generator, found).as_dict()
    assert [each.runs for each in found] == [2, 2]
    assert all(each.total_ms.p50 > 0 and each.images_per_s > 0 for each in found)
    assert [each["name"] for each in report["measurements"]] == ["1", "2"]
    for each in found:
        assert (each.overhead is not None) == profile  # without stages nothing is known of it
        assert ("transformer" in each.stages_ms) == profile
