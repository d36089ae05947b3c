"""The agent of a hospital: it fetches messages, has them answered in a worker process, and gives the replies back.

    run_agent(hospital)            # until SIGTERM, `client stop`, or `stop` is set

Guarantees:
  - One agent a hospital; a second one is refused. While `run/stopped` is there none begins.
  - A failure of the line, of the coordinator or of the worker never ends it: it says what is wrong, once, in its log
    and in `run/status.json`, and goes on when it is over.
  - A message is on the journal before the coordinator is told that it is here; after a crash the next start answers it
    with an error at once. No message is answered twice, and none is tried again: that is the coordinator's to ask for.
  - A reply that was given back is not lost by the agent's end: it leaves when the coordinator has fetched it, and where
    that takes longer than `FETCHED_SECONDS` it ends without a word, and its node stays online until it is missed.
  - A run whose bundle is not the codeless one for the installed app gets nothing but refusals.
  - `Context.state` lives here, in memory, and with the worker that has it in hand; a worker that ends takes it along.
  - What is logged is metadata, counts and durations.

The steps of a message, each of which may fail and leaves the others whole:
  1 receive   2 journal (fsync)   3 bundle   4 pull   5 answer in the worker, confirm beside   6 send   7 journal ends
"""

import logging
import math
import signal
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any

from sottovoce.client import agent_files as files
from sottovoce.client.bundle import check as check_bundle
from sottovoce.client.chores import Chore, Chores
from sottovoce.client.fleet import HEARTBEAT_SECONDS, Delivery, Fleet, connect, envelope_of, fields_of
from sottovoce.client.home import Hospital
from sottovoce.client.line import CERTIFICATE
from sottovoce.client.parting import Given
from sottovoce.client.worker import Answered, Failure, Worker
from sottovoce.common.errors import DeploymentError, SottovoceError
from sottovoce.common.flower import VERSION, Context, ErrorCode, Message, RecordDict, error_reply
from sottovoce.common.monitoring import Metrics
from sottovoce.common.pki import peer_of, read_pem

HOSPITAL_APP = "sottovoce.client.hospital:app"
MAX_RUNS = 16  # whose state or verdict is remembered
BRISK_SECONDS, BRISK_PAUSE = 3.0, 0.03  # phases of a round follow each other
FIRST_PAUSE, LONGEST_PAUSE = 0.2, 3.0  # between tries to connect
COMPUTED = ("train", "evaluate", "train.mask", "evaluate.mask")  # phases in which recordings are used
FETCHED_SECONDS, FETCHED_SECONDS_NOW = 10.0, 1.0  # until an agent that ends waits no longer
LEAST_SECONDS = 1.0  # for the answer to a message whose time is nearly over

RESTARTED = "this site restarted, or lost the line, in the middle of it"
UNFETCHED = (
    "the coordinator has not fetched the last reply; it counts this site as online for some seconds more"
)
FULL_DISK = "this site cannot write to its disk; nothing was computed"
ENDINGS: dict[Failure, str] = {
    "late": "the site was at work when the deadline was over",
    "died": "this site's worker process ended in the middle of it",
    "stopped": "this site was stopped by its operator",
}
OUTCOMES = {ENDINGS["late"]: "late", ENDINGS["died"]: "failed", ENDINGS["stopped"]: "stopped"}
LOOK_SECONDS = 60.0

_log = logging.getLogger("sottovoce.client.agent")


def run_agent(
    hospital: Hospital,
    *,
    app: str = HOSPITAL_APP,
    stop: threading.Event | None = None,
    chores: Sequence[Chore] = (),
) -> None:
    """Runs a hospital's agent until it is told to stop. SIGTERM and SIGINT finish the message under way.

    Raises:
        DeploymentError, KeyFileError: it cannot run at all; the sentence says why, and what to do.
    """
    _must_take_part(hospital)
    ending = stop or threading.Event()
    lock = files.AgentLock(hospital.run)
    handler = files.log_to(_log, hospital.run)
    try:
        with _signals(ending):
            _Agent(hospital, app, ending, lock, chores).run()
    finally:
        _log.removeHandler(handler)
        handler.close()
        lock.close()


