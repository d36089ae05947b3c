"""The coordinator of a real federation: one process that keeps SuperLink, consortium service and front alive.

    Coordinator(home).serve(stop)

Guarantees:
  - One coordinator at a time works in a folder. Children that a crash left behind are ended before new ones begin.
  - What fails is said once, stands in the status while it lasts, and holds up nothing else: no other run, no other
    site, and not this process.
  - A run that is not over goes on by itself: after the end of the SuperLink, of the run's own process, of this process
    or of the machine. One that ends five times without a new round is given up, with the reason.
  - A site that was revoked is refused by the SuperLink from the next look at the registry on; the consortium service
    and the sealed messages ask the registry at each request.
  - The list of the revoked and the front are renewed with every revocation, and well before the list is over. A new
    certificate of the server is made when two thirds of the old one's life are over, or its names are others; the front
    takes it up at once, the SuperLink when no run is going, and in any case before the old one is over.
  - What `run/status.json` says is counts, names and times; never a number of a patient.
"""

import json
import logging
import os
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, TypeVar

import httpx

from sottovoce.common.errors import DeploymentError, SottovoceError
from sottovoce.common.files import lock_file, write_whole
from sottovoce.common.pki import Authority, is_for, peer_of, read_pem, renewal_due, request_for
from sottovoce.common.processes import write_mark
from sottovoce.common.provenance import now
from sottovoce.server.conduct import NODES
from sottovoce.server.consortium.service import serve
from sottovoce.server.deployed_run import DeployedRun, ended, runs_of
from sottovoce.server.front import Front
from sottovoce.server.gauges import Gauges
from sottovoce.server.home import MARK, STATUS, CoordinatorHome
from sottovoce.server.registry import Registry
from sottovoce.server.registry_tables import Member
from sottovoce.server.superlink import SuperLink, bundle

LOCK = "coordinator.lock"
LOOK_SECONDS = 0.25
ASK_SECONDS = 2.0  # so often the SuperLink is asked of a run that is with it
MAX_STARTS = 5
LIST_SECONDS = 24 * 3600.0  # so often the list of the revoked is signed anew; it is good for thirty days
BACKOFF_SECONDS = (0.0, 1.0, 2.0, 5.0, 10.0)
URGENT_SECONDS = 3600.0  # before the end of its certificate the SuperLink is started again whatever is going

_Found = TypeVar("_Found")
_log = logging.getLogger(__name__)


@dataclass(kw_only=True)
class _Handed:
    """What this process knows of a run: Flower's number of it, how often it was handed over, up to which round."""

    flower_run: int | None = None
    starts: int = 0
    round: int = 0
    not_before: float = 0.0
    asked: float = 0.0


@dataclass(kw_only=True)
class _Seen:
    """What the coordinator has told the SuperLink that is running now. It takes a key that `left` no second time."""

    nodes: dict[str, int] = field(default_factory=dict)
    keys: dict[str, str] = field(default_factory=dict)
    left: set[str] = field(default_factory=set)


class _Certificates:
    """The list of the revoked, the server's certificate, and whether it is another than the SuperLink began with."""

    def __init__(self, home: CoordinatorHome, registry: Registry, authority: Authority) -> None:
        self._home, self._registry, self._authority = home, registry, authority
        self._listed: tuple[int, ...] | None = None
        self._signed = -LIST_SECONDS
        self._certificate = home.pki / "server.crt"
        self._served = self._taken = read_pem(self._certificate)

    def look(self) -> bool:
        """Signs anew what must be; says whether a front has something new to read."""
        serials = self._registry.revoked_serials()
        listed = serials != self._listed or time.monotonic() - self._signed > LIST_SECONDS
        if listed:
            write_whole(self._home.pki / "crl.pem", self._authority.revocation_list(serials).encode())
            self._listed, self._signed = serials, time.monotonic()
        self._renew()
        served = read_pem(self._certificate)
        changed, self._served = served != self._served, served
        return listed or changed

    def _renew(self) -> None:
        now, hosts = read_pem(self._certificate), self._home.server_hosts
        if time.time() < renewal_due(peer_of(now)) and is_for(now, hosts):
            return
        _log.warning("the server gets a new certificate, for %s", ", ".join(hosts))
        hours = self._home.settings.certificate_hours
        request = request_for(self._home.pki / "server.key")
        write_whole(
            self._certificate, self._authority.issue_server(request, hosts=hosts, hours=hours).encode()
        )

    @property
    def server_is_new(self) -> bool:
        return self._served != self._taken

    @property
    def is_urgent(self) -> bool:
        return self.server_is_new and peer_of(self._taken).not_after - time.time() < URGENT_SECONDS

    def taken_up(self) -> None:
        self._taken = self._served


