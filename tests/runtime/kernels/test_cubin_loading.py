"""The cubin of a bundle that a GPU gets, and why it gets none.

The cubins are stand-ins, a few bytes each: nothing here looks into them. Covered: the nearest
architecture that runs; other architectures, other sources, a compiler newer than the driver, and
damage, each refused with its remedy.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.runtime.kernels.cubin_stand_ins import COMPILER, compiled_for, kernels_of

from fewstep.runtime.bundle import Bundle
from fewstep.runtime.errors import BundleError
from fewstep.runtime.kernels import cubins
from fewstep.runtime.kernels.compile import sources_sha256
from fewstep.runtime.kernels.cubins import add_kernels, load_cubin, loads
from fewstep.runtime.records import KernelsInfo

_ROOT = Path(__file__).parents[3]
_DRIVER = (13, 1)


def _loaded(bundle: Bundle, capability: str) -> str:
    """Which cubin of :func:`compiled_for` a GPU gets."""
    return load_cubin(bundle, capability, _DRIVER).decode().removeprefix("cubin for ")


# --- which one a GPU gets


@pytest.mark.parametrize(
    ("built", "capability", "chosen"),
    [
        (["7.5", "8.0", "8.6", "8.9"], "8.6", "8.6"),
        (["8.9", "8.6", "8.0"], "8.6", "8.6"),
        (["8.0", "8.6"], "8.9", "8.6"),
        (["8.6", "8.0"], "8.9", "8.6"),
        (["8.0", "8.9"], "8.6", "8.0"),
        (["12.0", "12.1"], "12.1", "12.1"),
        (["12.0"], "12.1", "12.0"),
        (["10.0", "10.3", "12.0"], "10.7", "10.3"),
        (["9.0", "10.0", "12.0"], "10.3", "10.0"),
        (["10.0", "10.3"], "10.3", "10.3"),
        (["8.7"], "8.7", "8.7"),
        (["7.2", "7.5"], "7.2", "7.2"),
        (["11.0", "12.0"], "11.0", "11.0"),
    ],
)
def test_the_nearest_architecture_that_runs_is_chosen(
    bundle: Bundle, built: list[str], capability: str, chosen: str
) -> None:
    assert _loaded(add_kernels(bundle, compiled_for(*built)), capability) == chosen


@pytest.mark.parametrize(
    ("built", "capability"),
    [
        (["8.6"], "8.0"),  # made for a later minor revision
        (["8.9", "9.0"], "8.6"),
        (["8.0"], "9.0"),  # another major revision
        (["9.0"], "8.9"),
        (["12.0"], "1.2"),
        (["1.2"], "12.0"),
        (["8.0", "8.6", "9.0"], "10.0"),
        (["10.3"], "10.0"),
        (["10.0"], "12.0"),
        ([], "8.7"),
    ],
)
def test_kernels_for_other_gpus_are_refused(
    bundle: Bundle, built: list[str], capability: str
) -> None:
    added = add_kernels(bundle, compiled_for(*built))
    with pytest.raises(BundleError, match=f"this GPU is {re.escape(capability)}") as caught:
        load_cubin(added, capability, _DRIVER)
    assert all(each in str(caught.value) for each in built)
    assert _remedy(str(caught.value)) == _build(bundle, capability)


@pytest.mark.parametrize(
    ("built", "capability"),
    [
        (["8.0", "8.6"], "8.7"),
        (["8.7"], "8.9"),
        (["7.0"], "7.2"),
        (["7.2"], "7.5"),
        (["10.0"], "10.1"),  # Thor as CUDA 12 calls it
        (["10.1"], "10.3"),
        (["10.1"], "11.0"),
    ],
)
def test_jetsons_run_their_own_architecture_only(
    bundle: Bundle, built: list[str], capability: str
) -> None:
    """CUDA C++ Programming Guide, binary compatibility: "supported only for the desktop"."""
    with pytest.raises(BundleError, match=f"this GPU is {re.escape(capability)}"):
        load_cubin(add_kernels(bundle, compiled_for(*built)), capability, _DRIVER)


@given(
    built=st.lists(st.sampled_from(["8.0", "8.6", "8.9", "9.0", "12.0"]), min_size=1, unique=True),
    major=st.sampled_from([7, 8, 9, 10, 12]),
    minor=st.integers(0, 9).filter(lambda minor: minor not in (2, 7)),
)
def test_the_choice_follows_the_rule(
    tiny_bundle: Path, built: list[str], major: int, minor: int
) -> None:
    """Same major revision, no later minor revision, and the latest of those."""
    fitting = [each for each in built if (own := _pair(each))[0] == major and own[1] <= minor]
    bundle = _described(tiny_bundle, built)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Bundle, "verified", lambda self, name: Written(name))
        if fitting:
            best = max(fitting, key=_pair)
            assert load_cubin(bundle, f"{major}.{minor}", _DRIVER).decode() == f"{best}.cubin"
        else:
            with pytest.raises(BundleError):
                load_cubin(bundle, f"{major}.{minor}", _DRIVER)


class Written:
    """A file whose contents are its name."""

    def __init__(self, name: str) -> None:
        self._name = name

    def read_bytes(self) -> bytes:
        return self._name.encode()


def _pair(capability: str) -> tuple[int, int]:
    major, _, minor = capability.partition(".")
    return int(major), int(minor)


def _described(path: Path, built: list[str]) -> Bundle:
    """A bundle that claims to have cubins; nothing is written."""
    info = KernelsInfo(
        compiler=COMPILER,
        sources_sha256=sources_sha256(),
        cubins={each: f"{each}.cubin" for each in built},
    )
    read = Bundle.read(path)
    return Bundle(path, read.manifest.model_copy(update={"kernels": info}))


# --- why a GPU gets none


def test_bundle_without_kernels_says_how_to_make_them(bundle: Bundle) -> None:
    with pytest.raises(BundleError, match="has no CUDA kernels") as caught:
        load_cubin(bundle, "8.7", _DRIVER)
    assert _remedy(str(caught.value)) == _build(bundle, "8.7")


def test_kernels_of_other_sources_are_refused(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    added = add_kernels(bundle, replace(compiled_for("8.7"), sources_sha256="a" * 64))
    with pytest.raises(BundleError, match="are of another version of fewstep") as caught:
        load_cubin(added, "8.7", _DRIVER)
    assert _remedy(str(caught.value)) == _build(bundle, "8.7")
    monkeypatch.setattr(cubins, "sources_sha256", lambda: "a" * 64)
    assert _loaded(added, "8.7") == "8.7"


@pytest.mark.parametrize("capability", ["8.6", "10.3"])
@pytest.mark.parametrize(
    ("compiler", "driver", "works"),
    [
        ("NVRTC 13.5", (13, 0), True),  # minor version compatibility
        ("NVRTC 13.0", (13, 5), True),
        ("NVRTC 12.9", (13, 0), True),
        ("NVRTC 12.9", (12, 2), True),
        ("NVRTC 9.2", (10, 0), True),
        ("NVRTC 13.0", (12, 9), False),
        ("NVRTC 10.0", (9, 2), False),
    ],
)
def test_compiler_may_be_newer_than_the_driver_by_minor_versions(
    bundle: Bundle, capability: str, compiler: str, driver: tuple[int, int], works: bool
) -> None:
    _check_driver(bundle, capability, compiler, driver, works)


@pytest.mark.parametrize("capability", ["7.2", "8.7", "10.1", "11.0"])
@pytest.mark.parametrize(
    ("compiler", "driver", "works"),
    [
        ("NVRTC 12.6", (12, 6), True),
        ("NVRTC 12.6", (12, 9), True),  # as with NVIDIA's upgrade package
        ("NVRTC 12.9", (13, 0), True),
        ("NVRTC 12.9", (12, 6), False),
        ("NVRTC 12.10", (12, 9), False),  # numbers, not text
        ("NVRTC 13.5", (13, 0), False),
        ("NVRTC 13.0", (12, 6), False),
    ],
)
def test_compiler_must_not_be_newer_than_the_driver_of_a_jetson(
    bundle: Bundle, capability: str, compiler: str, driver: tuple[int, int], works: bool
) -> None:
    """Minor version compatibility is stated for the drivers of desktops and data centers."""
    _check_driver(bundle, capability, compiler, driver, works)


def _check_driver(
    bundle: Bundle, capability: str, compiler: str, driver: tuple[int, int], works: bool
) -> None:
    added = add_kernels(bundle, replace(compiled_for(capability), compiler=compiler))
    assert loads(compiler, capability, driver) is works
    if works:
        assert load_cubin(added, capability, driver) == f"cubin for {capability}".encode()
        return
    with pytest.raises(BundleError, match=f"compiled by {compiler}") as caught:
        load_cubin(added, capability, driver)
    assert f"CUDA {driver[0]}.{driver[1]}" in str(caught.value)


@pytest.mark.parametrize(
    ("capability", "compiler", "driver", "remedy"),
    [
        ("8.6", "NVRTC 13.0", (12, 6), "'fewstep[kernels12]' in an environment of its own"),
        (
            *("8.7", "NVRTC 12.9", (12, 6)),
            "'nvidia-cuda-nvrtc-cu12==12.6.*' 'nvidia-cuda-runtime-cu12==12.6.*'",
        ),
        (
            *("8.7", "NVRTC 13.0", (12, 6)),
            "'fewstep[kernels12]' 'nvidia-cuda-nvrtc-cu12==12.6.*' "
            "'nvidia-cuda-runtime-cu12==12.6.*' in an environment of its own",
        ),
        (
            *("11.0", "NVRTC 13.5", (13, 0)),
            "'nvidia-cuda-nvrtc==13.0.*' 'nvidia-cuda-runtime==13.0.*'",
        ),
    ],
)
def test_driver_is_told_how_to_compile_for_it(
    bundle: Bundle, capability: str, compiler: str, driver: tuple[int, int], remedy: str
) -> None:
    added = add_kernels(bundle, replace(compiled_for(capability), compiler=compiler))
    with pytest.raises(BundleError) as caught:
        load_cubin(added, capability, driver)
    assert str(caught.value).endswith(
        f"; compile them with its toolchain: pip install {remedy}, then "
        f"{_build(bundle, capability)}"
    )


def test_driver_without_a_toolchain_is_to_be_updated(bundle: Bundle) -> None:
    added = add_kernels(bundle, compiled_for("8.7"))
    with pytest.raises(BundleError, match=r"for CUDA 11\.4; update the driver$"):
        load_cubin(added, "8.7", (11, 4))


@pytest.mark.parametrize(
    ("compiler", "driver"),
    [
        ("NVRTC 12.9", (12, 6)),
        ("NVRTC 13.0", (12, 6)),
        ("NVRTC 13.0", (11, 4)),
        ("NVRTC 14.0", (13, 0)),
    ],
)
def test_extras_and_packages_that_are_recommended_exist(
    bundle: Bundle, compiler: str, driver: tuple[int, int]
) -> None:
    project = (_ROOT / "pyproject.toml").read_text(encoding="utf-8")
    extras = project.partition("[project.optional-dependencies]")[2].partition("\n[")[0]
    added = add_kernels(bundle, replace(compiled_for("8.7"), compiler=compiler))
    with pytest.raises(BundleError) as caught:
        load_cubin(added, "8.7", driver)
    named = re.findall(r"fewstep\[(\w+)\]", str(caught.value))
    assert set(named) <= set(re.findall(r"^(\w+) = \[", extras, re.MULTILINE))
    packages = re.findall(r"'(nvidia-[\w-]+)==", str(caught.value))
    assert set(packages) <= set(re.findall(r'"(nvidia-[\w-]+)>=', extras))


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (lambda path: path.write_bytes(b"cubin for 8.8"), "SHA-256"),
        (lambda path: path.write_bytes(b"cubin"), "has 5 bytes"),
        (Path.unlink, "is missing"),
        (lambda path: (path.unlink(), path.mkdir()), "is missing"),
    ],
)
def test_damaged_cubin_is_never_loaded(
    bundle: Bundle, damage: Callable[[Path], object], problem: str
) -> None:
    added = add_kernels(bundle, compiled_for("8.6", "8.7"))
    path = bundle.path / kernels_of(added).cubins["8.7"]
    damage(path)
    with pytest.raises(BundleError, match=problem) as caught:
        load_cubin(added, "8.7", _DRIVER)
    assert path.name in str(caught.value)
    assert _loaded(added, "8.6") == "8.6"


def _remedy(message: str) -> str:
    return message.rpartition(": ")[2]


def _build(bundle: Bundle, capability: str) -> str:
    return f"fewstep build {bundle.path} --kernels --compute-capability {capability}"
