"""Runs a command so that none of its sockets can leave this machine, and says which ones tried.

    found = watch([sys.executable, "-m", "sottovoce.simulations.federation"], log=Path("sockets.log"))
    found.left            # every address outside the loopback interface that any process of it named

The command and all its children run in a network namespace of their own, which has a loopback interface and nothing
else, under `strace`, which sees the system calls of every library, not only Python's.

Guarantees:
  - Every address that a process connects to, sends to or listens on is in `named`; families without a network (unix,
    netlink) are not addresses.
"""

import re
import shutil
import subprocess
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address
from pathlib import Path

from sottovoce.common.errors import RunError

TOOLS = ("strace", "unshare", "ip")
CALLS = "connect,sendto,sendmsg,sendmmsg,bind"
_ADDRESS = re.compile(
    r"\b(connect|sendto|sendmsg|sendmmsg|bind)\(.*?sa_family=AF_(?:INET6?)\b.*?"
    r'(?:inet_addr\("([^"]+)"\)|inet_pton\(AF_INET6, "([^"]+)")'
)


@dataclass(frozen=True, kw_only=True)
class Watched:
    """What came of a command: its exit status, what it printed, and the addresses that it named, with the call."""

    status: int
    output: str
    named: frozenset[tuple[str, str]]

    @property
    def left(self) -> list[tuple[str, str]]:
        """What was not on this machine, by call and address."""
        return sorted((call, address) for call, address in self.named if not _is_loopback(address))


def _is_loopback(address: str) -> bool:
    """Says whether an address is this machine's own, also where IPv6 names one of IPv4.

    >>> [_is_loopback(one) for one in ("127.0.0.1", "::1", "::ffff:127.0.0.1", "::ffff:192.0.2.1", "0.0.0.0")]
    [True, True, True, False, False]
    """
    found = ip_address(address)
    inner = found.ipv4_mapped if isinstance(found, IPv6Address) else None
    return (inner or found).is_loopback


def missing_tools() -> list[str]:
    """Returns what is needed and not there."""
    return [tool for tool in TOOLS if shutil.which(tool) is None]


def watch(command: Sequence[str], *, log: Path, environment: Mapping[str, str], timeout: float) -> Watched:
    """Runs a command to its end.

    Raises:
        RunError: the tools are not there, or this account may not make a network namespace.
    """
    if missing := missing_tools():
        raise RunError(
            f"Expected {', '.join(missing)} (Debian's packages strace, util-linux, iproute2); not there."
        )
    # With a filter in the kernel, processes stop for these calls alone: without, for each read of an import too.
    strace = 'strace -f --seccomp-bpf -qq -s 0 -e "trace=$1" -o "$2"'
    inside = ["bash", "-c", f'ip link set lo up && exec {strace} "${{@:3}}"']
    done = subprocess.run(
        ["unshare", "--net", *inside, "watched", CALLS, str(log), *command],
        capture_output=True,
        text=True,
        env=dict(environment),
        timeout=timeout,
    )
    if not log.exists():
        raise RunError(f"A network namespace could not be made: {done.stderr[-300:]}")
    with log.open(encoding="utf-8", errors="replace") as file:
        return Watched(
            status=done.returncode, output=done.stdout + done.stderr, named=frozenset(addresses(file))
        )


def addresses(lines: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Yields call and address of every line of strace's log that names one.

    >>> line = '7 connect(3, {sa_family=AF_INET, sin_port=htons(53), sin_addr=inet_addr("192.0.2.1")}, 16) = 0'
    >>> list(addresses([line, '7 connect(4, {sa_family=AF_UNIX, sun_path="/run/x"}, 9) = 0']))
    [('connect', '192.0.2.1')]
    """
    for line in lines:
        for call, four, six in _ADDRESS.findall(line):
            yield call, four or six
