"""Tensors against a model's layout: keys and shapes, kinds of numbers, and values."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from fewstep.export import layout
from fewstep.runtime.errors import CheckpointError

FLOAT8 = torch.float8_e4m3fn


def linear_state(**changes: Tensor) -> dict[str, Tensor]:
    return {"weight": torch.ones(2, 3), "bias": torch.ones(2)} | changes


def test_every_mismatch_is_reported_together() -> None:
    state = linear_state(weight=torch.ones(2, 4), scale=torch.ones(1))
    del state["bias"]
    assert layout.mismatches(nn.Linear(3, 2), state) == (
        "1 missing: bias; 1 unexpected: scale; 1 mis-shaped: weight [2, 4] instead of [2, 3]"
    )


def test_no_mismatch_is_an_empty_report() -> None:
    assert layout.mismatches(nn.Linear(3, 2), linear_state()) == ""


def test_a_long_list_of_keys_is_cut() -> None:
    state = linear_state() | {f"key{row}": torch.ones(1) for row in range(30)}
    report = layout.mismatches(nn.Linear(3, 2), state)
    assert report == "30 unexpected: key0, key1, key10 and 27 more"


def test_loading_adopts_the_tensors_and_freezes_the_model() -> None:
    with torch.device("meta"):
        model = nn.Linear(3, 2).train()
    state = linear_state()
    layout.load_into(model, state, Path("model.pth"))
    assert torch.equal(model(torch.ones(1, 3)), torch.full((1, 2), 4.0))
    assert model.weight.data_ptr() == state["weight"].data_ptr()  # no second copy in memory
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_loading_what_does_not_fit_is_refused_and_changes_nothing() -> None:
    model = nn.Linear(3, 2)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    for state in (
        linear_state(bias=torch.ones(7)),
        linear_state(bias=torch.tensor([1, torch.nan])),
    ):
        with pytest.raises(CheckpointError, match=r"x.pth .*bias"):
            layout.load_into(model, state, Path("x.pth"))
        for key, value in model.state_dict().items():
            assert torch.equal(value, before[key])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_floating_point_becomes_float32(dtype: torch.dtype) -> None:
    given = {"weight": torch.arange(6.0).reshape(2, 3).to(dtype), "count": torch.tensor([3])}
    found = layout.usable(Path("x.pth"), given, {key: each.clone() for key, each in given.items()})
    assert found["weight"].dtype == torch.float32
    assert torch.equal(found["weight"], torch.arange(6.0).reshape(2, 3))  # exact in every format
    assert found["count"].dtype == torch.int64


def with_value(value: float, dtype: torch.dtype = torch.float32) -> Tensor:
    tensor = torch.zeros(2, 3, dtype=dtype)
    tensor[1, 2] = value
    return tensor


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (lambda: with_value(torch.nan), "NaN in"),
        (lambda: with_value(torch.nan, torch.bfloat16), "NaN in"),
        (lambda: with_value(torch.inf), "infinity in"),
        (lambda: with_value(-torch.inf, torch.float64), "infinity in"),
        (lambda: torch.full((2, 3), 1e6).half(), r"infinity \(float16 ends at 65504\) in"),
        (lambda: with_value(1e39, torch.float64), "numbers too large for float32 in"),
        (lambda: torch.ones(2, 3, dtype=torch.int32), "numbers in int32 in"),
        (lambda: torch.ones(2, 3, dtype=torch.bool), "numbers in bool in"),
        (lambda: torch.ones(2, 3, dtype=torch.uint8), "numbers in uint8 in"),
        (lambda: torch.ones(2, 3, dtype=torch.complex64), "numbers in complex64 in"),
        (lambda: torch.ones(2, 3).to(FLOAT8), "numbers in float8_e4m3fn in"),
        (lambda: torch.ones(2, 3).to_sparse(), r"sparse storage \(sparse_coo\) in"),
        (lambda: torch.ones(2, 3).to_sparse_csr(), r"sparse storage \(sparse_csr\) in"),
        (
            lambda: torch.quantize_per_tensor(torch.ones(2, 3), 0.1, 0, torch.qint8),
            "quantized numbers in",
        ),
        (lambda: torch.ones(2, 3, device="meta"), "no values but shapes alone .* in"),
    ],
)
@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
def test_what_is_no_number_is_named_by_key(make: Callable[[], Tensor], problem: str) -> None:
    model = nn.Linear(3, 2)
    with pytest.raises(CheckpointError, match=rf"x.pth holds {problem} 1 of 2 tensors \(weight\)"):
        layout.load_into(model, linear_state(weight=make()), Path("x.pth"))


def test_all_offenders_are_reported_together() -> None:
    state = linear_state(weight=with_value(torch.nan), bias=torch.ones(2, dtype=torch.int64))
    with pytest.raises(CheckpointError, match=r"NaN .*\(weight\); numbers in int64 .*\(bias\)"):
        layout.usable(Path("x.pth"), state, nn.Linear(3, 2).state_dict())


def test_odd_but_whole_tensors_are_fine() -> None:
    given = {
        "transposed": torch.arange(6.0).reshape(3, 2).T,
        "expanded": torch.zeros(()).expand(1_000, 1_000),
        "parameter": nn.Parameter(torch.ones(2)),
        "empty": torch.zeros(0, 3),
        "largest": torch.tensor([65504.0]).half(),
    }
    found = layout.usable(Path("x.pth"), given, given)
    for key, each in given.items():
        assert torch.equal(found[key], each.detach().float())
        assert not found[key].requires_grad


def test_the_nearer_model_has_more_keys_in_their_shape_and_fewer_surplus() -> None:
    state = linear_state()
    near, far = nn.Linear(3, 2), nn.Linear(4, 2)
    assert layout.fitting(near, state) == (2, 2)
    assert layout.fitting(far, state) == (1, 2)
    assert layout.fitting(near, state | {"more": torch.ones(1)}) == (1, 1)
