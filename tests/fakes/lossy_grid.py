"""A network between a coordinator and its hospitals that does, by one seed, whatever a network may do.

It carries sealed messages to the hospitals' production app. Time is a `Clock`'s: what waits an hour takes none. A
hospital is a process with a context in memory, which dies with it, and a folder, which stays.
"""

import heapq
import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from sottovoce.common.envelope import Envelope
from sottovoce.common.flower import (
    ClientApp,
    Context,
    Grid,
    Message,
    RecordDict,
    adopt_task_identity,
    stamp,
)
from tests.fakes.carried import altered, carrying, envelope_in, error_reply_of, from_node, stamped, to_node
from tests.fakes.clock import Clock
from tests.fakes.failing_os import FailingOs, Killed

COORDINATOR = "the coordinator"


class Endless(AssertionError):
    """More messages than a run can need: somebody asks for ever."""


@dataclass(frozen=True, kw_only=True)
class Weather:
    """How often a message, or the process that has it, meets with what."""

    dropped: float = 0.0
    doubled: float = 0.0
    late: float = 0.0
    altered: float = 0.0
    astray: float = 0.0  # to another site, or as another's answer
    replayed: float = 0.0
    forged: float = 0.0  # an error in the place of a reply, which nobody signs
    site_dies: float = 0.0  # with its answer ready
    site_away: float = 0.0  # its line is lost, not its memory
    coordinator_dies: float = 0.0

    @staticmethod
    def drawn(draw: random.Random) -> "Weather":
        """Returns some weather; each thing often is left out."""
        return Weather(**{one.name: draw.choice([0.0, 0.0, 0.01, 0.04]) for one in fields(Weather)})


CALM = Weather()


@dataclass(kw_only=True)
class Site:
    """A hospital's process."""

    name: str
    node: int
    home: str
    context: Context
    up_at: float = 0.0
    n_deaths: int = 0


Seen = Callable[[Site, Message, Message], None]  # what left a site, and to which question


@dataclass(order=True)
class _Flight:
    """A message under way; `node` is whom it comes to, or 0 for the coordinator."""

    at: float
    number: int
    node: int = field(compare=False)
    message: Message = field(compare=False)


