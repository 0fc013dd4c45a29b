"""One engine, built by a process of its own.

A builder that crashes, runs out of memory or is interrupted takes nothing else with it, and its
memory is gone when it ends. Ctrl-C ends it at once, wherever it is.

The process also makes builds nearly repeatable. TensorRT-RTX orders what it builds by address:
randomisation is off there (as ``setarch --addr-no-randomize`` does, where that is allowed), and it
reads the graph by its bare name. What is left is the timing of its own threads, so that some builds
of a graph still differ in the order of a few parts.

    this process ──request, one line of JSON──► the other
                 ◄──phases, then what was built or why not, a line each──
                 ◄──the engine, as a file──
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fewstep.build.tensorrt_builder import BuiltEngine, EngineRequest, build_here
from fewstep.runtime.engines.tensorrt_api import TensorRt, load
from fewstep.runtime.errors import EngineError, FewstepError
from fewstep.runtime.progress import Progress
from fewstep.runtime.records import BuildOptions, ShapeRange

# 0x0040000 is ADDR_NO_RANDOMIZE; prctl 1 is PR_SET_PDEATHSIG: who started it may be killed.
_START = """
import ctypes, os, sys
libc = ctypes.CDLL(None)
libc.personality(libc.personality(0xFFFFFFFF) | 0x0040000)
libc.prctl(1, 9)
os.execv(sys.executable, [sys.executable, "-I", "-c", sys.argv[1]])
"""
_MAIN = """
import json, sys
request = json.loads(sys.stdin.readline())
sys.path[:] = request.pop("sys_path")
from fewstep.build.builder_process import main
main(request)
"""
_LAST_LINES = 5


def build_engine(api: TensorRt, request: EngineRequest, progress: Progress) -> BuiltEngine:
    """Build one engine in a process of its own.

    Args:
        api: the module to build with.
        request: graph, profiles and options.
        progress: called with the builder's phases.

    Raises:
        EngineError: the parser or the builder refuses something, or the process crashes.
        KeyboardInterrupt: the process has ended.
    """
    with tempfile.TemporaryDirectory() as folder, open(f"{folder}/log", "w+b") as log:  # noqa: PTH123
        out = Path(folder) / "engine"
        process = subprocess.Popen(
            [sys.executable, "-I", "-c", _START, _MAIN],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            cwd=request.path.parent,
            start_new_session=True,  # Ctrl-C is for this process, which then ends the other
            text=True,
        )
        try:
            answer = _talk(process, _as_json(api, request, out), progress)
        finally:
            process.kill()
            process.communicate()
        if answer is None:
            log.seek(0)
            raise _crashed(request, process.returncode, log.read())
        if "error" in answer:
            raise EngineError(answer["error"])
        return BuiltEngine(
            content=memoryview(out.read_bytes()),
            warnings=tuple(answer["warnings"]),
            seconds=answer["seconds"],
            peak_memory_bytes=answer["peak_memory_bytes"],
        )


def main(request: dict[str, Any]) -> None:
    """What the process does: build, and say so on standard output."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    say = _speaker()
    wanted = EngineRequest(
        graph=request["graph"],
        path=Path(request["file"]),
        profiles=[
            {name: ShapeRange(**ranges) for name, ranges in profile.items()}
            for profile in request["profiles"]
        ],
        options=BuildOptions(**request["options"]),
        capabilities=request["capabilities"],
    )
    try:
        api = load(request["backend"])
        built = build_here(api, wanted, lambda phase, done: say({"phase": phase, "done": done}))
    except FewstepError as error:
        say({"error": str(error)})
        return
    Path(request["out"]).write_bytes(built.content)
    say(
        {
            "warnings": built.warnings,
            "seconds": built.seconds,
            "peak_memory_bytes": built.peak_memory_bytes,
        }
    )


def _talk(
    process: subprocess.Popen[str], request: str, progress: Progress
) -> dict[str, Any] | None:
    """Send the request and pass phases on; the last line, or ``None`` if there was none."""
    assert process.stdin is not None and process.stdout is not None
    try:
        process.stdin.write(request + "\n")
        process.stdin.flush()
    except BrokenPipeError:
        process.wait()
        return None
    answer: dict[str, Any] | None = None
    for line in map(json.loads, process.stdout):
        if "phase" in line:
            progress(line["phase"], line["done"])
        else:
            answer = line
            break
    process.wait()
    return answer


def _as_json(api: TensorRt, request: EngineRequest, out: Path) -> str:
    return json.dumps(
        {
            "sys_path": sys.path,
            "backend": api.backend,
            "graph": request.graph,
            "file": request.path.name,
            "profiles": [
                {name: ranges.model_dump() for name, ranges in profile.items()}
                for profile in request.profiles
            ],
            "options": request.options.model_dump(),
            "capabilities": list(request.capabilities),
            "out": str(out),
        }
    )


def _speaker() -> Callable[[dict[str, Any]], None]:
    """Writes lines to standard output, which is then closed to everything else."""
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def say(message: dict[str, Any]) -> None:
        out.write(json.dumps(message) + "\n")
        out.flush()

    return say


def _crashed(request: EngineRequest, code: int, log: bytes) -> EngineError:
    how = f"ended with code {code}"
    if code < 0:
        how = f"crashed ({signal.Signals(-code).name})"
    lines = log.decode(errors="replace").strip().splitlines()[-_LAST_LINES:]
    said = f": {' '.join(lines)}" if lines else ""
    return EngineError(
        f"graph '{request.graph}' ({request.path.name}): the builder {how}{said}; if memory ran "
        "out, build for a smaller --max-batch, or close other programs"
    )
