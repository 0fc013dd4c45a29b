"""From options to a tuned policy in the bundle, and the options that are refused."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tests.calibration.policy.stand_ins import assert_same_weights, info, randomised
from tests.masked import masked_model

from fewstep.calibration.policy import tune as tuning
from fewstep.calibration.policy.networks import actor_of
from fewstep.calibration.policy.options import PolicyOptions, checked
from fewstep.calibration.policy.state import CHECKPOINT
from fewstep.calibration.policy.store import add_policy
from fewstep.calibration.policy.training import Training
from fewstep.calibration.policy.tune import tune
from fewstep.export.models import PolicyNet
from fewstep.export.tuned import load_tuned
from fewstep.runtime.bundle import Bundle
from fewstep.runtime.errors import BundleError, CalibrationError, OutputError, RequestError
from fewstep.runtime.families.masked.policies import MaskedPolicies
from fewstep.runtime.families.masked.schedule import Schedule
from fewstep.runtime.generator import Generator
from fewstep.runtime.verify import verify

Options = Callable[..., PolicyOptions]


def test_a_tuned_policy_is_the_bundles_newest(small_network: None, options: Options) -> None:
    wish = options()
    before = Bundle.read(wish.bundle)
    reported: list[tuple[str, float]] = []
    command = "fewstep calibrate policy …"
    found = tune(wish, command=command, progress=lambda *each: reported.append(each))
    bundle = Bundle.read(wish.bundle)
    assert found.name == "policy-3-steps"
    assert list(masked_model(bundle).policies) == ["policy", "policy-3-steps"]
    assert bundle.graph_sha256("policy") == before.graph_sha256("policy")
    record = masked_model(bundle).policies["policy-3-steps"]
    assert record == found.info
    assert (record.residual, record.steps) == (True, 3)
    assert record.tuning is not None
    assert record.tuning.model_dump(include={"command", "reward", "adaptive", "seed"}) == {
        **{"command": "fewstep calibrate policy …", "reward": "adversarial"},
        **{"adaptive": True, "seed": 0},
    }
    assert (record.tuning.backend, record.tuning.precision) == ("onnxruntime", "fp32")
    assert record.tuning.transformer_sha256 == before.graph_sha256("transformer")
    assert (record.tuning.images, record.tuning.rollouts) == (40, 6)
    best = min(found.history, key=lambda row: float(row["frechet_distance"]))
    assert (record.tuning.updates, record.tuning.frechet_distance) == (
        *(best["update"], best["frechet_distance"]),
    )
    assert reported[0] == ("reading images", 0.0)
    assert reported[-2:] == [("tuning the policy", 1.0), ("adding the policy to the bundle", 0.0)]
    with Generator.open(bundle, threads=1) as generator:
        assert verify(generator).passed
        newest, named = (
            generator.generate(class_ids=[0, 1], schedule=each, steps=3).trace.parameters
            for each in ("policy", "policy-3-steps")
        )
    assert (newest == named).all()


def test_the_work_folder_has_logs_plots_checkpoint_and_weights(
    small_network: None, options: Options
) -> None:
    found = tune(options())
    work = found.work
    assert work == options().bundle.with_name("copy.policy-3-steps")
    assert json.loads((work / "history.json").read_text()) == found.history
    events = list((work / "tensorboard").glob("events*"))
    assert len(events) == 1
    assert _scalars(events[0].parent)["reward"] == pytest.approx(
        [row["reward"] for row in found.history[1:]], rel=1e-5
    )
    for picture in ("training.png", "schedule.png"):
        with Image.open(work / picture) as image:
            image.verify()
    saved = load_tuned(work / "policy-3-steps.safetensors", "masked")
    assert (saved.name, saved.info) == (found.name, found.info)
    graph = actor_of(Bundle.read(options().bundle), found.name)
    assert_same_weights(saved.network.state_dict(), graph.state_dict())


def _scalars(folder: Path) -> dict[str, list[float]]:
    from tensorboard.backend.event_processing.event_accumulator import (  # type: ignore[import-untyped]
        EventAccumulator,
    )

    events = EventAccumulator(str(folder))
    events.Reload()
    return {tag: [each.value for each in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def interrupted(*_: object, **__: object) -> None:
    """Ctrl-C in the middle of something."""
    raise KeyboardInterrupt


def test_an_interrupted_run_adds_what_an_uninterrupted_one_does(
    small_network: None, options: Options, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = tune(options(name="policy-whole", start="policy", work=tmp_path / "whole"))

    wish = options(name="policy-again", start="policy", work=tmp_path / "again")
    for place, name in ((Training, "_update"), (tuning, "add_policy")):
        with monkeypatch.context() as patched:
            patched.setattr(place, name, interrupted)
            with pytest.raises(KeyboardInterrupt):
                tune(wish)
        assert "policy-again" not in masked_model(Bundle.read(wish.bundle)).policies
    tune(wish)
    bundle = Bundle.read(wish.bundle)
    assert whole.name == "policy-whole"
    assert_same_weights(
        *(actor_of(bundle, each).state_dict() for each in (whole.name, "policy-again"))
    )
    assert bundle.damage() == {}
    assert list(masked_model(bundle).policies) == ["policy", "policy-whole", "policy-again"]


def test_a_second_run_has_another_name_and_starts_from_the_first(
    small_network: None, options: Options
) -> None:
    first, second = (tune(options(updates=1)) for _ in range(2))
    assert (first.name, second.name) == ("policy-3-steps", "policy-3-steps-2")
    start = checked(options(), Bundle.read(options().bundle))
    assert (start.policy, start.name) == ("policy-3-steps-2", "policy-3-steps-3")


@pytest.mark.parametrize(
    "changes",
    [
        {"adaptive": False},
        {"start": "scratch"},
        {"start": "cosine", "settings": {"guidance": (0, 2)}},
    ],
)
def test_other_starts(small_network: None, options: Options, changes: dict[str, Any]) -> None:
    found = tune(options(updates=1, **changes))
    assert found.info.tuning is not None
    assert found.info.tuning.adaptive == changes.get("adaptive", True)
    with Generator.open(options().bundle, threads=1) as generator:
        parameters = generator.generate(
            class_ids=[0, 1, 2], schedule=found.name, steps=3
        ).trace.parameters
    same_for_all = bool((parameters == parameters[:, :1]).all())
    assert same_for_all == ("adaptive" in changes) or changes.get("start") == "scratch"


def _with_policy(bundle: Path, *widths: int) -> None:
    actor = randomised(PolicyNet(32, 4, 16, 4, 8, widths), seed=1)
    add_policy(Bundle.read(bundle), f"policy-{widths[0]}", actor, info())


@pytest.mark.parametrize(
    "changes",
    [{"start": "scratch"}, {"start": "policy", "size_of": "policy-12"}],
    ids=["that of the newest", "another's"],
)
def test_a_policy_keeps_its_size_over_an_interruption(
    changes: dict[str, Any],
    small_network: None,
    options: Options,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _with_policy(options().bundle, 12, 6)
    wish = options(name="policy-new", updates=1, **changes)
    with monkeypatch.context() as patched:
        patched.setattr(tuning, "add_policy", interrupted)
        with pytest.raises(KeyboardInterrupt):
            tune(wish)
    tune(wish)
    found = actor_of(Bundle.read(wish.bundle), "policy-new")
    assert found.sizes == {"hidden_size": 16, "channels": 8, "widths": (12, 6)}


def test_a_training_does_not_go_on_in_another_size(small_network: None, options: Options) -> None:
    _with_policy(options().bundle, 12, 6)
    given = {"updates": 1, "start": "policy", "work": options().bundle.with_name("work")}
    tune(options(**given, name="policy-a"))
    with pytest.raises(CalibrationError, match="another training.*--restart"):
        tune(options(**given, name="policy-a2", size_of="policy-12"))


def test_a_bundle_may_be_the_folder_one_is_in(
    small_network: None, options: Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(options().bundle)
    wish = PolicyOptions(**{**vars(options(updates=1)), "bundle": Path()})
    assert tune(wish).work == options().bundle.with_name("copy.policy-3-steps")


def test_restart_forgets_the_former_training(small_network: None, options: Options) -> None:
    work = options().bundle.with_name("work")
    tune(options(updates=1, work=work, name="policy-a"))
    with pytest.raises(CalibrationError, match="another training.*--restart"):
        tune(options(updates=2, work=work, name="policy-b"))
    found = tune(options(updates=2, work=work, name="policy-b", restart=True))
    assert [row["update"] for row in found.history] == [0, 1, 2]


# --- smoothing


def test_a_policy_is_tuned_with_smoothing_and_keeps_it(
    small_network: None, options: Options
) -> None:
    """It is in the manifest and in the file, and the schedule to start as has it undone."""
    wish = options(updates=1, smoothing=0.5, start="square", adaptive=False)
    found = tune(wish)
    policies = masked_model(Bundle.read(wish.bundle)).policies
    assert (policies["policy"].smoothing, policies[found.name].smoothing) == (0.0, 0.5)
    saved = load_tuned(found.work / f"{found.name}.safetensors", "masked")
    assert saved.info.smoothing == 0.5
    start = np.array(found.history[0]["schedule"]["mean"])
    expected = Schedule("square").parameters(3, 16)
    np.testing.assert_allclose(start[:-1, 0], expected[:-1, 0], atol=1e-3)


def test_smoothing_is_part_of_a_training_and_its_judge_is_not(options: Options) -> None:
    """What has no smoothing of its own goes on from checkpoints that know of none."""
    plain = options().signature()
    assert options(smoothing=0.3).signature() != plain == options(keep_judge=True).signature()
    assert plain["smoothing"] is None


def test_policies_without_smoothing_refuse_it(options: Options, var_bundle: Path) -> None:
    with pytest.raises(CalibrationError, match="family var, whose policies have no smoothing"):
        tune(PolicyOptions(**{**vars(options(smoothing=0.3)), "bundle": var_bundle}))


# --- what is refused


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"updates": 0}, "--updates must be at least 1, got 0"),
        ({"rollouts": 1}, "--rollouts must be at least 2, got 1"),
        ({"evaluate_every": 0}, "--evaluate-every must be at least 1"),
        ({"seed": -1}, "--seed must be at least 0, got -1"),
        ({"learning_rate": 0.0}, "must be above 0"),
        ({"learning_rate": math.nan}, "must be above 0"),
        ({"deviation": (0.5, 0.0)}, "must be above 0"),
        ({"reward": "fid"}, "unknown reward 'fid'"),
        ({"smoothing": 1.0}, "--smoothing must be at least 0 and below 1, got 1.0"),
        ({"smoothing": math.nan}, "--smoothing must be at least 0 and below 1, got nan"),
        ({"name": "mine"}, "a policy's name is 'policy' and small letters"),
        ({"name": "policy/../../x"}, "a policy's name is 'policy' and small letters"),
    ],
)
def test_options_out_of_range_are_refused(
    changes: dict[str, Any], message: str, options: Options
) -> None:
    with pytest.raises(CalibrationError, match=message):
        options(**changes)


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        ({"steps": 0}, RequestError, "steps"),
        ({"steps": 17}, RequestError, "steps"),
        ({"steps": None}, CalibrationError, "say how many steps to tune the policy for: --steps N"),
        (
            {"settings": {"guidance": "0:2"}},
            CalibrationError,
            "guidance belong to a fixed schedule to start from: name it with --start",
        ),
        ({"start": "cosine", "settings": {"top_k": 9}}, RequestError, "unknown setting of a sched"),
        (
            {"start": "cosine", "settings": {"guidance": "0,1"}},
            RequestError,
            "lists need one value for every step: steps 3, got guidance 2",
        ),
        ({"start": "polisy"}, CalibrationError, "polisy.*Did you mean 'policy'"),
        (
            {"size_of": "cosine"},
            CalibrationError,
            "policy to take the size of 'cosine'; .*: policy",
        ),
        ({"name": "policy"}, CalibrationError, "has or reserves the name 'policy'"),
        ({"rollouts": 41}, CalibrationError, "holds 40 images, at least 41 are needed"),
        ({"data": Path("/nowhere")}, CalibrationError, "expected a folder with a subfolder"),
        ({"bundle": Path("/nowhere")}, BundleError, "no bundle at"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_made(
    changes: dict[str, Any], kind: type[Exception], message: str, options: Options
) -> None:
    manifest = (options().bundle / "bundle.json").read_bytes()
    with pytest.raises(kind, match=message):
        tune(PolicyOptions(**{**vars(options()), **changes}))
    assert (options().bundle / "bundle.json").read_bytes() == manifest


def test_a_family_may_have_but_one_number_of_steps(
    options: Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(MaskedPolicies, "steps", lambda self, model: 7)
    bundle = Bundle.read(options().bundle)
    for steps in (None, 7):
        start = checked(options(steps=steps), bundle)
        assert (start.steps, start.name) == (7, "policy-7-steps")
    with pytest.raises(CalibrationError, match="in 7 steps, always: got --steps 3, leave it out"):
        checked(options(steps=3), bundle)


def test_settings_of_the_start_are_kept_as_plain_data(options: Options) -> None:
    """As text and as numbers they make the same training, which goes on where it was."""
    bundle = Bundle.read(options().bundle)
    given = ({"guidance": "0:2"}, {"guidance": (0, 2)})
    starts = [checked(options(start="square", settings=each), bundle) for each in given]
    assert [dict(start.settings) for start in starts] == [{"guidance": [0.0, 2.0]}] * 2
    expected = Schedule("square", guidance=(0, 2)).parameters(3, 16)
    for start in starts:
        assert start.schedule is not None
        np.testing.assert_array_equal(start.schedule, expected)


def test_a_bundle_without_a_policy_is_refused(tiny_text_bundle: Path, options: Options) -> None:
    with pytest.raises(BundleError, match="no policy graph.*with --untrained-policy"):
        tune(PolicyOptions(**{**vars(options()), "bundle": tiny_text_bundle}))


def test_a_work_folder_that_cannot_be_made_is_one_error(options: Options, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot write .*; choose another --work"):
        tune(options(work=tmp_path / "file" / "work"))


def test_a_finished_training_whose_policy_is_not_added_yet_is_not_lost(
    small_network: None, options: Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    wish = options(updates=1)

    def full(*_: object) -> None:
        raise OutputError("the disk is full")

    with monkeypatch.context() as patched:
        patched.setattr(tuning, "add_policy", full)
        with pytest.raises(OutputError):
            tune(wish)
    work = wish.bundle.with_name("copy.policy-3-steps")
    content = (work / CHECKPOINT).read_bytes()
    monkeypatch.setattr(Training, "_update", None)  # there is nothing left to train
    assert tune(wish).name == "policy-3-steps"
    assert (work / CHECKPOINT).read_bytes() == content
