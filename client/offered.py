"""Studies that were offered to a hospital and lie in its folder: found by a file, or by the start of a digest.

Guarantees:
  - An offer that is opened was signed by the pinned coordinator, whatever became of its files since.
  - A digest is never completed to one of two.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from sottovoce.client.home import Hospital
from sottovoce.client.received import KeptOffer, checked_offer
from sottovoce.common.config import build
from sottovoce.common.errors import DeploymentError
from sottovoce.common.rosters import roster_from
from sottovoce.common.secagg.session import Roster
from sottovoce.common.study import Study, load

OFFER_FILE = "offer.json"
MAX_OFFER_BYTES = 200_000
LEAST_CHARS = 4


@dataclass(frozen=True, kw_only=True)
class Offered:
    """A study as it was offered: to which sites, and with which roster if it has secure sums."""

    study: Study
    sites: tuple[str, ...]
    offered_at: int
    roster: Roster | None


def digests(hospital: Hospital) -> tuple[str, ...]:
    """Returns the digests of the studies that lie here."""
    return tuple(sorted(path.parent.name for path in hospital.studies.glob("*/study.toml")))


def digest_of(hospital: Hospital, said: str) -> str:
    """Returns the digest of a study that lies here, by its file, its digest or the start of that.

    Raises:
        DeploymentError: none lies here, or several begin like this.
        StudyError: it is a file, and no study.
    """
    file = Path(said)
    wanted = load(file).digest() if file.is_file() else said.strip().lower()
    found = [digest for digest in digests(hospital) if digest.startswith(wanted)]
    if len(wanted) < LEAST_CHARS or len(found) > 1:
        raise DeploymentError(
            f"Expected {LEAST_CHARS} digits or more of one study's digest; {said[:80]!r} begins {len(found)} of them. "
            "See `sottovoce client offers`."
        )
    if not found:
        raise DeploymentError(
            f"Expected a study that was offered to this hospital; {said[:80]!r} is none of "
            f"{len(digests(hospital))}. Fetch what is new with `sottovoce client offers`."
        )
    return found[0]


def open_offer(hospital: Hospital, digest: str) -> Offered:
    """Opens an offer. Raises: DeploymentError where it is not, or no longer, what the coordinator signed."""
    path, problems = hospital.study_folder(digest) / OFFER_FILE, list[str]()
    again = "Fetch it again with `sottovoce client offers`."
    try:
        text = hospital.study_file(digest).read_text(encoding="utf-8")
        with path.open("rb") as file:
            kept = build(KeptOffer, json.loads(file.read(MAX_OFFER_BYTES)), OFFER_FILE, problems)
    except OSError as error:
        raise DeploymentError(f"{path.parent}: cannot be read ({error.strerror}). {again}") from None
    except (ValueError, RecursionError):
        kept = None
    if kept is None:
        raise DeploymentError(f"{path}: expected an offer as it was fetched; came another file. {again}")
    study = checked_offer(hospital, digest, text, kept)
    roster = roster_from(kept.roster.encode()) if kept.roster else None
    return Offered(study=study, sites=kept.sites, offered_at=kept.offered_at, roster=roster)
