"""No socket leaves the machine: a whole run among real processes, watched below every library."""

import sys
from pathlib import Path

import pytest

from sottovoce.common.processes import environment
from sottovoce.simulations.watched import addresses, missing_tools, watch
from tests.fakes.superlinks import PYTHONPATH

needs_tools = pytest.mark.skipif(bool(missing_tools()), reason=f"not here: {', '.join(missing_tools())}")
SECONDS = 280.0

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


@needs_tools
def test_a_whole_run_among_real_processes_names_no_address_but_this_machines(tmp_path: Path) -> None:
    story = [sys.executable, "-m", "tests.fakes.quiet_story", str(tmp_path)]
    watched = watch(
        story,
        log=tmp_path / "sockets.log",
        environment=environment(PYTHONPATH=PYTHONPATH),
        timeout=SECONDS,
    )
    assert watched.output.strip().endswith("done"), watched.output[-2000:]
    calls = {call for call, _ in watched.named}
    assert {"connect", "bind"} <= calls, "the run was not seen at all"
    assert watched.left == []


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
