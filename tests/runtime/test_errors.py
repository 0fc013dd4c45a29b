"""The error tree: one base, standard types underneath, and messages with a remedy."""

from __future__ import annotations

import pytest

import fewstep
from fewstep.runtime import errors
from fewstep.runtime.errors import FewstepError, choose, missing

_STANDARD = {
    "RequestError": ValueError,
    "BundleError": ValueError,
    "CheckpointError": ValueError,
    "ExportError": RuntimeError,
    "EngineError": RuntimeError,
    "DeviceError": RuntimeError,
    "DeviceLostError": RuntimeError,
    "OutOfMemoryError": RuntimeError,
    "CalibrationError": ValueError,
    "MissingDependencyError": ImportError,
    "OutputError": OSError,
}


@pytest.mark.parametrize(("name", "standard"), _STANDARD.items())
def test_errors_are_fewstep_errors_and_standard_ones(name: str, standard: type) -> None:
    kind = getattr(fewstep, name)
    assert kind is getattr(errors, name)
    assert issubclass(kind, FewstepError)
    assert issubclass(kind, standard)
    assert str(kind("what happened")) == "what happened"


def test_the_table_above_names_every_error() -> None:
    defined = {
        name
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, FewstepError)
    }
    assert defined == {*_STANDARD, "FewstepError"}


def test_out_of_memory_and_a_lost_gpu_are_troubles_of_the_device() -> None:
    assert issubclass(errors.OutOfMemoryError, errors.DeviceError)
    assert issubclass(errors.DeviceLostError, errors.DeviceError)


def test_missing_names_package_and_extra() -> None:
    message = str(missing("onnxruntime", "cpu"))
    assert "onnxruntime is not installed" in message
    assert "pip install 'fewstep[cpu]'" in message


@pytest.mark.parametrize(
    ("received", "choices", "expected"),
    [
        (
            "cpuu",
            ["cuda", "cpu"],
            "unknown device 'cpuu'; expected one of: cpu, cuda. Did you mean 'cpu'?",
        ),
        ("tpu-pod", ["cuda", "auto"], "unknown device 'tpu-pod'; expected one of: auto, cuda."),
        ("", ["a"], "unknown device ''; expected one of: a."),
    ],
)
def test_choose_lists_choices_in_order_and_the_nearest(
    received: str, choices: list[str], expected: str
) -> None:
    assert choose("device", received, choices) == expected
