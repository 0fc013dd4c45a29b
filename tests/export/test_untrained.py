"""Untrained policies: their weights and sizes, the bundles they are in, and what is refused.

The expected weights are those that AdaNAT's ``libs/policy.py`` describes: Xavier-uniform matrices,
deviation 0.02 in the step embedding, PyTorch's own convolutions, nothing in modulations and output.
"""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from tests.export.changed import configured
from tests.masked import masked_model

from fewstep.export.flow import export
from fewstep.export.golden import GOLDEN_FILE
from fewstep.export.layout import mismatches
from fewstep.export.models import FixedPolicy, PolicyNet, UViT
from fewstep.export.parts import Preset, part_of
from fewstep.export.policies import untrained_policy
from fewstep.export.tuned import TunedPolicy, save_tuned
from fewstep.runtime import Generator
from fewstep.runtime.bundle import Bundle
from fewstep.runtime.errors import CheckpointError
from fewstep.runtime.families.masked.model import MaskedPolicyInfo
from fewstep.runtime.verify import verify

if TYPE_CHECKING:
    from tests.conftest import Terminal

SIZE: dict[str, Any] = {"in_channels": 32, "hidden_size": 16, "grid_size": 4}


@pytest.fixture(scope="session")
def files(tiny_checkpoints: dict[str, Any]) -> dict[str, Any]:
    """The tiny class-conditional checkpoints with an untrained policy."""
    return tiny_checkpoints | {"policy": None, "untrained_policy": True}


