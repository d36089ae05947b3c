"""What went wrong on the way to the coordinator, as one sentence that an operator can act on.

    trouble = of_transport(error, "coordinator.example:8443")
    trouble.reason, str(trouble)        # one word for programs, one line for people

Guarantees:
  - Every failure of name, network, TLS or front has its own word, its cause and its mend.
  - Nothing that a server wrote is repeated but the number of its answer.
"""

import errno
import json
import socket
import ssl
from collections.abc import Iterator

from sottovoce.common.errors import DeploymentError

# What may be over a moment later: the same request is worth another try.
TRANSIENT = frozenset({"name", "refused", "timeout", "network", "broken", "busy"})
CLOCK_TOLERANCE_SECONDS = 240.0  # Flower's own is 300 s

_EXPIRED, _NOT_YET, _NAMES = 10, 9, {62, 64}  # OpenSSL's X509_V_ERR_*
_NODE_ACTIVATION_FAILED, _HEARTBEAT_INTERVAL, _RUN_CODES = 2004, 2003, {2007, 2008, 2009}
_VERSION_INCOMPATIBLE = 1001


def trouble(reason: str, sentence: str) -> DeploymentError:
    """Returns the error for one kind of trouble."""
    return DeploymentError(sentence, reason=reason)


def parts(error: DeploymentError) -> tuple[str, str]:
    """Returns the cause and the mend of a trouble: its first sentence, and the rest."""
    cause, _, mend = str(error).partition(". ")
    return f"{cause}.", mend or "The agent's log says more."


def of_transport(error: BaseException, address: str) -> DeploymentError:
    """Returns the trouble behind an exception of a connection."""
    for one in _chain(error):
        if found := _known(one, address):
            return found
    return trouble(
        "broken",
        f"Expected an answer from the coordinator at {address}; the connection broke off "
        f"({type(error).__name__}). It is tried again; if this stays, ask who looks after the network.",
    )


def of_status(status: int, body: str, address: str, *, clock_off: float | None) -> DeploymentError:
    """Returns the trouble behind an answer that is no success. `clock_off` is the server's clock less ours."""
    code = _flower_code(body)
    if status == 401 and clock_off is not None and abs(clock_off) > CLOCK_TOLERANCE_SECONDS:
        return clock_trouble(clock_off)
    if status == 401 or code == _NODE_ACTIVATION_FAILED:
        return not_registered(address)
    if code == _HEARTBEAT_INTERVAL:
        return trouble("interval", f"The coordinator at {address} refused this site's heartbeat interval.")
    if code in _RUN_CODES:
        return trouble("run_over", "The run that this message belongs to has ended or is not this site's.")
    if code == _VERSION_INCOMPATIBLE or status == 426:
        return trouble(
            "version",
            f"Expected the coordinator at {address} to run the same version of Flower; it runs another. "
            "Install the release of Sottovoce that the coordinator names.",
        )
    return _plain_status(status, body, address)


def not_registered(address: str) -> DeploymentError:
    """Returns the trouble of a site that the coordinator does not know, or not any more."""
    return trouble(
        "not_registered",
        f"Expected the coordinator at {address} to know this site's node key; it does not: the site is not "
        "registered or was revoked. Ask the coordinator, or enrol again with `sottovoce client init`.",
    )


def clock_trouble(clock_off: float) -> DeploymentError:
    """Returns the trouble of a clock that is off by so many seconds (the server's less ours)."""
    way = "behind" if clock_off > 0 else "ahead"
    return trouble(
        "clock",
        f"Expected this machine's clock to agree with the coordinator's within {CLOCK_TOLERANCE_SECONDS:.0f} s; "
        f"it is {abs(clock_off):.0f} s {way}. Set it, or turn on NTP.",
    )


def not_ours(address: str) -> DeploymentError:
    """Returns the trouble of an answer that no SuperLink gives."""
    return trouble(
        "answer",
        f"Expected a coordinator's answer at {address}; came something else. Check address and port in "
        "`coordinator.json`, and whether a proxy answers in its place.",
    )


def too_large(sentence: str) -> DeploymentError:
    """Returns the trouble of a message that is over a bound: what was expected, and what came."""
    return trouble("too_large", f"Refused a message: expected {sentence}.")


