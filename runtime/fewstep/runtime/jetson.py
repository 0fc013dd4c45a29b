"""What a Jetson says of itself in its files: board, release, power mode and GPU clock.

Everything is read from below a root folder, without privileges, and whatever is absent or not
readable (in a container most of it) is left open instead of being an error. Where it comes from:

| what | file |
|---|---|
| board | ``proc/device-tree/model``, ended by a zero byte |
| Jetson Linux (L4T) | ``etc/nv_tegra_release``, else the package ``nvidia-l4t-core`` |
| JetPack | the package ``nvidia-jetpack``, else the major version that goes with the release |
| power mode | ``var/lib/nvpmodel/status`` with the names in ``etc/nvpmodel.conf``, else nvpmodel |
| GPU clock | ``sys/class/devfreq/*/{min,cur,max}_freq`` in Hz |
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

_JETPACKS = {"32": "4", "34": "5", "35": "5", "36": "6", "38": "7", "39": "7"}
"""JetPack's major version by that of Jetson Linux."""

# Orin's and Thor's names, then Xavier's and older ones.
_GPU_CLOCK = re.compile(r"\.gpu$|^gpu-gpc-0$|\.(ga10b|gv11b|gp10b|gm20b)$|^gpu\.0$")
_RELEASE = re.compile(r"# R(\d+) \(release\), REVISION: ([\d.]+)")
_MODE_NAME = re.compile(r"^\s*<\s*POWER_MODEL\s+ID=(\d+)\s+NAME=(\S+?)\s*>", re.MULTILINE)
_MODE_ID = re.compile(r"pmode:(\d+)")
_QUERIED = re.compile(r"NV Power Mode:\s*(\S+)")
_INSTALLED = "\nStatus: install ok installed\n"
_PATIENCE_S = 1


@dataclass(frozen=True)
class GpuClock:
    """The range that the GPU's clock may move in, and where it is now, in MHz."""

    minimum_mhz: int
    now_mhz: int
    maximum_mhz: int

    @property
    def locked(self) -> bool:
        """Whether the clock is held in one place, as ``jetson_clocks`` does."""
        return self.minimum_mhz == self.maximum_mhz

    def __str__(self) -> str:
        state = "locked" if self.locked else f"moves from {self.minimum_mhz}"
        return f"{self.now_mhz} of {self.maximum_mhz} MHz, {state}"


@dataclass(frozen=True)
class Jetson:
    """One Jetson; what it does not say is ``None``.

    ``power_modes`` are the board's modes by name, with the number that ``nvpmodel -m`` takes:
    on some boards the fastest is 0, on others it is not.
    """

    model: str
    release: str | None = None
    jetpack: str | None = None
    power_mode: str | None = None
    power_modes: dict[str, int] = field(default_factory=dict)
    clock: GpuClock | None = None

    def rows(self) -> dict[str, str]:
        """Name and value of everything known, to be read and to be noted with measurements."""
        values = {
            "Jetson": self.model,
            "JetPack": self.jetpack,
            "Jetson Linux": self.release,
            "power mode": self.power_mode,
            "GPU clock": None if self.clock is None else str(self.clock),
        }
        return {name: value for name, value in values.items() if value is not None}

    def warnings(self) -> tuple[str, ...]:
        """What makes measurements on this device slower than need be, or not repeatable."""
        found = []
        if self.power_mode is not None and not self.power_mode.startswith("MAXN"):
            found.append(f"the power mode is {self.power_mode}, not MAXN: {self._faster_mode()}")
        if self.clock is not None and not self.clock.locked:
            found.append(
                f"the GPU clock is not locked ({self.clock}): times will vary; hold it with: "
                "sudo jetson_clocks"
            )
        return tuple(found)

    def _faster_mode(self) -> str:
        """The command that leads to MAXN, if this board has it."""
        fastest = [name for name in self.power_modes if name.startswith("MAXN")]
        if fastest:
            name = max(fastest, key=len)  # MAXN_SUPER before MAXN
            return f"for full speed: sudo nvpmodel -m {self.power_modes[name]} ({name})"
        modes = ", ".join(f"{number} {name}" for name, number in self.power_modes.items())
        known = f"this board has {modes}; " if modes else ""
        return f"{known}choose with: sudo nvpmodel -m NUMBER"


