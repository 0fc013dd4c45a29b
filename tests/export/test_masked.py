"""From checkpoints to a bundle: what is in it, what is refused, and that failures leave nothing.

Whole exports are the session's shared bundles and one with external data. Everything else replaces
the step to ONNX, which takes seconds, by one that only describes the graph.
"""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import importlib.metadata
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from fewstep.export import Checkpoints, export_masked, onnx_graph
from fewstep.export.models import PolicyNet, UViT, VQModel
from fewstep.runtime import Generator
from fewstep.runtime.bundle import Bundle
from fewstep.runtime.errors import BundleError, CheckpointError
from fewstep.runtime.manifest import (
    ClassCondition,
    Defaults,
    PolicyInfo,
    TextCondition,
)

KINDS: dict[str, type[nn.Module]] = {
    "transformer": UViT,
    "tokenizer": VQModel,
    "policy": PolicyNet,
}
ABSENT = Checkpoints(Path("absent/t.pth"), Path("absent/v.ckpt"))


@pytest.fixture(scope="module")
def split_bundle(tiny_checkpoints: Checkpoints, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole MaskGIT bundle of the class-conditional models, with weights in their own files."""
    files = dataclasses.replace(tiny_checkpoints, policy=None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onnx_graph, "EXTERNAL_DATA_BYTES", 0)
        return export_masked("maskgit", files, tmp_path_factory.mktemp("split") / "bundle").path


def configured(files: Checkpoints, folder: Path, **changes: Any) -> Checkpoints:
    """The same checkpoints with other entries in the configuration; ``None`` drops one."""
    assert files.config is not None
    config = json.loads(files.config.read_text()) | changes
    path = folder / "changed.json"
    path.write_text(json.dumps({k: v for k, v in config.items() if v is not None}))
    return dataclasses.replace(files, config=path)


def resized(files: Checkpoints, folder: Path, part: str, **changes: Any) -> Checkpoints:
    """Another model in place of one, of the same constructor arguments but for the changes."""
    assert files.config is not None
    arguments = json.loads(files.config.read_text())[part] | changes
    path = folder / f"{part}.pth"
    torch.save(KINDS[part](**arguments).state_dict(), path)
    changed: dict[str, Any] = {part: path}
    return dataclasses.replace(configured(files, folder, **{part: arguments}), **changed)


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file below a folder, by its relative path."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


# What a bundle holds


@pytest.mark.parametrize(
    ("fixture", "family", "name", "graphs"),
    [
        ("tiny_bundle", "adanat", "tiny", {"transformer", "policy", "decoder"}),
        ("tiny_text_bundle", "maskgit", "tiny-text", {"transformer", "decoder"}),
        ("split_bundle", "maskgit", "tiny", {"transformer", "decoder"}),
    ],
)
def test_family_name_and_graphs(
    fixture: str, family: str, name: str, graphs: set[str], request: pytest.FixtureRequest
) -> None:
    manifest = Bundle.read(request.getfixturevalue(fixture)).manifest
    assert (manifest.family, manifest.name, set(manifest.graphs)) == (family, name, graphs)


def _contract(bundle: Path) -> dict[str, tuple[dict[str, Any], dict[str, Any]]]:
    return {
        name: tuple(
            {key: (tensor.dtype, *tensor.shape) for key, tensor in side.items()}
            for side in (graph.inputs, graph.outputs)
        )  # type: ignore[misc]
        for name, graph in Bundle.read(bundle).manifest.graphs.items()
    }


def test_the_graphs_keep_the_contract(tiny_bundle: Path) -> None:
    tokens = {"tokens": ("int32", "batch", 16)}
    logits = {"logits": ("float32", "batch", 16, 24)}
    features = {"features": ("float32", "batch", 16, 32)}
    assert _contract(tiny_bundle) == {
        "transformer": (tokens | {"condition": ("int32", "batch")}, logits | features),
        "policy": (features | {"step": ("int32", "batch")}, {"action": ("float32", "batch", 4)}),
        "decoder": (tokens, {"image": ("float32", "batch", 3, 8, 8)}),
    }


def test_without_a_policy_the_transformer_gives_logits_only(tiny_text_bundle: Path) -> None:
    inputs, outputs = _contract(tiny_text_bundle)["transformer"]
    assert inputs == {"tokens": ("int32", "batch", 16), "text": ("float32", "batch", 3, 12)}
    assert outputs == {"logits": ("float32", "batch", 16, 24)}


def test_the_model_is_described(tiny_bundle: Path) -> None:
    model = Bundle.read(tiny_bundle).manifest.model
    assert (model.grid, model.image_size, model.feature_width) == ((4, 4), (8, 8), 32)
    assert (model.codebook_size, model.mask_token) == (24, 24)
    assert model.policies == {"policy": PolicyInfo(residual=True)}
    assert model.condition == ClassCondition(
        num_classes=5,
        unconditional_id=5,
        class_names=("shirt", "shoe", "bag", "coat", "dress"),
    )


def test_the_empty_text_comes_along(tiny_text_bundle: Path) -> None:
    bundle = Bundle.read(tiny_text_bundle)
    condition = bundle.manifest.model.condition
    assert isinstance(condition, TextCondition)
    assert (condition.length, condition.width) == (3, 12)
    assert condition.unconditional_file is not None
    expected = np.random.default_rng(0).standard_normal((3, 12), np.float32)
    np.testing.assert_array_equal(bundle.arrays(condition.unconditional_file)["text"], expected)


@pytest.mark.parametrize("fixture", ["tiny_bundle", "tiny_text_bundle", "split_bundle"])
def test_every_file_is_listed_with_its_hash(fixture: str, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue(fixture)
    bundle = Bundle.read(folder)
    actual = digests(folder)
    del actual["bundle.json"]
    assert {name: file.sha256 for name, file in bundle.manifest.files.items()} == actual
    for name, file in bundle.manifest.files.items():
        assert file.bytes == (folder / name).stat().st_size
    assert bundle.damage() == {}


def test_provenance_tells_the_checkpoints_tools_and_command(
    tiny_bundle: Path, tiny_checkpoints: Checkpoints
) -> None:
    provenance = Bundle.read(tiny_bundle).manifest.provenance
    assert provenance.command == "pytest"
    assert datetime.datetime.fromisoformat(provenance.created).utcoffset() == datetime.timedelta(0)
    for tool in ("fewstep", "torch", "onnx", "onnxscript", "onnxruntime", "numpy"):
        assert provenance.tools[tool] == importlib.metadata.version(tool)
    for part in ("transformer", "tokenizer", "policy", "config"):
        path: Path = getattr(tiny_checkpoints, part)
        assert provenance.checkpoints[part].file == path.name
        assert provenance.checkpoints[part].sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert len(provenance.checkpoints) == 4


# External data


def test_external_data_is_listed_and_checked(split_bundle: Path, tmp_path: Path) -> None:
    names = {"transformer.onnx.data", "decoder.onnx.data"}
    assert names <= Bundle.read(split_bundle).manifest.files.keys()
    damaged = shutil.copytree(split_bundle, tmp_path / "damaged")
    data = damaged / "transformer.onnx.data"
    content = bytearray(data.read_bytes())
    content[len(content) // 2] ^= 1
    data.write_bytes(content)
    with pytest.raises(BundleError, match=r"transformer.onnx.data does not have the .* SHA-256"):
        Bundle.read(damaged).graph_path("transformer")


def test_external_data_gives_the_same_images(split_bundle: Path, tiny_bundle: Path) -> None:
    results = []
    for folder in (split_bundle, tiny_bundle):
        with Generator.open(folder, threads=1) as generator:
            results.append(generator.generate(class_ids=[1, 4], seed=7, schedule="cosine"))
    np.testing.assert_array_equal(results[0].trace.sampled, results[1].trace.sampled)
    np.testing.assert_array_equal(results[0].images, results[1].images)


# Families and files that do not go together


@pytest.mark.parametrize(
    ("family", "files", "message"),
    [
        ("adanat", ABSENT, r"needs a policy checkpoint .--policy., or --untrained-policy"),
        (
            "maskgit",
            dataclasses.replace(ABSENT, policy=Path("absent/p.pth")),
            "family maskgit takes no policy checkpoint",
        ),
        *(
            (
                family,
                dataclasses.replace(ABSENT, policy=Path("absent/p.pth"), untrained_policy=True),
                "--policy and --untrained-policy exclude each other; pass one",
            )
            for family in ("adanat", "maskgit")
        ),
        (
            "maskgit",
            dataclasses.replace(ABSENT, tuned=(Path("absent/policy-4.safetensors"),)),
            "--tuned-policy needs another policy: pass --untrained-policy too",
        ),
        ("maskgti", ABSENT, r"unknown family 'maskgti'; .* adanat, maskgit. Did you mean 'maskgit"),
        ("var", ABSENT, "unknown family 'var'; expected one of: adanat, maskgit"),
    ],
)
def test_the_family_is_checked_before_any_file(
    family: str, files: Checkpoints, message: str, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match=message):
        export_masked(family, files, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("part", ["transformer", "tokenizer", "policy"])
def test_a_missing_checkpoint_is_named(
    part: str, tiny_checkpoints: Checkpoints, tmp_path: Path
) -> None:
    absent: dict[str, Any] = {part: tmp_path / "absent.pth"}
    files = dataclasses.replace(tiny_checkpoints, **absent)
    with pytest.raises(CheckpointError, match=r"absent.pth: no such file"):
        export_masked("adanat", files, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("part", "changes", "messages"),
    [
        ("transformer", {"codebook_size": 23}, ["codebook size 23 but the tokenizer's is 24"]),
        (
            "transformer",
            {"img_size": 2},
            ["grid side 2 but the tokenizer's is 4", "grid side 2 but the policy's is 4"],
        ),
        ("tokenizer", {"n_embed": 48}, ["codebook size 24 but the tokenizer's is 48"]),
        ("policy", {"in_channels": 16}, ["feature width 32 but the policy's is 16"]),
        ("policy", {"grid_size": 2}, ["grid side 4 but the policy's is 2"]),
        ("policy", {"out_channels": 3}, ["number of actions 4 but the policy's is 3"]),
    ],
)
def test_models_that_do_not_belong_together_are_refused(
    part: str,
    changes: dict[str, Any],
    messages: list[str],
    tiny_checkpoints: Checkpoints,
    tmp_path: Path,
) -> None:
    files = resized(tiny_checkpoints, tmp_path, part, **changes)
    with pytest.raises(CheckpointError, match="checkpoints do not belong together") as caught:
        export_masked("adanat", files, tmp_path / "out")
    for message in messages:
        assert message in str(caught.value)


@pytest.mark.parametrize("part", ["model", "state_dict"])
def test_a_wrapping_around_no_dictionary_is_refused(
    part: str, tiny_checkpoints: Checkpoints, tmp_path: Path
) -> None:
    path = tmp_path / "wrapped.pth"
    torch.save({part: torch.ones(1)}, path)
    changed: dict[str, Any] = {"policy" if part == "model" else "tokenizer": path}
    files = dataclasses.replace(tiny_checkpoints, **changed)
    with pytest.raises(CheckpointError, match=r"wrapped.pth: expected a dictionary of tensors"):
        export_masked("adanat", files, tmp_path / "out")


def test_a_plain_actor_and_a_plain_tokenizer_are_read_too(
    tiny_checkpoints: Checkpoints, tmp_path: Path, quick: None
) -> None:
    files = resized(tiny_checkpoints, tmp_path, "policy")
    files = resized(files, tmp_path, "tokenizer")
    assert export_masked("adanat", files, tmp_path / "out").manifest.model.policies


# The configuration


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"class_names": ["shirt", "shoe"]}, "class_names: expected 5 names, got 2"),
        ({"clas_names": []}, "clas_names: Extra inputs are not permitted"),
        ({"transformer": {"embed_dims": 32}}, "does not build: .*embed_dims"),
        ({"transformer": None}, "none of the published sizes .*--config"),
    ],
)
def test_a_configuration_that_does_not_fit_is_refused(
    changes: dict[str, Any], message: str, tiny_checkpoints: Checkpoints, tmp_path: Path
) -> None:
    files = configured(tiny_checkpoints, tmp_path, **changes)
    with pytest.raises(CheckpointError, match=message):
        export_masked("adanat", files, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["changed.json"]


def test_a_bad_configuration_file_is_refused(tiny_checkpoints: Checkpoints, tmp_path: Path) -> None:
    (tmp_path / "bad.json").write_text("{")
    for name, message in (("bad.json", "Invalid JSON"), ("absent.json", "No such file")):
        files = dataclasses.replace(tiny_checkpoints, config=tmp_path / name)
        with pytest.raises(CheckpointError, match=message):
            export_masked("adanat", files, tmp_path / "out")


def test_name_names_residual_and_defaults_have_defaults(
    tiny_checkpoints: Checkpoints, tmp_path: Path, quick: None
) -> None:
    dropped: dict[str, Any] = dict.fromkeys(("name", "class_names", "policy_residual"))
    files = configured(tiny_checkpoints, tmp_path, **dropped)
    manifest = export_masked("adanat", files, tmp_path / "out").manifest
    assert manifest.name == "nnet_ema"  # the transformer's file
    assert manifest.model.policies["policy"] == PolicyInfo(residual=False)  # ImageNet's default
    assert isinstance(manifest.model.condition, ClassCondition)
    assert manifest.model.condition.class_names is None
    assert manifest.model.defaults == Defaults()


def test_the_defaults_of_the_configuration_arrive(
    tiny_checkpoints: Checkpoints, tmp_path: Path, quick: None
) -> None:
    files = configured(tiny_checkpoints, tmp_path, defaults={"steps": 3, "schedule": "policy"})
    bundle = export_masked("adanat", files, tmp_path / "out")
    assert bundle.manifest.model.defaults == Defaults(steps=3, schedule="policy")
    golden = bundle.arrays("golden.npz")
    assert {key.partition("/")[0] for key in golden} == {"policy"}
    assert golden["policy/sampled"].shape == (4, 2, 16)  # of four steps, whatever the defaults


# Text


def test_a_policy_on_text_has_residuals_by_default(
    tiny_text_checkpoints: Checkpoints, tiny_checkpoints: Checkpoints, tmp_path: Path, quick: None
) -> None:
    assert tiny_checkpoints.config is not None
    policy = json.loads(tiny_checkpoints.config.read_text())["policy"]
    files = configured(tiny_text_checkpoints, tmp_path, policy=policy)
    files = dataclasses.replace(files, policy=tiny_checkpoints.policy)
    manifest = export_masked("adanat", files, tmp_path / "out").manifest
    assert manifest.model.policies["policy"] == PolicyInfo(residual=True)  # CC3M's default


def test_a_policy_on_text_needs_the_empty_text(
    tiny_text_checkpoints: Checkpoints, tiny_checkpoints: Checkpoints, tmp_path: Path
) -> None:
    """The policy sets the guidance, so such a bundle could never follow it."""
    assert tiny_checkpoints.config is not None
    policy = json.loads(tiny_checkpoints.config.read_text())["policy"]
    files = configured(tiny_text_checkpoints, tmp_path, policy=policy)
    files = dataclasses.replace(files, policy=tiny_checkpoints.policy, unconditional_text=None)
    with pytest.raises(CheckpointError, match=r"empty text too, .*\[3, 12\]"):
        export_masked("adanat", files, tmp_path / "out")


def test_fixed_schedules_on_text_do_not_need_the_empty_text(
    tiny_text_checkpoints: Checkpoints, tmp_path: Path, quick: None
) -> None:
    files = dataclasses.replace(tiny_text_checkpoints, unconditional_text=None)
    bundle = export_masked("maskgit", files, tmp_path / "out")
    assert bundle.manifest.model.condition == TextCondition(length=3, width=12)
    assert (bundle.arrays("golden.npz")["cosine/parameters"][..., 3] == 0).all()  # no guidance


def _archive(path: Path) -> None:
    with path.open("wb") as file:
        np.savez(file, text=np.zeros((3, 12), np.float32))


BAD_TEXTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "absent": (lambda path: None, "is not a .npy array"),
    "empty": (lambda path: path.write_bytes(b""), "is not a .npy array"),
    "zip": (lambda path: path.write_bytes(b"PK\x03\x04 and no more"), "is not a .npy array"),
    "objects": (lambda path: np.save(path, np.array([{}], object)), "is not a .npy array"),
    "archive": (_archive, "expected one .npy array, got an .npz"),
    "shape": (
        lambda path: np.save(path, np.zeros((1, 3, 12))),
        r"expected shape \[3, 12\], got \[1, 3, 12\]",
    ),
}


@pytest.mark.parametrize("case", BAD_TEXTS)
def test_text_states_that_do_not_fit_are_refused(
    case: str, tiny_text_checkpoints: Checkpoints, tmp_path: Path
) -> None:
    write, message = BAD_TEXTS[case]
    write(tmp_path / "text.npy")
    files = dataclasses.replace(tiny_text_checkpoints, unconditional_text=tmp_path / "text.npy")
    with pytest.raises(CheckpointError, match=message):
        export_masked("maskgit", files, tmp_path / "out")
