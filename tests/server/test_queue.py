"""Which jobs run together, and what is known of how long they take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from fewstep.server.job import shown_steps
from fewstep.server.queue import Times, batches, images


@dataclass(frozen=True, eq=False)
class _Job:
    kind: str
    count: int
    joins: bool = True


_JOBS = st.lists(
    st.builds(_Job, st.sampled_from("abc"), st.integers(1, 6), st.booleans()), max_size=12
)


@given(_JOBS, st.integers(1, 8))
def test_batches_hold_every_job_once_of_one_kind_and_no_more_than_fit(
    jobs: list[_Job], most: int
) -> None:
    found = batches(jobs, most)
    assert sorted(map(id, sum(found, []))) == sorted(map(id, jobs))
    for batch in found:
        assert len({job.kind for job in batch}) == 1
        assert len(batch) == 1 or (images(batch) <= most and all(job.joins for job in batch))


@given(_JOBS, st.integers(1, 8))
def test_the_first_that_came_is_in_the_first_batch_and_kinds_keep_their_order(
    jobs: list[_Job], most: int
) -> None:
    found = batches(jobs, most)
    firsts = [jobs.index(batch[0]) for batch in found]
    assert firsts == sorted(firsts)
    assert all([jobs.index(j) for j in batch] == sorted(map(jobs.index, batch)) for batch in found)


def test_who_fits_fills_a_batch_that_a_larger_one_does_not_fit_into() -> None:
    jobs = [_Job("a", 3), _Job("b", 1), _Job("a", 2), _Job("a", 1)]
    assert [[jobs.index(job) for job in batch] for batch in batches(jobs, 4)] == [[0, 3], [1], [2]]


def test_times_follow_what_was_measured() -> None:
    times = Times()
    for _ in range(30):
        times.add("a", 1, 10.0)
        times.add("a", 8, 40.0)
    assert round(times.ms("a", 1)) == 10 and round(times.ms("a", 8)) == 40
    assert times.ms("a", 4) == 4 * times.ms("a", 1)  # in proportion to the nearest, 1 or 8
    for _ in range(30):
        times.add("a", 8, 80.0)
    assert round(times.ms("a", 8)) == 80
    assert times.ms("unknown", 2) == 2 * times.ms("unknown", 1) > 0


def test_a_job_waits_for_the_batches_before_its_own() -> None:
    times = Times()
    times.add("a", 1, 10.0)
    times.add("b", 1, 100.0)

    def wait(jobs: Sequence[_Job]) -> float:
        return times.wait_ms(jobs, 4)

    assert wait([_Job("a", 1)]) == 0
    assert wait([_Job("a", 1), _Job("a", 1)]) == 0  # they run together
    assert wait([_Job("a", 1), _Job("b", 1)]) == 10
    assert wait([_Job("b", 1), _Job("b", 1, joins=False), _Job("a", 2)]) == 200


@given(st.integers(0, 40), st.integers(1, 20))
def test_shown_steps_are_as_many_as_wanted_and_evenly_spread(wanted: int, steps: int) -> None:
    found = sorted(shown_steps(wanted, steps))
    assert len(found) == min(wanted, steps)
    assert all(0 <= step < steps for step in found)
    if 0 < wanted < steps:
        assert steps - 1 not in found
        gaps = [b - a for a, b in zip([-1, *found], [*found, steps - 1], strict=True)]
        assert max(gaps) - min(gaps) <= 1
