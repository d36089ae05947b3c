"""Children end when they should, strangers do not, and nothing calls home."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sottovoce.common.processes import Child, began, end, end_left_behind, environment, read_mark, write_mark

SLEEPER = [sys.executable, "-c", "import time; print('begun', flush=True); time.sleep(60)"]
# A parent that starts a child of its own and does not listen when it is asked to end.
STUBBORN = """\
import signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c", "import signal, time; signal.signal(15, 1); time.sleep(60)"])
print(child.pid, flush=True)
time.sleep(60)
"""


def words_of(child: Child) -> str:
    limit = time.monotonic() + 60
    while not child.last_words() and time.monotonic() < limit:
        time.sleep(0.02)
    return child.last_words()


def test_what_a_crash_left_behind_ends_before_the_next_begins(tmp_path: Path) -> None:
    first = Child.start("worker", SLEEPER, folder=tmp_path, extra={})
    second = Child.start("worker", SLEEPER, folder=tmp_path, extra={})
    try:
        assert not first.is_alive
        assert second.is_alive
    finally:
        second.stop()
    assert not second.is_alive
    assert not (tmp_path / "worker.pid").exists()


def test_a_stranger_with_the_same_number_is_not_ended(tmp_path: Path) -> None:
    stranger = subprocess.Popen(SLEEPER, stdout=subprocess.DEVNULL, start_new_session=True)
    try:
        (tmp_path / "worker.pid").write_text(json.dumps([stranger.pid, "1"]))
        end_left_behind(tmp_path / "worker.pid")
        assert stranger.poll() is None
        assert not end(stranger.pid, since="1")
        assert read_mark(tmp_path / "worker.pid") is None
    finally:
        stranger.kill()
        stranger.wait()


def test_a_child_that_does_not_listen_is_killed_with_its_own_children(tmp_path: Path) -> None:
    child = Child.start("stubborn", [sys.executable, "-c", STUBBORN], folder=tmp_path, extra={})
    grandchild = int(words_of(child))
    assert end(child.process_id, since=began(child.process_id) or "", seconds=0.3)
    limit = time.monotonic() + 60
    while began(grandchild) is not None and time.monotonic() < limit:
        time.sleep(0.02)
    assert began(grandchild) is None
    child.stop()


def test_a_mark_names_a_process_only_while_it_lives(tmp_path: Path) -> None:
    write_mark(tmp_path / "mark", os.getpid())
    found = read_mark(tmp_path / "mark")
    assert found is not None
    assert found[0] == os.getpid()
    gone = subprocess.run(
        [sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True
    )
    (tmp_path / "mark").write_text(json.dumps([int(gone.stdout), "5"]))
    assert read_mark(tmp_path / "mark") is None
    (tmp_path / "mark").write_text("not JSON")
    assert read_mark(tmp_path / "mark") is None


def test_a_child_has_nothing_that_calls_home_and_no_proxy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy.invalid:1")
    monkeypatch.setenv("FLWR_TELEMETRY_ENABLED", "1")
    found = environment(EXTRA="x")
    assert "HTTPS_PROXY" not in found
    assert found["FLWR_TELEMETRY_ENABLED"] == "0"
    assert found["FLWR_DISABLE_UPDATE_CHECK"] == "1"
    assert found["OMP_NUM_THREADS"] == "1"
    assert found["EXTRA"] == "x"


def test_a_child_leaves_no_core_dump(tmp_path: Path) -> None:
    asks = [sys.executable, "-c", "import resource; print(resource.getrlimit(resource.RLIMIT_CORE)[0])"]
    child = Child.start("core", asks, folder=tmp_path, extra={})
    assert words_of(child) == "0"
    child.stop()
