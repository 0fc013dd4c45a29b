"""``fewstep estimate``: bounds from the graphs' operations and published specifications.

Independent references: the kernels' own launches for logits, what the decode loop enqueues for the
number of launches. Properties: bounds fall with bandwidth and peak, add up over the loop, and grow
with the batch by no more than it; launches grow with the steps and not with the batch. Then the
command: tables, JSON, and every wrong request or damaged bundle.
"""

from __future__ import annotations

import io
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from rich.console import Console

from fewstep.build.estimate import (
    CONTEXT_BYTES,
    SYSTEM_BYTES,
    Estimate,
    PrecisionBound,
    estimate,
)
from fewstep.build.estimate_tables import estimate_tables
from fewstep.build.gpus import GPUS, gpu_of
from fewstep.build.roofline import WIDTH_BYTES, Stage, StageBound, stage_bound
from fewstep.runtime.bundle import Bundle
from fewstep.runtime.devices.cpu import CpuDevice
from fewstep.runtime.errors import BundleError, RequestError
from fewstep.runtime.generator import Generator
from fewstep.runtime.inspect import planned_decode
from fewstep.runtime.kernels.launch import launch_of

if TYPE_CHECKING:
    from tests.conftest import Terminal

_TOKENS, _CODES = 16, 24  # of the tiny bundle


@pytest.fixture(scope="module")
def bundle(tiny_bundle: Path) -> Bundle:
    return Bundle.read(tiny_bundle)


@pytest.fixture(scope="module")
def guided(bundle: Bundle) -> Estimate:
    return estimate(bundle, batch=2, steps=4, schedule="policy")


# Roofline of a bundle


@pytest.mark.parametrize("name", GPUS)
def test_bounds_never_rise_with_bandwidth_clock_or_cache(guided: Estimate, name: str) -> None:
    gpu = gpu_of(name)
    faster = [
        replace(gpu, bandwidth_gb_s=2 * gpu.bandwidth_gb_s),
        replace(gpu, clock_mhz=2 * gpu.clock_mhz),
        replace(gpu, cache_mib=2 * gpu.cache_mib),
    ]
    for precision in gpu.peaks:
        for each in _bounds(guided, name, precision).stages:
            for other in faster:
                ms = stage_bound(each.stage, other, precision).ms
                assert ms <= each.ms
                assert ms >= each.ms / 2 or other.cache_mib > gpu.cache_mib


# The loop


def _bounds(found: Estimate, name: str, precision: str) -> PrecisionBound:
    device = next(each for each in found.devices if each.gpu.name == name)
    return next(each for each in device.precisions if each.precision == precision)


def _stages(found: Estimate) -> tuple[Stage, ...]:
    return tuple(each.stage for each in _bounds(found, "thor", "fp16").stages)


def test_a_guided_loop_knows_its_first_step_of_other_images(guided: Estimate) -> None:
    graphs = {"transformer", "policy", "decoder"}
    runs = {each.title: each.steps for each in _stages(guided) if each.name in graphs}
    assert runs == {
        "transformer (batch 4)": (1, 2, 3),
        "policy (batch 2)": (0, 1, 2, 3),
        "decoder (batch 2)": (3,),
    }
    kernels = [(each.name, each.steps) for each in _stages(guided) if each.name not in graphs]
    assert kernels == [
        ("initial_tokens", (0,)),
        ("gather_rows", (0,)),  # logits
        ("gather_rows", (0,)),  # features
        ("copy", (0, 1, 2, 3)),  # the number of the step
        ("policy_parameters", (0, 1, 2, 3)),
        ("sample_tokens", (0,)),
        ("remask", (0, 1, 2, 3)),
        ("copy", (1, 2, 3)),
        ("sample_tokens", (1, 2, 3)),  # where logits of known positions are not read
        ("to_pixels", (3,)),
    ]


def test_without_guidance_or_policy_every_pass_is_at_batch_b(bundle: Bundle) -> None:
    stages = _stages(estimate(bundle, batch=3, guidance=0.0))
    assert {each.sizes for each in stages} == {(), (("batch", 3),)}
    assert "policy" not in {each.name for each in stages}
    assert sum(each.runs for each in stages if each.name == "transformer") == 7


def test_graphs_that_run_for_other_images_are_counted_too(bundle: Bundle) -> None:
    """In one step nothing is left to the transformer but what is kept of its classes."""
    found = estimate(bundle, steps=1)
    assert {each.graph for each in found.works} == {"transformer", "decoder"}
    assert "transformer" not in {each.name for each in _stages(found)}


