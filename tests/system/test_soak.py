"""A short soak of asynchronous AutoAssist, the worker killed half-way; `make soak`: a long one."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from companion.paths import ROOT

pytestmark = [
    pytest.mark.soak,
    pytest.mark.skipif(os.name == "nt", reason="POSIX signals"),
]


def test_thousands_of_batches_and_a_killed_worker_leave_nothing_behind():
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "soak_autoassist.py"), "--batches", "3000"],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    actual = json.loads(done.stdout)
    assert actual["batches"] == 3000
    assert actual["restarts"] == 1
    # how many are dropped depends on the machine's load, that none is lost does not
    places = ("assistant_steps", "dropped_feedback", "waiting_feedback")
    assert 2999 <= sum(actual[stage] for stage in places) <= 3000
    assert actual["assistant_steps"] > 0