class _Agent:
    """One start of an agent."""

    def __init__(
        self,
        hospital: Hospital,
        app: str,
        ending: threading.Event,
        lock: files.AgentLock,
        chores: Sequence[Chore],
    ) -> None:
        self._hospital, self._app, self._ending, self._lock = hospital, app, ending, lock
        look = Chore(
            name="look at the certificate", period_seconds=LOOK_SECONDS, work=self._look_at_certificate
        )
        self._chores, self._metrics = Chores([look, *chores]), Metrics("hospital")
        self._journal = files.Journal(hospital.run)
        before = files.read_status(hospital.run).get("node")
        self._node_id = before if isinstance(before, int) else 0
        facts = {
            "site": hospital.site,
            "version": VERSION,
            "connected": False,
            "error": "",
            "node": self._node_id,
        }
        self._status = files.Status(hospital.run, facts)
        self._given = Given()
        self._states: OrderedDict[int, RecordDict] = OrderedDict()
        self._verdicts: OrderedDict[int, str] = OrderedDict()
        self._brisk_until = 0.0
        self._beside = ThreadPoolExecutor(1, "confirm")
        self._worker = self._new_worker()

    def run(self) -> None:
        """Works until the end is asked for. Raises: DeploymentError where the port for metrics is taken."""
        try:
            # Once more: a stop that was written since found no process to end, for its name was not in the lock yet.
            _must_take_part(self._hospital)
            with self._metrics.served(self._hospital.settings.metrics_port):
                self._run()
        finally:
            self._worker.close()
            self._beside.shutdown(cancel_futures=True)

    def _run(self) -> None:
        _log.info("the agent of %s started", self._hospital.site)
        self._chores.start(lambda: self._status.set(chores=self._chores.report()))
        pause = FIRST_PAUSE
        try:
            while not self._ending.is_set():
                began = time.monotonic()
                try:
                    with connect(self._hospital, node_id=self._node_id, stop=self._ending) as fleet:
                        self._connected(fleet)
                        self._work(fleet)
                except (SottovoceError, OSError) as error:
                    self._lost(error)
                except Exception as error:  # a defect of ours ends a connection, not the agent
                    _log.exception("a defect")
                    self._lost(
                        DeploymentError(f"A defect of the agent: {type(error).__name__}; see its log.")
                    )
                # Whatever lasted was a connection; the next try follows soon. What fails at once fails again.
                pause = FIRST_PAUSE if time.monotonic() - began > LONGEST_PAUSE else pause * 2
                self._ending.wait(min(pause, LONGEST_PAUSE))
        finally:
            self._chores.close()
            self._status.set(connected=False, error="", ended=files.now())
            _log.info("the agent ended")

    # --- the connection -------------------------------------------------------------------------------------

    def _connected(self, fleet: Fleet) -> None:
        self._node_id = fleet.node_id
        self._status.set(
            connected=True,
            connected_since=files.now(),
            error="",
            node=fleet.node_id,
            clock_off_seconds=round(fleet.clock_off or 0.0, 1),
        )
        self._status.count("connections")
        _log.info("connected")

    def _lost(self, error: Exception) -> None:
        said = str(error)
        if said != self._status.fact("error"):
            _log.warning("%s", said)
        self._status.set(connected=False, error=said)

    def _look_at_certificate(self) -> None:
        ends = peer_of(read_pem(self._hospital.tls / CERTIFICATE)).not_after
        self._metrics.certificate("site", ends - time.time())
        self._status.set(certificate_ends=ends)

    def _work(self, fleet: Fleet) -> None:
        """Answers messages until the line fails or the end is asked for."""
        over = threading.Event()
        beats = threading.Thread(target=_beat, args=(fleet, over), name="heartbeat", daemon=True)
        beats.start()
        try:
            self._answer_left_over(fleet)
            while not self._ending.is_set():
                delivery = fleet.receive()
                if delivery is not None:
                    self._handle(fleet, delivery)
                    self._brisk_until = time.monotonic() + BRISK_SECONDS
                self._ending.wait(self._pause() if delivery is None else 0)
            self._leave(fleet)
        finally:
            over.set()
            beats.join()

    def _leave(self, fleet: Fleet) -> None:
        """Says that this site is gone, unless a reply of it would be lost by that."""
        now = files.stop_of(self._hospital.run) == files.Stop(now=True)
        with suppress(DeploymentError):
            if self._given.wait_fetched(fleet, seconds=FETCHED_SECONDS_NOW if now else FETCHED_SECONDS):
                fleet.leave()
            else:
                _log.warning("%s", UNFETCHED)

    def _pause(self) -> float:
        usual = self._hospital.settings.poll_seconds
        return min(BRISK_PAUSE, usual) if time.monotonic() < self._brisk_until else usual

    # --- one message ----------------------------------------------------------------------------------------

    def _handle(self, fleet: Fleet, delivery: Delivery) -> None:
        """Answers one message. What fails here is this message's; a failing line is raised."""
        asked, began = delivery.envelope, time.monotonic()
        until = began + max(LEAST_SECONDS, asked.metadata.created_at + asked.metadata.ttl - time.time())
        try:
            self._journal.begin(fields_of(asked))
        except OSError as error:
            _log.error("%s (%s)", FULL_DISK, error.strerror)
            self._status.set(error=f"{FULL_DISK}: {error.strerror}. Make room.")
            reply = error_reply(asked, FULL_DISK)
        else:
            reply = self._reply(fleet, delivery, until)
        outcome = "refused" if reply.has_error() else "answered"
        self._hold(_phase(asked), began, until)
        try:
            self._give(fleet, reply, until)
        except DeploymentError as error:
            outcome = "failed"
            if error.reason != "run_over":
                raise  # it stays on the journal: the next connection answers it
        finally:
            self._note(asked, reply, outcome, time.monotonic() - began)
        with suppress(OSError):
            self._journal.end()

    def _give(self, fleet: Fleet, reply: Message, until: float) -> None:
        fleet.send(reply, until=until)
        self._given.add(reply)

    def _hold(self, phase: str, began: float, until: float) -> None:
        """Lets an answer wait for its slot: how long training took depends on who was drawn."""
        every = self._hospital.settings.reply_seconds
        if every and phase in COMPUTED:
            due = slot(began, time.monotonic(), every)
            self._ending.wait(max(0.0, min(due, until - LEAST_SECONDS) - time.monotonic()))

    def _reply(self, fleet: Fleet, delivery: Delivery, until: float) -> Message:
        asked = delivery.envelope
        try:
            if why := self._verdict(fleet, delivery.run_id, until):
                self._refused(delivery, "bundle", why)
                return error_reply(asked, why)
            message = fleet.pull(delivery, until=until)
            confirmed = self._beside.submit(fleet.confirm, delivery, until=until)
            reply = self._answered(message, until)
            confirmed.result()
        except DeploymentError as error:
            if error.reason not in ("message", "too_large", "run_over"):
                raise
            self._refused(delivery, error.reason, str(error))
            return error_reply(asked, str(error))
        return reply

    def _refused(self, delivery: Delivery, reason: str, text: str) -> None:
        phase = _phase(delivery.envelope)
        facts = {"header": "unverified", "run": str(delivery.run_id), "phase": phase, "text": text}
        files.add_refusal(self._hospital.run, {"reason": reason, **facts})
        self._metrics.refused(reason)

    def _verdict(self, fleet: Fleet, run_id: int, until: float) -> str:
        """Returns why a run's messages are refused; nothing for a run with the codeless bundle."""
        if run_id not in self._verdicts:
            sha256, content = fleet.bundle(run_id, until=until)
            try:
                check_bundle(content, sha256=sha256, app=self._app)
                self._verdicts[run_id] = ""
            except DeploymentError as error:
                self._verdicts[run_id] = str(error)
            _bound(self._verdicts)
        return self._verdicts[run_id]

    def _answered(self, message: Message, until: float) -> Message:
        run_id = message.metadata.run_id
        # Nothing of a run's configuration is passed on: a hospital's app takes its settings from its own folder.
        context = Context(
            run_id=run_id,
            node_id=message.metadata.dst_node_id,
            node_config={"home": str(self._hospital.folder)},
            state=self._states.pop(run_id, RecordDict()),
            run_config={},
        )
        try:
            answer = self._worker.ask(message, context, until=until, give_up=self._gives_up)
        except DeploymentError as error:
            self._lost(error)
            self._replace_worker()
            return error_reply(message, "this site's app cannot be started")
        if isinstance(answer, Answered):
            self._states[run_id] = answer.state
            _bound(self._states)
            return answer.reply
        _log.warning("%s", ENDINGS[answer])
        self._status.count(f"worker_{answer}")
        self._replace_worker()
        return error_reply(message, ENDINGS[answer], ErrorCode.CLIENT_APP_CRASHED)

    def _gives_up(self) -> bool:
        return self._ending.is_set() and files.stop_of(self._hospital.run) == files.Stop(now=True)

    def _answer_left_over(self, fleet: Fleet) -> None:
        """Answers what an earlier start of this agent had in hand when it ended, so that no round waits for it."""
        left = self._journal.left_over()
        if left is None:
            return
        try:
            asked = envelope_of(left)
            if asked.metadata.created_at + asked.metadata.ttl > time.time():
                reply = error_reply(asked, RESTARTED, ErrorCode.CLIENT_APP_CRASHED)
                self._give(fleet, reply, time.monotonic() + LEAST_SECONDS)
                _log.warning("a message was answered with an error: %s", RESTARTED)
        except DeploymentError as error:
            # A SuperLink that was started anew fails (500) over a run that it never heard of. Nobody waits for this.
            if error.reason not in ("run_over", "server"):
                raise
        except (ValueError, TypeError, KeyError):
            _log.warning("%s is damaged and was dropped", files.JOURNAL)
        with suppress(OSError):
            self._journal.end()

    def _note(self, asked: Message, reply: Message, outcome: str, seconds: float) -> None:
        metadata = asked.metadata
        why = (reply.error.reason or "") if reply.has_error() else ""
        self._metrics.message(metadata.message_type, OUTCOMES.get(why, outcome), seconds=seconds)
        self._status.count("messages")
        self._status.count(outcome)
        self._status.count("seconds", seconds)
        last: dict[str, Any] = {
            "run": str(metadata.run_id),
            "round": _printable(metadata.group_id),
            "phase": _phase(asked),
            "when": files.now(),
            "seconds": round(seconds, 3),
            "outcome": outcome,
            "why": why,
        }
        # A full disk is said until a message got through again.
        self._status.set(last=last, **({} if reply.has_error() else {"error": ""}))
        _log.info(
            "run %s, %s, %s: %s in %.3f s%s",
            metadata.run_id,
            last["round"],
            last["phase"],
            outcome,
            seconds,
            f" ({why})" if why else "",
        )

    # --- the worker -----------------------------------------------------------------------------------------

    def _new_worker(self) -> Worker:
        worker = Worker(self._app)
        try:
            self._lock.note(worker.process_id)
        except OSError as error:  # a full disk: `stop` then finds the worker through its agent's end
            _log.error("the process ids cannot be written (%s)", error.strerror)
        return worker

    def _replace_worker(self) -> None:
        self._worker.kill()
        if not self._ending.is_set():
            self._worker = self._new_worker()


