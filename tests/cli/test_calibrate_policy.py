"""``fewstep calibrate policy``: end to end with the real feature network, and one-line errors."""

from __future__ import annotations

import itertools
import json
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from tests.calibration.policy.stand_ins import SmallNetwork, random_images

from fewstep.runtime.bundle import Bundle

if TYPE_CHECKING:
    from tests.conftest import Terminal

pytestmark = pytest.mark.slow

_SMALL = ["--updates", 2, "--rollouts", 6, "--batch", 4, "--evaluation-images", 6]
_SMALL += ["--evaluate-every", 1, "--threads", 1, "--steps", 3]


# As the fixture does, in another process.
_WITH_SMALL_NETWORK = """
from unittest import mock
from tests.calibration.policy.stand_ins import SmallNetwork
from fewstep.cli import main
with mock.patch(
    "fewstep.calibration.policy.tune.open_network", lambda spec, size: SmallNetwork()
):
    main()
"""


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Twenty real images of 8×8 pixels."""
    images, labels = random_images(20)
    np.savez(tmp_path / "real.npz", images=images, labels=labels)
    return tmp_path / "real.npz"


def test_tune_verify_and_generate(fewstep: Terminal, bundle_copy: Path, data: Path) -> None:
    done = fewstep("calibrate", "policy", bundle_copy, "--data", data, *_SMALL)
    assert done.code == 0, done.err
    assert "added policy-3-steps: Fréchet distance " in done.out
    (command,) = re.findall("^next: fewstep (.+)$", done.out, re.MULTILINE)
    assert command.endswith("--class 0 --schedule policy-3-steps --steps 3")
    assert fewstep(*shlex.split(command), "--out", data.with_name("as-printed.png")).code == 0
    model: Any = Bundle.read(bundle_copy).manifest.model
    record = model.policies["policy-3-steps"]
    assert record.tuning is not None
    assert record.tuning.command.startswith("fewstep calibrate policy ")
    assert record.tuning.features == "efficientnet-lite0"
    assert "policy-3-steps (for 3 steps)" in " ".join(fewstep("inspect", bundle_copy).out.split())
    assert fewstep("verify", bundle_copy).code == 0
    assert fewstep("build", bundle_copy, "--precision", "fp16").code == 0
    verified = json.loads(fewstep("verify", bundle_copy, "--precision", "fp16", "--json").out)
    assert verified["passed"] is True
    rollouts = {each["rollout"] for each in verified["reports"][0]["checks"]}
    assert rollouts == {"cosine", "policy", "policy-3-steps"}
    wish = ["generate", bundle_copy, "--class", "0", "--steps", 3, "--schedule"]
    for name in ("policy", "policy-3-steps"):
        made = fewstep(*wish, name, "--out", data.with_name(name))
        assert made.code == 0, made.err
    refused = fewstep(*wish, "policy-4-steps", "--out", data.with_name("no"))
    assert refused.code == 1
    assert "unknown schedule 'policy-4-steps'" in refused.err


@pytest.fixture
def small_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """The small feature network in the place of every other."""
    monkeypatch.setattr(
        "fewstep.calibration.policy.tune.open_network", lambda spec, size: SmallNetwork()
    )


def test_json_is_the_record_and_the_history(
    fewstep: Terminal, bundle_copy: Path, data: Path, small_network: None
) -> None:
    wish = ["--reward", "feature-distance", "--fixed", "--name", "policy-mine", "--json"]
    wish += ["--start", "square", "--guidance", "0:3"]
    done = fewstep("calibrate", "policy", bundle_copy, "--data", data, *_SMALL, *wish)
    assert done.code == 0, done.err
    document: dict[str, Any] = json.loads(done.out)
    assert document["name"] == "policy-mine"
    assert [row["update"] for row in document["history"]] == [0, 1, 2]
    guidance = [step[3] for step in document["history"][0]["schedule"]["mean"]]
    assert guidance == pytest.approx([1, 2, 3], rel=1e-3)
    tuning = document["info"]["tuning"]
    assert (tuning["reward"], tuning["adaptive"]) == ("feature-distance", False)


@pytest.mark.parametrize(
    ("wish", "message"),
    [
        (["--rollouts", 50], "holds 20 images, at least 50 are needed"),
        (["--reward", "fid"], "unknown reward 'fid'"),
        (["--start", "nothing"], "unknown policy or schedule to start from 'nothing'"),
        (["--features", "timm:net"], "timm is not installed; install it with: pip install 'timm'"),
        (["--steps", 99], "steps"),
        (["--name", "mine"], "a policy's name is 'policy' and"),
    ],
)
def test_errors_are_one_line(
    wish: list[object],
    message: str,
    fewstep: Terminal,
    bundle_copy: Path,
    data: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    words = [*_SMALL, *wish]
    given = dict(zip(words[::2], words[1::2], strict=True))  # an option given twice is refused
    options = itertools.chain.from_iterable(given.items())
    done = fewstep("calibrate", "policy", bundle_copy, "--data", data, *options)
    assert (done.code, done.out) == (1, "")
    assert message in done.err
    assert "Traceback" not in done.err


def test_absent_data_are_said_without_a_bar(fewstep: Terminal, bundle_copy: Path) -> None:
    done = fewstep("calibrate", "policy", bundle_copy, "--data", "nope", *_SMALL)
    assert (done.code, done.out) == (1, "")
    assert re.search("^error: no such folder or file: nope; expected a fol", done.err, re.MULTILINE)
    assert "-:--:--" not in done.err and "━" not in done.err


def test_an_absent_package_is_one_line(
    fewstep: Terminal, bundle_copy: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name: None if name == "tensorboard" else find(name)
    )
    done = fewstep("calibrate", "policy", bundle_copy, "--data", data, *_SMALL)
    assert done.code == 1
    assert (
        "tensorboard is not installed; install it with: pip install 'fewstep[policy]'" in done.err
    )


def test_a_killed_process_leaves_the_bundle_whole_and_goes_on(
    fewstep: Terminal, bundle_copy: Path, data: Path, tmp_path: Path, small_network: None
) -> None:
    """Killed where it cannot clean up: after the first checkpoint."""
    work = tmp_path / "work"
    wish = ["calibrate", "policy", bundle_copy, "--data", data, *_SMALL, "--work", work]
    command = [sys.executable, "-c", _WITH_SMALL_NETWORK, *map(str, wish)]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        end = time.monotonic() + 120
        while not (work / "checkpoint.pt").exists() and time.monotonic() < end:
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
    assert (work / "checkpoint.pt").exists()
    bundle = Bundle.read(bundle_copy)
    assert bundle.damage() == {}
    done = fewstep(*wish)
    assert done.code == 0, done.err
    model: Any = Bundle.read(bundle_copy).manifest.model
    assert "policy-3-steps" in model.policies
