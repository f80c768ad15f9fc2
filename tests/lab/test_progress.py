"""Progress of a sweep: who sees it, and the time left."""

from __future__ import annotations

import sys

import pytest

from companion.lab import progress as p


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if a person had opened a notebook."""
    monkeypatch.setenv("TRAINAUG_PROGRESS", "on")
    monkeypatch.setitem(sys.modules, "ipykernel", None)


def test_the_time_left_follows_the_prediction_and_then_the_speed(monkeypatch):
    now = 100.0
    monkeypatch.setattr(p.time, "monotonic", lambda: now)
    left = p.TimeLeft(workers=2)
    assert left.minutes(1200) == pytest.approx(10)  # as predicted, on two workers
    now = 160.0
    # 120 predicted core-seconds took a minute
    assert left.minutes(1080) == pytest.approx(9)
    now = 220.0
    assert left.minutes(960) == pytest.approx(8)
    # floats that do not quite cancel
    assert left.minutes(-1e-9) == 0


def test_what_was_stored_before_counts_as_no_speed(monkeypatch):
    monkeypatch.setattr(p.time, "monotonic", lambda: 0.0)
    left = p.TimeLeft(workers=1)
    assert left.minutes(60) == left.minutes(60) == 1


@pytest.mark.usefixtures("watched")
def test_a_person_sees_a_bar(capsys):
    with p.sweep_progress("chapter 06", 1) as show:
        show(1, 2, 60.0)
    shown = capsys.readouterr().err
    assert "chapter 06" in shown
    assert "1/2 runs" in shown
    assert "1.0 min left" in shown


@pytest.mark.usefixtures("watched")
def test_without_tqdm_a_person_sees_lines(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "tqdm", None)
    with p.sweep_progress("chapter 06", 1) as show:
        show(1, 2, 60.0)
    assert capsys.readouterr().err == "chapter 06: runs 1/2, 1.0 min left\n"


def test_a_log_gets_a_line_at_every_tenth(monkeypatch, capsys):
    monkeypatch.setenv("TRAINAUG_PROGRESS", "off")
    with p.sweep_progress("chapter 06", 1, lines=True) as show:
        for done in range(51):
            show(done, 50, 50.0 - done)
    assert len(capsys.readouterr().out.splitlines()) == 11
    with p.sweep_progress("chapter 06", 1) as show:
        assert show is None
