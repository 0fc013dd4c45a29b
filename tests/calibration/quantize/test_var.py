"""VAR: a trunk whose logits another graph makes, with scales of several lengths and a cache."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from fewstep.build.graphs import load_graph
from fewstep.calibration.quantize.flow import QuantizeRequest, quantize
from fewstep.calibration.quantize.judge import Judge
from fewstep.calibration.quantize.lint import lint
from fewstep.calibration.quantize.outcome import Outcome
from fewstep.calibration.quantize.readout import Readout, readout
from fewstep.calibration.quantize.rollouts import Rollouts, record
from fewstep.calibration.quantize.settings import Settings
from fewstep.runtime.bundle import Bundle
from fewstep.runtime.devices import Array
from fewstep.runtime.errors import RequestError
from fewstep.runtime.generator import Generator

from .graphs import only

_COUNTS = (1, 4, 9, 16)
_PASTS = (0, 1, 5, 14)


@pytest.fixture(scope="module")
def made(var_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Bundle, Outcome]:
    """A bundle with int8 graphs."""
    path = shutil.copytree(var_bundle, tmp_path_factory.mktemp("int8") / "bundle")
    outcome = quantize(QuantizeRequest(path, Settings(rollouts=3, held_out=2)))
    return Bundle.read(path), outcome


@pytest.fixture(scope="module")
def held_out(var_bundle: Path) -> Rollouts:
    """The same as quantization was judged on."""
    return record(Bundle.read(var_bundle), ["trunk"], 2, seed=3, settings={})["trunk"]


def test_logits_are_those_that_follow(var_bundle: Path, tiny_bundle: Path) -> None:
    bundle = Bundle.read(var_bundle)
    assert readout(bundle, "trunk") == Readout("logits", "head", {"hidden": "hidden"})
    assert readout(bundle, "head") == Readout("logits")
    assert readout(Bundle.read(tiny_bundle), "transformer") == Readout("logits")
    assert readout(bundle, "decoder") == Readout(own={"image": 0}, images=True)
    with pytest.raises(RequestError, match="'policy' gives no logits, .* and no graph with"):
        readout(Bundle.read(tiny_bundle), "policy")


def test_every_scale_is_a_pass_and_rows_of_the_cache_come_second(held_out: Rollouts) -> None:
    for each, count, past in zip(held_out.passes, _COUNTS, _PASTS, strict=True):
        assert each.counted is None and each.own["embeds"].shape[:2] == (2, count)
        assert each.beside.keys() == {"head_modulation"}
        assert each.beside["head_modulation"].shape[0] == 2
        keys, own = each.inputs["past_key_1"], each.own["past_key_1"]
        assert (keys.shape[:2], own.shape[:2]) == ((past, 4), (past, 2))
        np.testing.assert_array_equal(own, keys[:, :2])
        np.testing.assert_array_equal(each.own["embeds"], each.inputs["embeds"][:2])


def test_the_cache_is_kept_once(held_out: Rollouts) -> None:
    last = held_out.passes[-1].inputs
    for each in held_out.passes[1:]:
        assert np.shares_memory(each.inputs["past_value_0"], last["past_value_0"])
        assert np.shares_memory(each.own["past_value_0"], last["past_value_0"])


def _logits(trunk: onnx.ModelProto, head: onnx.ModelProto, held_out: Rollouts) -> Array:
    """Log-probabilities of the conditional half, by runs of both halves."""
    run_trunk, run_head = (
        onnxruntime.InferenceSession(each.SerializeToString()) for each in (trunk, head)
    )
    found = []
    for each in held_out.passes:
        hidden = run_trunk.run(["hidden"], dict(each.inputs))[0][:2]
        logits = run_head.run(["logits"], {"hidden": hidden, **each.beside})[0]
        found.append(logits.reshape(-1, logits.shape[-1]))
    exact = np.concatenate(found).astype(np.float64)
    logarithms: Array = exact - np.log(np.exp(exact).sum(-1, keepdims=True))
    return logarithms


def test_int8_is_judged_by_the_logits_of_the_head(
    made: tuple[Bundle, Outcome], held_out: Rollouts
) -> None:
    bundle, outcome = made
    head, trunk = load_graph(bundle, "head"), load_graph(bundle, "trunk")
    quantized = onnx.load(bundle.graph_path("trunk", "int8"))
    p, q = (_logits(each, head, held_out) for each in (trunk, quantized))
    kl = float((np.exp(p) * (p - q)).sum(-1).mean())
    assert only(outcome).record.kl_nats == pytest.approx(kl, rel=1e-3)
    assert kl > 1e-6
    agreement = (p.argmax(-1) == q.argmax(-1)).mean()
    assert only(outcome).record.token_agreement == pytest.approx(agreement)
    same = Judge(trunk, readout(bundle, "trunk"), held_out, head).metrics(trunk)
    assert same.kl_nats == pytest.approx(0, abs=1e-12)
    assert same.token_agreement == 1.0


def test_matmuls_with_weights_are_quantized_and_attention_is_not(
    made: tuple[Bundle, Outcome],
) -> None:
    bundle, outcome = made
    assert (only(outcome).matmuls, only(outcome).record.kept) == (2 * 4, {})
    model = onnx.load(bundle.graph_path("trunk", "int8"))
    assert lint(model, "int8") == ()
    operators = [node.op_type for node in model.graph.node]
    assert operators.count("MatMul") + operators.count("Gemm") == 2 * (4 + 2)


def test_images_are_made_in_int8(made: tuple[Bundle, Outcome]) -> None:
    bundle, _ = made
    with Generator.open(bundle, precision="int8", threads=1) as generator:
        assert len(generator.generate(class_ids=[1, 2], seed=0).images) == 2
        assert len(generator.generate(class_ids=[1], seed=0, schedule="policy").images) == 1


def test_fp8_is_refused_before_anything_runs(var_bundle: Path) -> None:
    with pytest.raises(
        RequestError, match="runs of one shape, and those of trunk differ in embeds"
    ):
        quantize(QuantizeRequest(var_bundle, Settings(precision="fp8")))
