"""``fewstep estimate``: bounds from the graphs' operations and published figures.

Independent references: PyTorch's counter and the U-ViT's formula for operations, NVIDIA's published
totals for the table of GPUs, the kernels' own launches for logits, a hand-built stage for the
roofline. Properties: bounds fall with bandwidth and peak, add up over the loop, and grow with the
batch by no more than it. Then the command: tables, JSON, and every wrong request or damaged bundle.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch.utils.flop_counter import FlopCounterMode

from fewstep.build.estimate import (
    CONTEXT_BYTES,
    SYSTEM_BYTES,
    Estimate,
    PrecisionBound,
    estimate,
    graph_work,
    masked_share,
)
from fewstep.build.gpus import GPUS, WIDTH_BYTES, When, gpu_of, stage_bound
from fewstep.export.models import PolicyNet, UViT, VQModel
from fewstep.runtime.bundle import Bundle
from fewstep.runtime.errors import BundleError, MissingDependencyError, RequestError
from fewstep.runtime.inspect import plan_memory
from fewstep.runtime.kernels.launch import launch_of
from fewstep.runtime.plan import PlanKey

if TYPE_CHECKING:
    from tests.conftest import Terminal

    from fewstep.export import Checkpoints

_TOKENS, _WIDTH, _CODES, _BLOCKS = 16, 32, 24, 3  # of the tiny bundle; depth 2 and one between
_GB = 1e9


@pytest.fixture(scope="module")
def bundle(tiny_bundle: Path) -> Bundle:
    return Bundle.read(tiny_bundle)


@pytest.fixture(scope="module")
def guided(bundle: Bundle) -> Estimate:
    return estimate(bundle, batch=2, steps=4, schedule="policy")


# Operations


def _torch_flops(module: torch.nn.Module, *inputs: torch.Tensor) -> int:
    call: Callable[..., Any] = module.decode if isinstance(module, VQModel) else module
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        call(*inputs)
    return int(counter.get_total_flops())


@pytest.fixture(scope="module")
def modules(tiny_checkpoints: Checkpoints) -> dict[str, torch.nn.Module]:
    assert tiny_checkpoints.config is not None
    config = json.loads(Path(tiny_checkpoints.config).read_text())
    made = {
        "transformer": UViT(**config["transformer"]),
        "policy": PolicyNet(**config["policy"]),
        "decoder": VQModel(**config["tokenizer"]),
    }
    return {name: module.eval() for name, module in made.items()}


@pytest.mark.parametrize("images", [1, 2, 5])
@pytest.mark.parametrize("graph", ["transformer", "policy", "decoder"])
def test_operations_are_those_that_torch_counts(
    bundle: Bundle, modules: dict[str, torch.nn.Module], graph: str, images: int
) -> None:
    ids = torch.zeros(images, dtype=torch.int64)
    tokens = torch.zeros(images, _TOKENS, dtype=torch.int64)
    inputs: dict[str, tuple[torch.Tensor, ...]] = {
        "transformer": (tokens, ids),
        "policy": (torch.zeros(images, _TOKENS, _WIDTH), ids),
        "decoder": (tokens.reshape(images, 4, 4),),
    }
    work = graph_work(bundle, graph)
    counted = work.flops + (images - 1) * work.flops_more
    assert counted == _torch_flops(modules[graph], *inputs[graph])


def test_operations_of_the_transformer_by_hand(bundle: Bundle) -> None:
    length, width = _TOKENS + 1, _WIDTH  # one more for the condition
    projections = 2 * length * width * (3 * width + width + 2 * 4 * width)
    attention = 2 * 2 * length * length * width
    skip = 2 * length * 2 * width * width
    head = 2 * _TOKENS * width * (width + _CODES + 1)
    expected = _BLOCKS * (projections + attention) + skip + head
    assert graph_work(bundle, "transformer").flops == expected


def test_weights_of_products_are_the_parameters_but_embeddings_norms_and_biases(
    bundle: Bundle, modules: dict[str, torch.nn.Module]
) -> None:
    work = graph_work(bundle, "policy")
    matrices = [each.numel() for each in modules["policy"].parameters() if each.ndim > 1]
    assert work.product_weights == sum(matrices)
    path = bundle.graph_path("policy")
    every = sum(int(np.prod(each.dims)) for each in onnx.load(path).graph.initializer)
    assert work.product_weights + work.other_weights == every


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


def test_a_guided_loop_runs_its_first_step_at_batch_b(guided: Estimate) -> None:
    stages = [each.stage for each in _bounds(guided, "thor", "fp16").stages]
    runs = {(each.name, each.when): (each.batch, each.runs) for each in stages}
    assert runs == {
        ("transformer", "first"): (2, 1),
        ("transformer", "later"): (4, 3),
        ("policy", "every"): (2, 4),
        ("sampling", "first"): (2, 1),
        ("sampling", "later"): (2, 3),
        ("decoder", "end"): (2, 1),
        ("pixels", "end"): (2, 1),
    }


def test_without_guidance_or_policy_every_pass_is_at_batch_b(bundle: Bundle) -> None:
    defaults = bundle.manifest.model.defaults.model_copy(update={"guidance": (0.0, 0.0)})
    model = bundle.manifest.model.model_copy(update={"defaults": defaults})
    plain = Bundle(bundle.path, bundle.manifest.model_copy(update={"model": model}))
    stages = [each.stage for each in _bounds(estimate(plain, batch=3), "thor", "fp16").stages]
    assert {each.batch for each in stages} == {3}
    assert "policy" not in {each.name for each in stages}
    assert sum(each.runs for each in stages if each.name == "transformer") == 8


@pytest.mark.parametrize("steps", [1, 2, 5])
@pytest.mark.parametrize("precision", WIDTH_BYTES)
def test_the_parts_add_up(bundle: Bundle, steps: int, precision: str) -> None:
    found = estimate(bundle, devices=["rtx-4090"], batch=2, steps=steps, schedule="policy")
    bound = _bounds(found, "rtx-4090", precision)
    parts = {(each.stage.name, each.stage.when): each for each in bound.stages}
    whole = sum(each.ms * each.stage.runs for each in parts.values())
    assert bound.batch_ms == pytest.approx(whole)
    assert bound.image_ms == pytest.approx(whole / 2)
    own: When = "first" if steps == 1 else "later"
    step = parts["transformer", own].ms + parts["policy", "every"].ms + parts["sampling", own].ms
    assert bound.step_ms == pytest.approx(step)
    assert all(each.stage.runs > 0 for each in parts.values())


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

    def __getitem__(self, rows: int | slice) -> _Shaped:
        raise TypeError("not sliced here")


def test_sampling_reads_the_logits_that_the_kernel_reads(guided: Estimate) -> None:
    """With every position masked; ids and confidences are a few kB that the bound leaves out."""
    stages = {(s.stage.name, s.stage.when): s.stage for s in guided.devices[0].precisions[0].stages}
    launch = launch_of("sample_tokens", _sampling_arguments(images=2, unconditional=1))
    small = 12 * 2 * _TOKENS
    assert stages["sampling", "first"].read_bytes == launch.bytes_moved - small
    assert stages["sampling", "later"].read_bytes == 0  # a policy may have decided every token
    pixels = {"image": _Shaped((2, 3, 8, 8), "float32"), "error": _Shaped((1,), "int32")}
    moved = launch_of("to_pixels", {**pixels, "pixels": _Shaped((2, 8, 8, 3), "uint8")}).bytes_moved
    assert stages["pixels", "end"].read_bytes + stages["pixels", "end"].written_bytes == moved


def _sampling_arguments(images: int, unconditional: int) -> dict[str, Any]:
    tokens = _Shaped((images, _TOKENS), "int32")
    return {
        "conditional": _Shaped((images, _TOKENS, _CODES), "float32"),
        "unconditional": _Shaped((unconditional, _TOKENS, _CODES), "float32", pointer=1),
        **dict.fromkeys(("tokens", "sampled", "confidence", "parameters", "seeds"), tokens),
        **{"step": 0, "mask_token": _CODES, "error": tokens},
    }


def test_masked_share_is_the_schedules(bundle: Bundle) -> None:
    model = bundle.manifest.model
    key = PlanKey(1, 4, guided=True, policy=None)
    # cos(π/8), cos(π/4), cos(3π/8) of 16 tokens, rounded down
    assert masked_share(model, key, "cosine") == pytest.approx((14 + 11 + 6) / 3 / 16)
    assert masked_share(model, replace(key, steps=1), "cosine") == 0
    assert masked_share(model, replace(key, policy="policy"), "policy") == 0


# Memory


def test_memory_is_weights_plan_and_allowances(bundle: Bundle, guided: Estimate) -> None:
    need = _bounds(guided, "orin-nano", "fp32").memory
    plan = plan_memory(bundle, batch=2, steps=4, schedule="policy")
    assert need.plan == plan.total_bytes + plan.shared_bytes
    assert need.weights == 4 * sum(w.product_weights + w.other_weights for w in guided.works)
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


def _with_decoder(folder: Path, content: bytes) -> Bundle:
    bundle = Bundle.read(folder)
    graphs = {name: each.model_dump() for name, each in bundle.manifest.graphs.items()}
    graphs["decoder"]["file"] = "other.onnx"
    return bundle.update({"other.onnx": content}, graphs=graphs)


def _foreign_graph() -> bytes:
    tokens = helper.make_tensor_value_info("tokens", TensorProto.INT32, ["batch", _TOKENS])
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3, 8, 8])
    node = helper.make_node("Unheard", ["tokens"], ["image"], domain="elsewhere")
    graph = helper.make_graph([node], "foreign", [tokens], [image])
    content: bytes = helper.make_model(graph).SerializeToString()
    return content


@pytest.mark.filterwarnings("ignore:node Unheard")
@pytest.mark.parametrize("content", [b"no graph", _foreign_graph()], ids=["garbage", "foreign"])
def test_a_graph_that_cannot_be_counted_is_named(bundle_copy: Path, content: bytes) -> None:
    with pytest.raises(BundleError, match="graph 'decoder' cannot be counted.*export the bundle"):
        estimate(_with_decoder(bundle_copy, content))


def test_absent_counter_names_its_extra(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx_tool", None)
    with pytest.raises(MissingDependencyError, match=r"onnx-tool .*fewstep\[build\]"):
        estimate(bundle)


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
    assert (data["batch"], data["steps"], data["schedule"]) == (2, 4, "policy")
    assert [each["graph"] for each in data["graphs"]] == ["transformer", "policy", "decoder"]
    (device,) = data["devices"]
    *others, fp8 = device["precisions"]
    assert [each["precision"] for each in others] == ["fp32", "fp16", "bf16", "int8"]
    assert all(each["image_ms"] > 0 and each["memory"]["fits"] for each in others)
    assert fp8 == {
        **{"precision": "fp8", "available": False},
        "reason": "compute capability 8.7 has no fp8 tensor cores",
    }


def test_tables_say_what_they_are(fewstep: Terminal, tiny_bundle: Path) -> None:
    chosen = ("--device", "orin-nano", "--device", "rtx-4090", "--precision", "fp8")
    shown = fewstep("estimate", tiny_bundle, *chosen)
    assert shown.code == 0
    assert shown.out.count("Bound, not a measurement") == 3  # two devices and the summary
    assert "transformer, later" in shown.out
    assert "MAXN_SUPER" in shown.out


def test_without_a_device_all_are_shown(fewstep: Terminal, tiny_text_bundle: Path) -> None:
    shown = fewstep("estimate", tiny_text_bundle, "--precision", "fp16", "--batch", 2)
    assert shown.code == 0
    assert all(f" {name} " in shown.out for name in GPUS)
    assert shown.out.count("Bound, not a measurement") == 1


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
