"""The gate of the consortium's service: who calls is read from the certificate of the connection, at every call.

Each request is judged in this order, and nothing of it is parsed before step 6:

 1. The connection is over TLS, with a certificate of this consortium's authority (the handshake saw to that).
 2. The certificate names one member and one role, and is not over.
 3. It is on record and was not revoked: the registry is asked now, not once a connection.
 4. The role may make this call; unknown calls are nobody's.
 5. The peer has not called too often, and has not too many calls open; the request is not larger than this call needs.
 6. The bytes are a message of the schema, with no field that it does not have.

Guarantees:
  - Every refusal is an event of the registry: who, which call, why. A peer that is refused over and over costs at most
    `EVENTS_PER_MINUTE` of them a minute.
  - A peer is told what was expected, what came and what to do; of a defect of ours it learns that there is one.
"""

import logging
import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
from grpc_health.v1 import health_pb2

from sottovoce.common.consortium.schema import METHODS, Method, decoded
from sottovoce.common.errors import CertificateError, SottovoceError
from sottovoce.common.pki import Peer, Role, peer_of
from sottovoce.server.registry import Registry

CALLS_AT_ONCE = 4  # of one peer, as all of these
CALLS, CALLS_PER_SECOND = 200.0, 50.0  # so many at once, and so many more each second
WRITES, WRITES_PER_SECOND = 100.0, 0.5  # calls that leave a row: what one peer can fill of the disk in a day
EVENTS_PER_MINUTE = 30
SEEN_SECONDS = 30.0
STREAM_SECONDS = 600.0

HEALTH = Method(
    name="Health",
    path="/grpc.health.v1.Health/Check",
    request=health_pb2.HealthCheckRequest,
    response=health_pb2.HealthCheckResponse,
    streams=False,
)
KNOWN = {**METHODS, HEALTH.name: HEALTH}

_log = logging.getLogger("sottovoce.server.consortium")


class Refused(Exception):
    """An answer that is no: a status code of gRPC, and what the peer is told."""

    def __init__(self, code: grpc.StatusCode, text: str) -> None:
        super().__init__(text)
        self.code, self.text = code, text


def expected(what: str, came: object, do: str) -> Refused:
    """Returns the refusal of an argument."""
    return Refused(
        grpc.StatusCode.INVALID_ARGUMENT, f"Expected {what}; came {str(came)[:80]!r}. {do}".strip()
    )


@dataclass(frozen=True, kw_only=True)
class Visitor:
    """Who calls, by the certificate of the connection."""

    name: str
    role: Role
    serial: int


Answer = Callable[[Visitor, Any], Any]


@dataclass(frozen=True, kw_only=True)
class Rule:
    """Who may make a call, how large its request may be, and what answers it."""

    roles: frozenset[Role]
    answer: Answer
    max_bytes: int = 4_096
    writes: bool = False


@dataclass
class _Bucket:
    """Tokens that refill."""

    most: float
    per_second: float
    tokens: float = 0.0
    since: float = -math.inf

    def has(self, now: float) -> bool:
        self.tokens = min(self.most, self.tokens + (now - self.since) * self.per_second)
        self.since = now
        return self.tokens >= 1

    def take(self) -> None:
        self.tokens -= 1


@dataclass
class _Allowance:
    """What one peer may do: calls, those that write, and how many are open."""

    calls: _Bucket = field(default_factory=lambda: _Bucket(CALLS, CALLS_PER_SECOND))
    writes: _Bucket = field(default_factory=lambda: _Bucket(WRITES, WRITES_PER_SECOND))
    n_open: int = 0
    seen: float = -SEEN_SECONDS
    events: list[float] = field(default_factory=list)


