"""Processes forked from one with an open Generator: they end, and are told what they cannot use."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

if not hasattr(os, "fork"):
    pytest.skip("there is no fork here", allow_module_level=True)

_OPEN = """
    import gc, multiprocessing, os, sys, time
    from fewstep.runtime import Generator
    from fewstep.runtime.errors import DeviceError

    generator = Generator.open({bundle!r}, threads=3)
    generator.generate(class_ids=[0], steps=2)
    time.sleep(0.3)  # the pools' threads sleep by now

    def refused(use):
        try:
            use()
        except DeviceError as error:
            return "another process" in str(error) and "after the fork" in str(error)

    def request(number=0):
        return refused(lambda: generator.generate(class_ids=[number], steps=1))
"""


def _run(code: str, bundle: Path) -> subprocess.CompletedProcess[str]:
    """Code after the opening, in a process of its own; a child that hangs fails by timeout."""
    text = textwrap.dedent(_OPEN.format(bundle=str(bundle))) + textwrap.dedent(code)
    return subprocess.run(
        [sys.executable, "-c", text], capture_output=True, text=True, timeout=120, check=False
    )


@pytest.mark.parametrize(
    "child",
    [
        "sys.exit(7)",
        "os._exit(7)",
        "del generator; gc.collect(); sys.exit(7)",
        "generator.close(); generator.close(); sys.exit(7)",
        "generator.engines.clear(); generator = None; gc.collect(); os._exit(7)",
        "generator.__enter__()\n    with generator:\n        sys.exit(7)",
        "sys.exit(7 if request() else 1)",
        "sys.exit(7 if refused(lambda: generator.engines['decoder'].bind({})) else 1)",
        "sys.exit(7 if refused(lambda: generator.replace_engine('decoder', None)) else 1)",
    ],
)
def test_a_forked_child_ends(child: str, tiny_bundle: Path) -> None:
    code = f"""
if os.fork() == 0:
    {child}
print(os.waitstatus_to_exitcode(os.wait()[1]))
print(generator.generate(class_ids=[0], steps=1).images.shape)
"""
    done = _run(code, tiny_bundle)
    assert done.stdout == "7\n(1, 8, 8, 3)\n", done.stderr


def test_a_child_of_a_child_ends_too(tiny_bundle: Path) -> None:
    code = """
        if os.fork() == 0:
            if os.fork() == 0:
                del generator
                sys.exit(3)
            sys.exit(4 + os.waitstatus_to_exitcode(os.wait()[1]))
        print(os.waitstatus_to_exitcode(os.wait()[1]))
    """
    done = _run(code, tiny_bundle)
    assert done.stdout == "7\n", done.stderr


def test_a_child_opens_its_own(tiny_bundle: Path) -> None:
    code = f"""
        if os.fork() == 0:
            with Generator.open({str(tiny_bundle)!r}, threads=3) as own:
                same = own.generate(class_ids=[1], steps=2).images
            sys.exit(int(same.sum()) % 251)
        expected = int(generator.generate(class_ids=[1], steps=2).images.sum()) % 251
        print(os.waitstatus_to_exitcode(os.wait()[1]) == expected)
    """
    done = _run(code, tiny_bundle)
    assert done.stdout == "True\n", done.stderr


def test_a_pool_of_forked_processes_is_refused_and_ends(tiny_bundle: Path) -> None:
    code = """
        with multiprocessing.get_context("fork").Pool(2) as pool:
            print(pool.map(request, range(4)))
    """
    done = _run(code, tiny_bundle)
    assert done.stdout == f"{[True] * 4}\n", done.stderr
