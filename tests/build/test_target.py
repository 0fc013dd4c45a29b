"""Which GPUs engines are built for: by name, or the one at hand; which a backend does not serve.

No GPU takes part: driver and GPU are stand-ins.
"""

from __future__ import annotations

import pytest

from fewstep.build import target as module
from fewstep.build.target import TENSORRT_BEFORE, TENSORRT_SINCE, target
from fewstep.runtime.engines.compatibility import RTX_CAPABILITIES
from fewstep.runtime.errors import DeviceError, RequestError
from fewstep.runtime.kernels.compile import CAPABILITIES
from fewstep.runtime.records import BuildOptions


@pytest.fixture(autouse=True)
def _no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "find_driver", lambda: None)


def _gpu(monkeypatch: pytest.MonkeyPatch, capability: str | None) -> None:
    def here() -> str:
        if capability is None:
            raise DeviceError("no CUDA driver on this machine")
        return capability

    monkeypatch.setattr(module, "compute_capability", here)
    monkeypatch.setattr(module, "find_driver", lambda: "a driver")
    monkeypatch.setattr(module, "device_name", lambda: f"GPU {here()}")


def test_targets_are_in_order_and_once_or_the_gpu_at_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    _gpu(monkeypatch, "8.9")
    listed = target("tensorrt-rtx", "fp16", BuildOptions(), ["12.0", "7.5", "12.0"])
    assert (listed.capabilities, listed.gpu) == (("7.5", "12.0"), None)
    assert target("tensorrt-rtx", "fp16", BuildOptions()).capabilities == ("8.9",)
    for capabilities in ((), ("8.9",)):
        here = target("tensorrt", "fp16", BuildOptions(), capabilities)
        assert (here.capabilities, here.gpu) == (("8.9",), "GPU 8.9")
    with pytest.raises(RequestError, match="the GPU at hand, 8.9, not for 8.6"):
        target("tensorrt", "fp16", BuildOptions(), ["8.6"])


@pytest.mark.parametrize(
    ("capability", "asked", "message"),
    [
        (None, [], "Name their compute capabilities, for example --compute-capability 8.6"),
        ("8.7", [], "received 8.7; build for others, Jetsons among them, on the device itself"),
        (None, ["8.6", "8.7", "9.0"], "received 8.7, 9.0; build for others"),
    ],
)
def test_gpus_that_there_are_no_engines_for(
    monkeypatch: pytest.MonkeyPatch, capability: str | None, asked: list[str], message: str
) -> None:
    _gpu(monkeypatch, capability)
    with pytest.raises(RequestError, match=message):
        target("tensorrt-rtx", "fp16", BuildOptions(), asked)


# --- GPUs that are not there


@pytest.mark.parametrize("capability", TENSORRT_SINCE)
def test_tensorrt_is_checked_for_gpus_that_are_not_there(capability: str) -> None:
    wanted = target("tensorrt", "fp16", BuildOptions(), [capability], building=False)
    assert (wanted.capabilities, wanted.gpu) == ((capability,), None)
    with pytest.raises(DeviceError, match="there is no CUDA driver on this machine"):
        target("tensorrt", "fp16", BuildOptions(), [capability])


def test_the_tables_of_gpus_agree() -> None:
    """What kernels and RTX engines are made for has TensorRT as well, but for what is too old."""
    assert {*CAPABILITIES, *RTX_CAPABILITIES} <= TENSORRT_SINCE.keys()
    assert not TENSORRT_BEFORE.keys() & TENSORRT_SINCE.keys()


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (
            ["7.2"],
            "7.2 is too old: Jetson Xavier has JetPack 5 with TensorRT 8.5, fewstep needs 10",
        ),
        (["8.7", "5.3"], "5.3 is too old: Jetson Nano"),
        (["8.8"], r"unknown compute capability for TensorRT '8.8'; expected one of: .*8\.7"),
        (["7.0"], "unknown compute capability for TensorRT '7.0'"),
        (["sm_87"], "expected compute capabilities such as 8.6 8.9, .*received sm_87"),
        (["87"], "received 87"),
    ],
)
def test_gpus_that_tensorrt_does_not_build_for(asked: list[str], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        target("tensorrt", "fp16", BuildOptions(), asked, building=False)


def test_without_a_name_the_gpu_at_hand_is_meant(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DeviceError, match="--compute-capability 8.7 --preflight"):
        target("tensorrt", "fp16", BuildOptions(), building=False)
    monkeypatch.setattr(module, "find_driver", lambda: "a driver")
    monkeypatch.setattr(module, "compute_capability", lambda: "8.9")
    monkeypatch.setattr(module, "device_name", lambda: "a GPU")
    assert target("tensorrt", "fp16", BuildOptions(), building=False).gpu == "a GPU"
    other = target("tensorrt", "fp16", BuildOptions(), ["8.7"], building=False)
    assert other.capabilities == ("8.7",)
    with pytest.raises(RequestError, match="the GPU at hand, 8.9, not for 8.7; .*--preflight"):
        target("tensorrt", "fp16", BuildOptions(), ["8.7"])
