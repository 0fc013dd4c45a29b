"""Sessions of ONNX Runtime: their threads, their telemetry, and what a fork leaves of them.

Every session has a pool of its own, as large as the cores that this process may use. ONNX Runtime's
one pool for a whole process is used where the program has made it
(``onnxruntime.set_global_thread_pool_sizes``); the sample's images then took 52 ms instead of 58 on
2 cores. It is never made here: once it is there, every session of the process that does not ask for
it is refused, those of other libraries too, and a forked child can neither use it nor do without.
"""

from __future__ import annotations

import ctypes
import os
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fewstep.runtime.errors import DeviceError, missing
from fewstep.runtime.machine import cores, startable

if TYPE_CHECKING:
    import onnxruntime

_ONE_POOL = "use_per_session_threads must be false"

_one_pool_in: dict[str, int] = {}
_sessions: weakref.WeakSet[Any] = weakref.WeakSet()


def new_session(
    graph: Path | bytes,
    *,
    threads: int = 0,
    providers: Sequence[str | tuple[str, dict[str, str]]] | None = None,
    configure: Callable[[onnxruntime.SessionOptions], None] = lambda options: None,
) -> onnxruntime.InferenceSession:
    """Open a graph.

    Args:
        graph: an ``.onnx`` file, or its contents.
        threads: on the CPU; 0 is as many as this process may use cores. Fewer if the system
            refuses to start so many.
        providers: the CPU's unless given.
        configure: changes further options.

    Raises:
        MissingDependencyError: onnxruntime is not installed.
        DeviceError: the one pool of the process is that of another, before a fork.
        Exception: ONNX Runtime refuses the graph, with types of its own.
    """
    module = _load()
    options = module.SessionOptions()
    options.intra_op_num_threads = _threads(threads)
    # Idle workers that spin would take the core that the loop's own kernels run on.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    configure(options)
    chosen = ["CPUExecutionProvider"] if providers is None else list(providers)
    # On the CPU nothing is left to fall back to, and ONNX Runtime would print that it does.
    rest = {"providers": chosen, **({"enable_fallback": 0} if providers is None else {})}
    try:
        session = module.InferenceSession(graph, options, **rest)
    except Exception as error:  # onnxruntime raises types of its own, without a common base
        if _ONE_POOL not in str(error):
            raise
        _require_pool_of_this_process()
        options.use_per_session_threads, options.intra_op_num_threads = False, 0
        session = module.InferenceSession(graph, options, **rest)
    _sessions.add(session)
    return session


def _load() -> Any:
    """The module, silent: ``fewstep/__init__.py`` asks for that before, where it still can."""
    try:
        import onnxruntime
    except ImportError as error:
        raise missing("onnxruntime", "cpu") from error
    if os.environ.get("ORT_DISABLE_TELEMETRY") == "1":
        onnxruntime.disable_telemetry_events()  # imported before fewstep, it has not been told
    return onnxruntime


def _threads(wanted: int) -> int:
    """Threads of a session, the caller's among them.

    ONNX Runtime waits forever for threads that could not be started, so it is asked for what can
    be; then for half of it, as other graphs need threads too.
    """
    wanted = wanted or cores()
    others = startable(wanted - 1)
    return wanted if others == wanted - 1 else 1 + others // 2


def _require_pool_of_this_process() -> None:
    if _one_pool_in.setdefault("process", os.getpid()) != os.getpid():
        raise DeviceError(
            "ONNX Runtime's one pool of threads was made before a fork and does not work in this "
            "process; call onnxruntime.set_global_thread_pool_sizes after the fork, in each process"
        )


def _keep_in_child() -> None:
    """Never destroy a forked session: its threads are not there, and it would wait for them."""
    for session in _sessions:
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(session))


if hasattr(os, "register_at_fork"):  # where there is no fork, nothing is to be done
    os.register_at_fork(after_in_child=_keep_in_child)
