"""Building kernels in tests: what was compiled is kept, and bundles are looked at."""

from __future__ import annotations

from pathlib import Path

import pytest

from fewstep.runtime.bundle import Bundle
from fewstep.runtime.generator import Generator
from fewstep.runtime.kernels import compile as compiling
from fewstep.runtime.kernels.compile import KernelCompiler

NEWEST_DRIVER = (99, 0)
_compile = KernelCompiler._compile
_made: dict[tuple[str, str], tuple[bytes, str]] = {}


class Calls:
    """What the compiler was asked for since it was last looked at."""

    def __init__(self) -> None:
        self._capabilities: list[str] = []

    def add(self, capability: str) -> None:
        self._capabilities.append(capability)

    def take(self) -> list[str]:
        taken, self._capabilities = self._capabilities, []
        return taken


def keep_compiled(monkeypatch: pytest.MonkeyPatch) -> Calls:
    """Keep what is compiled, so that no test waits for the same cubin again."""
    asked = Calls()

    def once(self: KernelCompiler, capability: str) -> tuple[bytes, str]:
        asked.add(capability)
        key = (capability, compiling.sources_sha256())
        if key not in _made:
            _made[key] = _compile(self, capability)
        return _made[key]

    monkeypatch.setattr(KernelCompiler, "_compile", once)
    return asked


def contents(path: Path) -> dict[str, bytes]:
    return {
        each.relative_to(path).as_posix(): each.read_bytes()
        for each in path.rglob("*")
        if each.is_file()
    }


def cubin_files(path: Path) -> list[Path]:
    return sorted(path.rglob("*.cubin"))


def usable(path: Path) -> None:
    """It reads, every listed file is whole, and images come out."""
    assert Bundle.read(path).damage() == {}
    with Generator.open(path, threads=1) as generator:
        assert generator.generate(class_ids=[0], steps=1).images.shape == (1, 8, 8, 3)
