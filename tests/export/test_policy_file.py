"""What a policy checkpoint says of itself, as the authors' ``train.py`` stores it."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.export.changed import configured
from tests.masked import masked_model

from fewstep.export.checkpoint import Checkpoint
from fewstep.export.flow import export
from fewstep.export.policy_file import ACTIONS, StoredPolicy, stored_policy
from fewstep.runtime.bundle import Bundle
from fewstep.runtime.errors import CheckpointError


def _with_arguments(files: dict[str, Any], folder: Path, **said: Any) -> dict[str, Any]:
    """The same files, with the command line that the policy was trained with beside its weights."""
    content = torch.load(files["policy"], weights_only=True)
    path = folder / "ckpt_9.pth"
    torch.save({**content, "args": argparse.Namespace(**said), "global_step": 9}, path)
    return files | {"policy": path}


def _bundle(files: dict[str, Any], folder: Path) -> Bundle:
    return export("adanat", files, folder / "bundle")


@pytest.mark.parametrize(("heu", "said"), [(1, None), (0, None), (1, True), (0, False)])
def test_the_residual_is_what_the_file_says(
    heu: int, said: bool | None, tiny_checkpoints: dict[str, Any], tmp_path: Path, quick: None
) -> None:
    files = _with_arguments(tiny_checkpoints, tmp_path, heu=heu, gen_steps=4, upd_set=[*ACTIONS])
    bundle = _bundle(configured(files, tmp_path, policy_residual=said), tmp_path)
    info = masked_model(bundle).policies["policy"]
    assert (info.residual, info.steps) == (bool(heu), 4)
    assert masked_model(bundle).defaults.steps == 4


@pytest.mark.parametrize(("heu", "said"), [(1, False), (0, True)])
def test_a_configuration_may_not_contradict_the_file(
    heu: int, said: bool, tiny_checkpoints: dict[str, Any], tmp_path: Path, quick: None
) -> None:
    files = _with_arguments(tiny_checkpoints, tmp_path, heu=heu)
    with pytest.raises(CheckpointError, match=f"trained with heu {heu}, as its file says"):
        _bundle(configured(files, tmp_path, policy_residual=said), tmp_path)


def test_a_file_that_says_nothing_leaves_it_to_the_configuration(
    tiny_checkpoints: dict[str, Any], tmp_path: Path, quick: None
) -> None:
    files = configured(tiny_checkpoints, tmp_path, policy_residual=None, defaults={"steps": 6})
    model = masked_model(_bundle(files, tmp_path))
    assert model.policies["policy"].residual is False
    assert (model.policies["policy"].steps, model.defaults.steps) == (None, 6)


def test_actions_in_another_order_are_put_into_that_of_the_decode(
    tiny_checkpoints: dict[str, Any], tmp_path: Path
) -> None:
    """The same network, whose last layer gives the actions in another order, decodes the same."""
    import fewstep

    content = torch.load(tiny_checkpoints["policy"], weights_only=True)
    names = [ACTIONS[each] for each in (3, 0, 2, 1)]
    actor = dict(content["model"])
    for key in ("weight", "bias"):
        rows = actor[f"policy_old.actor.linear3.{key}"]
        actor[f"policy_old.actor.linear3.{key}"] = rows[[3, 0, 2, 1]].clone()
    shuffled = tmp_path / "shuffled.pth"
    torch.save({"model": actor, "args": argparse.Namespace(upd_set=names)}, shuffled)
    decoded = []
    for name, policy in (("one", tiny_checkpoints["policy"]), ("other", shuffled)):
        bundle = export("adanat", tiny_checkpoints | {"policy": policy}, tmp_path / name)
        with fewstep.open(bundle) as generator:
            made = generator.generate(class_ids=[0, 3], steps=4, schedule="policy")
        decoded.append(made.trace.parameters)
    np.testing.assert_array_equal(*decoded)


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"heu": 2}, "heu must be 0 or 1, got 2"),
        ({"heu": "yes"}, "heu must be 0 or 1, got 'yes'"),
        ({"gen_steps": 0}, "gen_steps must be a positive integer, got 0"),
        ({"gen_steps": "8"}, "gen_steps must be a positive integer, got '8'"),
        ({"upd_set": [*ACTIONS[:3]]}, "the policy sets .* needs each of .* once"),
        ({"upd_set": [*ACTIONS[:3], "manual_temp"]}, "needs each of"),
        ({"upd_set": [*ACTIONS, "manual_top_k"]}, "needs each of"),
        ({"upd_set": 3}, "needs each of"),
    ],
)
def test_what_the_authors_code_does_not_take_is_refused(said: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        stored_policy(Checkpoint({}, said), Path("ckpt_9.pth"))


def test_names_may_be_one_text() -> None:
    found = stored_policy(Checkpoint({}, {"upd_set": ", ".join(ACTIONS)}), Path("x"))
    assert found.order == (0, 1, 2, 3)


def test_more_steps_than_tokens_are_refused_by_their_name(
    tiny_checkpoints: dict[str, Any], tmp_path: Path, quick: None
) -> None:
    files = _with_arguments(tiny_checkpoints, tmp_path, heu=1, gen_steps=32)
    with pytest.raises(CheckpointError, match="trained for 32 steps.*gen_steps.*has 16 tokens"):
        _bundle(files, tmp_path)


def test_other_hyper_parameters_are_none_of_its_business() -> None:
    found = Checkpoint({}, {"lr": 1e-5, "dset": "in256"}, disputed=frozenset({"lr"}))
    assert stored_policy(found, Path("x")) == StoredPolicy()


def test_a_file_that_contradicts_itself_is_refused() -> None:
    found = Checkpoint({}, {"heu": 1}, disputed=frozenset({"heu"}))
    with pytest.raises(CheckpointError, match="says several things of heu"):
        stored_policy(found, Path("x"))


def test_a_policy_of_other_steps_is_said_with_the_images(
    tiny_checkpoints: dict[str, Any], tmp_path: Path
) -> None:
    import fewstep

    files = _with_arguments(tiny_checkpoints, tmp_path, heu=1, gen_steps=4)
    with fewstep.open(_bundle(files, tmp_path)) as generator:
        other = generator.generate(class_ids=[0], steps=6, schedule="policy")
        own = generator.generate(class_ids=[0], schedule="policy")
        fixed = generator.generate(class_ids=[0], steps=6)
    assert own.trace.sampled.shape[0] == 4
    (line,) = other.notes
    assert line.startswith("policy was trained for 4 steps and runs 6: pass --steps 4")
    assert own.notes == fixed.notes == ()
