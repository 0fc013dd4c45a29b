"""Quantizing a bundle: the variant, its record, what is repeated, and what failures leave."""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from fewstep.build.graphs import load_graph
from fewstep.build.pipeline import BuildRequest, preflight_only
from fewstep.build.stale import stale_contents, why_graphs_stale
from fewstep.calibration.quantize.flow import QuantizeRequest, quantize
from fewstep.calibration.quantize.lint import lint
from fewstep.calibration.quantize.matmuls import weighted_matmuls
from fewstep.calibration.quantize.outcome import Outcome
from fewstep.calibration.quantize.settings import Settings, tolerances
from fewstep.runtime.bundle import Bundle
from fewstep.runtime.errors import BundleError, EngineError, OutputError, RequestError
from fewstep.runtime.generator import Generator
from fewstep.runtime.verify import verify

from .graphs import only

_FEW = Settings(rollouts=5, held_out=4, generation={"steps": 3})


def _quantize(path: Path, settings: Settings = _FEW, **options: Any) -> Outcome:
    return quantize(QuantizeRequest(path, settings, **options))


@pytest.fixture(scope="module")
def made(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Outcome]:
    """A bundle with int8 graphs, by default settings but for the numbers."""
    path = shutil.copytree(tiny_bundle, tmp_path_factory.mktemp("int8") / "bundle")
    return path, _quantize(path)


