"""``tests/official.py``: every recording in ``tests/data`` comes back, and differences are seen.

One recording goes the whole way, through exported graphs. For the others PyTorch runs what would
have been exported, which is much faster; that graphs agree with PyTorch is what an export checks.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fewstep.export.config import ExportConfig
from fewstep.export.source import sources
from fewstep.export.torch_engine import TorchEngine
from fewstep.runtime.bundle import Bundle
from fewstep.runtime.devices.cpu import CpuDevice
from fewstep.runtime.families import ModelInfo
from fewstep.runtime.files import sha256
from fewstep.runtime.generator import Generator
from fewstep.runtime.manifest import Manifest, Provenance
from fewstep.runtime.records import FileInfo, GraphInfo, TensorInfo
from tests import official
from tests.officials import amused, mar, masked, var, vqgan
from tests.officials.comparison import Comparison
from tests.officials.fixture import Fixture, gumbel

_DATA = Path(__file__).parent / "data"
_IDS = frozenset(("condition", "step", "phi", "positions", "order", "wanted", "timestep", "ids"))
_NOTHING = FileInfo(bytes=0, sha256="0" * 64)


def _in_torch(
    form: str, given: Mapping[str, Any], config: Mapping[str, Any], folder: Path
) -> Generator:
    """Stand in for ``exported``: the form's modules run by PyTorch."""
    folder.mkdir()
    read = sources()[form].load({k: v for k, v in given.items() if v}, ExportConfig(**config))
    for name, content in read.files.items():
        (folder / name).write_bytes(content)
    run = {graph for graph, _ in read.model.tensor_shapes()}
    modules = {name: each for name, each in read.graphs.items() if name in run}
    graphs = {name: _described(read.model, name, each.outputs) for name, each in modules.items()}
    files = {
        path.name: FileInfo(bytes=path.stat().st_size, sha256=sha256(path))
        for path in folder.iterdir()
    }
    manifest = Manifest(
        family=form,
        name="recorded",
        model=read.model,
        graphs=graphs,
        files={**{each.file: _NOTHING for each in graphs.values()}, **files},
        provenance=Provenance(created="", command="", tools={}, checkpoints={}),
    )
    engines = {name: TorchEngine(name, each.module, graphs[name]) for name, each in modules.items()}
    return Generator(Bundle(folder, manifest), CpuDevice(), engines)


def _described(model: ModelInfo, graph: str, outputs: tuple[str, ...]) -> GraphInfo:
    ids = _IDS if model.kind == "mar" else _IDS | {"tokens"}  # of MAR tokens are numbers
    tensors = {
        name: TensorInfo(dtype="int32" if name in ids else "float32", shape=shape)
        for (owner, name), shape in model.tensor_shapes().items()
        if owner == graph
    }
    return GraphInfo(
        file=f"{graph}.onnx",
        inputs={name: info for name, info in tensors.items() if name not in outputs},
        outputs={name: tensors[name] for name in outputs},
    )


