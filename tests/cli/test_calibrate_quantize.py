"""``fewstep calibrate quantize``: options to settings, what is shown, one line for every error."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from fewstep.calibration.quantize import flow
from fewstep.calibration.quantize.settings import Settings, tolerances
from fewstep.runtime.bundle import Bundle

if TYPE_CHECKING:
    from tests.conftest import Terminal

_FEW = ("--rollouts", 4, "--held-out", 3, "--steps", 2)


def _files(path: Path) -> dict[str, bytes]:
    return {str(p.relative_to(path)): p.read_bytes() for p in path.rglob("*") if p.is_file()}


def test_from_bundle_to_int8_images(fewstep: Terminal, bundle_copy: Path, tmp_path: Path) -> None:
    plot, cache = tmp_path / "ranking.svg", tmp_path / "ranges.json"
    wish = ["calibrate", "quantize", bundle_copy, *_FEW, "--cache", cache]
    auto = [*wish, "--auto", "--max-kl", 1, "--min-token-agreement", 0.1]
    shown = fewstep(*auto, "--plot", plot)
    assert (shown.code, shown.err) == (0, "")
    assert "transformer: each layer alone in low precision" in shown.out
    assert "seeds 0 … 3" in shown.out and "seeds 4 … 6" in shown.out
    assert "steps 2, schedule cosine" in " ".join(shown.out.split())
    assert plot.read_text().startswith("<?xml") and cache.exists()

    again = fewstep(*auto)
    assert (again.code, again.err) == (0, "")
    assert "the int8 graphs are up to date; --force makes them again" in again.out
    data = json.loads(fewstep(*auto, "--json").out)
    assert data["up_to_date"] is True and data["rollouts"] == 4
    assert data["auto"]["max_kl"] == 1 and len(data["auto"]["ranking"]) > 3
    assert data["file"] == Bundle.read(bundle_copy).graph("transformer", "int8").file
    (alone,) = data["graphs"]
    assert alone["graph"] == "transformer" and alone.items() <= data.items()

    forced = fewstep(*auto, "--force", "--json")
    assert forced.err == f"note: ranges are those of {cache}\n"
    assert json.loads(forced.out)["notes"] == [f"ranges are those of {cache}"]

    picture = tmp_path / "image.png"
    made = fewstep(
        *("generate", bundle_copy, "--class", 0, "--precision", "int8", "--out", picture)
    )
    assert (made.code, made.err) == (0, "") and "in int8" in made.out
    assert fewstep("verify", bundle_copy, "--precision", "int8").code == 0
    benched = fewstep("bench", bundle_copy, "--precision", "int8", "--runs", 1, "--steps", 2)
    assert benched.code == 0 and "onnxruntime in int8 on cpu" in benched.out
    assert fewstep("build", bundle_copy, "--check").code == 0


def test_a_decoder_beside_the_transformer(fewstep: Terminal, bundle_copy: Path) -> None:
    both = ("--graph", "transformer", "--graph", "decoder")
    wish = ["calibrate", "quantize", bundle_copy, *_FEW, *both]
    shown = fewstep(*wish, "--auto", "--max-kl", 1, "--min-token-agreement", 0.1, "--min-psnr", 20)
    assert shown.code == 0
    assert shown.err.startswith("note: decoder: ONNX Runtime runs convolutions")
    out = " ".join(shown.out.split())
    assert "decoder: each layer alone" in out and "matmuls and convolutions with weights" in out
    assert "PSNR, dB" in out and "decoder: images at" in out and "dB from fp32" in out
    data = json.loads(fewstep("calibrate", "quantize", bundle_copy, "--repeat", "--json").out)
    assert data["up_to_date"] is True
    transformer, decoder = data["graphs"]
    assert (transformer["psnr_db"], decoder["kl_nats"]) == (None, None)
    assert decoder["psnr_db"] > 20 and decoder["auto"]["min_psnr"] == 20
    refused = fewstep("calibrate", "quantize", bundle_copy, "--auto", "--min-psnr", 30)
    assert refused.code == 1 and "leave --min-psnr out: transformer is judged by" in refused.err
    alone = fewstep("calibrate", "quantize", bundle_copy, "--min-psnr", 30)
    assert alone.code == 1 and "only --auto takes --min-psnr" in alone.err


def test_several_graphs_have_a_table_and_an_entry_each(
    fewstep: Terminal, mar_bundle: Path, tmp_path: Path
) -> None:
    path = shutil.copytree(mar_bundle, tmp_path / "bundle")
    wish = ["calibrate", "quantize", path, "--rollouts", 2, "--held-out", 1, "--auto"]
    shown = fewstep(*wish, "--max-error", 1)
    assert (shown.code, shown.err) == (0, "")
    data = json.loads(fewstep(*wish, "--max-error", 1, "--json").out)
    assert data["up_to_date"] is True and "auto" not in data and len(data["graphs"]) > 1
    for each in data["graphs"]:
        graph = each["graph"]
        assert f"{graph}: each layer alone" in shown.out and f"{graph} in int8" in shown.out
        assert f"{graph}: relative error 0.0" in " ".join(shown.out.split())
        assert each["auto"]["max_error"] == 1 and each["relative_error"] < 0.05
        assert each["file"] == Bundle.read(path).graph(graph, "int8").file
    refused = fewstep(*wish, "--max-kl", 1)
    assert refused.code == 1 and "leave --max-kl out: " in refused.err
    assert fewstep("verify", path, "--precision", "int8").code == 0


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[flow.QuantizeRequest]:
    """Requests that reach the flow, which ends there."""
    requests: list[flow.QuantizeRequest] = []

    def stop(request: flow.QuantizeRequest, *_: object) -> None:
        requests.append(request)
        raise KeyboardInterrupt

    monkeypatch.setattr(flow, "quantize", stop)
    return requests


@pytest.mark.parametrize(
    ("options", "settings"),
    [
        ("", {}),
        ("--precision fp8", {"precision": "fp8"}),
        (
            "--rollouts 3 --held-out 4 --seed 5 --steps 6 --schedule policy",
            {
                "rollouts": 3,
                "held_out": 4,
                "seed": 5,
                "generation": {"steps": "6", "schedule": "policy"},
            },
        ),
        ("--method percentile --percentile 99", {"method": "percentile", "percentile": 99.0}),
        ("--keep a --keep b", {"keep": frozenset("ab")}),
        ("--auto", {"auto": tolerances("layer")}),
        (
            "--auto --by block --max-kl 0.5 --min-token-agreement 0.25",
            {
                "auto": tolerances("block", 0.5, 0.25),
            },
        ),
        ("--auto --max-error 0.1", {"auto": tolerances("layer", max_error=0.1)}),
        ("--auto --min-psnr 45", {"auto": tolerances("layer", min_psnr=45.0)}),
        ("--other-layers fp16 --no-fp32-heads", {"other_layers": "fp16", "fp32_heads": False}),
    ],
)
def test_options_become_settings(
    fewstep: Terminal,
    asked: list[flow.QuantizeRequest],
    tiny_bundle: Path,
    options: str,
    settings: dict[str, Any],
) -> None:
    assert fewstep("calibrate", "quantize", tiny_bundle, *options.split()).code == 130
    assert asked[0].settings == Settings(**settings)
    assert (asked[0].bundle, asked[0].repeat, asked[0].force) == (tiny_bundle, False, False)


def test_text_is_read(
    fewstep: Terminal, asked: list[flow.QuantizeRequest], tiny_text_bundle: Path, tmp_path: Path
) -> None:
    states = np.ones((2, 3, 12), np.float32)
    np.save(tmp_path / "text.npy", states)
    wish = ["calibrate", "quantize", tiny_text_bundle, "--text-file"]
    fewstep(*wish, tmp_path / "text.npy", "--repeat", "--other-layers", "fp32")
    assert asked[0].repeat and asked[0].text is not None
    np.testing.assert_array_equal(asked[0].text, states)
    (tmp_path / "bad.npy").write_bytes(b"nothing")
    assert "is not a .npy array" in fewstep(*wish, tmp_path / "bad.npy").err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("--precision int4", "unknown precision 'int4'; expected one of: fp8, int8"),
        ("--method max", "unknown method 'max'"),
        ("--rollouts 0", "--rollouts must be at least 1, got 0"),
        ("--max-kl 1 --by block", "only --auto takes --by, --max-kl: pass --auto too"),
        ("--auto --by step", "unknown unit for --by 'step'"),
        ("--max-error 1", "only --auto takes --max-error: pass --auto too"),
        ("--auto --max-error 1", "leave --max-error out: transformer is judged by logits"),
        ("--repeat --auto --seed 1", "--repeat takes that from the bundle: leave out --seed, --au"),
        ("--repeat --steps 2", "--repeat takes that from the bundle: leave out --steps"),
        ("--repeat", "there are no int8 graphs in"),
        ("--keep nothing", "unknown matmul to keep 'nothing'; expected one of: "),
        ("--steps 99", "steps must be 1 … 16"),
        ("--schedule fast", "unknown schedule 'fast'"),
        ("--auto --plot x.txt", "expected a file ending in .png, .svg, .pdf"),
        ("--no-fp32-heads", "go with --other-layers fp16"),
        ("--precision fp8 --auto", "nvidia-modelopt quantizes to fp8"),
        ("--text-file nothing.npy", "this bundle is class-conditional: leave --text-file out"),
    ],
)
def test_bad_options_are_one_line_and_change_nothing(
    fewstep: Terminal, bundle_copy: Path, options: str, said: str
) -> None:
    before = _files(bundle_copy)
    outcome = fewstep("calibrate", "quantize", bundle_copy, *options.split())
    assert (outcome.code, outcome.out, outcome.err.count("\n")) == (1, "", 1)
    assert outcome.err.startswith("error: ") and said in outcome.err
    assert _files(bundle_copy) == before


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("--precision int8", "int8 graphs are made with: fewstep calibrate quantize {} --precis"),
        (
            "--precision fp8 --backend tensorrt-rtx --compute-capability 8.9 --no-fp32-heads",
            "fewstep calibrate quantize {} --precision fp8; give --fp32-heads or --no-fp32-heads",
        ),
        (
            "--precision int8 --backend tensorrt-rtx --compute-capability 8.6 --preflight",
            "the int8 graphs are not there; make them with: fewstep calibrate quantize {} --prec",
        ),
    ],
)
def test_build_says_what_makes_quantized_graphs(
    fewstep: Terminal, tiny_bundle: Path, options: str, said: str
) -> None:
    outcome = fewstep("build", tiny_bundle, *options.split())
    assert (outcome.code, outcome.out, outcome.err.count("\n")) == (1, "", 1)
    assert said.format(tiny_bundle) in outcome.err


def test_generate_says_what_makes_quantized_graphs(fewstep: Terminal, tiny_bundle: Path) -> None:
    outcome = fewstep("generate", tiny_bundle, "--class", 0, "--precision", "int8")
    assert outcome.code == 1
    assert "make them with: fewstep calibrate quantize" in outcome.err


def test_a_folder_that_cannot_be_written_is_one_line(
    fewstep: Terminal, tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = shutil.copytree(tiny_bundle, tmp_path / "bundle")
    # Root may write everywhere.
    monkeypatch.setattr("os.access", lambda _, mode, **__: mode != os.W_OK)
    outcome = fewstep("calibrate", "quantize", path)
    assert outcome.code == 1
    assert "is not writable; copy the bundle to a folder that is" in outcome.err


def test_without_onnx_the_extra_is_named(
    fewstep: Terminal, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = "fewstep.cli.common.importlib.util.find_spec"
    monkeypatch.setattr(find, lambda name: None if name == "onnx" else object())
    outcome = fewstep("calibrate", "quantize", tiny_bundle)
    assert outcome.err == (
        "error: onnx is not installed; install it with: pip install 'fewstep[calibration]'\n"
    )
