"""The doctor's look at the way to the coordinator: name, port, certificates, clock, and whether it knows this site.

Guarantees:
  - The coordinator is asked only what changes nothing there: a connection, and whether it knows this site's key.
"""

import socket
import ssl
import threading

from sottovoce.client import trouble as troubles
from sottovoce.client.findings import Finding, Findings, fail, ok, warn
from sottovoce.client.fleet import Fleet
from sottovoce.client.home import Hospital
from sottovoce.client.line import tls_context
from sottovoce.common.errors import DeploymentError, KeyFileError

CLOCK_WARNING_SECONDS = 30.0
CONNECT_SECONDS = 5.0


def fleet(hospital: Hospital) -> Findings:
    """Yields what is found on the way to the SuperLink."""
    try:
        found = Fleet(hospital, threading.Event())
    except KeyFileError:
        return  # the node key's own check says it
    trouble = _trouble(found)
    if trouble is None:
        yield ok("connection")
    elif trouble.reason != "clock":
        yield _failed("connection", trouble)
    elif found.clock_off is None:  # TLS broke off: nothing said by how much
        yield _failed("clock", trouble)
    yield from _clock(found.clock_off)


def consortium(hospital: Hospital) -> Findings:
    """Yields what is found on the way to the consortium service, up to its certificate."""
    address = hospital.coordinator.consortium
    host, _, port = address.rpartition(":")
    try:
        context = tls_context(hospital.tls)
        context.set_alpn_protocols(["h2"])
        with (
            socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS) as line,
            context.wrap_socket(line, server_hostname=host.strip("[]")),
        ):
            yield ok("consortium service")
    except (OSError, ssl.SSLError) as error:
        yield _failed("consortium service", troubles.of_transport(error, address))
    except ValueError:
        cause = f"Expected HOST:PORT as the consortium's address; came {address[:60]!r}."
        yield fail("consortium service", cause, "Enrol again with `sottovoce client init`.")


def _trouble(found: Fleet) -> DeploymentError | None:
    try:
        if found.is_registered():
            return None
        return troubles.not_registered(found.address)
    except DeploymentError as error:
        return error
    finally:
        found.close()


def _clock(clock_off: float | None) -> Findings:
    if clock_off is None or abs(clock_off) <= CLOCK_WARNING_SECONDS:
        return
    is_refused = abs(clock_off) > troubles.CLOCK_TOLERANCE_SECONDS
    yield (fail if is_refused else warn)("clock", *troubles.parts(troubles.clock_trouble(clock_off)))


def _failed(what: str, error: DeploymentError) -> Finding:
    return fail(what, *troubles.parts(error))