def _must_take_part(hospital: Hospital) -> None:
    if files.stop_of(hospital.run) is not None:
        raise DeploymentError(
            "Expected this hospital to take part; it was stopped by its operator. Take up training again with "
            "`sottovoce client start --resume`."
        )


def slot(began: float, ready: float, every: float) -> float:
    """Returns when an answer may leave: the next whole number of `every` seconds after its question began.

    >>> [slot(100.0, ready, 5.0) for ready in (100.1, 104.9, 105.0, 105.1)]
    [105.0, 105.0, 105.0, 110.0]
    """
    return began + every * max(1, math.ceil((ready - began) / every))


def _beat(fleet: Fleet, over: threading.Event) -> None:
    while not over.wait(0.8 * HEARTBEAT_SECONDS):
        # What is wrong is found and said by the next request for messages.
        with suppress(DeploymentError):
            fleet.heartbeat()


def _bound(remembered: OrderedDict[int, Any]) -> None:
    while len(remembered) > MAX_RUNS:
        remembered.popitem(last=False)


def _phase(message: Message) -> str:
    return _printable(message.metadata.message_type)


def _printable(text: str) -> str:
    """Returns a few characters of a text that nobody vouches for."""
    return "".join(letter if letter.isprintable() else "?" for letter in text[:60])


@contextmanager
def _signals(ending: threading.Event) -> Iterator[None]:
    """SIGTERM and SIGINT ask for the end, where this is a process of its own."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def ask(*_: object) -> None:
        # In a thread: the handler may have interrupted the very wait whose lock `set` needs.
        threading.Thread(target=ending.set, daemon=True).start()

    before = {one: signal.signal(one, ask) for one in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)
