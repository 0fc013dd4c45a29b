"""MAR: several graphs that no logits follow from, with rows in the second place, and a head that
runs many times."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from fewstep.build.graphs import load_graph
from fewstep.build.stale import why_graphs_stale
from fewstep.calibration.quantize.flow import QuantizeRequest, quantize
from fewstep.calibration.quantize.lint import lint
from fewstep.calibration.quantize.matmuls import blocks, weighted_matmuls
from fewstep.calibration.quantize.outcome import Outcome
from fewstep.calibration.quantize.readout import Readout, readout
from fewstep.calibration.quantize.rollouts import MOST_RUNS, Rollouts, kept, record
from fewstep.calibration.quantize.settings import Settings, tolerances
from fewstep.calibration.quantize.tables import quality
from fewstep.runtime.bundle import Bundle
from fewstep.runtime.devices import Array
from fewstep.runtime.errors import RequestError
from fewstep.runtime.generator import Generator
from fewstep.runtime.verify import verify

_GRAPHS = ("encoder", "decoder_start", "decoder_rest", "head")
_GIVES = {
    "encoder": {"buffer": 1, "embeds": 1},
    "decoder_start": {"hidden": 1},
    "decoder_rest": {"output": 1},
    "head": {"denoised": 0},
}
_FEW = Settings(rollouts=3, held_out=2)


def _quantize(path: Path, settings: Settings = _FEW, **options: Any) -> Outcome:
    return quantize(QuantizeRequest(path, settings, **options))


@pytest.fixture(scope="module")
def made(mar_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Bundle, Outcome]:
    """A bundle with int8 graphs."""
    path = shutil.copytree(mar_bundle, tmp_path_factory.mktemp("int8") / "bundle")
    outcome = _quantize(path)
    return Bundle.read(path), outcome


@pytest.fixture(scope="module")
def held_out(mar_bundle: Path) -> dict[str, Rollouts]:
    """The same as quantization was judged on."""
    return record(Bundle.read(mar_bundle), _GRAPHS, 2, seed=3, settings={})


@pytest.fixture
def path(made: tuple[Bundle, Outcome], tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return shutil.copytree(made[0].path, tmp_path / "bundle")


# --- what graphs are judged by, and fed


def test_graphs_are_judged_by_what_they_give(mar_bundle: Path) -> None:
    bundle = Bundle.read(mar_bundle)
    for graph, gives in _GIVES.items():
        assert readout(bundle, graph) == Readout(own=gives)


def test_all_graphs_are_recorded_in_the_same_rollouts(held_out: dict[str, Rollouts]) -> None:
    """Six iterations of five diffusion steps; rows of both halves come second, but in the head."""
    passes = {graph: len(each.passes) for graph, each in held_out.items()}
    assert passes == {**dict.fromkeys(_GRAPHS[:3], 6), "head": MOST_RUNS}
    known = [each.inputs["tokens"].shape for each in held_out["encoder"].passes]
    assert known == [(each, 4, 12) for each in (0, 1, 3, 5, 8, 12)]
    for each in held_out["decoder_start"].passes:
        assert each.counted is None and each.own["buffer"].shape == (6, 2, 32)
        np.testing.assert_array_equal(each.own["buffer"], each.inputs["buffer"][:, :2])
    for each in held_out["head"].passes:
        assert each.inputs["x"].shape[0] == 4
        np.testing.assert_array_equal(each.own["x"], each.inputs["x"][:2])
        np.testing.assert_array_equal(each.own["timestep"], each.inputs["timestep"])
    timesteps = {int(each.inputs["timestep"][0]) for each in held_out["head"].passes}
    assert len(timesteps) == 5 and {0, 999} <= timesteps


def test_a_graph_alone_is_fed_the_same(mar_bundle: Path, held_out: dict[str, Rollouts]) -> None:
    alone = record(Bundle.read(mar_bundle), ["head"], 2, seed=3, settings={})
    assert alone["head"].sha256 == held_out["head"].sha256


# --- how many runs are kept


def test_few_runs_are_all_kept() -> None:
    assert kept(MOST_RUNS, 3) == frozenset(range(MOST_RUNS))
    assert kept(1, 0) == {0}


@pytest.mark.parametrize("runs", [64, 320, 6400, 6401, 25_600])
def test_of_many_runs_one_of_every_part_is_kept(runs: int) -> None:
    for batch in range(3):
        chosen, parts = np.array(sorted(kept(runs, batch))), np.arange(MOST_RUNS)
        assert len(chosen) == MOST_RUNS
        assert (parts * runs / MOST_RUNS - 1 < chosen).all()
        assert (chosen < (parts + 1) * runs / MOST_RUNS).all()
    assert kept(runs, 0) != kept(runs, 1)
    assert len(kept(MOST_RUNS + 1, 0)) > MOST_RUNS // 2


@pytest.mark.parametrize(("iterations", "steps"), [(64, 100), (32, 25), (16, 50), (256, 10)])
def test_timesteps_that_recur_are_all_met_alike(iterations: int, steps: int) -> None:
    """Over 10 batches every tenth of a diffusion has its share, whatever divides what."""
    places = [at % steps for batch in range(10) for at in kept(iterations * steps, batch)]
    tenths, _ = np.histogram(places, 10, (0, steps))
    assert tenths.min() > 0.6 * tenths.mean() and tenths.max() < 1.5 * tenths.mean()


def test_rollouts_keep_no_more_than_that(mar_bundle: Path) -> None:
    bundle, graphs = Bundle.read(mar_bundle), ("encoder", "head")
    every, few = (
        record(bundle, graphs, 2, seed=3, settings={}, most_runs=most) for most in (100, 4)
    )
    for graph, runs in (("encoder", 6), ("head", 6 * 5)):
        assert (len(every[graph].passes), len(few[graph].passes)) == (runs, 4)
        for each, at in zip(few[graph].passes, sorted(kept(runs, 0, 4)), strict=True):
            for name, value in every[graph].passes[at].inputs.items():
                np.testing.assert_array_equal(each.inputs[name], value)


# --- the variant


def test_every_graph_is_quantized_and_recorded(made: tuple[Bundle, Outcome]) -> None:
    bundle, outcome = made
    assert outcome.made and bundle.damage() == {} and not why_graphs_stale(bundle, "int8")
    assert tuple(each.name for each in outcome.graphs) == _GRAPHS
    for each in outcome.graphs:
        info = bundle.graph(each.name, "int8")
        assert info == each.info and info.precision == "int8"
        assert set(each.record.kept.values()) <= {"rules"}
        model = onnx.load(bundle.graph_path(each.name, "int8"))
        assert lint(model, "int8") == ()
        quantized = sum(node.op_type == "DequantizeLinear" for node in model.graph.node)
        assert quantized >= each.matmuls - len(each.record.kept)
    delicate = {each.name: len(each.record.kept) for each in outcome.graphs}
    assert delicate == {
        "encoder": 1,
        "decoder_start": 0,
        "decoder_rest": 0,
        "head": 1,
    }  # embed tokens
    for graph in ("readout", "decoder"):
        assert bundle.graph(graph, "int8").file == bundle.graph(graph).file


def _given(model: onnx.ModelProto, rollouts: Rollouts, names: list[str]) -> Array:
    """What a graph gives for the conditional half, by runs of both halves."""
    session = onnxruntime.InferenceSession(model.SerializeToString())
    found = []
    for each in rollouts.passes:
        for name, value in zip(names, session.run(names, dict(each.inputs)), strict=True):
            own = value[:2] if name == "denoised" else value[:, :2]
            found.append(own.astype(np.float64).ravel())
    return np.concatenate(found)


@pytest.mark.parametrize("graph", _GRAPHS)
def test_the_relative_error_is_that_of_what_a_graph_gives(
    made: tuple[Bundle, Outcome], held_out: dict[str, Rollouts], graph: str
) -> None:
    bundle, outcome = made
    record = next(each.record for each in outcome.graphs if each.name == graph)
    names = list(_GIVES[graph])
    y, other = (
        _given(each, held_out[graph], names)
        for each in (load_graph(bundle, graph), onnx.load(bundle.graph_path(graph, "int8")))
    )
    expected = float(np.sqrt(((y - other) ** 2).sum() / (y**2).sum()))
    assert record.relative_error == pytest.approx(expected, rel=1e-3)
    assert 1e-3 < expected < 0.05
    assert (record.kl_nats, record.token_agreement) == (None, None)


def test_it_verifies_and_generates(made: tuple[Bundle, Outcome]) -> None:
    bundle, _ = made
    with Generator.open(bundle, precision="int8", device="cpu", threads=1) as generator:
        report = verify(generator)
        assert (report.precision, report.passed) == ("int8", True)
        errors = [
            each.value
            for each in report.checks
            if each.metric == "latent_error" and each.graph != "image_encoder"
        ]
        assert errors and min(errors) > 1e-4
        assert len(generator.generate(class_ids=[0, 1], preset="fast").images) == 2


def test_what_is_told_has_an_entry_a_graph(made: tuple[Bundle, Outcome]) -> None:
    told = json.loads(json.dumps(made[1].as_dict()))
    assert told.keys() == {"precision", "up_to_date", "graphs", "notes"}
    assert [each["graph"] for each in told["graphs"]] == list(_GRAPHS)
    for each in told["graphs"]:
        assert each["relative_error"] > 0 and each["kl_nats"] is None and each["rollouts"] == 3
    line = quality(made[1])
    assert all(f"{graph}: relative error 0.0" in line for graph in _GRAPHS)


def test_the_same_settings_do_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fewstep.calibration.quantize.flow.record", None)
    assert not _quantize(path).made
    assert not _quantize(path, repeat=True).made


def test_other_layers_in_fp16(path: Path) -> None:
    outcome = _quantize(path, Settings(other_layers="fp16"), repeat=True)
    bundle = Bundle.read(path)
    assert outcome.made and bundle.damage() == {}
    found = {name: info.precision for name, info in bundle.manifest.variants["int8"].items()}
    others = dict.fromkeys(("readout", "decoder", "image_encoder"), "fp16")
    assert found == {**dict.fromkeys(_GRAPHS, "int8"), **others}
    with Generator.open(path, precision="int8", device="cpu", threads=1) as generator:
        assert verify(generator).passed


# --- what stays in higher precision


def _names(path: Path, graph: str) -> list[str]:
    matmuls = weighted_matmuls(load_graph(Bundle.read(path), graph).graph)
    return [each.name for each in matmuls if not each.delicate]


def test_matmuls_are_kept_by_their_name_or_with_their_graph(path: Path) -> None:
    names = {graph: _names(path, graph) for graph in _GRAPHS}
    alone = [name for each in names.values() for name in each]
    twice = next(name for name in alone if alone.count(name) > 1)
    once = next(name for name in names["head"] if alone.count(name) == 1)
    wanted = [graph for graph, each in names.items() if twice in each]
    with pytest.raises(RequestError) as raised:
        _quantize(path, replace(_FEW, keep=frozenset((twice,))))
    said = f"several graphs have a matmul to keep '{twice}'; expected one of: "
    assert str(raised.value) == said + ", ".join(f"{graph}/{twice}" for graph in wanted)
    with pytest.raises(RequestError, match=f"unknown matmul to keep 'head/{twice}x'"):
        _quantize(path, replace(_FEW, keep=frozenset((f"head/{twice}x",))))

    keep = frozenset((once, f"{wanted[0]}/{twice}"))
    outcome = _quantize(path, replace(_FEW, keep=keep))
    by_user = {
        (each.name, name)
        for each in outcome.graphs
        for name, who in each.record.kept.items()
        if who == "user"
    }
    assert by_user == {("head", once), (wanted[0], twice)}
    assert not _quantize(path, replace(_FEW, keep=keep | {f"head/{once}"})).made
    with pytest.raises(RequestError, match="keep 2 matmuls in higher precision that --keep"):
        _quantize(path)


def test_a_graph_has_something_to_quantize(path: Path) -> None:
    everything = frozenset(f"decoder_start/{name}" for name in _names(path, "decoder_start"))
    with pytest.raises(RequestError, match="nothing is left to quantize in decoder_start: all 6"):
        _quantize(path, replace(_FEW, keep=everything))


def test_auto_is_by_the_relative_error_of_each_graph(path: Path, tmp_path: Path) -> None:
    before = {each.name: each.record.cost for each in _quantize(path).graphs}
    wanted = sorted(before.values())[1]  # two graphs keep it as they are
    plot, cache = tmp_path / "rankings.png", tmp_path / "ranges.json"
    auto = replace(_FEW, auto=tolerances("layer", max_error=wanted))
    outcome = _quantize(path, auto, plot=plot, cache=cache)
    for each in outcome.graphs:
        record = each.record
        assert record.auto is not None and record.auto.max_error == wanted
        assert (record.auto.max_kl, record.auto.min_token_agreement) == (None, None)
        costs = [cost.cost for cost in record.auto.ranking]
        assert costs == sorted(costs, reverse=True) and record.cost <= wanted
        ranked = [cost.nodes[0] for cost in record.auto.ranking]
        spared = sum(who == "auto" for who in record.kept.values())
        assert all(record.kept[name] == "auto" for name in ranked[:spared])
        assert bool(spared) == (before[each.name] > wanted)
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert json.loads(cache.read_text())["graphs"].keys() == set(_GRAPHS)
    again = _quantize(path, auto, force=True, cache=cache)
    assert again.graphs == outcome.graphs and again.notes == (f"ranges are those of {cache}",)
    assert not _quantize(path, auto).made and not _quantize(path, repeat=True).made


def test_tolerances_on_logits_are_refused(path: Path) -> None:
    wanted = replace(_FEW, auto=tolerances("layer", 0.1, 0.5))
    said = "leave --max-kl, --min-token-agreement out: encoder, .* are judged by a relative error"
    with pytest.raises(RequestError, match=said):
        _quantize(path, wanted)


def test_tolerances_that_cannot_be_kept_name_the_graph(path: Path) -> None:
    before = {each.name: each.read_bytes() for each in path.iterdir()}
    with pytest.raises(
        RequestError, match="encoder: no layer .* a relative error of 1e-09: .* loosen --max-error"
    ):
        _quantize(path, replace(_FEW, auto=tolerances("layer", max_error=1e-9)))
    assert {each.name: each.read_bytes() for each in path.iterdir()} == before


def test_without_attention_every_layer_is_a_block(mar_bundle: Path) -> None:
    bundle = Bundle.read(mar_bundle)
    for graph, alone in (("head", True), ("decoder_rest", False)):
        model = load_graph(bundle, graph).graph
        found = blocks(model, weighted_matmuls(model))
        assert all(len(each) == 1 for each in found) == alone


def test_fp8_is_refused_before_anything_runs(mar_bundle: Path) -> None:
    with pytest.raises(RequestError, match="runs of one shape, and those of encoder differ in"):
        _quantize(mar_bundle, Settings(precision="fp8"))
