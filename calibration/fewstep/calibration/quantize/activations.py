"""The range of every activation that is quantized, measured on rollouts.

The calibrators are ONNX Runtime's, restricted to the tensors that matter (its own choice includes
attention, which is not quantized) and fed batch by batch, since its histograms otherwise keep
every activation of every batch until the end.

=============  =====================================================================
method         the range of a tensor
=============  =====================================================================
``min-max``    all that was seen
``percentile`` that many percent of the magnitudes
``entropy``    the clipping whose int8 histogram has the least KL divergence
=============  =====================================================================

The cache (``cache.py``) keeps them by graph.
"""

from __future__ import annotations

import contextlib
import io
import tempfile
import warnings
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnxruntime.quantization.calibrate import (
    CalibraterBase,
    CalibrationDataReader,
    EntropyCalibrater,
    MinMaxCalibrater,
    PercentileCalibrater,
)

from fewstep.calibration.quantize.rollouts import Rollouts
from fewstep.runtime.devices import Array
from fewstep.runtime.engines.sessions import new_session
from fewstep.runtime.errors import EngineError, OutputError
from fewstep.runtime.progress import Progress, no_progress
from fewstep.runtime.records import RangeMethod

BINS = 2048
"""Of a histogram. With ONNX Runtime's own 128, entropy has nothing to choose from."""

_INT8_BINS = 128

Ranges = dict[str, tuple[float, float]]
"""Lowest and highest value by tensor."""


def tool() -> str:
    """What measures and quantizes."""
    return f"onnxruntime {onnxruntime.__version__}"


def measure(
    model: onnx.ModelProto,
    tensors: Collection[str],
    rollouts: Rollouts,
    *,
    method: RangeMethod,
    percentile: float | None = None,
    progress: Progress = no_progress,
) -> Ranges:
    """Ranges of activations over every run of the rollouts.

    Args:
        model: the fp32 graph, weights included; not changed.
        tensors: names of float tensors in it.
        rollouts: what it is fed.
        method: a key of the module's table.
        percentile: of the magnitudes, above 0 and at most 100, for that method.
        progress: called as passes are made.

    Raises:
        EngineError: the graph cannot be run, or gave NaN or infinite numbers.
        OutputError: no room for temporary files.
    """
    progress("measuring ranges", 0.0)
    with _workplace() as folder:
        onnx.save(model, folder / "model.onnx")
        calibrator = _calibrator(folder, frozenset(tensors), method, percentile)
        try:
            calibrator.augment_graph()
            calibrator.create_inference_session()
            for done, each in enumerate(rollouts.passes, 1):
                calibrator.collect_data(_Once(each.inputs))
                progress("measuring ranges", done / len(rollouts.passes))
            found = calibrator.compute_data()
        except OSError:
            raise
        except Exception as error:  # onnxruntime raises types of its own, without a common base
            raise EngineError(f"ONNX Runtime cannot calibrate the graph: {error}") from error
    ranges = {name: _ends(found[name].range_value) for name in sorted(tensors)}
    _require_finite(ranges)
    return ranges


class _Once(CalibrationDataReader):  # type: ignore[misc]
    """One batch for ONNX Runtime's calibrators, which read until there is no more."""

    def __init__(self, inputs: Mapping[str, Array]) -> None:
        self._inputs: dict[str, Array] | None = dict(inputs)

    def get_next(self) -> dict[str, Array] | None:
        inputs, self._inputs = self._inputs, None
        return inputs


def _calibrator(
    folder: Path, tensors: frozenset[str], method: RangeMethod, percentile: float | None
) -> CalibraterBase:
    kinds: dict[str, tuple[type[CalibraterBase], dict[str, Any]]] = {
        "min-max": (MinMaxCalibrater, {}),
        "entropy": (EntropyCalibrater, {"num_bins": BINS, "num_quantized_bins": _INT8_BINS}),
        "percentile": (PercentileCalibrater, {"num_bins": BINS, "percentile": percentile}),
    }
    kind, options = kinds[method]

    class OnlyThese(kind):  # type: ignore[misc, valid-type]
        def select_tensors_to_calibrate(self, model: Any) -> Any:
            return tensors, super().select_tensors_to_calibrate(model)[1]

        def create_inference_session(self) -> None:
            path = Path(self.augmented_model_path)
            self.infer_session = new_session(path, configure=_as_it_is)

    return OnlyThese(
        folder / "model.onnx",
        augmented_model_path=str(folder / "augmented.onnx"),
        symmetric=True,
        **options,
    )


def _as_it_is(options: onnxruntime.SessionOptions) -> None:
    """No node is optimised away or fused, since its output is measured."""
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL


@contextlib.contextmanager
def _workplace() -> Iterator[Path]:
    """A temporary folder, and nothing of ONNX Runtime's progress lines on the terminal."""
    try:
        with (
            tempfile.TemporaryDirectory(prefix="fewstep-") as folder,
            contextlib.redirect_stdout(io.StringIO()),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore", RuntimeWarning)  # of NaN, which is an error below
            yield Path(folder)
    except OSError as error:
        if isinstance(error, OutputError):
            raise
        raise OutputError(
            f"cannot write temporary files in {tempfile.gettempdir()}: "
            f"{error.strerror or error}; make room there, or set TMPDIR to another folder"
        ) from error


def _require_finite(ranges: Ranges) -> None:
    wrong = [name for name, ends in ranges.items() if not np.isfinite(ends).all()]
    if wrong:
        raise EngineError(
            f"activations with NaN or infinite numbers: {', '.join(wrong[:5])}; see where they "
            "come from with: fewstep verify --layers"
        )


def _ends(values: tuple[Array, Array]) -> tuple[float, float]:
    """Lowest and highest; from arrays of one number."""
    low, high = (np.asarray(each).item() for each in values)
    return float(low), float(high)
