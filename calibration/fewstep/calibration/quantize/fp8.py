"""fp8 (e4m3) graphs by nvidia-modelopt, in a process of its own.

modelopt brings torch and onnxruntime-gpu, and works on its input file in place: so it runs under
an interpreter of its own environment, on a copy, in a temporary folder. Matmuls get names of their
own for what they read first, as in :mod:`fewstep.calibration.quantize.qdq`: modelopt, too, would
quantize for every other reader of a tensor.
"""

from __future__ import annotations

import functools
import importlib.util
import re
import subprocess
import sys
import tempfile
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from fewstep.calibration.quantize.matmuls import OPERATORS, weighted_matmuls
from fewstep.calibration.quantize.qdq import joined, separated
from fewstep.calibration.quantize.rollouts import Rollouts
from fewstep.runtime.errors import (
    EngineError,
    MissingDependencyError,
    OutputError,
    RequestError,
)
from fewstep.runtime.records import GraphInfo

_MODULE = "modelopt"
_ENVIRONMENT = (
    "python3 -m venv ~/modelopt && ~/modelopt/bin/pip install 'nvidia-modelopt[onnx]' torch, then "
    "pass --modelopt-python ~/modelopt/bin/python"
)
_SAID = 600
"""Characters of modelopt's last words in an error."""


def require_modelopt(python: Path | None) -> None:
    """Check that there is an interpreter with nvidia-modelopt.

    Args:
        python: the interpreter; ``None`` for this one.

    Raises:
        MissingDependencyError: there is none.
    """
    if python is None:
        if importlib.util.find_spec(_MODULE) is None:
            raise MissingDependencyError(
                "nvidia-modelopt, which quantizes to fp8, is not installed here; give it an "
                f"environment of its own, as it brings onnxruntime-gpu: {_ENVIRONMENT}"
            )
        return
    tool(python)


def require_one_shape(name: str, graph: GraphInfo) -> None:
    """Check that runs of a graph differ in their rows alone, which come first.

    Args:
        name: of the graph.
        graph: its inputs.

    Raises:
        RequestError: they do not: nvidia-modelopt takes one array per input, cut into rows.
    """
    varying = [name for name, each in graph.inputs.items() if _varies(each.shape)]
    if varying:
        raise RequestError(
            f"nvidia-modelopt takes runs of one shape, and those of {name} differ in "
            f"{', '.join(varying[:3])}; quantize with --precision int8"
        )


def _varies(shape: tuple[int | str, ...]) -> bool:
    """Whether anything but the number of rows, which come first, may vary."""
    return any(isinstance(each, str) for each in shape[1:]) or shape[:1] not in ((), ("batch",))


@functools.cache
def tool(python: Path | None) -> str:
    """What quantizes, with its version.

    Raises:
        MissingDependencyError: the interpreter does not start, or has no nvidia-modelopt.
    """
    code = "import importlib.metadata as m; print(m.version('nvidia-modelopt'))"
    try:
        done = subprocess.run(
            [_interpreter(python), "-c", code], capture_output=True, text=True, check=False
        )
    except OSError as error:
        raise MissingDependencyError(
            f"{python} does not start ({error.strerror}); expected a Python interpreter with "
            f"nvidia-modelopt: {_ENVIRONMENT}"
        ) from error
    if done.returncode:
        raise MissingDependencyError(
            f"{python or 'this Python'} has no nvidia-modelopt; make one that has: {_ENVIRONMENT}"
        )
    return f"nvidia-modelopt {done.stdout.strip()}"


def quantized(
    model: onnx.ModelProto, selected: Collection[str], rollouts: Rollouts, *, python: Path | None
) -> onnx.ModelProto:
    """Quantize some matmuls of an fp32 graph to fp8, everything else stays fp32.

    Args:
        model: the fp32 graph, weights included; not changed.
        selected: names of matmuls with weights.
        rollouts: what ranges are measured on, by maximum.
        python: the interpreter that has nvidia-modelopt; ``None`` for this one.

    Raises:
        EngineError: nvidia-modelopt fails; its last words are quoted.
        OutputError: no room for temporary files.
    """
    matmuls = [each for each in weighted_matmuls(model.graph) if each.name in selected]
    try:
        with tempfile.TemporaryDirectory(prefix="fewstep-") as name:
            folder = Path(name)
            onnx.save(separated(model, matmuls), folder / "given.onnx")
            data = _stacked(rollouts)
            np.savez(folder / "data.npz", **data)
            _run(folder, selected, python)
            return joined(onnx.load(folder / "made.onnx"))
    except DecodeError as error:
        raise EngineError(f"nvidia-modelopt left no ONNX graph: {error}") from error
    except OSError as error:
        if isinstance(error, OutputError):
            raise
        raise OutputError(
            f"cannot write temporary files in {tempfile.gettempdir()}: {error.strerror or error}; "
            "make room there, or set TMPDIR to another folder"
        ) from error


def _stacked(rollouts: Rollouts) -> dict[str, Any]:
    """What the graph is fed, as rows of one array per input."""
    runs = [each.inputs for each in rollouts.passes]
    return {name: np.concatenate([each[name] for each in runs]) for name in runs[0]}


def _run(folder: Path, selected: Collection[str], python: Path | None) -> None:
    command = [
        _interpreter(python),
        "-m",
        "modelopt.onnx.quantization",
        "--onnx_path=given.onnx",
        "--output_path=made.onnx",
        "--quantize_mode=fp8",
        "--calibration_data_path=data.npz",
        "--calibration_method=max",
        "--calibration_eps",
        "cpu",
        "--high_precision_dtype=fp32",
        "--disable_mha_qdq",
        "--dq_only",
        "--log_level=WARNING",
        "--op_types_to_quantize",
        *OPERATORS,
        "--nodes_to_quantize",
        *(f"^{re.escape(name)}$" for name in sorted(selected)),
    ]
    # In the folder: Python puts the current one on its path, and modelopt writes beside its input.
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, errors="replace", check=False
    )
    if done.returncode or not (folder / "made.onnx").is_file():
        said = " ".join((done.stderr or done.stdout).split())[-_SAID:]
        raise EngineError(
            f"nvidia-modelopt failed (exit code {done.returncode}): …{said}; try another version "
            "of it, or --precision int8"
        )


def _interpreter(python: Path | None) -> str:
    return sys.executable if python is None else str(python.expanduser())