@pytest.fixture
def in_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is exported."""
    for module in (masked, vqgan, var, mar, amused):
        monkeypatch.setattr(module, "exported", _in_torch)


def _changed(name: str, folder: Path, cfg: Mapping[str, Any], **changes: Any) -> Path:
    """A recording with other entries in ``cfg`` and arrays changed in place, by key."""
    with np.load(_DATA / f"{name}.npz") as archive:
        arrays: dict[str, Any] = {key: archive[key] for key in archive.files}
    for key, change in changes.items():
        change(arrays[key])
    arrays["cfg"] = json.dumps(json.loads(str(arrays["cfg"])) | cfg)
    np.savez(folder / f"{name}.npz", **arrays)
    return folder / f"{name}.npz"


# --- recordings


@pytest.mark.slow
def test_a_recording_comes_back_from_exported_graphs(capsys: pytest.CaptureFixture[str]) -> None:
    assert official.main([str(_DATA / "adagen_var_policy.npz")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line[:4] for line in lines] == ["ok  "] * 2
    assert "kept, ids, ids of a free run equal" in lines[1]


@pytest.mark.parametrize(
    ("name", "runs"),
    [
        ("adanat_policy", ["actions", "bias_heu0", "bias_heu1", "no action"]),
        ("adanat_rollout_class", ["rollout, 8 steps"]),
        ("adanat_text", ["one pass", "heu1, 4 steps", "heu0, 4 steps"]),
        ("amused", ["one pass (PyTorch)", "one pass", "cos, 6 steps", "lin, 5 steps"]),
        ("amused_options", ["one pass (PyTorch)", "code → image, image → ids (PyTorch)"]),
        (
            "mar",
            ["lin, 6 iterations", "nocfg, 5 iterations", "const, 4 iterations"]
            + ["uncond, 3 iterations", "resp10, 3 iterations", "head", "tables"],
        ),
        ("mar_kl16", ["latents → image", "image → mean (PyTorch)"]),
        ("maskgit_vqgan", ["code → 4×4 tokens", "image01 → ids (PyTorch)"]),
        ("var_d3", ["top1, 4 scales", "topkp, 4 scales", "free, 4 scales"]),
        ("var_vae", ["f_hat → image", "image → ids (PyTorch)"]),
    ],
)
def test_every_run_of_a_recording_comes_back(
    name: str, runs: list[str], in_torch: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert official.main([str(_DATA / f"{name}.npz")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(": ")[0] for line in lines] == [f"ok   {name}, {run}" for run in runs]


# --- differences


def _add(array: np.ndarray[Any, Any], place: tuple[int, ...], by: float) -> None:
    array[place] += by


def test_what_is_recorded_otherwise_is_seen(
    in_torch: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In one run an id, in the next everything but ids; a free run takes none of them."""
    changes = {
        "out/top1/idx/1": lambda each: _add(each, (1, 2), 1),
        "out/topkp/kept/2": lambda each: _add(each, (0, 3), 1),
        "out/topkp/logits_cfg/3": lambda each: _add(each, (1, 5, 7), 2e-4),
        "out/topkp/f_hat/0": lambda each: _add(each, (0, 0, 1, 1), 3e-4),
        "out/topkp/image01_f16": lambda each: _add(each, (0, 1, 2, 3), 8e-3),
    }
    path = _changed("var_d3", tmp_path, {}, **changes)
    assert official.main([str(path)]) == 1
    ids, floats, other = capsys.readouterr().out.splitlines()
    assert ids.startswith("FAIL var_d3, top1, 4 scales: ")
    assert "ids differ at scale 1 [1, 2]: " in ids
    assert "ids of a free run differ at scale 1 [1, 2]: " in ids
    assert re.search(r"logits 2\.\de-04 \(too far\), f_hat 3\.\de-04 \(too far\)", floats)
    assert re.search(r"image [78]\.\de-03 \(too far\)", floats)
    assert "ids, ids of a free run equal; kept differ at scale 2 [0, 3]: " in floats
    assert other.startswith("ok   var_d3, free")


