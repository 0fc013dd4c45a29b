"""The manifest's own rules: unknown fields, missing graphs and files, kernels, and round trips."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import BaseModel, ValidationError

from fewstep.runtime.bundle import Bundle
from fewstep.runtime.condition import ClassCondition
from fewstep.runtime.families.masked.model import MaskedModel
from fewstep.runtime.manifest import MANIFEST_NAME, Manifest
from fewstep.runtime.policies import policy_for
from fewstep.runtime.records import EngineInfo, GraphInfo, KernelsInfo

Content = dict[str, Any]
_SHA = "0" * 64


def _ids(*shape: int) -> Content:
    return {"dtype": "int32", "shape": ["batch", *shape]}


def _floats(*shape: int) -> Content:
    return {"dtype": "float32", "shape": ["batch", *shape]}


def _content() -> Content:
    """A minimal class-conditional manifest with a policy."""
    graphs = ("transformer", "decoder", "policy")
    return {
        "schema_version": 1,
        "family": "adanat",
        "name": "tiny",
        "model": {
            "kind": "masked",
            "grid": [4, 4],
            "codebook_size": 24,
            "mask_token": 24,
            "feature_width": 32,
            "image_size": [8, 8],
            "condition": {"kind": "class", "num_classes": 5, "unconditional_id": 5},
            "policies": {"policy": {"residual": True}},
        },
        "graphs": {
            "transformer": {
                "file": "transformer.onnx",
                "inputs": {"tokens": _ids(16), "condition": _ids()},
                "outputs": {"logits": _floats(16, 24), "features": _floats(16, 32)},
            },
            "decoder": {
                "file": "decoder.onnx",
                "inputs": {"tokens": _ids(16)},
                "outputs": {"image": _floats(3, 8, 8)},
            },
            "policy": {
                "file": "policy.onnx",
                "inputs": {"features": _floats(16, 32), "step": _ids()},
                "outputs": {"action": _floats(4)},
            },
        },
        "golden": "golden.npz",
        "files": {
            name: {"bytes": 1, "sha256": _SHA}
            for name in ("golden.npz", *(f"{graph}.onnx" for graph in graphs))
        },
        "provenance": {"created": "now", "command": "", "tools": {}, "checkpoints": {}},
    }


def _set(*path: str | int, value: object) -> Callable[[Content], None]:
    def change(content: Content) -> None:
        *parents, last = path
        target: Any = content
        for key in parents:
            target = target[key]
        target[last] = value

    return change


def _drop(*path: str) -> Callable[[Content], None]:
    def change(content: Content) -> None:
        *parents, last = path
        target: Any = content
        for key in parents:
            target = target[key]
        del target[last]

    return change


def _without_policy(content: Content) -> None:
    content["model"]["policies"] = {}
    del content["graphs"]["policy"]


def _masked(manifest: Manifest) -> MaskedModel:
    assert isinstance(manifest.model, MaskedModel)
    return manifest.model


def test_minimal_manifest_is_valid() -> None:
    manifest = Manifest.model_validate(_content())
    assert _masked(manifest).num_tokens == 16
    assert manifest.model.condition.kind == "class"


def test_policy_graph_is_needed_only_with_a_policy() -> None:
    content = _content()
    _without_policy(content)
    assert _masked(Manifest.model_validate(content)).policies == {}


def test_text_condition_is_told_from_class_condition() -> None:
    content = _content()
    content["model"]["condition"] = {"kind": "text", "length": 77, "width": 1280}
    inputs = content["graphs"]["transformer"]["inputs"]
    inputs["text"] = _floats(77, 1280)
    del inputs["condition"]
    condition = Manifest.model_validate(content).model.condition
    assert condition.kind == "text"
    assert (condition.length, condition.width, condition.unconditional_file) == (77, 1280, None)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_set("schema_version", value=0), "schema_version"),
        (_set("model", "condition", "kind", value="colour"), "condition"),
        (_set("files", "golden.npz", "sha256", value="G" * 64), "sha256"),
        (_drop("graphs", "transformer"), "graphs lacks transformer"),
        (_drop("graphs", "policy"), "graphs lacks policy"),
        (_set("graphs", value={}), "graphs lacks decoder, policy, transformer"),
        (_drop("files", "decoder.onnx"), "files lacks decoder.onnx"),
        (_drop("files", "golden.npz"), "files lacks golden.npz"),
        (_set("graphs", "decoder", "external", value=["w.data"]), "files lacks w.data"),
        (_set("model", "mask_token", value=23), "mask_token 23 is one of the codes"),
        (_set("model", "condition", "unconditional_id", value=2**40), "unconditional_id"),
        (_set("model", "condition", "class_names", value=["a"]), "expected 5 names, got 1"),
        (_set("model", "image_size", value=[16, 16]), "graph decoder, tensor image"),
        (_set("model", "codebook_size", value=20), "graph transformer, tensor logits"),
        (_drop("graphs", "policy", "outputs", "action"), "the graph has nothing"),
    ],
)
def test_what_is_refused(change: Callable[[Content], None], message: str) -> None:
    content = _content()
    change(content)
    with pytest.raises(ValidationError, match=message):
        Manifest.model_validate_json(json.dumps(content))


def _models(*found: Any) -> set[type[BaseModel]]:
    """The models that can stand in a manifest, below these."""
    todo: list[Any] = list(found)
    models: set[type[BaseModel]] = set()
    while todo:
        each = todo.pop()
        if arguments := get_args(each):
            todo += arguments
        elif isinstance(each, type) and issubclass(each, BaseModel) and each not in models:
            models.add(each)
            todo += [field.annotation for field in each.model_fields.values()]
    return models


def test_every_model_refuses_unknown_fields_and_changes() -> None:
    models = _models(Manifest, MaskedModel)
    assert {GraphInfo, EngineInfo, KernelsInfo, ClassCondition} < models
    for model in models:
        assert model.model_config.get("extra") == "forbid", model
        assert model.model_config.get("frozen"), model


def test_exported_manifest_survives_a_round_trip(tiny_bundle: Path) -> None:
    text = (tiny_bundle / MANIFEST_NAME).read_text(encoding="utf-8")
    manifest = Bundle.read(tiny_bundle).manifest
    assert Manifest.model_validate_json(manifest.model_dump_json()) == manifest
    assert json.loads(manifest.model_dump_json()) == json.loads(text)


def test_exported_manifest_says_what_was_exported(tiny_bundle: Path) -> None:
    manifest = Bundle.read(tiny_bundle).manifest
    model = _masked(manifest)
    assert (manifest.family, manifest.name) == ("adanat", "tiny")
    assert (model.grid, model.codebook_size, model.mask_token) == ((4, 4), 24, 24)
    assert (model.feature_width, model.image_size) == (32, (8, 8))
    assert model.condition.kind == "class"
    assert (model.condition.num_classes, model.condition.unconditional_id) == (5, 5)
    assert model.policies["policy"].residual
    assert set(manifest.graphs) == {"transformer", "policy", "decoder"}


# --- several policies


def _with_policies(**steps: int | None) -> Content:
    """The minimal manifest with further policies, oldest first, by the steps they are for."""
    content = _content()
    for name, count in steps.items():
        graph = name.replace("_", "-")
        content["model"]["policies"][graph] = {"residual": False, "steps": count}
        content["graphs"][graph] = copy.deepcopy(content["graphs"]["policy"])
    return content


@pytest.mark.parametrize(
    ("tuned", "steps", "expected"),
    [
        ({}, 4, "policy"),
        ({"policy_a": 4}, 4, "policy-a"),
        ({"policy_a": 4}, 8, "policy"),  # none is for 8: the newest for any number
        ({"policy_a": 4, "policy_b": 8}, 4, "policy-a"),
        ({"policy_a": 4, "policy_b": 8}, 5, "policy"),
        ({"policy_a": 4, "policy_b": 4}, 4, "policy-b"),
        ({"policy_a": 4, "policy_b": None}, 4, "policy-a"),
        ({"policy_a": 4, "policy_b": None}, 5, "policy-b"),
    ],
)
def test_the_policy_for_some_steps_is_the_newest_tuned_for_them_else_for_any(
    tuned: dict[str, int | None], steps: int, expected: str
) -> None:
    model = _masked(Manifest.model_validate(_with_policies(**tuned)))
    assert policy_for(model.policies, steps) == expected


def test_without_policies_there_is_none_for_any_steps() -> None:
    content = _content()
    _without_policy(content)
    assert policy_for(_masked(Manifest.model_validate(content)).policies, 4) is None


def test_policies_keep_their_order_through_a_round_trip() -> None:
    names = {"policy_z": 4, "policy_a": 8, "policy_m": None}
    manifest = Manifest.model_validate(_with_policies(**names))
    again = Manifest.model_validate_json(manifest.model_dump_json())
    assert list(_masked(again).policies) == ["policy", "policy-z", "policy-a", "policy-m"]
    assert again == manifest


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_drop("graphs", "policy-a"), "graphs lacks policy-a"),
        (_set("model", "policies", "mine", value={"residual": True}), "policies"),
        (_set("model", "policies", "policy/..", value={"residual": True}), "policies"),
        (_set("model", "policies", "policy-a", "steps", value=0), "steps"),
        (_set("model", "policies", "policy-a", "tuning", value={}), "tuning"),
        (_drop("graphs", "policy-a", "outputs", "action"), "the graph has nothing"),
        (_set("graphs", "policy-a", "inputs", "features", value=_floats(16, 31)), "policy-a"),
    ],
)
def test_every_policy_is_checked(change: Callable[[Content], None], message: str) -> None:
    content = _with_policies(policy_a=4)
    change(content)
    with pytest.raises(ValidationError, match=message):
        Manifest.model_validate_json(json.dumps(content))


# --- kernels


def _with_kernels() -> Content:
    """The minimal manifest with kernels for two architectures."""
    content = _content()
    cubins = {"8.7": "kernels/a.cubin", "12.0": "kernels/b.cubin"}
    content["kernels"] = {"compiler": "NVRTC 13.0", "sources_sha256": _SHA, "cubins": cubins}
    content["files"] |= {name: {"bytes": 1, "sha256": _SHA} for name in cubins.values()}
    return content


def test_kernels_may_be_absent() -> None:
    assert Manifest.model_validate(_content()).kernels is None
    assert Manifest.model_validate(_content() | {"kernels": None}).kernels is None


def test_kernels_survive_a_round_trip() -> None:
    manifest = Manifest.model_validate(_with_kernels())
    assert manifest.kernels is not None
    assert manifest.kernels.cubins == {"8.7": "kernels/a.cubin", "12.0": "kernels/b.cubin"}
    assert Manifest.model_validate_json(manifest.model_dump_json()) == manifest
    assert {"kernels/a.cubin", "kernels/b.cubin"} < manifest.named_files()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_drop("files", "kernels/a.cubin"), "files lacks kernels/a.cubin"),
    ],
)
def test_what_is_refused_of_kernels(change: Callable[[Content], None], message: str) -> None:
    content = _with_kernels()
    change(content)
    with pytest.raises(ValidationError, match=message):
        Manifest.model_validate_json(json.dumps(content))


@pytest.mark.parametrize("name", ["8", "sm_87", "8.70", "8.7\n"])
def test_names_that_are_no_compute_capabilities_are_refused(name: str) -> None:
    content = _with_kernels()
    content["kernels"]["cubins"][name] = "kernels/a.cubin"
    with pytest.raises(ValidationError, match="kernels.cubins"):
        Manifest.model_validate_json(json.dumps(content))


@pytest.mark.parametrize("name", ["13.0", "NVRTC 13", "NVRTC 13.0.1"])
def test_compiler_without_its_version_is_refused(name: str) -> None:
    content = _with_kernels()
    content["kernels"]["compiler"] = name
    with pytest.raises(ValidationError, match="kernels.compiler"):
        Manifest.model_validate_json(json.dumps(content))


def test_bytes_that_are_no_text_are_spelled(tiny_bundle: Path) -> None:
    """A checkpoint or a command with such a name: JSON has no way to hold it."""
    fields = Bundle.read(tiny_bundle).manifest.model_dump()
    fields["provenance"]["command"] = "fewstep export --out caf\udce9"
    fields["provenance"]["checkpoints"] = {"transformer": {"file": "\udce9.pth", "sha256": "0"}}
    manifest = Manifest.model_validate(fields)
    assert manifest.provenance.command == "fewstep export --out caf\\udce9"
    assert Manifest.model_validate_json(manifest.model_dump_json()) == manifest
