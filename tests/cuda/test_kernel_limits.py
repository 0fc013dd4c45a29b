"""What the CUDA kernels do not take is refused before anything is enqueued, with a plain message.

Covered: more codes and more tokens than fit the kernels' shared memory, with the largest sizes
that do; dtypes that no kernel reads; and that the device is none the worse for a refusal.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from fewstep.runtime.devices.cuda import CudaDevice
from fewstep.runtime.errors import DeviceError

sys.path.append(str(Path(__file__).parent))
if TYPE_CHECKING:
    from tests.cuda import kernel_runs as runs
else:
    import kernel_runs as runs


def _sampling(codes: int, dtype: str = "float32") -> runs.Sampling:
    """The most likely code is the last."""
    logits = np.arange(codes).reshape(1, 1, codes).astype(dtype)
    return runs.Sampling(
        conditional=logits,
        unconditional=logits,
        tokens=np.full((1, 1), -7, np.int32),
        parameters=np.zeros((1, 4), np.float32),
        seeds=np.zeros(1, np.uint64),
    )


def _remask(device: CudaDevice, count: int) -> int:
    """Number of tokens that are masked again at ratio 1."""
    found = runs.launch(
        device,
        "remask",
        inputs={
            "confidence": -np.arange(count, dtype=np.float32)[None],
            "sampled": np.zeros((1, count), np.int32),
            "parameters": np.ones((1, 4), np.float32),
            "mask": np.ones((1, count), np.uint8),
        },
        outputs={"next_tokens": np.full((1, count), -1, np.int32)},
        mask_token=9,
        at_least_one=0,
        ties=0,
    )
    return int((found["next_tokens"] == 9).sum())


def _pixels(device: CudaDevice, dtype: str) -> int:
    """The one value of a white image."""
    found = runs.launch(
        device,
        "to_pixels",
        inputs={"image": np.ones((1, 3, 2, 2), dtype)},
        outputs={"pixels": np.zeros((1, 2, 2, 3), np.uint8), "error": np.zeros(1, np.int32)},
    )
    (value,) = set(found["pixels"].ravel().tolist())
    return int(value)


def test_more_codes_than_the_kernel_holds_are_refused(device: CudaDevice) -> None:
    with pytest.raises(DeviceError, match=r"at most 65,536 codes, got 65,537"):
        runs.sample(device, _sampling(65_537))
    assert runs.sample(device, _sampling(65_536)).tokens.tolist() == [[65_535]]


def test_more_tokens_than_the_kernel_holds_are_refused(device: CudaDevice) -> None:
    with pytest.raises(DeviceError, match=r"at most 4,096 tokens, got 4,097"):
        _remask(device, 4097)
    assert _remask(device, 4096) == 4095


@pytest.mark.parametrize("dtype", ["float64", "int32", "int8", "uint16"])
def test_logits_of_another_dtype_are_refused(device: CudaDevice, dtype: str) -> None:
    with pytest.raises(DeviceError, match=rf"float32 or float16, got {dtype}; export the graph"):
        runs.sample(device, _sampling(100, dtype))
    assert runs.sample(device, _sampling(100)).tokens.tolist() == [[99]]


@pytest.mark.parametrize("dtype", ["float64", "uint8"])
def test_images_of_another_dtype_are_refused(device: CudaDevice, dtype: str) -> None:
    with pytest.raises(DeviceError, match=rf"float32 or float16, got {dtype}; export the graph"):
        _pixels(device, dtype)
    assert _pixels(device, "float32") == 255
