"""The tables of opsets and operators, compared with what the parser of TensorRT-RTX reads."""

from __future__ import annotations

import onnx
import pytest
from tests.build.rtx import Rtx, unary

from fewstep.build.opset import ABSENT, OPSETS


@pytest.fixture(scope="module")
def rtx() -> Rtx:
    reason = "TensorRT-RTX is not installed; install it with: pip install 'fewstep[rtx]'"
    return Rtx(pytest.importorskip("tensorrt_rtx", reason=reason))


def test_operators_that_the_parser_does_not_know_are_all_listed(rtx: Rtx) -> None:
    names = {each.name for each in onnx.defs.get_all_schemas() if each.domain == ""}
    unknown = {name for name in names if not rtx.supports(name)}
    listed = ABSENT["tensorrt-rtx"].keys()
    assert not unknown - listed
    # What the parser believes to have, and has not; or, for Attention, has for few shapes.
    believed = {"Attention", "CausalConvWithState", "LinearAttention", "NonMaxSuppression"}
    assert (listed & names) - unknown == believed | {"NonZero", "RoiAlign"}


def test_the_newest_opset_of_the_table_builds(rtx: Rtx) -> None:
    newest = min(OPSETS["tensorrt-rtx"][1], onnx.defs.onnx_opset_version())
    assert rtx.builds(unary("Relu", "fp32", opset=newest), "8.9")
