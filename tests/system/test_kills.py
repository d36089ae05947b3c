"""The first claims of a real federation: real processes end in the simulation's weights, whoever is killed, and no
socket of any of them leaves the machine. One run is both killed and watched, below every library.

Twenty schedules of kills: `python -m sottovoce.simulations.bench faults --size faults.processes=20`.
"""

import subprocess
import sys
from pathlib import Path

import pytest

from sottovoce.common.ledger.store import LEDGER_FILE
from sottovoce.common.processes import environment
from sottovoce.server.deployed_run import DeployedRun
from sottovoce.simulations.watched import Watched, addresses, missing_tools, watch
from tests.fakes import process_faults
from tests.fakes.fault_claims import Broken
from tests.fakes.process_faults import Killable
from tests.fakes.quiet_story import left_behind
from tests.fakes.superlinks import PYTHONPATH

needs_tools = pytest.mark.skipif(bool(missing_tools()), reason=f"not here: {', '.join(missing_tools())}")
SECONDS = 1200.0  # with nine processes at work beside it, it took 390 s

# What a process does that was not told to be quiet: it looks a vendor's name up, and connects.
CALLS_HOME = """\
import socket
for kind, call in ((socket.SOCK_DGRAM, "sendto"), (socket.SOCK_STREAM, "connect")):
    with socket.socket(socket.AF_INET, kind) as one:
        try:
            one.sendto(b"x", ("192.0.2.1", 53)) if call == "sendto" else one.connect(("192.0.2.7", 443))
        except OSError as error:
            print(error)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("killed")


@pytest.fixture(scope="module")
def watched(folder: Path) -> Watched:
    """The run, watched where this machine has the tools: it proves the weights without them too."""
    story, log = (
        [sys.executable, "-m", "tests.fakes.quiet_story", str(folder / "story")],
        folder / "sockets.log",
    )
    quiet = environment(PYTHONPATH=PYTHONPATH)
    if not missing_tools():
        return watch(story, log=log, environment=quiet, timeout=SECONDS)
    done = subprocess.run(story, env=quiet, capture_output=True, text=True, timeout=SECONDS)
    return Watched(status=done.returncode, output=done.stdout + done.stderr, named=frozenset())


@pytest.fixture(scope="module")
def made(watched: Watched, folder: Path) -> Killable:
    return left_behind(folder / "story")


def test_with_a_site_and_the_coordinator_killed_in_the_middle_the_weights_are_the_simulation_s(
    watched: Watched,
) -> None:
    assert watched.status == 0, watched.output[-2000:]
    _, _, killed = watched.output.rpartition("killed: ")
    assert [one.split()[0] for one in killed.split("; ")] == ["agent", "coordinator"]


@needs_tools
def test_a_whole_run_among_real_processes_names_no_address_but_this_machines(watched: Watched) -> None:
    calls = {call for call, _ in watched.named}
    assert {"connect", "bind"} <= calls, "the run was not seen at all"
    assert watched.left == []


def test_other_weights_and_a_lost_entry_would_be_noticed(
    made: Killable, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = DeployedRun.open(made.place.home, "seed-0")
    with monkeypatch.context() as patch:
        patch.setattr(process_faults, "simulated", lambda made, seed: "0" * 64)
        with pytest.raises(Broken, match="2: "):
            process_faults._check(made, run, 0)
    path = made.place.hospitals["site-2"].ledger / LEDGER_FILE
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:-2] + lines[-1:]))
    with pytest.raises(Broken, match="3: the ledger of site-2"):
        process_faults._check(made, run, 0)


@needs_tools
def test_a_process_that_calls_home_is_seen(tmp_path: Path) -> None:
    watched = watch(
        [sys.executable, "-c", CALLS_HOME],
        log=tmp_path / "sockets.log",
        environment=environment(),
        timeout=60,
    )
    assert watched.left == [("connect", "192.0.2.7"), ("sendto", "192.0.2.1")]
    assert "unreachable" in watched.output, "and nothing of it left the machine"


def test_addresses_of_both_families_are_read_and_others_are_none() -> None:
    six = 'sin6_port=htons(1), sin6_flowinfo=htonl(0), inet_pton(AF_INET6, "2001:db8::1", &sin6_addr)'
    log = [
        '12 bind(5, {sa_family=AF_INET, sin_port=htons(0), sin_addr=inet_addr("0.0.0.0")}, 16) = 0',
        f"12 sendmsg(3, {{msg_name={{sa_family=AF_INET6, {six}, sin6_scope_id=0}}, msg_namelen=28, ...}}, 0) = 1",
        "13 connect(4, {sa_family=AF_NETLINK, nl_pid=0, nl_groups=00000000}, 12) = 0",
        '13 sendto(7, ""..., 9, MSG_NOSIGNAL, NULL, 0) = 9',
        '14 connect(9, {sa_family=AF_INET, sin_addr=inet_addr("127.0.0.1")}, 16 <unfinished ...>',
    ]
    found = list(addresses(log))
    assert found == [("bind", "0.0.0.0"), ("sendmsg", "2001:db8::1"), ("connect", "127.0.0.1")]
