"""A hospital's or a person's side of the consortium's service.

    ConsortiumClient.enrol(hospital, Path("hospital-a.invitation"))     # once
    with ConsortiumClient(hospital) as client:
        client.renew()                       # if it is time
        client.fetch_all(); client.send_approval(digest, "approved")
        client.send_checkpoint(); client.witness()
        client.fetch_model(client.models()[0], Path("model.safetensors"))

Guarantees:
  - Nothing that the coordinator says is believed without its signature: an offer is what was signed, and the study has
    the digest that it is offered under.
  - An offer that cannot be kept holds up no other, and at most `MAX_OFFERS` are kept.
  - Files that come are whole or not there; a model goes on where its transfer broke off.
  - The certificate stays in force by itself: `certified_line.py`.
"""

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from sottovoce.client.certified_line import CertifiedLine
from sottovoce.client.enrolment import Place, enrol
from sottovoce.client.home import Hospital
from sottovoce.client.offered import OFFER_FILE, digests, open_offer
from sottovoce.client.received import KeptOffer, ModelSeen, OfferSeen, checked_model, checked_offer, finish
from sottovoce.client.secure_folder import ROSTERS
from sottovoce.client.site_ledger import SECURE
from sottovoce.client.witnessing import Fork, Memory, Seen, Shown, known_identities
from sottovoce.common.config import canonical
from sottovoce.common.consortium import consortium_pb2 as schema
from sottovoce.common.consortium.channel import PATIENCE_SECONDS, BrokenStream
from sottovoce.common.consortium.cosigned_files import Cosigned, Witness, write_cosigned
from sottovoce.common.consortium.schema import as_plain
from sottovoce.common.consortium.statements import (
    ApprovalStatement,
    CheckpointStatement,
    signed,
)
from sottovoce.common.errors import DeploymentError, LedgerError, SottovoceError
from sottovoce.common.files import lock_file, write_whole
from sottovoce.common.ledger.checkpoint import parse
from sottovoce.common.ledger.cosignature import cosign
from sottovoce.common.ledger.entries import Approval, Denial
from sottovoce.common.ledger.reader import LineRefused, Reader, lines_of
from sottovoce.common.ledger.reading import newest_checkpoint, read_ledger, readable_entries
from sottovoce.common.ledger.witness import proof_since
from sottovoce.common.pki import Peer
from sottovoce.common.study import Study

WITNESS_LOCK = "witness.lock"
STREAM_SECONDS, MAX_BREAKS = 300.0, 20
MAX_OFFERS = 1_000  # that lie here: what a coordinator can fill of this disk
MAX_LOOKS = 100  # the rest comes at the next time

_log = logging.getLogger("sottovoce.client.consortium")


@dataclass(frozen=True, kw_only=True)
class Witnessed:
    """What came of a look at other sites' ledgers: whose were cosigned, at which size, and what was refused."""

    cosigned: Mapping[str, int]
    forks: tuple[Fork, ...]