def _plain_status(status: int, body: str, address: str) -> DeploymentError:
    if status in (429, 502, 503, 504):
        return trouble(
            "busy",
            f"Expected the coordinator behind {address} to be up; its front answered {status}. It is tried again; "
            "if this stays, tell the coordinator that the SuperLink is down.",
        )
    if status in (495, 496) or (status == 400 and "SSL certificate" in body):
        return _client_certificate(address)
    if status == 413:
        return trouble(
            "too_large",
            f"Expected {address} to take this site's reply; it is larger than its front allows (413). Ask the "
            "coordinator to raise the limit for bodies.",
        )
    if 400 <= status < 500 or 300 <= status < 400:
        return trouble(
            "front",
            f"Expected {address} to let this site through; its front answered {status}. Ask the coordinator whether "
            "the certificate of this site is revoked, and whether the address is that of the fleet.",
        )
    return trouble(
        "server",
        f"Expected the coordinator at {address} to take the request; it failed there ({status}). Tell the coordinator: "
        "its log says why.",
    )


def _known(error: BaseException, address: str) -> DeploymentError | None:
    match error:
        case ssl.SSLCertVerificationError():
            return _of_certificate(error, address)
        case ssl.SSLError():
            return _of_tls(error, address)
        case socket.gaierror():
            return trouble(
                "name",
                f"Expected the name in {address} to resolve; it does not. Check `coordinator.json` and this "
                "machine's DNS.",
            )
        case ConnectionRefusedError():
            return trouble(
                "refused",
                f"Expected the coordinator to listen at {address}; the connection was refused. It is not running, "
                "or a firewall closes the port.",
            )
        case TimeoutError():
            return trouble(
                "timeout",
                f"Expected an answer from {address}; none came in time. A firewall may drop the packets, or the "
                "line is down.",
            )
        case OSError() if error.errno in (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN):
            return trouble(
                "network",
                f"Expected a way to {address}; the network is unreachable. Check this machine's network and routes.",
            )
    return None


def _of_certificate(error: ssl.SSLCertVerificationError, address: str) -> DeploymentError:
    if error.verify_code in _NAMES:
        return trouble(
            "host_name",
            f"Expected a certificate for the name in {address}; the server's is for another name. Use the name "
            "that the coordinator gave, or ask for a certificate that has this one.",
        )
    if error.verify_code == _EXPIRED:
        return trouble(
            "expired",
            f"Expected a certificate of {address} that is in force; it has expired. Ask the coordinator to renew "
            "it; if it says it is new, this machine's clock is ahead.",
        )
    if error.verify_code == _NOT_YET:
        return trouble(
            "clock",
            f"Expected a certificate of {address} that is in force; it begins in the future. This machine's clock "
            "is behind: set it, or turn on NTP.",
        )
    return trouble(
        "authority",
        f"Expected a certificate of {address} from the authority in `tls/ca.crt`; came one of another authority. "
        "Do not go on: compare the fingerprint by telephone, then enrol again if the coordinator has a new one.",
    )


def _of_tls(error: ssl.SSLError, address: str) -> DeploymentError | None:
    reason = (error.reason or str(error)).upper()
    if "CERTIFICATE" in reason or "UNKNOWN_CA" in reason:
        return _client_certificate(address)
    if "WRONG_VERSION_NUMBER" in reason or "RECORD_LAYER" in reason:
        return trouble(
            "answer", f"Expected TLS at {address}; came something else. Check address and port in its file."
        )
    return None


def _client_certificate(address: str) -> DeploymentError:
    return trouble(
        "client_certificate",
        f"Expected {address} to take this site's certificate `tls/site.crt`; it was refused: missing, expired or "
        "revoked. `sottovoce client doctor` says which; enrol again with `sottovoce client init`.",
    )


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    one: BaseException | None = error
    while one is not None and id(one) not in seen:
        seen.add(id(one))
        yield one
        one = one.__cause__ or one.__context__


def _flower_code(body: str) -> int | None:
    try:
        said = json.loads(body)
    except (ValueError, RecursionError):
        return None
    code = said.get("code") if isinstance(said, dict) else None
    return code if isinstance(code, int) else None
