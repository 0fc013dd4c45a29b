"""A family that fewstep has never heard of goes the whole way, without a change to shared files.

Export, generation, verification, timing, inspection, estimates, profiles, lower precisions,
quantization and the command line are those of every bundle. Independent references: the toy's
modules run by PyTorch scale by scale, and NumPy for what follows from the programs.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from tests.toy.family import SCALES
from tests.toy.source import CLASSES, CODES, Toy

from fewstep.runtime.bench import contender, measure
from fewstep.runtime.bundle import Bundle
from fewstep.runtime.errors import RequestError
from fewstep.runtime.generator import Generator
from fewstep.runtime.verify import recordings, replay, verify

if TYPE_CHECKING:
    from tests.conftest import Terminal


def _decoded(model: Toy, class_id: int, pull: tuple[float, float]) -> list[torch.Tensor]:
    """The likeliest tokens of one image, by PyTorch: both halves of guidance, scale by scale."""
    condition = torch.tensor([class_id, CLASSES], dtype=torch.int32)
    codes = torch.full((2, 1), CODES, dtype=torch.int32)
    past, decided = torch.zeros((0, 2, model.trunk.entry.out_features)), []
    for scale, _ in enumerate(SCALES):
        logits, present = model.trunk(codes, condition, past)
        guided = logits[0] + pull[scale] * (logits[0] - logits[1])
        tokens = guided.argmax(-1).to(torch.int32)
        decided.append(tokens)
        past = torch.cat([past, present])
        codes = model.grow(tokens[None]).expand(2, -1)
    return decided


@torch.no_grad()
def test_generation_is_what_torch_decodes(toy_bundle: Path, toy_checkpoint: Path) -> None:
    model = Toy().eval()
    model.load_state_dict(torch.load(toy_checkpoint, weights_only=True))
    with Generator.open(toy_bundle) as generator:
        made = generator.generate(class_ids=[0, 1, 2], heat=0.0, pull=(0.5, 1.5))
    for image, class_id in enumerate([0, 1, 2]):
        first, second = _decoded(model, class_id, (0.5, 1.5))
        np.testing.assert_array_equal(made.trace.tokens[0, image, :1], first)
        np.testing.assert_array_equal(made.trace.tokens[1, image], second)
        pixels = model.decoder(second[None])[0].permute(1, 2, 0).mul(255).round()
        assert np.abs(made.images[image] - pixels.numpy()).max() <= 1


def test_an_image_depends_on_no_other_of_its_batch(toy_bundle: Path) -> None:
    with Generator.open(toy_bundle, max_batch=2) as generator:
        together = generator.generate(class_ids=[0, 1, 2], seed=5)
        for index in range(3):
            alone = generator.generate(class_ids=[index], seed=5 + index)
            np.testing.assert_array_equal(alone.images[0], together.images[index])
            np.testing.assert_array_equal(alone.trace.tokens[:, 0], together.trace.tokens[:, index])


@pytest.mark.parametrize("max_batch", [1, 8])
def test_verification_finds_nothing_in_what_was_exported(toy_bundle: Path, max_batch: int) -> None:
    with Generator.open(toy_bundle, max_batch=max_batch) as generator:
        report = verify(generator)
    metrics = {(each.graph, each.metric) for each in report.checks}
    assert report.passed
    assert {("trunk", "kl_nats"), ("decoder", "psnr_db"), ("loop", "token_agreement")} <= metrics


def test_verification_finds_a_wrong_cache(toy_copy: Path) -> None:
    """The second scale reads what the first wrote: a wrong entry shows in its logits alone."""
    recording = next(iter(recordings(Bundle.read(toy_copy)).values()))
    with Generator.open(toy_copy) as generator:
        calls = [each.call for each in replay(generator, recording, "trunk")]
    assert [call.inputs["past"].shape[0] for call in calls] == [0, 1]
    np.testing.assert_array_equal(calls[1].inputs["past"][0], calls[0].outputs["present"][0])


def test_a_setting_of_another_family_is_refused(toy_bundle: Path) -> None:
    with (
        Generator.open(toy_bundle) as generator,
        pytest.raises(RequestError, match="unknown setting 'steps'; expected one of: heat"),
    ):
        generator.generate(class_ids=[0], steps=4)


def test_bench_times_the_stages_of_its_graphs(toy_bundle: Path) -> None:
    with Generator.open(toy_bundle) as generator:
        (found,) = measure({"toy": contender(generator, batch=2, settings={})}, runs=2)
    assert {"trunk", "grow", "decoder", "sampling"} <= found.stages_ms.keys()
    assert found.overhead is not None
    assert found.overhead > 0


# The command line


@pytest.mark.parametrize(
    "command",
    [
        ("inspect",),
        ("inspect", "--plan", "--heat", "0.5"),
        ("verify",),
        ("bench", "--runs", "1", "--pull", "1:2"),
        ("estimate", "--device", "orin-nano", "--batch", "2"),
    ],
)
def test_commands_take_its_bundles(
    fewstep: Terminal, toy_bundle: Path, command: tuple[str, ...]
) -> None:
    outcome = fewstep(command[0], toy_bundle, *command[1:])
    assert (outcome.code, outcome.err.count("error")) == (0, 0), outcome.err
    assert "trunk" in outcome.out or command == ("inspect", "--plan", "--heat", "0.5")


def test_generate_writes_its_pictures(fewstep: Terminal, toy_bundle: Path, tmp_path: Path) -> None:
    out, trace = tmp_path / "toy.png", tmp_path / "toy.gif"
    given = ("--class", 0, "--class", 1, "--pull", "1:3", "--out", out, "--trace", trace)
    outcome = fewstep("generate", toy_bundle, *given, "--json")
    assert outcome.code == 0, outcome.err
    assert json.loads(outcome.out)["images"] == 2
    assert out.is_file()
    assert trace.is_file()


@pytest.mark.slow
def test_a_form_is_a_command_of_export(
    fewstep: Terminal, toy_checkpoint: Path, tmp_path: Path
) -> None:
    out = tmp_path / "bundle"
    outcome = fewstep("export", "toy", "--weights", toy_checkpoint, "--out", out)
    assert outcome.code == 0, outcome.err
    assert Bundle.read(out).manifest.model.kind == "toy"


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_graphs_in_lower_precision(fewstep: Terminal, toy_copy: Path, precision: str) -> None:
    assert fewstep("build", toy_copy, "--precision", precision).code == 0
    assert precision in Bundle.read(toy_copy).precisions
    if precision == "fp16":  # ONNX Runtime's CPU has no bf16
        verified = fewstep("verify", toy_copy, "--precision", precision)
        assert verified.code == 0, verified.out


def test_quantization_is_of_the_graphs_that_the_family_names(
    fewstep: Terminal, toy_copy: Path
) -> None:
    made = fewstep("calibrate", "quantize", toy_copy, "--rollouts", 4, "--held-out", 2)
    assert made.code == 0, made.err
    info = Bundle.read(toy_copy).graph("trunk", "int8")
    assert info.quantization is not None
    assert info.quantization.kl_nats is not None and info.quantization.kl_nats < 0.05
    assert fewstep("verify", toy_copy, "--precision", "int8").code == 0


def test_a_family_without_policies_has_none_to_tune(fewstep: Terminal, toy_bundle: Path) -> None:
    asked = fewstep("calibrate", "policy", toy_bundle, "--data", "images")
    assert (asked.code, asked.out) == (1, "")
    assert "is of the family toy, which has no policies; only masked" in asked.err
    assert asked.err.count("error:") == 1


@pytest.mark.slow
def test_rtx_engines_are_built_without_a_gpu(fewstep: Terminal, toy_copy: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX has wheels for x86-64 alone")
    target = ("--backend", "tensorrt-rtx", "--compute-capability", "8.6", "--no-kernels")
    built = fewstep("build", toy_copy, *target, "--max-batch", 2)
    assert built.code == 0, built.err
    engines = {each.graph: each for each in Bundle.read(toy_copy).manifest.engines}
    assert engines.keys() == {"trunk", "grow", "decoder"}
    assert engines["trunk"].profiles[0]["past"].min[0] == 0
