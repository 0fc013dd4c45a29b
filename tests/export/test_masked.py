"""From checkpoints to a bundle: what is in it.

Covered: graphs and their contract, the model's description, hashes of all files, provenance, and
weights in files of their own. The exports are the session's shared bundles and one with external
data. What is refused: ``test_masked_inputs.py``.
"""

from __future__ import annotations

import datetime
import hashlib
import importlib.metadata
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.masked import masked_model

from fewstep.export import onnx_graph
from fewstep.export.flow import export
from fewstep.runtime import Generator
from fewstep.runtime.bundle import Bundle
from fewstep.runtime.condition import ClassCondition, TextCondition
from fewstep.runtime.errors import BundleError
from fewstep.runtime.families.masked.model import MaskedPolicyInfo


@pytest.fixture(scope="module")
def split_bundle(
    tiny_checkpoints: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A whole MaskGIT bundle of the class-conditional models, with weights in their own files."""
    files = tiny_checkpoints | {"policy": None}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onnx_graph, "EXTERNAL_DATA_BYTES", 0)
        return export("maskgit", files, tmp_path_factory.mktemp("split") / "bundle").path


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
    model = masked_model(Bundle.read(tiny_bundle))
    assert (model.grid, model.image_size, model.feature_width) == ((4, 4), (8, 8), 32)
    assert (model.codebook_size, model.mask_token) == (24, 24)
    assert model.policies == {"policy": MaskedPolicyInfo(residual=True)}
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
    tiny_bundle: Path, tiny_checkpoints: dict[str, Any]
) -> None:
    provenance = Bundle.read(tiny_bundle).manifest.provenance
    assert provenance.command == "pytest"
    assert datetime.datetime.fromisoformat(provenance.created).utcoffset() == datetime.timedelta(0)
    for tool in ("fewstep", "torch", "onnx", "onnxscript", "onnxruntime", "numpy"):
        assert provenance.tools[tool] == importlib.metadata.version(tool)
    for part in ("transformer", "tokenizer", "policy", "config"):
        path: Path = tiny_checkpoints[part]
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