def find_jetson(
    root: Path = Path("/"), query: Callable[[], str | None] | None = None
) -> Jetson | None:
    """The Jetson that this is, or ``None``.

    Args:
        root: where ``proc``, ``sys``, ``etc`` and ``var`` are.
        query: gives what ``nvpmodel -q`` prints; asked only if no file tells the power mode.
    """
    release = _release(root)
    model = read(root / "proc/device-tree/model")
    if release is None and "Jetson" not in (model or ""):
        return None
    modes = {name: int(number) for number, name in _mode_names(root)}
    return Jetson(
        model=model or "unknown model",
        release=release,
        jetpack=_jetpack(root, release),
        power_mode=_power_mode(root, modes, query or _ask_nvpmodel),
        power_modes=modes,
        clock=_clock(root),
    )


def tensorrt_remedy(root: Path = Path("/")) -> str:
    """How TensorRT's Python module gets into an environment on a Jetson: apt alone has it."""
    environment = "an environment made by: python3 -m venv --system-site-packages"
    if any(root.glob("usr/lib/python3*/dist-packages/tensorrt")):
        return f"apt's module is there; see it from {environment}"
    return f"sudo apt install python3-libnvinfer, and {environment}"


def read(path: Path) -> str | None:
    """A small file without the zero bytes of device trees and white space at its ends."""
    try:
        return path.read_bytes().decode("utf-8", errors="replace").strip("\0 \n")
    except OSError:
        return None


def _release(root: Path) -> str | None:
    """``36.4.3``."""
    match = _RELEASE.search(read(root / "etc/nv_tegra_release") or "")
    if match:
        return f"{match[1]}.{match[2]}"
    package = _package_version(root, "nvidia-l4t-core")  # 36.4.3-20250107174145
    return package.partition("-")[0] if package else None


def _jetpack(root: Path, release: str | None) -> str | None:
    """``6.2.1``, or only ``6`` if no package says more."""
    package = _package_version(root, "nvidia-jetpack")  # 6.2.1+b38; until JetPack 5: 5.1.1-b56
    if package:
        return re.split(r"[+-]", package)[0]
    return _JETPACKS.get((release or "").partition(".")[0])


def _package_version(root: Path, package: str) -> str | None:
    """Version of an installed package; read off dpkg's own list, which needs no process."""
    for entry in (read(root / "var/lib/dpkg/status") or "").split("\n\n"):
        if entry.startswith(f"Package: {package}\n") and _INSTALLED in entry:
            version = re.search(r"^Version: (\S+)", entry, re.MULTILINE)
            return version[1] if version else None
    return None


def _mode_names(root: Path) -> list[tuple[str, str]]:
    """Number and name of every power mode of this board."""
    return _MODE_NAME.findall(read(root / "etc/nvpmodel.conf") or "")


def _power_mode(root: Path, modes: dict[str, int], query: Callable[[], str | None]) -> str | None:
    status = _MODE_ID.search(read(root / "var/lib/nvpmodel/status") or "")  # pmode:0002
    if status:
        number = int(status[1])
        names = [name for name, each in modes.items() if each == number]
        if names:
            return names[0]
    queried = _QUERIED.search(query() or "")
    if queried:
        return queried[1]
    return f"number {number}" if status else None


def _ask_nvpmodel() -> str | None:
    """What ``nvpmodel -q`` prints, without privileges, or nothing."""
    try:
        return subprocess.run(
            ["nvpmodel", "-q"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=_PATIENCE_S,
            encoding="utf-8",
            errors="replace",
            check=False,
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return None


def _clock(root: Path) -> GpuClock | None:
    try:
        folders = sorted((root / "sys/class/devfreq").iterdir())
    except OSError:
        return None
    for folder in folders:
        if _GPU_CLOCK.search(folder.name):
            now, maximum = _mhz(folder / "cur_freq"), _mhz(folder / "max_freq")
            if now is not None and maximum is not None:
                minimum = _mhz(folder / "min_freq")
                return GpuClock(now if minimum is None else minimum, now, maximum)
    return None


def _mhz(path: Path) -> int | None:
    text = read(path) or ""
    return round(int(text) / 1e6) if text.isdecimal() else None
