"""An invitation: the one file with which a hospital or a person joins, given by hand or over a channel of their own.

It holds a one-time certificate with its key, so it is as secret as a password until it was used. What it says of the
coordinator is pinned by whoever uses it: both sides compare the authority's fingerprint by telephone.

Guarantees:
  - What is no invitation of this format is refused, with every problem of it.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from sottovoce.common.config import Interval, build, canonical
from sottovoce.common.errors import DeploymentError
from sottovoce.common.pki import fingerprint

MAX_INVITATION_BYTES = 65_536

Name = Annotated[str, Interval(1, 120)]
Pem = Annotated[str, Interval(1, 16_384)]


@dataclass(frozen=True, kw_only=True)
class Invitation:
    """For whom, as what, until when (unix seconds), by which coordinator at which addresses (HOST:PORT)."""

    format: Literal[1]
    name: Name
    role: Literal["site", "admin", "auditor", "coordinator"]
    not_after: int
    coordinator: Name
    public_key: Annotated[str, Interval(64, 64)]
    fleet: Name
    consortium: Name
    authority: Pem
    certificate: Pem
    key: Pem

    @property
    def fingerprint(self) -> str:
        """What to compare by telephone. Raises: CertificateError where the authority's certificate is none."""
        return fingerprint(self.authority)

    def text(self) -> str:
        """Returns the file's text."""
        return canonical(self) + "\n"

    def __repr__(self) -> str:
        return f"Invitation({self.name!r}, {self.role!r})"  # not its key


def read_invitation(path: Path) -> Invitation:
    """Reads an invitation. Raises: DeploymentError where it cannot be read, or is none."""
    problems: list[str] = []
    try:
        with path.open("rb") as file:
            data = file.read(MAX_INVITATION_BYTES + 1)
        found = build(Invitation, json.loads(data.decode()), "", problems)
    except OSError as error:
        raise DeploymentError(f"{path}: cannot be read ({error.strerror}).") from None
    except (ValueError, RecursionError):
        found = None
    if found is None or len(data) > MAX_INVITATION_BYTES:
        # The problems name keys and not values: one of those is a private key.
        named = ", ".join(problem.split(":")[0] for problem in problems[:5])
        raise DeploymentError(
            f"{path}: expected an invitation as the coordinator made it; came another file"
            f"{f' (see {named})' if named else ''}. Ask for it again."
        )
    return found
