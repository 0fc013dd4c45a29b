"""Checkpoints, configurations and texts that an export takes, and those that it refuses.

Covered: forms and files that do not go together, models that do not belong together, defaults
of the configuration, and text states. The step to ONNX, which takes seconds, is replaced by one
that only describes the graph.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.export.changed import configured
from tests.masked import masked_model
from torch import nn

from fewstep.export.flow import export
from fewstep.export.models import PolicyNet, UViT, VQModel
from fewstep.runtime.condition import ClassCondition, TextCondition
from fewstep.runtime.errors import CheckpointError
from fewstep.runtime.families.masked.model import MaskedPolicyInfo
from fewstep.runtime.families.masked.settings import MaskedSettings

KINDS: dict[str, type[nn.Module]] = {
    "transformer": UViT,
    "tokenizer": VQModel,
    "policy": PolicyNet,
}
ABSENT: dict[str, Any] = {"transformer": Path("absent/t.pth"), "tokenizer": Path("absent/v.ckpt")}


def resized(files: dict[str, Any], folder: Path, part: str, **changes: Any) -> dict[str, Any]:
    """Another model in place of one, of the same constructor arguments but for the changes."""
    arguments = json.loads(files["config"].read_text())[part] | changes
    path = folder / f"{part}.pth"
    torch.save(KINDS[part](**arguments).state_dict(), path)
    return configured(files, folder, **{part: arguments}) | {part: path}


# Forms and files that do not go together


@pytest.mark.parametrize(
    ("form", "changes", "message"),
    [
        (
            "adanat",
            {},
            r"needs a policy checkpoint .--policy., or --untrained-policy; .*"
            "--untrained-policy --tuned-policy FILE",
        ),
        ("maskgit", {"policy": Path("p.pth")}, "unknown option of maskgit 'policy'; .*tokenizer"),
        ("maskgit", {"transformers": Path("t")}, "Did you mean 'transformer'"),
        ("maskgit", {"transformer": None, "tokenizer": None}, "needs --transformer, --tokenizer"),
        (
            "adanat",
            {"policy": Path("p.pth"), "untrained_policy": True},
            "--policy and --untrained-policy exclude each other; pass one",
        ),
        (
            "maskgit",
            {"tuned_policy": [Path("absent/policy-4.safetensors")]},
            "beside it: pass --untrained-policy --tuned-policy absent/policy-4.safetensors",
        ),
        (
            "adanat",
            {"tuned_policy": [Path("absent/policy-4.safetensors")]},
            "beside it: pass --untrained-policy --tuned-policy absent/policy-4.safetensors",
        ),
        (
            "maskgti",
            {},
            r"unknown form 'maskgti'; .* maskgit-torch, titok, var. Did you mean 'maskgit",
        ),
        (
            "muse",
            {},
            "unknown form 'muse'; expected one of: adagen, adanat, amused, halton, mar, m",
        ),
    ],
)
def test_the_form_is_checked_before_any_file(
    form: str, changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match=message):
        export(form, ABSENT | changes, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("part", ["transformer", "tokenizer", "policy"])
def test_a_missing_checkpoint_is_named(
    part: str, tiny_checkpoints: dict[str, Any], tmp_path: Path
) -> None:
    files = tiny_checkpoints | {part: tmp_path / "absent.pth"}
    with pytest.raises(CheckpointError, match=r"absent.pth: no such file"):
        export("adanat", files, tmp_path / "out")
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
    tiny_checkpoints: dict[str, Any],
    tmp_path: Path,
) -> None:
    files = resized(tiny_checkpoints, tmp_path, part, **changes)
    with pytest.raises(CheckpointError, match="checkpoints do not belong together") as caught:
        export("adanat", files, tmp_path / "out")
    for message in messages:
        assert message in str(caught.value)


@pytest.mark.parametrize("part", ["model", "state_dict"])
def test_a_wrapping_around_no_dictionary_is_refused(
    part: str, tiny_checkpoints: dict[str, Any], tmp_path: Path
) -> None:
    path = tmp_path / "wrapped.pth"
    torch.save({part: torch.ones(1)}, path)
    files = tiny_checkpoints | {"policy" if part == "model" else "tokenizer": path}
    with pytest.raises(
        CheckpointError, match=r"wrapped.pth holds no .*: its tensors have other names"
    ):
        export("adanat", files, tmp_path / "out")


def test_a_plain_actor_and_a_plain_tokenizer_are_read_too(
    tiny_checkpoints: dict[str, Any], tmp_path: Path, quick: None
) -> None:
    files = resized(tiny_checkpoints, tmp_path, "policy")
    files = resized(files, tmp_path, "tokenizer")
    assert masked_model(export("adanat", files, tmp_path / "out")).policies


# The configuration


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"class_names": ["shirt", "shoe"]}, "class_names: expected 5 names, got 2"),
        ({"clas_names": []}, "clas_names: Extra inputs are not permitted"),
        ({"defaults": {"stesp": 4}}, "configuration's defaults: .* Did you mean 'steps'"),
        ({"defaults": {"guidance": [1.0]}}, "defaults: lists need one value for every step"),
        ({"transformer": {"embed_dims": 32}}, "does not build: .*embed_dims"),
        ({"transformer": None}, "none of the published sizes .*--config"),
    ],
)
def test_a_configuration_that_does_not_fit_is_refused(
    changes: dict[str, Any], message: str, tiny_checkpoints: dict[str, Any], tmp_path: Path
) -> None:
    files = configured(tiny_checkpoints, tmp_path, **changes)
    with pytest.raises(CheckpointError, match=message):
        export("adanat", files, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["changed.json"]


def test_a_bad_configuration_file_is_refused(
    tiny_checkpoints: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "bad.json").write_text("{")
    for name, message in (("bad.json", "Invalid JSON"), ("absent.json", "No such file")):
        files = tiny_checkpoints | {"config": tmp_path / name}
        with pytest.raises(CheckpointError, match=message):
            export("adanat", files, tmp_path / "out")


def test_name_names_residual_and_defaults_have_defaults(
    tiny_checkpoints: dict[str, Any], tmp_path: Path, quick: None
) -> None:
    dropped: dict[str, Any] = dict.fromkeys(("name", "class_names", "policy_residual"))
    files = configured(tiny_checkpoints, tmp_path, **dropped)
    bundle = export("adanat", files, tmp_path / "out")
    assert bundle.manifest.name == "nnet_ema"  # the transformer's file
    model = masked_model(bundle)
    assert model.policies["policy"] == MaskedPolicyInfo(residual=False)  # ImageNet's default
    assert isinstance(model.condition, ClassCondition)
    assert model.condition.class_names is None
    assert model.defaults == MaskedSettings()


def test_the_defaults_of_the_configuration_arrive(
    tiny_checkpoints: dict[str, Any], tmp_path: Path, quick: None
) -> None:
    files = configured(tiny_checkpoints, tmp_path, defaults={"steps": 3, "schedule": "policy"})
    bundle = export("adanat", files, tmp_path / "out")
    assert masked_model(bundle).defaults == MaskedSettings(steps=3, schedule="policy")
    golden = bundle.arrays("golden.npz")
    assert {key.partition("/")[0] for key in golden} == {"policy"}
    sampled = golden["policy/decisions/sampled"]
    assert sampled.shape == (4, 2, 16)  # of four steps, whatever the defaults


# Text


def test_a_policy_on_text_has_residuals_by_default(
    tiny_text_checkpoints: dict[str, Any],
    tiny_checkpoints: dict[str, Any],
    tmp_path: Path,
    quick: None,
) -> None:
    policy = json.loads(tiny_checkpoints["config"].read_text())["policy"]
    files = configured(tiny_text_checkpoints, tmp_path, policy=policy)
    files["policy"] = tiny_checkpoints["policy"]
    model = masked_model(export("adanat", files, tmp_path / "out"))
    assert model.policies["policy"] == MaskedPolicyInfo(residual=True)  # CC3M's default


def test_a_policy_on_text_needs_the_empty_text(
    tiny_text_checkpoints: dict[str, Any], tiny_checkpoints: dict[str, Any], tmp_path: Path
) -> None:
    """The policy sets the guidance, so such a bundle could never follow it."""
    policy = json.loads(tiny_checkpoints["config"].read_text())["policy"]
    files = configured(tiny_text_checkpoints, tmp_path, policy=policy)
    files |= {"policy": tiny_checkpoints["policy"], "unconditional_text": None}
    with pytest.raises(CheckpointError, match=r"empty text too, .*\[3, 12\]"):
        export("adanat", files, tmp_path / "out")


def test_fixed_schedules_on_text_do_not_need_the_empty_text(
    tiny_text_checkpoints: dict[str, Any], tmp_path: Path, quick: None
) -> None:
    files = tiny_text_checkpoints | {"unconditional_text": None}
    bundle = export("maskgit", files, tmp_path / "out")
    assert bundle.manifest.model.condition == TextCondition(length=3, width=12)
    assert (
        bundle.arrays("golden.npz")["cosine/decisions/parameters"][..., 3] == 0
    ).all()  # no guidance


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
    case: str, tiny_text_checkpoints: dict[str, Any], tmp_path: Path
) -> None:
    write, message = BAD_TEXTS[case]
    write(tmp_path / "text.npy")
    files = tiny_text_checkpoints | {"unconditional_text": tmp_path / "text.npy"}
    with pytest.raises(CheckpointError, match=message):
        export("maskgit", files, tmp_path / "out")
