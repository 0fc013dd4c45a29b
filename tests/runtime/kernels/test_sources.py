"""The kernels' sources and their hash, by which cubins of other sources are told apart.

Covered: which files they are, and that the hash counts every byte, name and border of them.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fewstep.runtime.kernels import compile as compiling
from fewstep.runtime.kernels.compile import kernel_sources, sources_sha256

_KERNELS = Path(__file__).parents[3] / "runtime" / "fewstep" / "runtime" / "kernels"


def test_the_sources_are_the_files_of_the_package() -> None:
    files = [*_KERNELS.glob("*.cu"), *_KERNELS.glob("*.cuh")]
    assert kernel_sources() == {path.name: path.read_bytes() for path in files}


def test_headers_that_the_sources_include_are_among_them() -> None:
    sources = kernel_sources()
    included = {
        name for text in sources.values() for name in re.findall(rb'#include "([^"]+)"', text)
    }
    assert {name.decode() for name in included} == set(sources) - {"kernels.cu"}


@given(data=st.data())
def test_any_changed_byte_changes_the_hash(data: st.DataObject) -> None:
    sources = kernel_sources()
    before = sources_sha256()
    name = data.draw(st.sampled_from(sorted(sources)))
    text = bytearray(sources[name])
    text[data.draw(st.integers(0, len(text) - 1))] ^= data.draw(st.integers(1, 255))
    assert _hash_of(sources | {name: bytes(text)}) != before
    assert sources_sha256() == before


def test_names_and_borders_of_files_count_for_the_hash() -> None:
    variants: list[dict[str, bytes]] = [
        {"a.cu": b"xy", "b.cu": b""},
        {"a.cu": b"x", "b.cu": b"y"},
        {"a.cu": b"", "b.cu": b"xy"},
        {"a.cu": b"xy", "c.cu": b""},
        {"a.cu": b"xy"},
    ]
    assert len({_hash_of(variant) for variant in variants}) == len(variants)


def _hash_of(sources: dict[str, bytes]) -> str:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiling, "kernel_sources", lambda: sources)
        return sources_sha256()
