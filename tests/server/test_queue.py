"""Which jobs run together, and what is known of how long they take."""

from __future__ import annotations

import heapq
import itertools
import math
import random
from dataclasses import dataclass, field

from hypothesis import given
from hypothesis import strategies as st

from fewstep.server.job import shown_steps
from fewstep.server.queue import Line, Times, images


@dataclass(eq=False)
class _Job:
    kind: str
    count: int
    joins: bool = True
    until: float = math.inf
    since: float = 0.0

    @property
    def timed(self) -> str:
        return self.kind

    @property
    def load(self) -> int:
        return self.count


_MOST = 8
_JOBS = st.lists(
    st.builds(_Job, st.sampled_from("abc"), st.integers(1, _MOST + 2), st.booleans()), max_size=24
)


def _seconds(count: int) -> float:
    """Of a batch of so many images."""
    return 0.02 + 0.01 * count


def _line() -> Line[_Job]:
    """Nobody, with times that are known."""
    times = Times()
    for kind, count in itertools.product("abcdefgh", range(1, _MOST + 1)):
        times.add(kind, count, 1e3 * _seconds(count))
    return Line(times)


def _enter(line: Line[_Job], job: _Job, running: list[_Job], since: float, now: float) -> bool:
    """Whether a job is taken."""
    place = line.place(job, _MOST, running, now - since, now)
    if (line.batches or running) and place.wait_s >= place.most_s:
        line.refused.append(now)
        return False
    job.since = now
    line.add(job, place, now)
    return True


@given(_JOBS)
def test_batches_hold_every_job_once_of_one_kind_and_no_more_than_fit(jobs: list[_Job]) -> None:
    line = _line()
    taken = [job for job in jobs if _enter(line, job, [], 0, 0)]
    assert sorted(map(id, sum(line.batches, []))) == sorted(map(id, taken))
    for batch in line.batches:
        assert len({job.kind for job in batch}) == 1
        assert len(batch) == 1 or (images(batch) <= _MOST and all(job.joins for job in batch))
        assert [jobs.index(job) for job in batch] == sorted(map(jobs.index, batch))
    firsts = [jobs.index(batch[0]) for batch in line.batches]
    assert firsts == sorted(firsts)


def test_who_fits_fills_a_batch_that_a_larger_one_does_not_fit_into() -> None:
    line = _line()
    jobs = [_Job("a", 5), _Job("b", 1), _Job("a", 4), _Job("a", 1), _Job("c", 9), _Job("c", 1)]
    assert all(_enter(line, job, [], 0, 0) for job in jobs)
    found = [[jobs.index(job) for job in batch] for batch in line.batches]
    assert found == [[0, 3], [1], [2], [4], [5]]


def test_nobody_is_overtaken_beyond_its_limit() -> None:
    line = _line()
    line.max_wait_s = 0.07
    first, behind = _Job("a", 1), _Job("b", 1)
    assert _enter(line, first, [], 0, 0) and _enter(line, behind, [], 0, 0)
    joined = [_enter(line, _Job("a", 1), [], 0, 0) for _ in range(7)]
    assert joined == [True] * 4 + [False] * 3  # 20 + 5 × 10 ms, and those behind at 70 wait no more
    assert images(line.batches[0]) == 5


@dataclass
class _Seen:
    """Of one client: jobs that were made, refusals in a row at most, waits and times in all."""

    made: int = 0
    row: int = 0
    worst: int = 0
    beyond: float = 0.0
    took: list[float] = field(default_factory=list)


def _load(clients: list[tuple[str, int]], seconds: float, again_s: float = 0.02) -> list[_Seen]:
    """Clients of some kind and count that ask again and again, by a clock of its own; after so long
    where they are refused."""
    line, seen = _line(), [_Seen() for _ in clients]
    running, since, ends, jitter = list[_Job](), 0.0, 0.0, random.Random(0)
    owners = dict[int, int]()
    events = [(jitter.random() / 100, at) for at in range(len(clients))]
    heapq.heapify(events)
    while events and events[0][0] < seconds:
        now, at = heapq.heappop(events)
        if at < 0:
            for job in running:
                owner = owners.pop(id(job))
                seen[owner].made += 1
                seen[owner].took.append(now - job.since)
                heapq.heappush(events, (now + 1e-3 * jitter.random(), owner))
            running = []
        else:
            job = _Job(*clients[at])
            if _enter(line, job, running, since, now):
                owners[id(job)], seen[at].row = at, 0
            else:
                seen[at].row += 1
                seen[at].worst = max(seen[at].worst, seen[at].row)
                heapq.heappush(events, (now + again_s + 0.02 * jitter.random(), at))
        if not running and line.batches:
            running, since = line.batches.pop(0), now
            for job in running:
                each = seen[owners[id(job)]]
                each.beyond = max(each.beyond, now - job.until)
            ends = now + _seconds(images(running))
            heapq.heappush(events, (ends, -1))
    return seen