@pytest.mark.parametrize("schedule", ["policy", "cosine"])
def test_launches_are_those_of_the_loop_and_of_the_graphs(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, schedule: str
) -> None:
    """The loop is the same on every device, so the CPU's kernels and copies are counted."""
    enqueued: list[str] = []
    for name in ("launch", "copy"):
        done = getattr(CpuDevice, name)

        def counted(self: CpuDevice, *given: Any, done: Any = done, **more: Any) -> None:
            enqueued.append(done.__name__)
            done(self, *given, **more)

        monkeypatch.setattr(CpuDevice, name, counted)
    steps = 4
    with Generator.open(bundle.path, device="cpu", threads=1) as generator:
        generator.generate(class_ids=[0, 1], steps=steps, schedule=schedule)
        enqueued.clear()
        generator.generate(class_ids=[1, 0], steps=steps, schedule=schedule)
    found = estimate(bundle, batch=2, steps=steps, schedule=schedule)
    works = {work.graph: work.launches for work in found.works}
    of_graphs = works["decoder"] + (steps - 1) * works["transformer"]
    of_graphs += steps * works.get("policy", 0)
    assert found.launches == len(enqueued) + of_graphs


def test_launches_grow_with_the_steps_and_not_with_the_batch(bundle: Bundle) -> None:
    def launches(batch: int, steps: int) -> int:
        return estimate(bundle, devices=["rtx-4090"], batch=batch, steps=steps).launches

    one, two, three = (launches(1, steps) for steps in (1, 2, 3))
    assert three - two == two - one > 0
    assert launches(8, 3) == three


@pytest.mark.parametrize("name", GPUS)
def test_small_models_take_the_time_of_their_launches(guided: Estimate, name: str) -> None:
    bound = _bounds(guided, name, "fp16")
    launches_ms = 1e-3 * gpu_of(name).launch.us * guided.launches
    assert bound.parts_ms["launches"] == pytest.approx(launches_ms)
    assert launches_ms < bound.batch_ms < 2 * launches_ms  # a model of a few kB
    assert bound.limit == "launches"
    assert sum(bound.parts_ms.values()) == pytest.approx(bound.batch_ms)


@pytest.mark.parametrize(
    ("compute_ms", "memory_ms", "launch_ms", "limit"),
    [
        (1, 0.5, 0.5, "compute"),
        (0.5, 1, 0.5, "memory"),
        (0.5, 0.5, 1, "launches"),
        (0, 0, 0, "none"),
    ],
)
def test_the_limit_is_the_largest_part(
    guided: Estimate, compute_ms: float, memory_ms: float, launch_ms: float, limit: str
) -> None:
    bound = _bounds(guided, "orin-nano", "fp16")
    stage = StageBound(bound.stages[0].stage, compute_ms, memory_ms, launch_ms)
    assert (stage.limit, replace(bound, stages=(stage,)).limit) == (limit, limit)


@pytest.mark.parametrize("steps", [1, 2, 5])
@pytest.mark.parametrize("precision", WIDTH_BYTES)
def test_the_parts_add_up(bundle: Bundle, steps: int, precision: str) -> None:
    found = estimate(bundle, devices=["rtx-4090"], batch=2, steps=steps, schedule="policy")
    bound = _bounds(found, "rtx-4090", precision)
    whole = sum(each.ms * each.stage.runs for each in bound.stages)
    assert bound.batch_ms == pytest.approx(whole)
    assert bound.image_ms == pytest.approx(whole / 2)
    assert len(bound.steps_ms) == steps
    assert sum(bound.steps_ms) == pytest.approx(whole)
    assert bound.steps_ms[1:-1] == pytest.approx(bound.steps_ms[1:2] * max(0, steps - 2))
    assert all(each.stage.runs > 0 for each in bound.stages)


@pytest.mark.parametrize("name", ["orin-nano", "rtx-5090"])
def test_a_batch_costs_more_than_an_image_and_at_most_as_many_images(
    bundle: Bundle, name: str
) -> None:
    one, eight = (
        _bounds(estimate(bundle, devices=[name], batch=batch), name, "fp16") for batch in (1, 8)
    )
    assert one.batch_ms < eight.batch_ms <= 8 * one.batch_ms * (1 + 1e-9)
    assert eight.image_ms <= one.image_ms * (1 + 1e-9)


