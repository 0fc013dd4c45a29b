"""A policy for a MaskGIT checkpoint that has none: exported untrained, tuned, exported again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from tests.calibration.policy.stand_ins import assert_same_weights, small_options
from tests.cuda.torch_engine import load
from tests.masked import masked_model

from fewstep.calibration.policy.networks import actor_of
from fewstep.calibration.policy.tune import tune
from fewstep.export.flow import export
from fewstep.runtime.bundle import Bundle
from fewstep.runtime.generator import Generator
from fewstep.runtime.verify import verify


def test_an_untrained_policy_is_tuned(
    small_network: None, tiny_checkpoints: dict[str, Any], data: Path, tmp_path: Path
) -> None:
    files = tiny_checkpoints | {"policy": None, "untrained_policy": True}
    bundle = export("maskgit", files, tmp_path / "bundle")
    models = load(files)
    assert models.policy is not None
    assert_same_weights(actor_of(bundle, "policy").state_dict(), models.policy.state_dict())

    found = tune(small_options(bundle.path, data))
    tuned = Bundle.read(bundle.path)
    policies = masked_model(tuned).policies
    assert list(policies) == ["policy", found.name]
    assert policies["policy"].untrained_seed == 0
    record = policies[found.name]
    assert record == found.info
    assert (record.residual, record.untrained_seed) == (True, None)
    changed = actor_of(tuned, found.name).state_dict()
    assert not np.array_equal(changed["linear3.weight"], models.policy.linear3.weight)

    files["tuned_policy"] = [found.work / f"{found.name}.safetensors"]
    again = export("maskgit", files, tmp_path / "again")
    traces = []
    for folder in (tuned, again):
        with Generator.open(folder, threads=1) as generator:
            assert verify(generator).passed
            traces.append(generator.generate(class_ids=[0, 1], schedule="policy", steps=3).trace)
    np.testing.assert_array_equal(traces[0].sampled, traces[1].sampled)
    np.testing.assert_allclose(traces[0].parameters, traces[1].parameters, rtol=1e-6)
