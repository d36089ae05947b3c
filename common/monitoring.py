"""What a process tells a Prometheus server on its own machine: counts and durations, and nothing that could be private.

    metrics = Metrics("hospital")
    metrics.message("train.mask", "answered", seconds=2.1)
    with metrics.served(9464): ...      # http://127.0.0.1:9464/metrics

A duration of local training depends on who was drawn. So a hospital's durations are rounded up to one of four values
before they are counted, and nobody but its own machine can ask.

Guarantees:
  - Every name and every label value is on a list in this file: an outcome, a reason or a phase that is not on it is
    counted as `other`. No site, study, person or text can become a label.
  - A hospital's durations are counted as 1, 10, 60 or 600 seconds; neither the sum nor a bucket tells more.
  - Only the loopback interface is listened on.
"""

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, get_args

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    start_http_server,
)

from sottovoce.common.errors import DeploymentError

LOOPBACK, PREFIX, OTHER = "127.0.0.1", "sottovoce", "other"

Part = Literal["coordinator", "hospital"]
Phase = Literal[
    "train",
    "train.advert",
    "train.deal",
    "train.mask",
    "train.consent",
    "train.reveal",
    "evaluate",
    "evaluate.advert",
    "evaluate.deal",
    "evaluate.mask",
    "evaluate.consent",
    "evaluate.reveal",
    "query",
    "other",
]
Outcome = Literal["answered", "refused", "failed", "late", "resent", "stopped", "other"]
RoundOutcome = Literal["applied", "no_quorum", "abandoned", "other"]
AttemptOutcome = Literal["summed", "abandoned", "burned", "other"]
# The words of `common.envelope`, `common.secagg.complaint`, and of what a site refuses a study for.
Reason = Literal[
    "abandoned", "answers", "approval", "body", "bundle", "certificate", "cohort", "consent", "content",
    "contract", "expired", "form", "frame", "header", "input", "keys", "ledger", "mode", "model", "phase",
    "policy", "purpose", "recipient", "replay", "reveal", "revoked", "roster", "round", "run", "sender",
    "session", "share", "signature", "size", "state", "stopped", "study", "sum", "survivors", "terms",
    "threshold", "other",
]  # fmt: skip
Certificate = Literal["authority", "server", "site", "revocation_list"]
Gauged = Literal["sites_enrolled", "sites_seen", "studies_running"]

HOSPITAL_SECONDS = (1.0, 10.0, 60.0, 600.0)  # as coarse as still tells a stuck site from a busy one
COORDINATOR_SECONDS = (
    0.1,
    0.3,
    1.0,
    3.0,
    10.0,
    30.0,
    60.0,
    300.0,
    600.0,
    3600.0,
)  # it sees all of this anyway

_ALLOWED = {
    "phase": get_args(Phase),
    "outcome": get_args(Outcome),
    "round": get_args(RoundOutcome),
    "attempt": get_args(AttemptOutcome),
    "reason": get_args(Reason),
}


class Metrics:
    """The counts and durations of one process."""

    def __init__(self, part: Part) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call] # it would tell when something first happened
        self._coarse = part == "hospital"
        self._registry = registry = CollectorRegistry()
        buckets = HOSPITAL_SECONDS if self._coarse else COORDINATOR_SECONDS
        counter = functools.partial(_counter, registry)
        self._messages = counter(
            "messages", "Messages, by phase and by what came of them.", "phase", "outcome"
        )
        self._rounds = counter("rounds", "Rounds, by how they ended.", "outcome")
        self._attempts = counter("attempts", "Attempts at a secure sum, by how they ended.", "outcome")
        self._refused = counter("refused", "What was refused, by reason.", "reason")
        self._seconds = Histogram(
            f"{PREFIX}_message_seconds",
            "Seconds from a message to its answer.",
            ["phase"],
            buckets=buckets,
            registry=registry,
        )
        self._round_seconds = Histogram(
            f"{PREFIX}_round_seconds", "Seconds of a round.", buckets=buckets, registry=registry
        )
        self._left = Gauge(
            f"{PREFIX}_certificate_seconds_left",
            "Seconds until a certificate, or the list of the revoked, no longer holds.",
            ["certificate"],
            registry=registry,
        )
        self._number = {
            name: Gauge(f"{PREFIX}_{name}", f"Number of {name.replace('_', ' ')}.", registry=registry)
            for name in get_args(Gauged)
            if not self._coarse
        }

    def message(self, phase: str, outcome: str, *, seconds: float | None = None) -> None:
        """Counts a message: what it asked for (Flower's message type), what came of it, how long that took."""
        named = _listed("phase", phase)
        self._messages.labels(named, _listed("outcome", outcome)).inc()
        if seconds is not None:
            self._seconds.labels(named).observe(self._told(seconds))

    def round(self, outcome: str, *, seconds: float | None = None) -> None:
        """Counts a round."""
        self._rounds.labels(_listed("round", outcome)).inc()
        if seconds is not None:
            self._round_seconds.observe(self._told(seconds))

    def attempt(self, outcome: str) -> None:
        """Counts an attempt at a secure sum."""
        self._attempts.labels(_listed("attempt", outcome)).inc()

    def refused(self, reason: str) -> None:
        """Counts a refusal: an envelope, a study, an update, a request."""
        self._refused.labels(_listed("reason", reason)).inc()

    def certificate(self, which: Certificate, seconds_left: float) -> None:
        """Says how long a certificate still holds; below zero it no longer does."""
        self._left.labels(which).set(seconds_left)

    def number(self, which: Gauged, value: int) -> None:
        """Says how many sites or studies a coordinator has. A hospital has no such numbers."""
        self._number[which].set(value)

    @contextmanager
    def served(self, port: int) -> Iterator[int]:
        """Answers on the loopback interface and yields the port; a port of 0 answers nobody and yields 0.

        Raises:
            DeploymentError: the port is taken.
        """
        if not port:
            yield 0
            return
        try:
            server, thread = start_http_server(port, addr=LOOPBACK, registry=self._registry)
        except OSError as error:
            raise DeploymentError(
                f"Expected port {port} for metrics to be free; it is not ({error.strerror}). Set another metrics_port."
            ) from None
        try:
            yield port
        finally:
            server.shutdown()
            server.server_close()
            thread.join()

    def _told(self, seconds: float) -> float:
        """Rounds a hospital's duration up to what may be known of it."""
        if not self._coarse:
            return seconds
        return next((bound for bound in HOSPITAL_SECONDS if seconds <= bound), HOSPITAL_SECONDS[-1])


def _listed(label: str, value: str) -> str:
    return value if value in _ALLOWED[label] else OTHER


def _counter(registry: CollectorRegistry, name: str, text: str, *labels: str) -> Counter:
    return Counter(f"{PREFIX}_{name}", text, labels, registry=registry)
