"""What a decoder does when memory runs out: it drops its other plans and tries once more.

The device keeps account of what is open and has only so much room. Covered: room for plans, at
launches, and for the first unconditional logits; and what does not even fit alone.
"""

from __future__ import annotations

import numpy as np
import pytest
from tests.runtime.ledger import (
    Ledger,
    assert_usable,
    first_pass_bytes,
    open_decoder,
    plan_bytes,
    plan_key,
)

from fewstep.runtime.errors import OutOfMemoryError
from fewstep.runtime.families.masked.schedule import Schedule
from fewstep.runtime.generator import Generator


def test_out_of_memory_drops_the_other_plans_and_tries_once_more(generator: Generator) -> None:
    sizes = [plan_bytes(generator, plan_key(steps)) for steps in (2, 3, 4)]
    device = Ledger(room=sum(sizes) - 1)
    decoder = open_decoder(generator, device)
    decoder.plan(plan_key(2))
    decoder.plan(plan_key(3))
    device.asked = 0
    plan = decoder.plan(plan_key(4))
    assert device.asked == 2
    assert device.open == [plan.workspace]
    assert len(device.replays) == 1
    assert decoder.plan(plan_key(4)) is plan


def test_out_of_memory_as_a_plan_is_launched_drops_the_other_plans_too(
    generator: Generator,
) -> None:
    """A driver may allocate as late as that."""
    device = Ledger()
    decoder = open_decoder(generator, device)
    kept, late = decoder.plan(plan_key(2)), decoder.plan(plan_key(3))
    device.late = 1
    inputs = np.zeros(1, np.int32), np.zeros(1, np.uint64), Schedule().parameters(3, 16)
    expected = decoder.run(plan_key(3), *inputs)
    assert kept.workspace not in device.open and late.workspace not in device.open
    assert [entry.bytes for entry in device.open] == [plan_bytes(generator, plan_key(3))]
    assert (decoder.run(plan_key(3), *inputs).tokens == expected.tokens).all()
    device.late = 1
    with pytest.raises(OutOfMemoryError):  # no other plan is left to drop
        decoder.run(plan_key(3), *inputs)
    decoder.run(plan_key(3), *inputs)


def test_what_does_not_even_fit_alone_is_an_error_and_the_decoder_goes_on(
    generator: Generator,
) -> None:
    small, large = plan_key(2), plan_key(2, batch=8)
    device = Ledger(room=2 * plan_bytes(generator, small))
    decoder = open_decoder(generator, device)
    decoder.plan(small)
    device.asked = 0
    with pytest.raises(OutOfMemoryError):
        decoder.plan(large)
    assert device.asked == 2
    assert device.nothing_open
    with pytest.raises(OutOfMemoryError):
        decoder.plan(large)
    assert device.asked == 3  # there was nothing to drop, hence no second try
    assert_usable(decoder.plan(small))


def test_room_for_the_first_unconditional_logits_is_made_too(generator: Generator) -> None:
    other, key = plan_key(2, batch=2), plan_key(2, guided=True)
    shared = first_pass_bytes(generator)
    device = Ledger(room=shared + plan_bytes(generator, key))
    decoder = open_decoder(generator, device)
    decoder.plan(other)
    assert device.used + shared > shared + plan_bytes(generator, key)  # no room for the logits
    plan = decoder.plan(key)
    assert [entry.bytes for entry in device.open] == [shared, plan.bytes]
    assert_usable(plan)


@pytest.mark.parametrize("pieces", range(1, 3))
def test_a_first_pass_without_room_leaves_nothing_open(generator: Generator, pieces: int) -> None:
    """Room for neither the logits, or for them and not for the inputs of their pass."""
    shared = first_pass_bytes(generator)
    device = Ledger(room=shared - 1 if pieces == 1 else shared)
    with pytest.raises(OutOfMemoryError):
        open_decoder(generator, device).plan(plan_key(1, guided=True))
    assert device.asked == pieces
    assert device.open == []