@pytest.fixture(scope="module")
def bundle(files: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A whole MaskGIT bundle of them."""
    return export("maskgit", files, tmp_path_factory.mktemp("untrained") / "bundle")


def uvit(**arguments: Any) -> UViT:
    """A transformer without weights."""
    with torch.device("meta"):
        return UViT(**arguments)


def untrained_for(network: UViT, arguments: dict[str, Any] | None) -> PolicyNet:
    """The untrained policy of a transformer."""
    side = round(network.num_tokens**0.5)
    return untrained_policy(PolicyNet, network.embed_dim, side, arguments)


def tiny(**arguments: Any) -> PolicyNet:
    """An untrained policy of a transformer of 4×4 tokens and width 32."""
    network = uvit(img_size=4, codebook_size=24, embed_dim=32, depth=2, num_heads=2, num_classes=6)
    return untrained_for(network, {**SIZE, **arguments})


# --- weights


def test_weights_are_drawn_as_in_the_official_class() -> None:
    state = tiny(hidden_size=64).state_dict()
    for key, value in state.items():
        if key.startswith("linear3") or "adaLN_modulation" in key:
            assert (value == 0).all(), key
        elif "conv" in key:  # uniform within ±1/√fan-in, biases too
            inputs = state[key.replace("bias", "weight")][0].numel()
            assert 0 < value.abs().max() <= inputs**-0.5, key
        elif key.endswith("bias"):
            assert (value == 0).all(), key
        elif key.startswith("t_embedder"):
            assert value.std() == pytest.approx(0.02, rel=0.05), key
        else:  # uniform within ±√(6 / (fan-in + fan-out))
            bound = math.sqrt(6 / sum(value.shape))
            assert 0.95 * bound < value.abs().max() <= bound, key
            assert value.std() == pytest.approx(bound / math.sqrt(3), rel=0.05), key


def test_weights_do_not_depend_on_the_random_state_and_leave_it() -> None:
    found = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        found.append(tiny().state_dict())
        assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(value, found[1][key]) for key, value in found[0].items())


def test_a_failure_leaves_the_random_state_too() -> None:
    before = torch.get_rng_state()
    with pytest.raises(CheckpointError):
        tiny(grid_size=3)
    assert torch.equal(torch.get_rng_state(), before)


# --- sizes


@pytest.mark.parametrize(
    ("entry", "layout"),
    [
        (part_of(UViT).sizes[0], "adanat_policy_in256"),
        (part_of(UViT).sizes[1], "adanat_policy_cc3m"),
    ],
    ids=["ImageNet", "CC3M"],
)
def test_a_published_transformer_gets_the_size_of_its_policy(
    entry: Preset, layout: str, layouts: dict[str, dict[str, torch.Size]]
) -> None:
    policy = untrained_for(uvit(**entry.arguments), None)
    shapes = {key: torch.zeros(()).expand(shape) for key, shape in layouts[layout].items()}
    actor = "policy_old.actor."
    official = {key.removeprefix(actor): shapes[key] for key in shapes if key.startswith(actor)}
    assert mismatches(policy, official) == ""
    assert not policy.training


@pytest.mark.parametrize(
    "arguments",
    [{"embed_dim": 768, "img_size": 8}, {"embed_dim": 384}],
    ids=["another grid", "another width"],
)
def test_without_a_known_size_the_configuration_is_asked_for(arguments: dict[str, Any]) -> None:
    network = uvit(**{"num_heads": 8, "num_classes": 11, **arguments})
    with pytest.raises(CheckpointError, match="no published policy reads .* --config") as caught:
        untrained_for(network, None)
    shown = re.search(r"such as (\{.*\})$", str(caught.value))
    assert shown
    policy = untrained_for(network, json.loads(shown[1])["policy"])
    assert policy.in_channels == network.embed_dim
    assert policy.grid_size**2 == network.num_tokens


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden": 16}, "--untrained-policy: the configuration does not build: .*hidden"),
        ({"grid_size": 3}, "grid_size must be even, got 3"),
        (
            {"widths": [64]},
            "--untrained-policy: the configuration does not build: widths must be two",
        ),
        ({"hidden_size": "16"}, "--untrained-policy: the configuration does not build"),
        ({"in_channels": 16}, "feature width 32 but the policy's is 16"),
        ({"grid_size": 2}, "token grid side 4 but the policy's is 2"),
        ({"out_channels": 3}, "number of actions 4 but the policy's is 3"),
        (None, "no published policy reads 32 features of 4×4 tokens"),
    ],
    ids=str,
)
def test_sizes_that_do_not_fit_are_refused(
    changes: dict[str, Any] | None, message: str, files: dict[str, Any], tmp_path: Path
) -> None:
    size = None if changes is None else SIZE | changes
    changed = configured(files, tmp_path, policy=size)
    with pytest.raises(CheckpointError, match=message):
        export("adanat", changed, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["changed.json"]


# --- bundles


def test_a_maskgit_bundle_has_it_with_the_record_of_its_seed(bundle: Bundle) -> None:
    manifest = bundle.manifest
    assert manifest.family == "maskgit"
    untrained = MaskedPolicyInfo(residual=True, untrained_seed=0)
    assert masked_model(bundle).policies == {"policy": untrained}
    assert manifest.provenance.checkpoints.keys() == {"transformer", "tokenizer", "config"}
    assert manifest.graphs["transformer"].outputs.keys() == {"logits", "features"}
    assert {key.partition("/")[0] for key in bundle.arrays(GOLDEN_FILE)} == {"cosine", "policy"}


def test_it_follows_the_heuristic_schedule(bundle: Bundle) -> None:
    with Generator.open(bundle, threads=1) as generator:
        assert verify(generator).passed
        found, named = (
            generator.generate(class_ids=[0, 3], schedule=name, steps=5).trace
            for name in ("policy", "policy-exported")
        )
    step = np.arange(5)
    done = (step + 1 - 1e-3) / 5
    expected = [np.cos(np.pi * done / 2), 1 - done, np.ones(5), (step + 1e-3) / 5]
    np.testing.assert_array_equal(found.parameters, named.parameters)
    for image in range(2):
        np.testing.assert_allclose(found.parameters[:, image], np.stack(expected, 1), rtol=1e-5)


def test_exported_again_it_is_the_same(
    bundle: Bundle, files: dict[str, Any], tmp_path: Path
) -> None:
    again = export("adanat", files, tmp_path / "again")
    assert again.graph_sha256("policy") == bundle.graph_sha256("policy")


@pytest.mark.parametrize(
    ("stated", "expected"), [(None, True), (True, True), (False, False)], ids=str
)
def test_residuals_unless_the_configuration_says_no(
    stated: bool | None, expected: bool, files: dict[str, Any], tmp_path: Path, quick: None
) -> None:
    changed = configured(files, tmp_path, policy_residual=stated)
    model = masked_model(export("adanat", changed, tmp_path / "out"))
    assert model.policies["policy"].residual is expected


def test_on_text_it_has_residuals_and_needs_the_empty_text(
    tiny_text_checkpoints: dict[str, Any], tmp_path: Path, quick: None
) -> None:
    files = configured(tiny_text_checkpoints, tmp_path, policy=SIZE)
    files["untrained_policy"] = True
    model = masked_model(export("maskgit", files, tmp_path / "out"))
    assert model.policies["policy"] == MaskedPolicyInfo(residual=True, untrained_seed=0)
    without = files | {"unconditional_text": None}
    with pytest.raises(CheckpointError, match=r"a policy always uses guidance, .*\[3, 12\]"):
        export("maskgit", without, tmp_path / "other")


def test_tuned_policies_stand_beside_it(files: dict[str, Any], tmp_path: Path, quick: None) -> None:
    record = MaskedPolicyInfo(residual=True, steps=4)
    path = tmp_path / "policy-4-steps.safetensors"
    save_tuned(path, TunedPolicy("policy-4-steps", FixedPolicy(4), record, "masked"))
    changed = files | {"tuned_policy": [path]}
    model = masked_model(export("maskgit", changed, tmp_path / "out"))
    assert list(model.policies) == ["policy", "policy-4-steps"]
    assert model.policies["policy-4-steps"] == record


def test_the_command_line_makes_and_shows_it(
    fewstep: Terminal, files: dict[str, Any], tmp_path: Path, quick: None
) -> None:
    out = tmp_path / "bundle"
    given = [f"--{name}={files[name]}" for name in ("transformer", "tokenizer", "config")]
    given += ["--untrained-policy", f"--out={out}"]
    assert fewstep("export", "maskgit", *given).code == 0
    assert "--untrained-policy" in Bundle.read(out).manifest.provenance.command
    assert "policy (untrained)" in fewstep("inspect", out).out