def test_what_a_diffusion_gives_otherwise_is_seen(
    in_torch: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of MAR: a position is masked otherwise; z, tokens, guidance; the head; a table."""
    changes = {
        "out/lin/mask/2": lambda each: np.logical_not(each, out=each),
        "out/nocfg/z/1": lambda each: _add(each, (0, 3), 2e-4),
        "out/const/sampled/3": lambda each: _add(each, (0, 5), 3e-4),
        "out/const/cfg_iter": lambda each: _add(each, (1,), 4e-4),
        "out/uncond/tokens_bchw": lambda each: _add(each, (1, 2, 3, 4), 2e-4),
        "out/mlp_cfg2.5": lambda each: _add(each, (1, 2), 2e-4),
        "aux/timestep_map_25": lambda each: _add(each, (3,), 1),
    }
    path = _changed("mar", tmp_path, {}, **changes)
    assert official.main([str(path)]) == 1
    lin, none, const, uncond, resp, head, tables = capsys.readouterr().out.splitlines()
    assert "; masks differ at iteration 2 [0, 0]: " in lin
    assert re.search(r"z 2\.\de-04 \(too far\), sampled [^(]*; masks equal$", none)
    assert re.search(
        r"z [^(]*, sampled 3\.\de-04 \(too far\), guidance 4\.0e-04 \(too far\)", const
    )
    assert re.search(r"tokens of a free run 2\.\de-04 \(too far\)", uncond)
    assert re.search(r"head [^(]*, guided head 2\.\de-04 \(too far\)$", head)
    assert "timesteps differ at 25 [3]: " in tables
    for line in (lin, none, const, uncond, head, tables):
        assert line.startswith("FAIL mar, ")
    assert resp.startswith("ok   mar, resp10")


def test_floats_have_their_bar_and_the_rounding_of_their_type() -> None:
    exact = np.array([0.1, 4.0, 901.3])
    for found, recorded, relative, fine in (
        (exact + 0.9e-4, exact, False, True),
        (exact + 1.1e-4, exact, False, False),
        (exact * (1 + 0.9e-4), exact, True, True),
        (exact * (1 + 1.1e-4), exact, True, False),
        (exact, exact.astype(np.float16), False, True),
        (exact.astype(np.float16).astype(float), exact, False, False),
        (np.full(3, np.nan), exact, True, False),
        (exact[:2], exact, False, False),
    ):
        compared = Comparison("run")
        compared.floats("logits", found, recorded, relative=relative)
        assert compared.fine == fine
        assert ("(too far)" in compared.line()) != fine


def test_nothing_compared_is_not_fine() -> None:
    assert not Comparison("run").fine


def test_noise_of_uniforms() -> None:
    arrays: dict[str, Any] = {
        "u8_conf": np.array([0, 255], np.uint8),
        "g_f16/0": np.array([1.5], np.float16),
    }
    np.testing.assert_allclose(
        gumbel(arrays, "gumbel_conf"), -np.log(-np.log(np.array([0.5, 255.5]) / 256)), rtol=1e-6
    )
    np.testing.assert_array_equal(gumbel(arrays, "g", "/0"), [1.5])


# --- files that cannot be replayed


def test_what_is_no_recording_or_of_no_form_is_told_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text.npz").write_text("no archive")
    np.savez(tmp_path / "other.npz", cfg=json.dumps({"diffusion": 1}))
    np.savez(tmp_path / "without.npz", x=np.zeros(1))
    np.savez(tmp_path / "empty.npz", cfg=json.dumps({"policy": {}, "upd_set": []}))
    np.savez(tmp_path / "half.npz", cfg=json.dumps({"conf": {}, "num_embeddings": 4}))
    for path, told in (
        (tmp_path / "absent.npz", "cannot be read: No such file or directory"),
        (tmp_path / "text.npz", "is no recording"),
        (tmp_path / "without.npz", "is no recording"),
        (tmp_path / "empty.npz", "has no recorded run"),
        (tmp_path / "half.npz", "lacks z_channels"),
        (tmp_path / "other.npz", "is of no known kind, its cfg has diffusion"),
        (_changed("var_d3", tmp_path, {"vqvae": "gone"}), "builds on gone.npz, which is neither"),
    ):
        assert official.main([str(path)]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(str(path))
        assert told in line


@pytest.mark.parametrize("arguments", [[], ["--all"]])
def test_bad_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert official.main(arguments) == 2
    assert capsys.readouterr().err == "usage: python tests/official.py FILE…\n"


def test_the_worst_of_several_files_is_the_verdict(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    verdicts = {"fine": 0, "different": 1, "unusable": 2}
    monkeypatch.setattr(official, "verdict", lambda path: verdicts[path.name])
    assert official.main(["fine", "fine"]) == 0
    assert official.main(["different", "fine"]) == 1
    assert official.main(["fine", "unusable", "different"]) == 2


def test_a_companion_beside_a_file_comes_before_the_one_in_the_data(tmp_path: Path) -> None:
    path = _changed("var_d3", tmp_path, {})
    assert Fixture.read(path).companion("var_vae").path.parent == _DATA
    beside = _changed("var_vae", tmp_path, {})
    assert Fixture.read(path).companion("var_vae").path == beside


def test_own_tensors_and_arguments_replace_those_of_the_companion(tmp_path: Path) -> None:
    hits = np.ones((2, 64), np.float32)
    cfg = json.dumps({"vqvae": "var_vae", "vqvae_args": {"v_patch_nums": [1, 4]}})
    arrays: dict[str, Any] = {"cfg": cfg, "sd.vae/quantize.ema_vocab_hit_SV": hits}
    np.savez(tmp_path / "x.npz", **arrays)
    network = Fixture.read(tmp_path / "x.npz").network("vqvae", "vae")
    np.testing.assert_array_equal(network.state["quantize.ema_vocab_hit_SV"], hits)
    assert len(network.state) == 324
    assert network.arguments["v_patch_nums"] == [1, 4]
    assert network.arguments["z_channels"] == 16
