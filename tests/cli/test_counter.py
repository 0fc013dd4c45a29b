"""How far long runs are: rate and time left, without what came before the first images."""

from __future__ import annotations

from io import StringIO

import pytest
from rich.console import Console

from fewstep.cli import counter as module
from fewstep.cli.counter import Pace, counter, duration


class _Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_the_pace_begins_with_the_first_images() -> None:
    clock = _Clock()
    pace = Pace(1_000, clock)
    assert pace.text() == "0 of 1,000 images"
    clock.now = 60.0  # compilation
    pace.count(10)
    assert pace.text() == "10 of 1,000 images"
    clock.now = 65.0
    pace.count(110)
    assert pace.text() == "110 of 1,000 images, 20 images/s, 44 s left"


@pytest.mark.parametrize(
    ("seconds", "said"), [(0.4, "0 s"), (89, "89 s"), (600, "10 min"), (9_000, "2.5 h")]
)
def test_times(seconds: float, said: str) -> None:
    assert duration(seconds) == said


def test_a_log_gets_a_line_a_minute(capsys: pytest.CaptureFixture[str]) -> None:
    clock = _Clock()
    with counter(1_000, clock=clock) as count:
        for step in range(1, 11):
            clock.now = 15.0 * step
            count(step * 100)
    said = capsys.readouterr().err
    assert said.count("\n") == 2
    assert said.startswith("note: 400 of 1,000 images, 6.67 images/s, 2 min left\n")


def test_a_terminal_gets_a_bar_that_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stream = StringIO()
    monkeypatch.setattr(module, "errors", Console(file=stream, force_terminal=True, width=80))
    with counter(20) as count:
        count(5)
        count(20)
    assert "20 of 20 images" in stream.getvalue()
    assert capsys.readouterr().err == ""
