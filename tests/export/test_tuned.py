"""Files of tuned policies: round trips, what export makes of them, and what is refused."""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tests.masked import masked_model
from torch import nn

from fewstep.export import presets
from fewstep.export.flow import export
from fewstep.export.models import FixedPolicy, PolicyNet
from fewstep.export.tuned import TunedPolicy, load_tuned, save_tuned
from fewstep.runtime.errors import CheckpointError, OutputError
from fewstep.runtime.families.masked.model import MaskedPolicyInfo
from fewstep.runtime.generator import Generator
from fewstep.runtime.policies import policy_for
from fewstep.runtime.verify import verify

_SAMPLES = Path(__file__).parents[2] / "samples" / "fashion" / "weights"
_NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "adaptive": lambda: PolicyNet(32, 4, 16, 4),
    "features' width": lambda: PolicyNet(32, 4, 32, 4),
    "larger grid": lambda: PolicyNet(48, 4, 24, 8),
    "narrow": lambda: PolicyNet(32, 4, 16, 4, 8, (12, 6)),
    "fixed": lambda: FixedPolicy(5),
}


def _tuned(network: nn.Module, name: str = "policy-5-steps", steps: int = 5) -> TunedPolicy:
    random = torch.Generator().manual_seed(0)
    for parameter in network.parameters():
        with torch.no_grad():
            parameter.normal_(std=0.05, generator=random)
    return TunedPolicy(name, network, MaskedPolicyInfo(residual=True, steps=steps), "masked")


def _saved(path: Path, policy: TunedPolicy) -> Path:
    save_tuned(path, policy)
    return path


@pytest.mark.parametrize("kind", _NETWORKS)
def test_what_is_saved_is_loaded_in_half_precision(kind: str, tmp_path: Path) -> None:
    policy = _tuned(_NETWORKS[kind]())
    found = load_tuned(_saved(tmp_path / "tuned.safetensors", policy), "masked")
    assert (found.name, found.info) == (policy.name, policy.info)
    assert type(found.network) is type(policy.network)
    expected = {key: each.half().float() for key, each in policy.network.state_dict().items()}
    assert found.network.state_dict().keys() == expected.keys()
    for key, value in found.network.state_dict().items():
        assert torch.equal(value, expected[key])
    largest = sum(each.numel() for each in expected.values()) * 2 + 8_000
    assert (tmp_path / "tuned.safetensors").stat().st_size < largest


def test_a_full_disk_leaves_the_former_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = _saved(tmp_path / "tuned.safetensors", _tuned(FixedPolicy(5)))
    before = path.read_bytes()

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OutputError, match=r"cannot write .*tuned\.safetensors"):
        save_tuned(path, _tuned(FixedPolicy(6)))
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


# --- what is refused


def _plain(path: Path) -> None:
    save_file({"actions": torch.zeros(5, 4)}, path)


def _wrong_record(path: Path) -> None:
    save_file({"actions": torch.zeros(5, 4)}, path, {"fewstep_policy": '{"name": "policy"}'})


def _no_network(path: Path) -> None:
    record = '{"name": "policy-x", "info": {"residual": true}}'
    save_file({"weight": torch.zeros(5, 4)}, path, {"fewstep_policy": record})


def _flat_network(path: Path) -> None:
    record = '{"name": "policy-x", "info": {"residual": true}}'
    parts = ("dw_conv", "linear1", "pw_conv", "linear2", "linear3")
    names = [f"{each}.weight" for each in parts]
    save_file({each: torch.zeros(4) for each in names}, path, {"fewstep_policy": record})


@pytest.mark.parametrize("make", [_plain, _wrong_record, _no_network, _flat_network])
def test_other_safetensors_files_are_refused(make: object, tmp_path: Path) -> None:
    make(tmp_path / "other.safetensors")  # type: ignore[operator]
    with pytest.raises(CheckpointError, match="is no tuned policy; expected a file that fewstep"):
        load_tuned(tmp_path / "other.safetensors", "masked")


def test_a_policy_of_another_family_is_refused(tmp_path: Path) -> None:
    policy = replace(_tuned(FixedPolicy(5)), kind="var")
    path = _saved(tmp_path / "tuned.safetensors", policy)
    with pytest.raises(CheckpointError, match="for models of the family var, these are masked"):
        load_tuned(path, "masked")


def test_files_that_name_no_family_are_of_masked_models() -> None:
    """As they were written before there were others."""
    found = load_tuned(_SAMPLES / "policy-4-steps.safetensors", "masked")
    assert (found.name, found.kind, found.info.steps) == ("policy-4-steps", "masked", 4)