class ConsortiumClient(CertifiedLine):
    """Calls for one folder. Not for two threads at once."""

    @staticmethod
    def enrol(place: Place, invitation: Path, *, patience_seconds: float = PATIENCE_SECONDS) -> Peer:
        """Joins by an invitation's file; see `client/enrolment.py`."""
        persons = not isinstance(place, Hospital)
        return enrol(place, invitation, persons=persons, patience_seconds=patience_seconds)

    # --- studies --------------------------------------------------------------------------------------

    def offers(self) -> tuple[OfferSeen, ...]:
        """Returns the studies that are offered here, oldest first."""
        found = self.call("ListOffers", schema.ListOffersRequest())
        return tuple(
            OfferSeen(
                study=one.study,
                name=one.name,
                offered_at=one.offered_at,
                sites=tuple(one.sites),
                decision=one.decision,
            )
            for one in found.offers
        )

    def fetch(self, digest: str) -> Study:
        """Fetches a study, checks it, and keeps it as `study.toml` and `offer.json` of its folder.

        Raises:
            DeploymentError: it is not what the coordinator signed, or not for here. Nothing is kept then.
        """
        hospital = self._hospital()
        folder = hospital.study_folder(digest)
        found = self.call("FetchOffer", schema.FetchOfferRequest(study=digest))
        offer = KeptOffer(
            format=1,
            study=found.study,
            sites=tuple(found.sites),
            roster=found.roster.decode(errors="replace"),
            offered_at=found.offered_at,
            signature=found.signature.hex(),
        )
        study = checked_offer(hospital, digest, found.text, offer)
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            write_whole(hospital.study_file(digest), found.text.encode())
            write_whole(folder / OFFER_FILE, canonical(offer).encode())  # last: what has an offer is whole
        except OSError as error:
            raise DeploymentError(f"{folder}: cannot be written ({error.strerror}).") from None
        return study

    def fetch_all(self, *, mend: bool = False) -> tuple[Study, ...]:
        """Fetches every offered study that is not here yet, and returns those; with `mend` also what lies here damaged.

        Raises:
            DeploymentError: some of them are not what the coordinator signed, or too many; the others are here then.
        """
        hospital = self._hospital()
        missing = [one.study for one in self.offers() if not _lies_here(hospital, one.study, mend=mend)]
        room = MAX_OFFERS - len(digests(hospital))
        fetched, failed = list[Study](), list[str]()
        for digest in missing[: max(0, room)]:
            try:
                fetched.append(self.fetch(digest))
            except SottovoceError as error:
                failed.append(str(error))
        if len(missing) > room:
            failed.append(
                f"Expected at most {MAX_OFFERS} offers; there are more. Remove folders of old ones from "
                f"{hospital.studies}."
            )
        if failed:
            raise DeploymentError(" ".join(failed[:3]))
        return tuple(fetched)

    def send_approval(self, digest: str, decision: Literal["approved", "denied"]) -> int:
        """Tells the coordinator what the ledger says of a study; returns the entry where it stands.

        Raises:
            LedgerError: the ledger does not say so.
        """
        instance, entry = self._decision(digest, decision)
        said = ApprovalStatement(
            study=digest,
            site=self.place.site,
            decision=decision,
            instance=instance,
            entry=entry,
            decided_at=int(time.time()),
        )
        facts = {key: value for key, value in vars(said).items() if key != "site"}
        self.call("SendApproval", schema.Approval(**facts, signature=signed(self.place.identity, said)))
        return entry

    def _decision(self, digest: str, decision: str) -> tuple[str, int]:
        kind = Approval if decision == "approved" else Denial
        found = read_ledger(self._hospital().ledger)
        entries, _ = readable_entries(found.ledger)
        said = [one.index for one in entries if isinstance(one.body, kind) and one.body.study == digest]
        if not said:
            raise LedgerError(
                f"Expected study {digest[:16]}… as {decision} in this site's ledger; it is not there. "
                "Use `sottovoce client approve`."
            )
        return parse(newest_checkpoint(found)).checkpoint.instance, said[-1]

    # --- ledgers --------------------------------------------------------------------------------------

    def send_checkpoint(self) -> int:
        """Sends this site's newest ledger checkpoint with its proof; returns the size that the coordinator keeps.

        Raises:
            LedgerError: the ledger is damaged.
            DeploymentError: the coordinator keeps a checkpoint that this ledger does not extend.
        """
        found = read_ledger(self._hospital().ledger)
        note, reader = newest_checkpoint(found), Reader()
        try:
            for line in lines_of(found.ledger):
                reader.take(line, check_signature=False)  # the checkpoint signs the root of all of them
        except LineRefused as refusal:
            raise LedgerError(f"The ledger cannot be believed: {refusal}.") from None
        key, size = reader.signers[-1], len(reader.hashes)
        said = CheckpointStatement(site=self.place.site, ledger_key=key, note=note)
        word = schema.Note(note=note, ledger_key=key, signature=signed(self.place.identity, said))
        kept, missing = 0, list[int]()
        for _ in range(
            4
        ):  # the first answer says what the proof has to start from, a later one what others lack
            request = schema.SendCheckpointRequest(
                note=word,
                from_size=kept,
                proof=proof_since(reader.hashes, kept) if kept <= size else [],
                bridges=[
                    schema.Bridge(from_size=one, proof=proof_since(reader.hashes, one))
                    for one in missing
                    if one < size
                ],
            )
            answer = self.call("SendCheckpoint", request)
            if answer.accepted and not answer.missing:
                return int(answer.kept_size)
            kept, missing = int(answer.kept_size), list(answer.missing)
        raise DeploymentError("Expected one process that sends this ledger's checkpoints; there are several.")

    def witness(self) -> Witnessed:
        """Looks at other sites' ledgers, and cosigns what extends all that was seen of them here.

        Raises:
            DeploymentError: what this site saw before is damaged, or another process looks now.
        """
        hospital, cosigned, forks = self._hospital(), dict[str, int](), dict[str, Fork]()
        known = known_identities(hospital.ledger / SECURE / ROSTERS)
        try:
            with lock_file(hospital.run / WITNESS_LOCK):
                memory = Memory(hospital.run, known=known)
                for _ in range(MAX_LOOKS):
                    if not self._look(memory, cosigned, forks):
                        break
        except BlockingIOError:
            raise DeploymentError(f"{hospital.folder}: another process witnesses here now. Wait.") from None
        for fork in forks.values():
            _log.error("the ledger of %s was REFUSED: %s Evidence: %s", fork.site, fork.reason, fork.evidence)
        return Witnessed(cosigned=cosigned, forks=tuple(forks.values()))

    def _look(self, memory: Memory, cosigned: dict[str, int], forks: dict[str, Fork]) -> bool:
        """One question and its answers; says whether there is more to ask for."""
        kept = [
            schema.Kept(site=site, identity=seen.identity, size=seen.size)
            for site, seen in memory.seen.items()
        ]
        answer, more = self.call("FetchCheckpoints", schema.FetchCheckpointsRequest(kept=kept)), False
        for line in answer.lines:
            if line.site == self.place.site:  # nobody is a witness of its own ledger
                continue
            judged = memory.judge(_shown(line))
            if isinstance(judged, Fork):
                forks[judged.site] = judged
            elif judged is not None:
                more |= line.more
                self._cosign(line.site, judged)
                memory.sent(line.site)
                cosigned[line.site] = judged.size
        return more

    def _cosign(self, site: str, seen: Seen) -> None:
        made = cosign(parse(seen.note), self.place.identity, witness=self.place.site, now=int(time.time()))
        request = schema.Cosignature(
            site=site, note=seen.note, witnessed_at=made.witnessed_at, signature=made.signature
        )
        self.call("SendCosignature", request)

    # --- models and status ----------------------------------------------------------------------------

    def models(self) -> tuple[ModelSeen, ...]:
        """Returns the released models that the coordinator signed. Raises: DeploymentError for one it did not."""
        found = self.call("ListModels", schema.ListModelsRequest()).models
        return tuple(checked_model(one, self.place.coordinator.public_key) for one in found)

    def fetch_model(
        self, model: ModelSeen, out: Path, *, progress: Callable[[int], None] = lambda _: None
    ) -> Path:
        """Fetches a model to a file; goes on where an earlier transfer, of this or another process, broke off.

        Raises:
            DeploymentError: the line broke too often, the disk is full, or the bytes are not those that were signed.
        """
        partial = out.with_name(f"{out.name}.{model.sha256[:16]}.partial")
        try:
            for _ in range(MAX_BREAKS):
                try:
                    self._transfer(model, partial, progress)
                    break
                except BrokenStream as error:
                    _log.warning("%s The transfer goes on where it was.", error)
                    time.sleep(0.2)
            finish(model, partial, out)
        except OSError as error:
            raise DeploymentError(f"{out}: cannot be written ({error.strerror}).") from None
        return out

    def _transfer(self, model: ModelSeen, partial: Path, progress: Callable[[int], None]) -> None:
        with partial.open("ab") as file:
            offset = file.tell()
            if offset >= model.n_bytes:
                return
            request = schema.FetchModelRequest(sha256=model.sha256, offset=offset)
            connection = self.connection(self.fresh())
            for chunk in connection.stream("FetchModel", request, seconds=STREAM_SECONDS):
                if chunk.offset != offset or offset + len(chunk.data) > model.n_bytes:
                    raise DeploymentError("Expected the next bytes of the model; came others.")
                file.write(chunk.data)
                offset += len(chunk.data)
                progress(offset)

    def status(self) -> dict[str, Any]:
        """Returns who takes part and how far they are; for persons alone."""
        return as_plain(self.call("Status", schema.StatusRequest()))

    def cosignatures(self) -> list[dict[str, Any]]:
        """Returns who witnessed which checkpoint: of this site's ledger; a person sees all."""
        return list(as_plain(self.call("FetchCosignatures", schema.FetchCosignaturesRequest()))["cosigned"])

    def export_cosigned(self, folder: Path) -> tuple[Path, ...]:
        """Writes the cosigned checkpoints as files for `sottovoce ledger verify --seen`; see `cosigned_files`."""
        found = self.call("FetchCosignatures", schema.FetchCosignaturesRequest()).cosigned
        return write_cosigned(
            folder,
            [
                Cosigned(
                    site=one.site,
                    note=one.note,
                    witnesses=[
                        Witness(
                            name=each.name,
                            identity=each.identity,
                            witnessed_at=each.witnessed_at,
                            signature=each.signature,
                        )
                        for each in one.witnesses
                    ],
                )
                for one in found
            ],
        )

    def _hospital(self) -> Hospital:
        if not isinstance(self.place, Hospital):
            raise DeploymentError("Expected a hospital's folder; this is a person's. A site does this.")
        return self.place


def _lies_here(hospital: Hospital, digest: str, *, mend: bool) -> bool:
    try:
        if mend:
            open_offer(hospital, digest)
        return (hospital.study_folder(digest) / OFFER_FILE).exists()
    except SottovoceError:  # no digest at all, too: `fetch` says so
        return False


def _shown(line: Any) -> Shown:
    return Shown(
        site=line.site,
        newest=_seen(line.newest, line.identity),
        steps=[(_seen(step.note, line.identity), tuple(step.proof)) for step in line.steps],
        more=line.more,
    )


def _seen(note: Any, identity: str) -> Seen:
    return Seen(identity=identity, note=note.note, ledger_key=note.ledger_key, signature=note.signature.hex())