class LossyGrid(Grid):
    """Flower's grid over that network. `homes` gives the folder of each site, by name; nodes count from 1."""

    waits = True

    def __init__(
        self,
        app: ClientApp,
        homes: Mapping[str, str],
        *,
        clock: Clock,
        machine: FailingOs,
        draw: random.Random,
        weather: Weather = CALM,
        storm_messages: int = 0,
        most_messages: int = 5_000,
        deadline_seconds: float = 60.0,
        on_left: Seen = lambda site, question, reply: None,
    ) -> None:
        self._app, self._clock, self._machine, self._draw = app, clock, machine, draw
        self.weather, self._storm, self._most = weather, storm_messages, most_messages
        self._deadline, self._on_left = deadline_seconds, on_left
        self._run_id = adopt_task_identity().run_id
        self._sites = {
            node: Site(name=name, node=node, home=home, context=self._fresh(node, home))
            for node, (name, home) in enumerate(sorted(homes.items()), start=1)
        }
        self._flights: list[_Flight] = []
        self._told: list[Envelope] = []  # whatever was on the wire may come again
        self.n_messages = self._n_flights = 0
        self.met: Counter[str] = Counter()

    # --- Flower's interface -----------------------------------------------------------------------------

    def set_run(self, run: Any) -> None:
        """There is no run to set."""

    @property
    def run(self) -> Any:
        """There is no run."""
        return None

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """Returns a message."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """Returns the nodes that can be reached now."""
        return [node for node, site in self._sites.items() if site.up_at <= self._clock.now]

    def get_nodes(self) -> Any:
        """Flower's own knowledge of nodes: none."""
        return []

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Sends messages."""
        return [self._push(message) for message in messages]

    def pull_messages(self, message_ids: Iterable[str], *, timeout: float | None = None) -> Iterable[Message]:
        """Returns what came first, whether it was asked for or not; waits for it."""
        if self._happens("coordinator_dies"):
            raise self._machine.killed(COORDINATOR)
        end = self._clock.now + (self._deadline if timeout is None else timeout)
        while self._flights and self._flights[0].at <= end:
            flight = heapq.heappop(self._flights)
            self._clock.advance(flight.at - self._clock.now)
            if flight.node == 0:
                return [flight.message]
            self._deliver(self._sites[flight.node], flight.message)
        self._clock.advance(end - self._clock.now + 1e-6)
        return []

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Nothing of ours uses it."""
        raise NotImplementedError

    # --- what a test does ---------------------------------------------------------------------------------

    def calm(self) -> None:
        """The storm is over: everybody is there, and stays."""
        self.weather = CALM
        self._machine.calm()
        for site in self._sites.values():
            site.up_at = min(site.up_at, self._clock.now)

    def lose_all(self) -> None:
        """What was under way is lost, as with a SuperLink that died too."""
        self._flights.clear()

    # --- the network --------------------------------------------------------------------------------------

    def _fresh(self, node: int, home: str) -> Context:
        return Context(self._run_id, node, {"home": home}, RecordDict(), {})

    def _happens(self, what: str) -> bool:
        happens: bool = self._draw.random() < getattr(self.weather, what)
        self.met[what] += happens
        return happens

    def _push(self, message: Message) -> str:
        self.n_messages += 1
        if self.n_messages > self._most:
            raise Endless(f"{self._most} messages were sent, and no end is in sight")
        if self.n_messages == self._storm:
            self.calm()
        key = stamp(message, f"message-{self.n_messages}")
        self._send(message.metadata.dst_node_id, message)
        return key

    def _send(self, node: int, message: Message) -> None:
        """Puts a message on the wire, or what the weather makes of it; `node` 0 is the coordinator."""
        if self._happens("dropped"):
            return
        for one in self._made(node, message):
            seconds = self._draw.uniform(0.01, 0.5)
            if self._happens("late"):
                seconds += self._draw.uniform(0.5, 2.5) * self._deadline
            to = node
            if node and self._happens("astray"):
                to = self._draw.choice(sorted(self._sites))
            self._fly(to, one, seconds)
        if message.has_content():
            self._told.append(envelope_in(message))

    def _made(self, node: int, message: Message) -> Iterator[Message]:
        if node == 0 and self._happens("forged"):
            yield stamped(error_reply_of(message, "forged"), message)
            return
        if message.has_content() and self._happens("altered"):
            yield carrying(message, altered(envelope_in(message), self._draw, self._told))
        else:
            yield message
        if self._happens("doubled"):
            yield message
        if self._told and self._happens("replayed"):
            yield carrying(message, self._draw.choice(self._told))

    def _fly(self, node: int, message: Message, seconds: float) -> None:
        self._n_flights += 1
        heapq.heappush(self._flights, _Flight(self._clock.now + seconds, self._n_flights, node, message))

    # --- the sites ----------------------------------------------------------------------------------------

    def _deliver(self, site: Site, question: Message) -> None:
        if self._happens("site_away"):
            site.up_at = self._clock.now + self._draw.uniform(0, 2) * self._deadline
        if site.up_at > self._clock.now:  # a site fetches its messages: they wait for it
            self._fly(site.node, question, site.up_at - self._clock.now + 0.01)
            return
        question = to_node(question, site.node)
        try:
            with self._machine.acting(site.name):
                reply = self._app(question, site.context)
        except Killed:
            self._die(site)
            return
        self._on_left(site, question, reply)
        if self._happens("site_dies"):
            self._die(site)
            return
        stamp(reply, f"reply-{self._n_flights}")
        if self._happens("astray"):
            reply = from_node(reply, self._draw.choice(sorted(self._sites)))
        self._send(0, reply)

    def _die(self, site: Site) -> None:
        """Its memory is gone; a new process comes some time later."""
        site.n_deaths += 1
        site.context = self._fresh(site.node, site.home)
        self._machine.start(site.name)
        site.up_at = self._clock.now + (
            0 if self.weather is CALM else self._draw.uniform(0, 2) * self._deadline
        )

    @property
    def n_deaths(self) -> int:
        """How often a site's process ended."""
        return sum(site.n_deaths for site in self._sites.values())
