"""Jetson: what is read off its files, laid out here as JetPack 6 and 7 have them, and what is not.

The formats are those that boards show in public: nothing here was read off one of our own.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from fewstep.runtime import jetson
from fewstep.runtime.jetson import GpuClock, Jetson, find_jetson, tensorrt_remedy

_ORIN_NANO = "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super\0"
_JETPACK_6 = """\
# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64, DATE: Wed Jan  8 \
01:49:37 UTC 2025
# KERNEL_VARIANT: oot
TARGET_USERSPACE_LIB_DIR=nvidia
TARGET_USERSPACE_LIB_DIR_PATH=usr/lib/aarch64-linux-gnu/nvidia
"""
_JETPACK_7 = """\
# R38 (release), REVISION: 2.2, GCID: 42205042, BOARD: generic, EABI: aarch64, DATE: Thu Sep 25 \
22:47:11 UTC 2025
# KERNEL_VARIANT: oot
"""
_ORIN_MODES = """\
# < POWER_MODEL ID=9 NAME=COMMENT >
< PM_CONFIG DEFAULT=1 >
< POWER_MODEL ID=0 NAME=15W >
CPU_ONLINE CORE_0 1
GPU MAX_FREQ 612000000
< POWER_MODEL ID=1 NAME=25W >
< POWER_MODEL ID=2 NAME=MAXN_SUPER >
< POWER_MODEL ID=3 NAME=7W >
"""
_PACKAGES = """\
Package: nvidia-jetpack-runtime
Status: install ok installed
Version: 9.9

Package: nvidia-l4t-core
Status: install ok installed
Priority: required
Architecture: arm64
Version: 36.4.4-20250616085344
Description: NVIDIA Core Package
 A line that goes on.

