"""What a coordinator sends a site to keep, and how each is checked before it is: offers of studies, released models.

Guarantees:
  - What `checked_offer` and `checked_model` let pass, the pinned coordinator signed; nothing else does.
  - A model's file is in its place only when its bytes are those that were signed.
"""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from sottovoce.client.home import Hospital
from sottovoce.common.consortium.statements import ModelStatement, OfferStatement, holds, sha256
from sottovoce.common.errors import DeploymentError, StudyError
from sottovoce.common.rosters import roster_from
from sottovoce.common.study import Study, loads

MAX_MODEL_BYTES = 2_000_000_000


@dataclass(frozen=True, kw_only=True)
class OfferSeen:
    """A line of the list of offers. `decision` is this site's so far: "", "approved" or "denied"."""

    study: str
    name: str
    offered_at: int
    sites: tuple[str, ...]
    decision: str


@dataclass(frozen=True, kw_only=True)
class KeptOffer:
    """offer.json: what the coordinator signed, as it came. `roster` is its canonical text, "" where there is none."""

    format: Literal[1]
    study: str
    sites: tuple[str, ...]
    roster: str
    offered_at: int
    signature: str


@dataclass(frozen=True, kw_only=True)
class ModelSeen:
    """A released model, signed by the coordinator."""

    run: str
    study: str
    name: str
    n_bytes: int
    sha256: str
    released_at: int


def checked_offer(hospital: Hospital, digest: str, text: str, offer: KeptOffer) -> Study:
    """Returns the study of an offer.

    1. The coordinator signed it, for this digest.
    2. The text is a study of this digest.
    3. This site is one of its sites, of which there are as many as the study says.
    4. A roster names the coordinator, and this site under its own identity, and nobody who is not a site of the offer.
    """
    coordinator, roster = hospital.coordinator, offer.roster.encode()
    said = OfferStatement(
        study=digest, sites=offer.sites, roster_sha256=sha256(roster), offered_at=offer.offered_at
    )
    if not holds(said, _bytes(offer.signature), coordinator.public_key):  # 1
        raise DeploymentError(
            f"Expected an offer signed by {coordinator.name!r} for {digest[:16]}…; came another."
        )
    try:
        study = loads(text)
    except StudyError as error:
        raise DeploymentError(f"Expected a study that can be run; {digest[:16]}… cannot: {error}") from None
    if study.digest() != digest:  # 2
        raise DeploymentError(f"Expected study {digest[:16]}…; its text has digest {study.digest()[:16]}….")
    if hospital.site not in offer.sites or len(set(offer.sites)) != study.federation.n_sites:  # 3
        raise DeploymentError(
            f"Expected an offer to {study.federation.n_sites} sites with {hospital.site!r}; came one to {offer.sites}."
        )
    if roster:
        _check_roster(hospital, roster, offer)  # 4
    return study


def _bytes(hexadecimal: str) -> bytes:
    try:
        return bytes.fromhex(hexadecimal)
    except ValueError:
        return b""  # which is no signature


def _check_roster(hospital: Hospital, data: bytes, offer: KeptOffer) -> None:
    roster = roster_from(data)
    own = roster.key_of(hospital.site) == hospital.identity.public_hex
    sites = sorted(member.site for member in roster.members)
    if roster.coordinator != hospital.coordinator.public_key or not own or sites != sorted(offer.sites):
        raise DeploymentError(
            f"Expected a roster of the offer's sites and coordinator, with {hospital.site!r} under its own identity; "
            "came another. If this site enrolled anew, the coordinator offers the study anew."
        )


def checked_model(found: Any, coordinator: str) -> ModelSeen:
    """Returns a model that the coordinator signed. Raises: DeploymentError for another."""
    model = ModelSeen(
        run=found.run,
        study=found.study,
        name=found.name,
        n_bytes=found.n_bytes,
        sha256=found.sha256,
        released_at=found.released_at,
    )
    if not holds(ModelStatement(**vars(model)), found.signature, coordinator):
        raise DeploymentError(
            f"Expected a model signed by the coordinator; that of run {model.run!r} is not."
        )
    if len(model.sha256) != 64 or not set(model.sha256) <= set(
        "0123456789abcdef"
    ):  # it becomes a file's name
        raise DeploymentError("Expected a model's SHA-256 of 64 hexadecimal digits; came other text.")
    if not 0 < model.n_bytes <= MAX_MODEL_BYTES:
        raise DeploymentError(f"Expected a model of at most {MAX_MODEL_BYTES} bytes; came {model.n_bytes}.")
    return model


def finish(model: ModelSeen, partial: Path, out: Path) -> None:
    """Puts a file in its place once it is the model that was signed. Raises: DeploymentError, OSError."""
    with partial.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
        size = file.tell()
        os.fsync(file.fileno())
    if size < model.n_bytes:
        raise DeploymentError(
            f"{out}: the line broke too often; {size} of {model.n_bytes} bytes are here. Call again to go on."
        )
    if found != model.sha256:
        partial.unlink()
        raise DeploymentError(
            f"{out}: expected SHA-256 {model.sha256[:16]}…; came {found[:16]}…. Fetch it again."
        )
    partial.replace(out)
