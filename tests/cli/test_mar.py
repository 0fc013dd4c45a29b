"""The commands on a MAR bundle: settings of its own, presets, and operations that are repeated.

Covered: generate and again by ``--like``, the GIF of iterations, what does not fit in one line; the
plan, estimates and benchmarks of diffusions; verification; what help says.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image, ImageSequence

if TYPE_CHECKING:
    from tests.conftest import Terminal

_CACHED = ("--refresh", 2, "--refresh-first", 1, "--recompute", "0.2", "--reuse-guidance", "true")


def _json(fewstep: Terminal, *words: object) -> dict[str, Any]:
    told = fewstep(*words, "--json")
    assert told.code == 0, told.err
    found: dict[str, Any] = json.loads(told.out)
    return found


def _settings(picture: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Image.open(picture).info["fewstep"])["settings"]
    return found


# --- generate


@pytest.mark.parametrize(
    "words",
    [
        ("--class", "bee", "--count", 2, "--seed", 4, "--guidance", "2:2"),
        ("--class", "all", "--iterations", 4, "--diffusion-steps", "4,3,2,1", *_CACHED),
        ("--class", 1, "--preset", "fast", "--guidance", "1,2,3", "--temperature", "1:0.9"),
        ("--class", 0, "--diffusion-steps", "ddim4", "--max-timestep", 900, "--guidance", 1),
    ],
    ids=["plain", "lists, all classes", "a preset", "spacing"],
)
def test_images_are_made_and_made_again(
    fewstep: Terminal, mar_bundle: Path, tmp_path: Path, words: tuple[object, ...]
) -> None:
    first, again = tmp_path / "first.png", tmp_path / "again.png"
    made = fewstep("generate", mar_bundle, *words, "--out", first)
    assert made.code == 0, made.err
    assert fewstep("generate", mar_bundle, "--like", first, "--out", again).code == 0
    np.testing.assert_array_equal(Image.open(first), Image.open(again))
    assert _settings(first) == _settings(again)


def test_a_picture_says_what_its_preset_said(
    fewstep: Terminal, mar_bundle: Path, tmp_path: Path
) -> None:
    """Not the preset, which another bundle may have otherwise."""
    out = tmp_path / "x.png"
    preset = ("--preset", "fast", "--diffusion-steps", 6)
    assert fewstep("generate", mar_bundle, "--class", 0, *preset, "--out", out).code == 0
    said = _settings(out)
    assert (said["iterations"], said["diffusion_steps"], said["refresh"]) == (3, "6", 2)
    assert "preset" not in said and None not in said.values()
    other = tmp_path / "other.png"
    assert fewstep("generate", mar_bundle, "--class", 0, "--out", other).code == 0
    assert (_settings(other)["iterations"], _settings(other)["refresh"]) == (6, 1)


def test_the_iterations_are_shown_one_by_one(
    fewstep: Terminal, mar_bundle: Path, tmp_path: Path
) -> None:
    gif, words = tmp_path / "steps.gif", ("--class", 0, "--iterations", 5)
    told = fewstep("generate", mar_bundle, *words, "--trace", gif, "--out", tmp_path / "x.png")
    assert told.code == 0, told.err
    frames = [np.asarray(each.convert("RGB")) for each in ImageSequence.Iterator(Image.open(gif))]
    assert len(frames) >= 5
    assert len({each.tobytes() for each in frames}) >= 5


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--preset", "slow"), "this bundle has no preset 'slow': it has fast"),
        (("--iterations", 17), "iterations must be 1 … 16, as many as there are tokens"),
        (("--iterations", 0), "iterations must be 1 … 16"),
        (("--diffusion-steps", 0), "diffusion_steps must be at least 1, got 0"),
        (("--diffusion-steps", "5:4:3"), "must be START:END"),
        (("--diffusion-steps", "5,4"), "a value for each of the 6 iterations"),
        (("--diffusion-steps", "ddim999"), "no stride takes so many"),
        (("--guidance", "1,2"), "a value for each of the 6 iterations, got guidance 2"),
        (("--guidance", -1), "guidance must be finite and at least 0"),
        (("--temperature", "x"), "temperature must be a number"),
        (("--max-timestep", -1), "max_timestep must be at least 0"),
        (("--refresh", 0), "refresh must be at least 1"),
        (("--refresh", 3, "--refresh-first", 0), "refresh_first must be at least 1"),
        (("--refresh", 3, "--recompute", 2), "recompute must be parts, 0 … 1, got 2"),
        (("--reuse-guidance", "true"), "reuse_guidance needs refresh"),
        (("--steps", 4), "unknown setting 'steps'"),
        (("--schedule", "policy"), "unknown setting 'schedule'"),
    ],
)
def test_what_does_not_fit_is_one_line(
    fewstep: Terminal, mar_bundle: Path, tmp_path: Path, words: tuple[object, ...], said: str
) -> None:
    out = tmp_path / "x.png"
    told = fewstep("generate", mar_bundle, "--class", 0, *words, "--out", out)
    assert told.code == 1
    assert said in told.err
    assert len(told.err.splitlines()) == 1
    assert not out.exists()


# --- what a diffusion takes


def test_the_plan_says_how_often_an_operation_runs(fewstep: Terminal, mar_bundle: Path) -> None:
    words = ("inspect", mar_bundle, "--plan", "--iterations", 2, "--diffusion-steps", "7:3")
    shown = fewstep(*words).out.splitlines()
    rows = [[cell.strip() for cell in line.split("│")[1:4]] for line in shown if "│" in line]
    assert ["0", "run ×7", "head"] in rows and ["1", "run ×3", "head"] in rows
    assert ["1", "launch ×3", "advance"] in rows and ["0", "run", "encoder"] in rows
    listed = _json(fewstep, *words)["operations"]
    times = {(each["what"], each["step"]): each["times"] for each in listed}
    for name in ("head", "diffusion_step", "advance"):
        assert (times[name, "0"], times[name, "1"]) == ("7", "3")
    assert all(times[name, "0"] == "1" for name in ("encoder", "readout", "start_diffusion"))
    ops = [each["what"] for each in listed if each["step"] == "0"]
    at = ops.index("head")
    assert ops[at : at + 3] == ["head", "diffusion_step", "advance"]


def test_the_plan_says_what_guidance_takes(fewstep: Terminal, mar_bundle: Path) -> None:
    def plan(*words: object) -> dict[str, int]:
        told = _json(fewstep, "inspect", mar_bundle, "--plan", *words)
        return {name: each["bytes"] for name, each in told["buffers"].items()}

    half, whole = plan("--guidance", 1), plan()
    assert whole["encoder_cache"] == 2 * half["encoder_cache"] == 2 * 4 * 16 * 128 * 4
    assert whole["hidden"] == 2 * half["hidden"] == 2 * 22 * 32 * 4
    assert all(whole[name] == half[name] for name in ("tokens", "image", "pixels", "sampled"))
    assert plan(*_CACHED)["encoder_cache"] == half["encoder_cache"]


def test_estimates_count_every_diffusion_step(fewstep: Terminal, mar_bundle: Path) -> None:
    words = ("estimate", mar_bundle, "--iterations", 3)
    data = _json(fewstep, *words, "--diffusion-steps", "10,15,20")
    for device in data["devices"]:
        for precision in (each for each in device["precisions"] if each["available"]):
            stages = precision["stages"]
            runs = {
                name: sum(each["runs"] for each in stages if each["name"] == name)
                for name in ("head", "diffusion_step", "advance", "encoder", "decoder")
            }
            assert [*runs.values()] == [45, 45, 45, 3, 1]
            assert len(precision["steps_ms"]) == 3
            (advance,) = (each for each in stages if each["name"] == "advance")
            assert advance["steps"] == [0, 1, 2]
    shown = fewstep(*words, "--device", "orin-nano", "--precision", "fp16").out
    assert "orin-nano: at least " in shown
    assert "(3 steps, batch 1), bound by launches" in shown
    assert "None" not in shown


def test_an_estimate_of_a_diffusion_of_two_steps_is_that_of_one_and_a_step(
    fewstep: Terminal, mar_bundle: Path
) -> None:
    def bound(steps: int) -> float:
        words = ("--device", "thor", "--precision", "fp16", "--diffusion-steps", steps)
        data = _json(fewstep, "estimate", mar_bundle, *words)
        found: float = data["devices"][0]["precisions"][0]["batch_ms"]
        return found

    one, two, hundred = bound(1), bound(2), bound(100)
    assert two > one
    assert hundred - one == pytest.approx(99 * (two - one))


def test_bench_times_its_stages(fewstep: Terminal, mar_bundle: Path) -> None:
    words = ("--iterations", 2, "--diffusion-steps", 3, 9, "--runs", 2, "--device", "cpu")
    first, second = _json(fewstep, "bench", mar_bundle, *words)["measurements"]
    assert (first["settings"]["diffusion_steps"], second["settings"]["diffusion_steps"]) == (
        *("3", "9"),
    )
    stages = {"encoder", "decoder_start", "decoder_rest", "readout", "head", "diffusion", "decoder"}
    assert stages <= first["stages_ms"].keys()


# --- verify, and help


def test_a_bundle_is_verified(fewstep: Terminal, mar_bundle: Path) -> None:
    told = fewstep("verify", mar_bundle)
    assert told.code == 0, told.err
    for word in ("readout", "head", "decoder", "loop", "full", "cached"):
        assert word in told.out
    for metric in ("largest latent error", "largest noise error", "largest error at the end"):
        assert metric in told.out
    data = _json(fewstep, "verify", mar_bundle)
    assert data["passed"]


@pytest.mark.parametrize("command", ["generate", "bench", "inspect", "estimate"])
def test_help_has_all_settings(
    fewstep: Terminal, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    shown = " ".join(fewstep(command, "--help").out.split())
    for said in (
        "--preset VALUE Settings that the bundle knows by a name",
        "--iterations VALUE mar: Transformer passes",
        "--diffusion-steps VALUE mar: Steps of the diffusion head",
        "--max-timestep VALUE mar: Largest timestep",
        "--guidance VALUE mar: Guidance scale at the end",
        "--temperature VALUE mar: Scales the noise",
        "--refresh VALUE mar: Compute everything only in every so many iterations",
        "--refresh-first VALUE mar: Iterations at the start",
        "--recompute VALUE mar: Part of all positions",
        "--reuse-guidance VALUE mar: Take the unconditional half",
    ):
        assert said in shown


def test_export_asks_for_its_files(fewstep: Terminal) -> None:
    shown = fewstep("export", "mar", "--help").out
    assert all(option in shown for option in ("--transformer", "--tokenizer", "--config", "--out"))
    absent = fewstep("export", "mar", "--out", "x")
    assert absent.code == 2
    assert len(absent.err.splitlines()) == 1