def test_large_requests_and_other_settings_do_not_starve_beside_many_small_ones() -> None:
    seen = _load([("a", 1)] * 16 + [("a", 6), ("a", 8), ("b", 1)], 20)
    assert max(each.worst for each in seen[16:]) <= 3
    small = sum(each.made for each in seen[:16]) / 16
    assert all(small / 3 < each.made < 3 * small for each in seen[16:])
    assert max(each.beyond for each in seen) < 1e-6


def test_ten_times_the_load_of_one_kind_leaves_the_tail_of_what_is_taken() -> None:
    def tail(clients: int) -> float:
        took = sorted(t for each in _load([("a", 1)] * clients, 8) for t in each.took)
        return took[int(0.99 * len(took))]

    assert tail(160) < 1.1 * tail(16)
    assert tail(160) <= 1.75 * _seconds(_MOST) + 1e-6


def test_who_comes_just_after_a_batch_began_waits_for_it_unless_more_come_than_fit() -> None:
    line, full = _line(), _seconds(_MOST)
    runs = [_Job("a", 1) for _ in range(_MOST)]
    others = [_enter(line, _Job("a", 1), runs, 0, 0.001 * each) for each in range(_MOST + 9)]
    assert others == [True] * _MOST + [False] * 9
    runs = line.batches.pop()
    begun = 0.5 * full  # sooner than it was thought to be
    took = [0.01, 0.24 * full, 0.26 * full, 0.9 * full]
    found = [_enter(line, _Job("a", 1), runs, begun, begun + each) for each in took]
    assert found == [False, False, True, True]
    assert _enter(line, _Job("b", 1), runs, begun, begun + 0.01)  # of other settings
    line.batches.clear()
    assert _enter(line, _Job("a", 1), runs, 4 * full, 4 * full + 0.01)  # nobody was refused lately


def test_a_client_too_many_does_not_shut_out_others() -> None:
    """Clients that come back after a second, as ``Retry-After`` says, which has no milliseconds."""
    for clients in (16, 17, 20):
        seen = _load([("a", 1)] * clients, 20, again_s=1.0)
        made = sum(each.made for each in seen) / 20
        assert made > 0.97 * _MOST / _seconds(_MOST), clients


def test_two_clients_of_full_batches_take_turns() -> None:
    seen = _load([("a", _MOST)] * 2, 20)
    assert max(each.worst for each in seen) == 0


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


def test_a_job_waits_for_the_batches_before_its_own_and_what_runs() -> None:
    line = _line()

    def wait(job: _Job, *running: _Job, took: float = 0) -> float:
        return round(line.place(job, _MOST, running, took, 0).wait_s, 6)

    assert wait(_Job("a", 1)) == 0
    _enter(line, _Job("a", 1), [], 0, 0)
    assert wait(_Job("a", 1)) == 0  # they run together
    assert wait(_Job("b", 1)) == _seconds(1)
    assert wait(_Job("a", 1, joins=False)) == _seconds(1)
    runs = _Job("b", 8)
    assert wait(_Job("a", 1), runs, took=0.04) == round(_seconds(8) - 0.04, 6)
    assert wait(_Job("a", 1), runs, took=1.1) == 1  # overdue by a second


@given(st.integers(0, 40), st.integers(1, 20))
def test_shown_steps_are_as_many_as_wanted_and_evenly_spread(wanted: int, steps: int) -> None:
    found = sorted(shown_steps(wanted, steps))
    assert len(found) == min(wanted, steps)
    assert all(0 <= step < steps for step in found)
    if 0 < wanted < steps:
        assert steps - 1 not in found
        gaps = [b - a for a, b in zip([-1, *found], [*found, steps - 1], strict=True)]
        assert max(gaps) - min(gaps) <= 1