def test_the_authors_checkpoint_is_refused(
    tiny_checkpoints: dict[str, Any], tmp_path: Path
) -> None:
    """``--tuned-policy`` given what belongs to ``--policy``."""
    torch.save(PolicyNet(32, 4, 16, 4).state_dict(), tmp_path / "policy.pth")
    for path in (tmp_path / "policy.pth", tiny_checkpoints["policy"]):
        with pytest.raises(CheckpointError, match="is no tuned policy; .* go to --policy, in the"):
            load_tuned(path, "masked")


def test_a_tuned_policy_in_the_place_of_the_authors_is_refused(tmp_path: Path) -> None:
    path = _saved(tmp_path / "tuned.safetensors", _tuned(PolicyNet(32, 4, 16, 4)))
    arguments = {"in_channels": 32, "hidden_size": 16, "grid_size": 4}
    message = "instead of --policy pass --untrained-policy --tuned-policy .*tuned.safetensors"
    with pytest.raises(CheckpointError, match=message):
        presets.read(PolicyNet, path, arguments)


def test_a_tuned_policy_is_known_by_content_and_its_values_are_looked_at(tmp_path: Path) -> None:
    policy = _tuned(FixedPolicy(5))
    path = _saved(tmp_path / "tuned.safetensors", policy)
    assert load_tuned(path.rename(tmp_path / "renamed.bin"), "masked").name == policy.name
    with torch.no_grad():
        policy.network.get_parameter("actions")[2, 1] = torch.nan
    with pytest.raises(CheckpointError, match=r"holds NaN in 1 of 1 tensors \(actions\)"):
        load_tuned(_saved(path, policy), "masked")


@pytest.mark.parametrize("part", [0, 0.2, 0.9])
def test_a_cut_off_file_is_refused(part: float, tmp_path: Path) -> None:
    path = _saved(tmp_path / "tuned.safetensors", _tuned(FixedPolicy(5)))
    path.write_bytes(path.read_bytes()[: int(part * path.stat().st_size)])
    with pytest.raises(CheckpointError, match="tuned.safetensors"):
        load_tuned(path, "masked")


def test_an_absent_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such file"):
        load_tuned(tmp_path / "tuned.safetensors", "masked")


# --- export


def test_export_takes_tuned_policies_as_the_newest(
    tiny_checkpoints: dict[str, Any], tmp_path: Path
) -> None:
    adaptive = _saved(tmp_path / "a.safetensors", _tuned(PolicyNet(32, 4, 8, 4), "policy-a", 5))
    fixed = _saved(tmp_path / "b.safetensors", _tuned(FixedPolicy(3), "policy-b", 3))
    files = tiny_checkpoints | {"tuned_policy": [adaptive, fixed]}
    bundle = export("adanat", files, tmp_path / "out")
    model = masked_model(bundle)
    assert list(model.policies) == ["policy", "policy-a", "policy-b"]
    assert [policy_for(model.policies, steps) for steps in (5, 3, 8)] == [
        "policy-a",
        "policy-b",
        "policy",
    ]
    assert {"tuned/a.safetensors", "tuned/b.safetensors"} < set(
        bundle.manifest.provenance.checkpoints
    )
    with Generator.open(bundle, threads=1) as generator:
        report = verify(generator)
        assert report.passed, [check for check in report.checks if not check.passed]
        found = generator.generate(class_ids=[0, 1], schedule="policy-b", steps=3)
    assert {check.rollout for check in report.checks} == {"cosine", *model.policies}
    np.testing.assert_array_equal(found.trace.parameters[:, 0], found.trace.parameters[:, 1])


@pytest.mark.parametrize(
    ("networks", "message"),
    [
        ([PolicyNet(48, 4, 16, 4)], "feature width 32 but the policy-0's is 48"),
        ([PolicyNet(32, 4, 16, 8)], "token grid side 4 but the policy-0's is 8"),
        ([PolicyNet(32, 3, 16, 4)], "number of actions 4 but the policy-0's is 3"),
    ],
)
def test_policies_of_other_transformers_are_refused(
    networks: list[nn.Module], message: str, tiny_checkpoints: dict[str, Any], tmp_path: Path
) -> None:
    paths = tuple(
        _saved(tmp_path / f"{row}.safetensors", _tuned(network, f"policy-{row}"))
        for row, network in enumerate(networks)
    )
    files = tiny_checkpoints | {"tuned_policy": paths}
    with pytest.raises(CheckpointError, match=message):
        export("adanat", files, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("names", [("policy",), ("policy-a", "policy-a")])
def test_names_must_differ(
    names: tuple[str, ...], tiny_checkpoints: dict[str, Any], tmp_path: Path
) -> None:
    paths = tuple(
        _saved(tmp_path / f"{row}.safetensors", _tuned(FixedPolicy(5), name))
        for row, name in enumerate(names)
    )
    files = tiny_checkpoints | {"tuned_policy": paths}
    with pytest.raises(CheckpointError, match="different names, other than policy"):
        export("adanat", files, tmp_path / "out")