@pytest.fixture
def path(made: tuple[Path, Outcome], tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return shutil.copytree(made[0], tmp_path / "bundle")


def _contents(path: Path) -> dict[str, bytes]:
    return {str(p.relative_to(path)): p.read_bytes() for p in path.rglob("*") if p.is_file()}


# --- the variant


def test_the_variant_is_whole_and_recorded(made: tuple[Path, Outcome]) -> None:
    path, outcome = made
    bundle = Bundle.read(path)
    assert outcome.made and bundle.damage() == {} and not why_graphs_stale(bundle, "int8")
    assert bundle.manifest.variants["int8"].keys() == bundle.manifest.graphs.keys()
    info = bundle.graph("transformer", "int8")
    assert (info.precision, info) == ("int8", only(outcome).info)
    assert info.source_sha256 == bundle.graph_sha256("transformer")
    record = only(outcome).record
    assert (record.rollouts, record.held_out, record.seed) == (5, 4, 0)
    assert (record.settings["steps"], record.settings["schedule"]) == (3, "cosine")
    assert record.method == "min-max"
    assert set(record.kept.values()) <= {"rules"} and record.auto is None
    assert record.token_agreement is not None and record.relative_error is None
    assert 0 < record.cost < 0.1 and 0.5 < record.token_agreement <= 1
    for name in ("decoder", "policy"):
        assert bundle.graph(name, "int8").file == bundle.graph(name).file
        assert bundle.graph(name, "int8").precision == "fp32"


def test_the_stored_graph_passes_the_lint(made: tuple[Path, Outcome]) -> None:
    bundle = Bundle.read(made[0])
    model = onnx.load(bundle.graph_path("transformer", "int8"))
    assert lint(model, "int8") == ()
    quantized = sum(node.op_type == "QuantizeLinear" for node in model.graph.node)
    assert 0 < quantized <= only(made[1]).matmuls - len(only(made[1]).record.kept)


def test_it_verifies_and_generates(made: tuple[Path, Outcome]) -> None:
    with Generator.open(made[0], precision="int8", device="cpu", threads=1) as generator:
        report = verify(generator)
        assert (report.precision, report.passed) == ("int8", True)
        errors = [each.value for each in report.checks if each.metric == "logit_error"]
        assert min(errors) > 1e-6
        assert len(generator.generate(class_ids=[0, 1]).images) == 2


def test_made_again_it_is_the_same(
    made: tuple[Path, Outcome], tiny_bundle: Path, tmp_path: Path
) -> None:
    other = shutil.copytree(tiny_bundle, tmp_path / "other")
    assert _quantize(other).graphs == made[1].graphs


# --- what is up to date, and what is repeated


def _never(*_: object, **__: object) -> None:
    raise AssertionError("nothing is to be done")


def test_the_same_settings_do_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fewstep.calibration.quantize.flow.record", _never)
    before = _contents(path)
    for request in ({}, {"repeat": True}):
        outcome = _quantize(path, **request)  # type: ignore[arg-type]
        assert not outcome.made and outcome.as_dict()["up_to_date"] is True
    assert _contents(path) == before


def test_force_does_it_again_with_the_same_result(path: Path) -> None:
    before = _contents(path)
    assert _quantize(path, force=True).made
    assert _contents(path) == before


def test_another_fp32_graph_makes_it_stale(path: Path) -> None:
    _change_transformer(path)
    assert "was not made from the fp32 graph here" in " ".join(
        stale_contents(Bundle.read(path)).values()
    )
    request = BuildRequest(path, "tensorrt-rtx", "int8", capabilities=("8.6",), kernels=False)
    with pytest.raises(
        BundleError, match="of another transformer in fp32; make them again with: fewst"
    ):
        preflight_only(request)
    outcome = _quantize(path)
    assert outcome.made and not why_graphs_stale(Bundle.read(path), "int8")


def _change_transformer(path: Path) -> None:
    bundle = Bundle.read(path)
    model = load_graph(bundle, "transformer")
    model.doc_string = "another"
    graphs = bundle.manifest.model_dump()["graphs"]
    graphs["transformer"]["file"] = "other.onnx"
    bundle.update({"other.onnx": model.SerializeToString()}, graphs=graphs)


def _auto(path: Path, max_kl: float, by: str = "layer", **options: Any) -> Outcome:
    return _quantize(path, replace(_FEW, auto=tolerances(by, max_kl, 0.0)), **options)


def test_auto_keeps_the_fewest_and_its_selection_is_repeated(path: Path, tmp_path: Path) -> None:
    everything = Bundle.read(path).graph("transformer", "int8").quantization
    assert everything is not None
    wanted = everything.cost / 2
    plot = tmp_path / "ranking.png"
    outcome = _auto(path, wanted, plot=plot)
    record = only(outcome).record
    assert record.auto is not None and record.cost <= wanted
    kept = [name for name, keeper in record.kept.items() if keeper == "auto"]
    ranked = [cost.nodes[0] for cost in record.auto.ranking]
    assert 0 < len(kept) < len(ranked) and ranked[: len(kept)] == kept
    assert plot.read_bytes().startswith(b"\x89PNG")
    # One fewer fails: by hand, with --keep.
    fewer = only(_quantize(path, replace(_FEW, keep=frozenset(kept[:-1])), force=True)).record
    assert fewer.cost > wanted
    again = _auto(path, wanted, force=True)
    assert again.graphs == outcome.graphs
    assert not _auto(path, wanted).made

    with pytest.raises(RequestError, match=r"that --auto selected; quantize .* by --repeat"):
        _quantize(path)
    half = Settings(other_layers="fp16", fp32_heads=False)
    lowered = _quantize(path, half, repeat=True)
    assert lowered.made and only(lowered).record.kept == record.kept
    assert only(lowered).record.auto == record.auto
    back = _quantize(path, Settings(other_layers="fp32"), repeat=True)
    assert back.graphs == outcome.graphs
    assert only(_quantize(path, force=True)).record.kept == everything.kept


def test_auto_by_block_keeps_whole_blocks(path: Path) -> None:
    record = only(_auto(path, 1e-3, by="block")).record
    assert record.auto is not None
    assert max(len(cost.nodes) for cost in record.auto.ranking) > 1
    for cost in record.auto.ranking:
        assert len({record.kept.get(name) for name in cost.nodes}) == 1


def test_tolerances_that_cannot_be_kept_change_nothing(path: Path) -> None:
    before = _contents(path)
    with pytest.raises(RequestError, match="no layer can be quantized within KL 1e-15"):
        _auto(path, 1e-15)
    assert _contents(path) == before


def test_what_the_user_keeps_stays_and_is_recorded(path: Path) -> None:
    graph = load_graph(Bundle.read(path), "transformer").graph
    name = next(each.name for each in weighted_matmuls(graph) if not each.delicate)
    outcome = _quantize(path, replace(_FEW, keep=frozenset((name,))))
    assert only(outcome).record.kept[name] == "user"
    model = onnx.load(Bundle.read(path).graph_path("transformer", "int8"))
    node = next(node for node in model.graph.node if node.name == name)
    original = next(node for node in graph.node if node.name == name)
    assert list(node.input) == list(original.input)
    everything = frozenset(each.name for each in weighted_matmuls(graph))
    with pytest.raises(RequestError, match="nothing is left to quantize"):
        _quantize(path, replace(_FEW, keep=everything))
    with pytest.raises(RequestError, match=f"unknown matmul to keep '{name}x'.*mean '{name}'"):
        _quantize(path, replace(_FEW, keep=frozenset((name + "x",))))


# --- other layers in fp16, and what can be built


def test_with_fp16_around_it_turing_can_be_built(path: Path) -> None:
    request = BuildRequest(path, "tensorrt-rtx", "int8", capabilities=("7.5",), kernels=False)
    with pytest.raises(
        EngineError, match="--precision int8 --repeat --other-layers fp16 --no-fp32-heads"
    ):
        preflight_only(request)
    preflight_only(replace(request, capabilities=("8.6",)))
    old = Bundle.read(path).graph("transformer", "int8").file
    outcome = _quantize(path, replace(_FEW, other_layers="fp16", fp32_heads=False))
    bundle = Bundle.read(path)
    assert not (path / old).exists() and bundle.damage() == {}
    assert {name: info.precision for name, info in bundle.manifest.variants["int8"].items()} == {
        **{"transformer": "int8", "policy": "fp16", "decoder": "fp16"}
    }
    assert (only(outcome).info.fp32_heads, only(outcome).record.other_layers) == (False, "fp16")
    preflight_only(request)
    with Generator.open(path, precision="int8", device="cpu", threads=1) as generator:
        assert verify(generator).passed


def test_engines_of_the_old_graph_go_with_it(path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")
    from fewstep.build.pipeline import build

    request = BuildRequest(path, "tensorrt-rtx", "int8", capabilities=("8.6",), kernels=False)
    built = build(request)
    assert {each.info.graph for each in built.engines} == {"transformer", "policy", "decoder"}
    assert {each.info.precision for each in built.engines} == {"int8"}
    assert build(request).up_to_date
    _quantize(path, replace(_FEW, seed=1))
    left = {each.graph for each in Bundle.read(path).manifest.engines}
    assert left == {"policy", "decoder"}  # they were built of fp32 graphs, which are the same


# --- the cache


def test_ranges_are_kept_and_used_again(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "ranges.json"
    first = _quantize(path, force=True, cache=cache)
    assert first.notes == ()
    content = cache.read_bytes()
    with monkeypatch.context() as patched:
        patched.setattr("fewstep.calibration.quantize.activations.measure", _never)
        again = _quantize(path, force=True, cache=cache)
    assert again.notes == (f"ranges are those of {cache}",)
    assert again.graphs == first.graphs and cache.read_bytes() == content
    other = _quantize(path, replace(_FEW, seed=1), cache=cache)
    assert other.notes == (f"the ranges in {cache} were of another data: made again",)
    assert cache.read_bytes() != content


def test_a_corrupt_cache_stops_before_any_work(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fewstep.calibration.quantize.flow.record", _never)
    (tmp_path / "ranges.json").write_text("{")
    with pytest.raises(RequestError, match="is damaged; delete it"):
        _quantize(path, force=True, cache=tmp_path / "ranges.json")


# --- failures


def _interrupted(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


def _disk_full(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize(
    "place", ["flow.record", "activations.measure", "one_graph.quantized", "flow.store"]
)
def test_an_interruption_leaves_the_bundle_as_it_was(
    path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    before = _contents(path)
    monkeypatch.setattr(f"fewstep.calibration.quantize.{place}", _interrupted)
    with pytest.raises(KeyboardInterrupt):
        _quantize(path, force=True)
    assert _contents(path) == before


def test_a_full_disk_leaves_the_bundle_and_the_cache_as_they_were(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "ranges.json"
    _quantize(path, force=True, cache=cache)
    before = _contents(path), cache.read_bytes()
    seeded = replace(_FEW, seed=1)
    for method in ("write_text", "write_bytes"):  # of the cache, of the graph
        with monkeypatch.context() as patched:
            patched.setattr(Path, method, _disk_full)
            kept = cache if method == "write_text" else None
            with pytest.raises(OutputError, match="No space left on device"):
                _quantize(path, seeded, cache=kept)
        assert (_contents(path), cache.read_bytes()) == before


def test_a_graph_that_fails_the_lint_is_not_stored(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = _contents(path)
    monkeypatch.setattr(
        "fewstep.calibration.quantize.one_graph.quantized", lambda model, *_, **__: model
    )
    with pytest.raises(RuntimeError, match="no quantized matmul"):
        _quantize(path, force=True)
    assert _contents(path) == before


def test_a_bundle_that_changed_meanwhile_is_not_overwritten(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def change(*_: object, **__: object) -> None:
        _change_transformer(path)

    monkeypatch.setattr("fewstep.calibration.quantize.one_graph.require_clean", change)
    with pytest.raises(BundleError, match="changed meanwhile; run again"):
        _quantize(path, force=True)


def _without_golden(path: Path) -> None:
    manifest = json.loads((path / "bundle.json").read_text())
    del manifest["files"][manifest.pop("golden")]
    (path / "bundle.json").write_text(json.dumps(manifest))


def _without_decoder(path: Path) -> None:
    (path / "decoder.onnx").unlink()


def _truncated(path: Path) -> None:
    (path / "transformer.onnx").write_bytes((path / "transformer.onnx").read_bytes()[:1000])


def _no_bundle(path: Path) -> None:
    (path / "bundle.json").unlink()


@pytest.mark.parametrize(
    ("damage", "other_layers", "said"),
    [
        (_without_golden, "fp16", "has no golden rollouts; export it again"),
        (_without_decoder, "fp32", "decoder.onnx is missing; the copy is damaged"),
        (_truncated, "fp32", "transformer.onnx has 1,000 bytes where"),
        (_no_bundle, "fp32", "no bundle at"),
    ],
)
def test_a_bundle_that_lacks_things_is_told(
    path: Path, damage: Callable[[Path], None], other_layers: Any, said: str
) -> None:
    damage(path)
    with pytest.raises(BundleError, match=said):
        _quantize(path, replace(_FEW, other_layers=other_layers), force=True)


def test_without_golden_rollouts_int8_is_made_all_the_same(path: Path) -> None:
    _without_golden(path)
    assert _quantize(path, force=True).made


def test_a_text_bundle_needs_text_and_records_it(tiny_text_bundle: Path, tmp_path: Path) -> None:
    path = shutil.copytree(tiny_text_bundle, tmp_path / "bundle")
    text = np.random.default_rng(0).standard_normal((3, 3, 12)).astype(np.float32)
    with pytest.raises(RequestError, match="--text"):
        _quantize(path)
    outcome = _quantize(path, text=text)
    graph = load_graph(Bundle.read(path), "transformer").graph
    delicate = {each.name: each.delicate for each in weighted_matmuls(graph)}
    assert all(delicate[name] for name in only(outcome).record.kept)
    assert only(outcome).record.text_sha256 and not _quantize(path, text=text).made
    assert not _quantize(path, text=text, repeat=True).made
    with pytest.raises(RequestError, match="--repeat needs the --text-file that was given before"):
        _quantize(path, text=text + 1, repeat=True)
    assert _quantize(path, text=text + 1).made