def test_narrower_precisions_are_never_slower(guided: Estimate) -> None:
    for name in ("orin-nano", "thor", "rtx-4070"):
        wide, half, narrow = (_bounds(guided, name, each) for each in ("fp32", "fp16", "int8"))
        assert narrow.batch_ms < half.batch_ms < wide.batch_ms
        assert narrow.memory.weights < half.memory.weights < wide.memory.weights


class _Shaped:
    """A buffer without memory, for launches."""

    def __init__(self, shape: tuple[int, ...], kind: str, pointer: int = 0) -> None:
        self.shape, self.dtype, self.pointer = shape, np.dtype(kind), pointer


def test_kernels_move_what_their_launches_move(guided: Estimate) -> None:
    """With every position masked; parameters and seeds are beside what a launch counts."""
    first, later = (each for each in _stages(guided) if each.name == "sample_tokens")
    tokens: Any = _Shaped((2, _TOKENS), "int32")
    logits: Any = _Shaped((2, _TOKENS, _CODES), "float32")
    unconditional: Any = _Shaped((1, _TOKENS, _CODES), "float32", pointer=1)
    launch = launch_of(
        "sample_tokens",
        {
            "conditional": logits,
            "unconditional": unconditional,
            **dict.fromkeys(("tokens", "sampled", "confidence", "parameters", "seeds"), tokens),
            "step": 0,
            "mask_token": _CODES,
            "error": tokens,
            **{"confidence_of": 0, "mask": tokens, "resample": 0},
        },
    )
    own = 2 * (4 * 4 + 8)
    assert first.read_bytes + first.written_bytes == launch.bytes_moved + own
    # A policy may have decided every token: the logits need not be read.
    assert later.read_bytes == own + 4 * 2 * _TOKENS
    (pixels,) = (each for each in _stages(guided) if each.name == "to_pixels")
    image: Any = _Shaped((2, 3, 8, 8), "float32")
    made: Any = _Shaped((2, 8, 8, 3), "uint8")
    moved = launch_of("to_pixels", {"image": image, "pixels": made, "error": tokens}).bytes_moved
    assert pixels.read_bytes + pixels.written_bytes == moved


# Memory


def test_memory_is_weights_plan_and_allowances(bundle: Bundle, guided: Estimate) -> None:
    need = _bounds(guided, "orin-nano", "fp32").memory
    plan = planned_decode(bundle, batch=2, steps=4, schedule="policy")
    assert need.plan == plan.total_bytes + plan.shared_bytes
    assert need.weights == 4 * sum(w.mac_weights + w.other_weights for w in guided.works)
    assert 0.9 < need.weights / plan.weights_bytes < 1  # the files, without their structure
    assert (need.context, need.system) == (CONTEXT_BYTES, SYSTEM_BYTES)
    assert need.total == need.plan + need.weights + CONTEXT_BYTES + SYSTEM_BYTES
    assert need.fits
    assert _bounds(guided, "rtx-4060", "fp32").memory.system == 0


def test_a_batch_beyond_the_memory_does_not_fit(bundle: Bundle) -> None:
    found = estimate(bundle, devices=["rtx-4060"], batch=10_000_000)
    assert not _bounds(found, "rtx-4060", "fp16").memory.fits


# Requests and damage


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"devices": ["orin-nan"]}, "unknown device.*Did you mean 'orin-nano'"),
        ({"precisions": ["fp64"]}, "unknown precision 'fp64'; expected one of: bf16, fp16"),
        ({"batch": 0}, "batch must be a whole number, at least 1, got 0"),
        ({"steps": 17}, "steps must be 1 … 16 .* got 17"),
        ({"schedule": "sine"}, "unknown schedule 'sine'"),
    ],
)
def test_wrong_requests_say_what_is_right(
    bundle: Bundle, wrong: dict[str, Any], message: str
) -> None:
    with pytest.raises(RequestError, match=message):
        estimate(bundle, **wrong)


def test_damage_is_named(bundle_copy: Path) -> None:
    file = bundle_copy / "transformer.onnx"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(BundleError, match="transformer.onnx has .* damaged"):
        estimate(Bundle.read(bundle_copy))


