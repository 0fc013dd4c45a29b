"""A tuned policy into its bundle: beside the old, passing ``verify``, whole or not at all."""

from __future__ import annotations

import errno
import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.calibration.policy.stand_ins import info, randomised
from tests.masked import masked_model

from fewstep.build.stale import why_graphs_stale
from fewstep.build.variants import add_variant
from fewstep.calibration.added_graph import half
from fewstep.calibration.policy.store import add_policy
from fewstep.export.models import FixedPolicy, PolicyNet
from fewstep.runtime.bundle import Bundle
from fewstep.runtime.devices.cpu import CpuDevice
from fewstep.runtime.engines import run_once
from fewstep.runtime.errors import OutputError
from fewstep.runtime.generator import Generator
from fewstep.runtime.verify import verify

_NAME = "policy-3-steps"


def _actor(seed: int = 7) -> PolicyNet:
    actor = PolicyNet(32, 4, 16, 4)
    half(randomised(actor, seed))
    return actor


def _files(folder: Path) -> dict[str, str]:
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.iterdir()
        if path.is_file()
    }


def test_the_new_policy_is_there_beside_the_old(bundle_copy: Path) -> None:
    before, old = Bundle.read(bundle_copy), _files(bundle_copy)
    actor = _actor()
    returned = add_policy(before, _NAME, actor, info())
    changed = Bundle.read(bundle_copy)
    assert changed == returned
    assert changed.damage() == {}
    assert list(masked_model(changed).policies) == ["policy", _NAME]
    assert masked_model(changed).policies[_NAME] == info()
    assert changed.graph("policy") == before.graph("policy")
    kept = ("transformer.onnx", "policy.onnx", "decoder.onnx")
    assert [_files(bundle_copy)[each] for each in kept] == [old[each] for each in kept]
    with Generator.open(changed, threads=1) as generator:
        assert verify(generator).passed
        features = np.random.default_rng(0).standard_normal((3, 16, 32), np.float32)
        state = {"features": features, "step": np.array([0, 2, 5], np.int32)}
        action = run_once(CpuDevice(), generator.engines[_NAME], state)["action"]
    with torch.no_grad():
        expected = actor(torch.from_numpy(features), torch.from_numpy(state["step"]))
    np.testing.assert_allclose(action, expected, rtol=0, atol=1e-4)


def test_golden_rollouts_have_one_of_every_policy(bundle_copy: Path) -> None:
    before = Bundle.read(bundle_copy)
    assert before.manifest.golden is not None
    recorded = before.arrays(before.manifest.golden)
    changed = add_policy(before, _NAME, _actor(), info())
    assert changed.manifest.golden is not None
    found = changed.arrays(changed.manifest.golden)
    assert {key.split("/")[0] for key in found} == {"cosine", "policy", _NAME}
    assert all((found[key] == value).all() for key, value in recorded.items())
    old, new = (
        [found[key] for key in found if key.startswith(f"{name}/runs/") and "/action" in key]
        for name in ("policy", _NAME)
    )
    assert len(old) == len(new) > 0
    assert not np.array_equal(old, new)
    assert not (bundle_copy / "golden.npz").exists()  # its contents are in the new one


def test_a_wrong_new_graph_is_caught_by_verify(bundle_copy: Path) -> None:
    changed = add_policy(Bundle.read(bundle_copy), _NAME, _actor(), info())
    fields = changed.manifest.model_dump()
    fields["graphs"][_NAME]["file"] = fields["graphs"]["policy"]["file"]
    changed.update({}, graphs=fields["graphs"])
    with Generator.open(bundle_copy, threads=1) as generator:
        report = verify(generator)
    assert report.failing_graphs[0] == _NAME
    assert "policy" not in report.failing_graphs


def test_variants_have_the_new_policy_too(bundle_copy: Path) -> None:
    """In the variant's own precision, and current, so that nothing need be made again."""
    with_fp16 = add_variant(Bundle.read(bundle_copy), "fp16")[0]
    changed = add_policy(with_fp16, _NAME, _actor(), info())
    assert changed.graph(_NAME, "fp16").precision == "fp16"
    assert changed.damage() == {}
    assert changed.graph_sha256("transformer", "fp16") == with_fp16.graph_sha256(
        "transformer", "fp16"
    )
    assert not why_graphs_stale(changed, "fp16")
    for precision in ("fp32", "fp16"):
        with Generator.open(bundle_copy, precision=precision, threads=1) as generator:
            report = verify(generator)
            assert report.passed, report
            assert _NAME in {check.rollout for check in report.checks}


def test_a_fixed_policy_can_be_added_too(bundle_copy: Path) -> None:
    policy = randomised(FixedPolicy(3), seed=1)
    add_policy(Bundle.read(bundle_copy), _NAME, policy, info())
    with Generator.open(bundle_copy, threads=1) as generator:
        assert verify(generator).passed
        result = generator.generate(class_ids=[0, 4], schedule=_NAME, steps=3)
    np.testing.assert_array_equal(result.trace.parameters[:, 0], result.trace.parameters[:, 1])


def test_a_full_disk_leaves_the_bundle_as_it_was(
    bundle_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, write = _files(bundle_copy), Path.write_bytes

    def full(path: Path, content: bytes) -> int:
        if path.name.startswith(".golden") and path.parent == bundle_copy:
            write(path, content[:100])
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(path, content)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OutputError, match="cannot write .*No space left on device"):
        add_policy(Bundle.read(bundle_copy), _NAME, _actor(), info())
    assert _files(bundle_copy) == before


def test_half_rounds_every_weight_to_what_half_precision_holds() -> None:
    actor = randomised(PolicyNet(32, 4, 16, 4), seed=7)
    expected = {key: value.half().float() for key, value in actor.state_dict().items()}
    assert any(not torch.equal(actor.state_dict()[key], value) for key, value in expected.items())
    rounded = half(actor)
    assert all(torch.equal(rounded.state_dict()[key], value) for key, value in expected.items())
