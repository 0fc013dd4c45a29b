"""Sessions of ONNX Runtime: silence, and threads where the system has few or none to give."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Mapping
from pathlib import Path

import pytest

_GENERATE = """
    import os, time
    from fewstep.runtime import Generator
    with Generator.open({bundle!r}, threads={threads}) as generator:
        print(generator.generate(class_ids=[0], steps=1).images.shape)
        print(len(os.listdir("/proc/self/task")), "threads")
"""
_SHIM = r"""
    #include <netdb.h>
    #include <stdio.h>
    int getaddrinfo(const char *node, const char *service, const struct addrinfo *hints,
                    struct addrinfo **found) {
      fprintf(stderr, "[look-up] %s\n", node ? node : "-");
      return EAI_NONAME;
    }
"""


def _run(code: str, environment: Mapping[str, str] | None = None) -> str:
    """Output of Python code in a process of its own, which may take a minute."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, **(environment or {})},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library that answers every name look-up with "unknown", and tells of it."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None or sys.platform != "linux":
        pytest.skip("watching name look-ups needs Linux and a C compiler")
    folder = tmp_path_factory.mktemp("shim")
    (folder / "shim.c").write_text(textwrap.dedent(_SHIM))
    command = [compiler, "-shared", "-fPIC", "-o", "shim.so", "shim.c"]
    subprocess.run(command, cwd=folder, check=True)
    return folder / "shim.so"


def test_generating_looks_nobody_up_and_leaves_nothing_at_home(
    shim: Path, bundle_copy: Path, tmp_path: Path
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    # Without FEWSTEP_CPU_BACKEND, so that every backend that is installed is opened.
    code = _GENERATE.format(bundle=str(bundle_copy), threads=2)
    code += """
    import onnx, fewstep.calibration.quantize.activations, polygraphy.backend.onnxrt
    time.sleep(3)
    """
    kept = {name: os.environ[name] for name in ("PATH", "PYTHONPATH") if name in os.environ}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=120,
        env={**kept, "HOME": str(home), "NUMBA_CACHE_DIR": str(tmp_path), "LD_PRELOAD": str(shim)},
    )
    assert done.returncode == 0, done.stderr
    assert "[look-up]" not in done.stderr
    assert [each for each in home.rglob("*") if each.is_file()] == []


def test_the_users_own_setting_stays() -> None:
    code = "import os, fewstep; print(os.environ['ORT_DISABLE_TELEMETRY'])"
    assert _run(code, {"ORT_DISABLE_TELEMETRY": "0"}) == "0\n"
    assert _run("import os; os.environ.pop('ORT_DISABLE_TELEMETRY', None)\n" + code) == "1\n"


def test_loaded_before_it_is_told_not_to_report() -> None:
    code = """
        import os
        for name in ("ORT_DISABLE_TELEMETRY",):
            os.environ.pop(name, None)
        import onnxruntime
        onnxruntime.disable_telemetry_events = lambda: print("told")
        {user}
        from fewstep.runtime.engines.sessions import _load
        _load()
    """
    assert _run(code.format(user="")) == "told\n"
    assert _run(code.format(user="os.environ['ORT_DISABLE_TELEMETRY'] = '0'")) == ""


@pytest.mark.parametrize("limit", [1, 2, 4, 12])
@pytest.mark.skipif(sys.platform != "linux", reason="counts threads as Linux does")
def test_under_a_limit_of_threads_fewer_are_used(limit: int, tiny_bundle: Path) -> None:
    """Where ONNX Runtime asks for a thread that it cannot get, it waits forever."""
    limited = f"""
        import threading
        real, running = threading.Thread.start, 0
        def start(thread):
            if threading.active_count() > {limit}:
                raise RuntimeError("can't start new thread")
            real(thread)
        threading.Thread.start = start
    """
    code = textwrap.dedent(limited) + textwrap.dedent(
        _GENERATE.format(bundle=str(tiny_bundle), threads=64)
    )
    shape, threads = _run(code).splitlines()[:2]
    assert shape == "(1, 8, 8, 3)"
    assert int(threads.split()[0]) < 64


@pytest.mark.skipif(
    sys.platform != "linux" or os.geteuid() != 0,
    reason="the limit counts for every user but root, and root alone can become another one",
)
def test_a_limit_of_the_system_ends_in_time(tiny_bundle: Path) -> None:
    """``ulimit -u``; all that is imported was imported by root, whose files others may not read."""
    code = f"""
        import os, resource
        from fewstep.runtime import Generator
        from pathlib import Path
        from fewstep.runtime.engines.sessions import new_session
        Generator.open({str(tiny_bundle)!r}, threads=1).generate(class_ids=[0], steps=1)
        graphs = [path.read_bytes() for path in Path({str(tiny_bundle)!r}).glob("*.onnx")]
        os.setuid(54321)
        resource.setrlimit(resource.RLIMIT_NPROC, (20, 20))
        sessions = [new_session(graph, threads=40) for graph in graphs]
        print(len(os.listdir("/proc/self/task")), "threads")
    """
    assert 2 <= int(_run(code).split()[0]) <= 20


def test_the_one_pool_of_a_process_is_used_where_there_is_one(tiny_bundle: Path) -> None:
    """Then ONNX Runtime refuses sessions that do not ask for it."""
    import onnxruntime

    if not hasattr(onnxruntime, "set_global_thread_pool_sizes"):
        pytest.skip("this onnxruntime has no pool for all sessions")
    code = "import onnxruntime\nonnxruntime.set_global_thread_pool_sizes(3, 1)\n"
    code += textwrap.dedent(_GENERATE.format(bundle=str(tiny_bundle), threads=0))
    assert "(1, 8, 8, 3)" in _run(code)


def test_the_one_pool_of_a_process_before_a_fork_is_refused_by_name(tiny_bundle: Path) -> None:
    import onnxruntime

    if not hasattr(onnxruntime, "set_global_thread_pool_sizes") or not hasattr(os, "fork"):
        pytest.skip("this onnxruntime has no pool for all sessions, or this system no fork")
    code = f"""
        import onnxruntime, os, sys
        onnxruntime.set_global_thread_pool_sizes(3, 1)
        from fewstep.runtime import Generator
        generator = Generator.open({str(tiny_bundle)!r})
        generator.generate(class_ids=[0], steps=1)
        if os.fork() == 0:
            try:
                Generator.open({str(tiny_bundle)!r})
            except RuntimeError as error:
                sys.exit(7 if "was made before a fork" in str(error) else str(error))
        print(os.waitstatus_to_exitcode(os.wait()[1]))
    """
    assert _run(code) == "7\n"