def test_no_torch(tiny_bundle: Path) -> None:
    code = (
        "import sys; sys.modules['torch'] = None; from fewstep.build.estimate import estimate; "
        f"from fewstep.runtime.bundle import Bundle; estimate(Bundle.read({str(tiny_bundle)!r}))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# The command


def _refuse(constant: str) -> float:
    raise ValueError(f"{constant} is no JSON")


def test_json_has_everything(fewstep: Terminal, tiny_bundle: Path) -> None:
    options = ("--device", "agx-orin", "--batch", 2, "--steps", 4, "--schedule", "policy")
    outcome = fewstep("estimate", tiny_bundle, *options, "--json")
    data = json.loads(outcome.out, parse_constant=_refuse)
    assert (outcome.code, data["kind"]) == (0, "bound, not a measurement")
    assert data["batch"] == 2
    assert (data["settings"]["steps"], data["settings"]["schedule"]) == (4, "policy-exported")
    assert (data["key"]["guided"], data["key"]["policy"]) == (True, "policy")
    assert [each["graph"] for each in data["graphs"]] == ["transformer", "policy", "decoder"]
    (device,) = data["devices"]
    *others, fp8 = device["precisions"]
    assert [each["precision"] for each in others] == ["fp32", "fp16", "bf16", "int8"]
    assert all(each["image_ms"] > 0 and each["memory"]["fits"] for each in others)
    assert data["launches"]["kind"].startswith("estimate")
    counted = [each["launches"] * each["runs"] for each in others[0]["stages"]]
    assert data["launches"]["per_batch"] == sum(counted)
    assert all(sum(each["batch_parts_ms"].values()) <= each["batch_ms"] + 1e-9 for each in others)
    assert (device["launch"]["own"], device["launch"]["us"] > 0) == (False, True)
    assert "https://" in device["launch"]["source"]
    assert fp8 == {
        **{"precision": "fp8", "available": False},
        "reason": "compute capability 8.7 has no fp8 tensor cores",
    }


def test_tables_say_what_they_are(fewstep: Terminal, tiny_bundle: Path) -> None:
    chosen = ("--device", "orin-nano", "--device", "rtx-4090", "--precision", "fp8")
    shown = fewstep("estimate", tiny_bundle, *chosen)
    assert shown.code == 0
    assert shown.out.count("Bound, not a measurement") == 3  # two devices and the summary
    assert shown.out.startswith("rtx-4090: at least ")
    assert "no fp8 on orin-nano: compute capability 8.7 has no fp8 tensor cores" in shown.out
    assert "transformer (batch 2)" in shown.out
    assert "MAXN_SUPER" in shown.out
    words = " ".join(shown.out.split())
    assert "launches are part of the times and estimated" in words
    assert words.count("µs a launch, part of the times") == 2
    assert words.count("no measurement of this GPU is known; this is of NVIDIA Ampere") == 2


def test_without_a_device_all_are_shown(fewstep: Terminal, tiny_text_bundle: Path) -> None:
    shown = fewstep("estimate", tiny_text_bundle, "--precision", "fp16", "--batch", 2)
    assert shown.code == 0
    assert all(f" {name} " in shown.out for name in GPUS)
    fastest, slowest = shown.out.splitlines()[:2]
    assert fastest.startswith(f"fastest of {len(GPUS)}, ") and "ms per image in fp16" in fastest
    assert (
        slowest.startswith(f"slowest of {len(GPUS)}, ") and "steps, batch 2), bound by" in slowest
    )
    assert shown.out.count("Bound, not a measurement") == 1
    assert "launches are part of the times and estimated" in " ".join(shown.out.split())


def test_headings_are_whole_in_80_columns(bundle: Bundle) -> None:
    found = estimate(bundle, batch=1_000_000)  # memory with as many digits as there may be
    text = io.StringIO()
    console = Console(width=80, file=text)
    for table in estimate_tables(found, stages=True):
        console.print(table)
    lines = text.getvalue().splitlines()
    for headings in (
        "Device Precision Image, ms Launches, ms Limit GiB Fits",
        "Stage Runs GFLOP MB Launches ms Limit",
    ):
        assert any(" ".join(line.split()) == headings for line in lines)


@pytest.mark.parametrize(
    "wrong", [("--device", "gtx-1080"), ("--batch", "0"), ("--steps", "17"), ("--precision", "q")]
)
def test_the_command_refuses_in_one_line(
    fewstep: Terminal, tiny_bundle: Path, wrong: tuple[str, str]
) -> None:
    outcome = fewstep("estimate", tiny_bundle, *wrong)
    assert (outcome.code, outcome.out) == (1, "")
    assert outcome.err.startswith("error: ")
    assert "defect" not in outcome.err