Package: nvidia-jetpack
Status: install ok installed
Version: 6.2.1+b38
"""

Tree = Callable[[dict[str, str]], Path]


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    """Lay out files below a root folder."""

    def lay_out(files: dict[str, str]) -> Path:
        for name, text in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return tmp_path

    return lay_out


def _clock(name: str, *frequencies: int) -> dict[str, str]:
    kinds = ("min", "cur", "max")
    return {
        f"sys/class/devfreq/{name}/{kind}_freq": f"{hertz}\n"
        for kind, hertz in zip(kinds, frequencies, strict=True)
    }


_ORIN = {
    "proc/device-tree/model": _ORIN_NANO,
    "etc/nv_tegra_release": _JETPACK_6,
    "etc/nvpmodel.conf": _ORIN_MODES,
    "var/lib/nvpmodel/status": "pmode:0002 fmode:fan_mode_quiet\n",
    **_clock("17000000.gpu", 306_000_000, 612_000_000, 1_020_000_000),
    **_clock("15340000.vic", 1, 2, 3),
}
_THOR = {
    "proc/device-tree/model": "NVIDIA Jetson AGX Thor Developer Kit\0",
    "etc/nv_tegra_release": _JETPACK_7,
    "etc/nvpmodel.conf": "< POWER_MODEL ID=0 NAME=MAXN >\n< POWER_MODEL ID=1 NAME=120W >\n",
    "var/lib/nvpmodel/status": "pmode:0001",
    **_clock("gpu-gpc-0", 1_575_000_000, 1_575_000_000, 1_575_000_000),
    **_clock("gpu-nvd-0", 1, 2, 3),
}


def _silent() -> str | None:
    pytest.fail("nvpmodel was asked although its files say everything")


def _found(root: Path, query: Callable[[], str | None] = _silent) -> Jetson:
    found = find_jetson(root, query)
    assert found is not None
    return found


def test_orin_of_jetpack_6(tree: Tree) -> None:
    found = _found(tree(_ORIN))
    assert found.rows() == {
        "Jetson": "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super",
        "JetPack": "6",
        "Jetson Linux": "36.4.3",
        "power mode": "MAXN_SUPER",
        "GPU clock": "612 of 1020 MHz, moves from 306",
    }
    assert found.warnings() == (
        "the GPU clock is not locked (612 of 1020 MHz, moves from 306): times will vary; hold it "
        "with: sudo jetson_clocks",
    )


def test_thor_of_jetpack_7(tree: Tree) -> None:
    found = _found(tree(_THOR))
    assert found.rows()["GPU clock"] == "1575 of 1575 MHz, locked"
    assert (found.jetpack, found.release, found.power_mode) == ("7", "38.2.2", "120W")
    assert found.warnings() == (
        "the power mode is 120W, not MAXN: for full speed: sudo nvpmodel -m 0 (MAXN)",
    )


def test_full_speed_with_locked_clocks_is_no_warning(tree: Tree) -> None:
    files = _ORIN | _clock("17000000.gpu", 1_020_000_000, 1_020_000_000, 1_020_000_000)
    assert _found(tree(files)).warnings() == ()


@pytest.mark.parametrize("name", ["17000000.gpu", "17000000.ga10b", "17000000.gv11b", "gpu-gpc-0"])
def test_gpus_clock_is_found_among_others(tree: Tree, name: str) -> None:
    others = _clock("bwmgr", 1, 2, 3) | _clock("gpu-nvd-0", 4, 5, 6)
    own = _clock(name, 7_000_000, 8_000_000, 9_000_000)
    root = tree({"etc/nv_tegra_release": _JETPACK_6, **others, **own})
    assert _found(root, lambda: None).clock == GpuClock(7, 8, 9)


@pytest.mark.parametrize("text", ["", "unknown\n", "-1"])
def test_unreadable_clock_is_left_open(tree: Tree, text: str) -> None:
    found = _found(tree(_ORIN | {"sys/class/devfreq/17000000.gpu/cur_freq": text}))
    assert found.clock is None
    assert found.warnings() == ()


def test_clock_without_a_lower_end_counts_as_locked_at_its_upper(tree: Tree) -> None:
    root = tree(_ORIN)
    (root / "sys/class/devfreq/17000000.gpu/min_freq").unlink()
    assert _found(root).clock == GpuClock(612, 612, 1020)


# --- Release and JetPack


def test_packages_say_more_than_the_release_file(tree: Tree) -> None:
    found = _found(tree(_ORIN | {"var/lib/dpkg/status": _PACKAGES}))
    assert (found.release, found.jetpack) == ("36.4.3", "6.2.1")


def test_package_stands_in_for_an_absent_release_file(tree: Tree) -> None:
    root = tree(_ORIN | {"var/lib/dpkg/status": _PACKAGES})
    (root / "etc/nv_tegra_release").unlink()
    assert _found(root).release == "36.4.4"


def test_removed_package_does_not_count(tree: Tree) -> None:
    removed = _PACKAGES.replace("install ok installed", "deinstall ok config-files")
    assert _found(tree(_ORIN | {"var/lib/dpkg/status": removed})).jetpack == "6"


@pytest.mark.parametrize(
    ("release", "jetpack"), [("R35", "5"), ("R36", "6"), ("R38", "7"), ("R39", "7"), ("R99", None)]
)
def test_jetpack_follows_from_the_release(tree: Tree, release: str, jetpack: str | None) -> None:
    text = _JETPACK_6.replace("R36", release)
    found = _found(tree({"etc/nv_tegra_release": text}), lambda: None)
    assert found.jetpack == jetpack
    assert found.model == "unknown model"


# --- Power mode


@pytest.mark.parametrize(
    ("status", "mode", "remedy"),
    [
        ("pmode:0000", "15W", "sudo nvpmodel -m 2 (MAXN_SUPER)"),
        ("pmode:0003 fmode:cool", "7W", "sudo nvpmodel -m 2 (MAXN_SUPER)"),
    ],
)
def test_slower_mode_names_the_fastest(tree: Tree, status: str, mode: str, remedy: str) -> None:
    found = _found(tree(_ORIN | {"var/lib/nvpmodel/status": status}))
    assert found.power_mode == mode
    assert remedy in found.warnings()[0]


def test_board_without_maxn_shows_its_modes(tree: Tree) -> None:
    modes = "< POWER_MODEL ID=0 NAME=15W >\n< POWER_MODEL ID=1 NAME=7W >\n"
    files = {"etc/nvpmodel.conf": modes, "var/lib/nvpmodel/status": "pmode:0001"}
    warning = _found(tree(_ORIN | files)).warnings()[0]
    assert "this board has 0 15W, 1 7W; choose with: sudo nvpmodel -m NUMBER" in warning


@pytest.mark.parametrize(
    ("printed", "mode"),
    [
        ("NV Power Mode: MAXN\n0\n", "MAXN"),
        ("NVPM WARN: fan mode is not set!\nNV Power Mode: 15W\n2\n", "15W"),
        ("nvpmodel: cannot be used here\n", None),
        (None, None),
    ],
)
def test_nvpmodel_is_asked_where_no_file_tells(
    tree: Tree, printed: str | None, mode: str | None
) -> None:
    root = tree({"etc/nv_tegra_release": _JETPACK_6})
    assert _found(root, lambda: printed).power_mode == mode


def test_mode_without_a_name_is_shown_by_number(tree: Tree) -> None:
    root = tree({"etc/nv_tegra_release": _JETPACK_6, "var/lib/nvpmodel/status": "pmode:0004"})
    found = _found(root, lambda: None)
    assert found.power_mode == "number 4"
    assert found.warnings() == (
        "the power mode is number 4, not MAXN: choose with: sudo nvpmodel -m NUMBER",
    )


@pytest.mark.parametrize(
    ("script", "printed"),
    [("echo 'NV Power Mode: 30W'; exit 3", "NV Power Mode: 30W\n"), ("exec sleep 60", None)],
)
def test_nvpmodel_runs_with_a_time_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, printed: str | None
) -> None:
    program = tmp_path / "nvpmodel"
    program.write_text(f"#!/bin/sh\n[ $1 = -q ] && exec 2>&1\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr(jetson, "_PATIENCE_S", 0.2 if printed is None else 20)
    assert jetson._ask_nvpmodel() == printed


def test_absent_nvpmodel_says_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert jetson._ask_nvpmodel() is None


# --- What is no Jetson, and what hides


@pytest.mark.parametrize(
    "files",
    [
        {},
        {"proc/device-tree/model": "Raspberry Pi 5 Model B Rev 1.0\0"},
        {"etc/nv_tegra_release": "something else\n"},
        {"var/lib/dpkg/status": "Package: other\nStatus: install ok installed\nVersion: 1\n"},
    ],
)
def test_other_machines_are_none(tree: Tree, files: dict[str, str]) -> None:
    assert find_jetson(tree(files), _silent) is None


def test_container_that_hides_everything_but_the_model(tree: Tree) -> None:
    found = _found(tree({"proc/device-tree/model": _ORIN_NANO}), lambda: None)
    assert list(found.rows()) == ["Jetson"]
    assert found.warnings() == ()


def test_folders_in_the_place_of_files_are_no_crash(tmp_path: Path) -> None:
    for name in _ORIN:
        (tmp_path / name).mkdir(parents=True)
    assert find_jetson(tmp_path, _silent) is None


# --- TensorRT


def test_remedy_tells_whether_apt_has_brought_tensorrt(tree: Tree) -> None:
    root = tree({"usr/lib/python3/dist-packages/other/__init__.py": ""})
    assert tensorrt_remedy(root).startswith("sudo apt install python3-libnvinfer, and ")
    tree({"usr/lib/python3.10/dist-packages/tensorrt/__init__.py": ""})
    assert tensorrt_remedy(root).startswith("apt's module is there; ")
    assert tensorrt_remedy(root).endswith("python3 -m venv --system-site-packages")