class Coordinator:
    """Serves a folder until it is told to stop."""

    def __init__(self, home: CoordinatorHome) -> None:
        self._home, self._registry = home, Registry.open(home.registry)
        self._seen = _Seen()
        self._handed: dict[str, _Handed] = {}
        self._authority = Authority.open(home.pki)
        self._certificates = _Certificates(home, self._registry, self._authority)
        self._superlink, self._front = SuperLink(home), Front(home)
        self._gauges = Gauges(home, self._registry)
        self._began = now()
        self._restarts = 0
        self._problems: list[str] = []
        self._said: list[str] = []

    def serve(self, stop: threading.Event) -> None:
        """Works until `stop` is set. Raises: DeploymentError where another coordinator works here."""
        with ExitStack() as stack:
            try:
                stack.enter_context(lock_file(self._home.run / LOCK))
            except BlockingIOError:
                raise DeploymentError(
                    f"{self._home.folder}: a coordinator works here already. `sottovoce server stop` ends it."
                ) from None
            write_mark(self._home.run / MARK, os.getpid())
            self._certificates.look()
            service = serve(self._home, self._registry, self._authority)
            stack.callback(service.stop)
            stack.callback(lambda: self._superlink.stop())
            stack.enter_context(self._gauges.metrics.served(self._home.settings.metrics_port))
            self._superlink.start()
            self._certificates.taken_up()
            if self._home.settings.front_port:
                stack.callback(lambda: self._front.stop())
                self._front.start()
            while not stop.wait(LOOK_SECONDS):
                self._look()

    def _look(self) -> None:
        """One look at everything; what fails is tried again at the next."""
        self._said, self._problems = self._problems, []
        if not self._superlink.is_alive:
            self._try(self._start_again, "the SuperLink ended")
        self._try(self._look_at_certificates)
        if self._superlink.is_alive:
            self._try(self._tell_members)
            self._try(self._look_at_runs)
        self._try(self._say)

    def _try(self, work: Callable[..., _Found], *what: Any) -> _Found | None:
        """Does a part of a look. A full disk or a damaged file of one part, and a defect of ours, are no other's."""
        try:
            return work(*what)
        except Exception as error:
            expected = isinstance(error, SottovoceError | OSError | httpx.HTTPError)
            said = str(error) if expected else f"a defect: {type(error).__name__}: {error}"
            if said not in self._said:
                _log.warning("%s", said, exc_info=not expected)
            self._problems.append(said)
            return None

    def _start_again(self, why: str) -> None:
        self._restarts += 1
        _log.warning("%s; it is started again", why)
        self._seen = _Seen()
        for handed in self._handed.values():
            handed.flower_run = None
        self._superlink = SuperLink(self._home).start()

    def _look_at_certificates(self) -> None:
        changed = self._certificates.look()
        if self._home.settings.front_port:
            if not self._front.is_alive:
                self._front.start()
            elif changed:
                self._front.reload()
        idle = all(one.flower_run is None for one in self._handed.values())
        if self._certificates.is_urgent or (self._certificates.server_is_new and idle):
            self._superlink.stop()
            self._certificates.taken_up()
            self._start_again("the SuperLink takes up a new certificate")

    def _tell_members(self) -> None:
        """Registers the nodes of all sites that may take part, and refuses those that may not any more."""
        members = [
            member for member in self._registry.sites() if member.role == "site" and member.node_key_pem
        ]
        allowed = {member.name: member for member in members if member.revoked_at is None}
        for name, key in sorted(self._seen.keys.items()):
            if name not in allowed or allowed[name].node_key_pem != key:
                self._try(self._leave, name)
        if any(member.node_key_pem in self._seen.left for member in allowed.values()):
            self._superlink.stop()
            self._start_again("a site that was away came back with the key that it had")
        for name, member in sorted(allowed.items()):
            if name not in self._seen.nodes:
                self._try(self._enter, name, member)

    def _enter(self, name: str, member: Member) -> None:
        self._seen.nodes[name] = self._superlink.control.register(member.node_key_pem)
        self._seen.keys[name] = member.node_key_pem
        self._write_nodes()

    def _leave(self, name: str) -> None:
        self._superlink.control.unregister(self._seen.nodes[name])
        self._seen.left.add(self._seen.keys[name])
        del self._seen.nodes[name], self._seen.keys[name]
        self._write_nodes()

    def _write_nodes(self) -> None:
        write_whole(self._home.run / NODES, json.dumps(self._seen.nodes, sort_keys=True).encode())

    def _look_at_runs(self) -> None:
        opened = (self._try(DeployedRun.open, self._home, name) for name in runs_of(self._home))
        runs = [run for run in opened if run is not None]
        for run in runs:
            self._try(self._look_at, run)
        self._gauges.look(runs)

    def _look_at(self, run: DeployedRun) -> None:
        """Hands a run to the SuperLink that is not with it, and takes one back that is over."""
        name, state = run.plan.name, run.state
        handed = self._handed.setdefault(name, _Handed())
        if state.round > handed.round:
            handed.round, handed.starts = state.round, min(handed.starts, 1)
        if handed.flower_run is not None and time.monotonic() < handed.asked + ASK_SECONDS:
            return
        if handed.flower_run is not None:
            handed.asked = time.monotonic()
            flower = self._superlink.control.status(handed.flower_run)
            if not flower.startswith("finished") and flower != "unknown":
                if state.state == "stopped":
                    self._superlink.control.stop_run(handed.flower_run)
                return
            handed.flower_run, state = None, run.state
        if state.is_over:
            handed.starts = 0  # an operator may take it up again
            return
        if time.monotonic() < handed.not_before:
            return
        if handed.starts >= MAX_STARTS:
            reason = f"its process ended {MAX_STARTS} times without a new round; see {self._home.run / 'superlink.log'}"
            run.change(lambda state: ended(state, "failed", reason))
            return
        handed.not_before = time.monotonic() + BACKOFF_SECONDS[handed.starts]
        handed.starts += 1
        handed.flower_run = self._superlink.control.start_run(bundle(), {"run": name})

    def _say(self) -> None:
        members = self._registry.sites()
        status: dict[str, Any] = {
            "since": self._began,
            "updated": now(),
            "superlink": {"alive": self._superlink.is_alive, "restarts": self._restarts},
            "sites": len(
                [member for member in members if member.role == "site" and member.revoked_at is None]
            ),
            "registered": len(self._seen.nodes),
            "runs": len(runs_of(self._home)),
            "problems": self._problems,
        }
        write_whole(self._home.run / STATUS, json.dumps(status, sort_keys=True).encode())