class Gate(grpc.GenericRpcHandler):  # type: ignore[misc]  # grpc ships no types
    """Hands each request to its answer, or refuses it."""

    def __init__(self, rules: Mapping[str, Rule], registry: Registry) -> None:
        if missing := set(KNOWN) ^ set(rules):
            raise ValueError(f"Expected a rule for every call and no other; differing: {sorted(missing)}.")
        self._rules = {KNOWN[name].path: (KNOWN[name], rule) for name, rule in rules.items()}
        self._registry = registry
        self._allowances: dict[str, _Allowance] = {}
        self._lock = threading.Lock()

    def service(self, details: Any) -> Any:
        """Returns what handles a call. Called by grpc, before anything is known of the peer."""
        method, rule = self._rules.get(details.method, (None, None))

        def one(data: bytes, context: Any) -> bytes:
            with self._admitted(method, rule, data, context) as (visitor, request, answer):
                return bytes(answer(visitor, request).SerializeToString())

        def many(data: bytes, context: Any) -> Iterator[bytes]:
            with self._admitted(method, rule, data, context) as (visitor, request, answer), _bounded(context):
                for message in answer(visitor, request):
                    yield message.SerializeToString()

        if method is not None and method.streams:
            return grpc.unary_stream_rpc_method_handler(many)
        return grpc.unary_unary_rpc_method_handler(one)

    @contextmanager
    def _admitted(
        self, method: Method | None, rule: Rule | None, data: bytes, context: Any
    ) -> Iterator[tuple[Visitor, Any, Answer]]:
        who, call = "a peer without a name", "an unknown call" if method is None else method.name
        try:
            peer = _peer(context)  # 1, 2
            who = peer.name
            visitor = _visitor(peer)
            self._refuse_revoked(visitor)  # 3
            if method is None or rule is None or visitor.role not in rule.roles:  # 4
                raise Refused(
                    grpc.StatusCode.PERMISSION_DENIED,
                    f"A certificate of role {visitor.role} may not do this.",
                )
            with self._counted(visitor, rule):  # 5
                if len(data) > rule.max_bytes:
                    raise expected(f"a request of at most {rule.max_bytes} bytes", f"{len(data)} bytes", "")
                request = decoded(method.request, data)  # 6
                if request is None:
                    raise expected(
                        f"a message {method.request.__name__} of this schema",
                        "another, or one with a field that it does not have",
                        "Use the version of Sottovoce that the coordinator uses.",
                    )
                yield visitor, request, rule.answer
        except Refused as refusal:
            self._refuse(context, who, call, refusal)
        except GeneratorExit:  # the peer went away
            raise
        except Exception as error:
            # A defect, or a disk of ours: its words may name paths here, so the peer gets none of them.
            _log.error("%s of %s failed", call, who, exc_info=not isinstance(error, SottovoceError))
            if isinstance(error, SottovoceError):
                _log.error("%s", error)
            text = "The coordinator could not do this; its log says why. Tell its operator."
            self._refuse(context, who, call, Refused(grpc.StatusCode.INTERNAL, text))

    def _refuse_revoked(self, visitor: Visitor) -> None:
        if reason := self._registry.refusal(visitor.name, visitor.role, visitor.serial):
            raise Refused(
                grpc.StatusCode.PERMISSION_DENIED,
                f"Expected a certificate that holds; {reason}. Ask the coordinator.",
            )

    @contextmanager
    def _counted(self, visitor: Visitor, rule: Rule) -> Iterator[None]:
        allowance, now = self._allowance(visitor.name), time.monotonic()
        buckets = [allowance.calls, allowance.writes] if rule.writes else [allowance.calls]
        with self._lock:
            if not all(bucket.has(now) for bucket in buckets) or allowance.n_open >= CALLS_AT_ONCE:
                raise Refused(
                    grpc.StatusCode.RESOURCE_EXHAUSTED,
                    f"Expected at most {CALLS_PER_SECOND:g} calls a second, {CALLS_AT_ONCE} at once, and "
                    f"{WRITES_PER_SECOND:g} a second that change something. Wait, then call again.",
                )
            for bucket in buckets:
                bucket.take()
            allowance.n_open += 1
            note = visitor.role != "invitation" and now - allowance.seen >= SEEN_SECONDS
            allowance.seen = now if note else allowance.seen
        try:
            if note:
                self._registry.seen(visitor.name)
            yield
        finally:
            with self._lock:
                allowance.n_open -= 1

    def _allowance(self, name: str) -> _Allowance:
        with self._lock:
            return self._allowances.setdefault(name, _Allowance())

    def _refuse(self, context: Any, who: str, call: str, refusal: Refused) -> None:
        _log.warning("refused %s of %s: %s", call, who, refusal.code.name)
        allowance, now = self._allowance(who), time.monotonic()
        with self._lock:
            allowance.events = [at for at in allowance.events if now - at < 60]
            told = len(allowance.events) < EVENTS_PER_MINUTE
            allowance.events += [now] if told else []
        if told:
            try:
                self._registry.log(
                    who, "refused", call=call, code=refusal.code.name, reason=refusal.text[:300]
                )
            except SottovoceError as error:  # a full disk does not let anybody in
                _log.error("%s", error)
        context.abort(refusal.code, refusal.text)


def _peer(context: Any) -> Peer:
    try:
        (pem,) = context.auth_context().get("x509_pem_cert", ())
        return peer_of(pem.decode("ascii"))
    except (ValueError, CertificateError):
        raise Refused(
            grpc.StatusCode.UNAUTHENTICATED, "Expected a certificate of this consortium; came none."
        ) from None


def _visitor(peer: Peer) -> Visitor:
    if not peer.not_before <= time.time() <= peer.not_after:  # a connection may outlive its certificate
        raise Refused(
            grpc.StatusCode.UNAUTHENTICATED,
            "Expected a certificate that is in force; this one is over. Enrol again, with a new invitation.",
        )
    return Visitor(name=peer.name, role=peer.role, serial=peer.serial)


@contextmanager
def _bounded(context: Any) -> Iterator[None]:
    """Ends a stream whose reader is too slow: it holds a thread, and can go on where it was."""
    timer = threading.Timer(STREAM_SECONDS, context.cancel)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
