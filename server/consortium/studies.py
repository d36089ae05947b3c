"""Offers, approvals, released models and where all of it stands.

Guarantees:
  - A site sees the studies that were offered to it, and the models of these; no others.
  - An approval is kept with the signature of the site's identity, so that anybody can check it later.
  - Status holds names, counts and times; nothing that a site computed.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import grpc

from sottovoce.common import study as studies
from sottovoce.common.consortium import consortium_pb2 as schema
from sottovoce.common.consortium.statements import ApprovalStatement, holds
from sottovoce.common.errors import SottovoceError, StudyError
from sottovoce.common.run_files import read_run
from sottovoce.server.consortium import fields
from sottovoce.server.consortium.gate import Refused, Visitor, expected
from sottovoce.server.consortium.offers import sign_model
from sottovoce.server.home import CoordinatorHome
from sottovoce.server.registry import Registry
from sottovoce.server.registry_tables import Decision, Offered, Published

CHUNK_BYTES = 262_144
DECISIONS = ("approved", "denied")


class Studies:
    """Answers about studies, models and status."""

    def __init__(self, registry: Registry, home: CoordinatorHome) -> None:
        self._registry, self._home, self._key = registry, home, home.key

    def list_offers(self, visitor: Visitor, request: Any) -> schema.Offers:
        """Names the studies that were offered to the visitor; to persons, all."""
        return schema.Offers(
            offers=[self._line(visitor, one) for one in self._registry.offers(_scope(visitor))]
        )

    def fetch_offer(self, visitor: Visitor, request: Any) -> schema.Offer:
        """Returns one of them as it was offered."""
        one = self._offered(visitor, request.study)
        return schema.Offer(
            study=one.study,
            text=one.text,
            sites=one.sites,
            roster=one.roster,
            offered_at=one.offered_at,
            signature=one.signature,
        )

    def send_approval(self, visitor: Visitor, request: Any) -> schema.Receipt:
        """Keeps what a site says of a study."""
        offered, member = (
            self._offered(visitor, request.study),
            self._registry.member(visitor.name),
        )
        if request.decision not in DECISIONS:
            raise expected(f"a decision of {', '.join(DECISIONS)}", request.decision, "")
        said = ApprovalStatement(
            study=offered.study,
            site=visitor.name,
            decision=request.decision,
            instance=fields.text(request.instance, "a ledger's instance", 200),
            entry=fields.count(request.entry, "an entry"),
            decided_at=fields.count(request.decided_at, "a time"),
        )
        if member is None or not holds(said, fields.signature(request.signature), member.identity):
            raise expected("a signature of this site's identity over its decision", "another", "")
        self._registry.record_approval(
            Decision(**vars(said), identity=member.identity, signature=request.signature)
        )
        return schema.Receipt()

    def list_models(self, visitor: Visitor, request: Any) -> schema.Models:
        """Names the released models of the visitor's studies; to persons, all."""
        return schema.Models(models=[self._model(one) for one in self._registry.models(_scope(visitor))])

    def fetch_model(self, visitor: Visitor, request: Any) -> Iterator[schema.Chunk]:
        """Yields a model from a byte on."""
        digest = fields.digest(request.sha256, "a model's SHA-256")
        found = [one for one in self._registry.models(_scope(visitor)) if one.sha256 == digest]
        if not found:
            raise Refused(
                grpc.StatusCode.NOT_FOUND,
                f"Expected a model of your studies; {digest[:16]}… is none. `ListModels` names them.",
            )
        offset = fields.count(request.offset, "an offset", found[0].n_bytes)
        return _chunks(Path(found[0].file), offset)

    def status(self, visitor: Visitor, request: Any) -> schema.Federation:
        """Returns who takes part and how far they are."""
        return schema.Federation(
            coordinator=self._home.settings.name,
            participants=[
                schema.Participant(
                    name=member.name,
                    role=member.role,
                    certificate_until=member.not_after,
                    last_seen=member.last_seen or 0,
                    revoked_at=member.revoked_at or 0,
                )
                for member in self._registry.sites()
            ],
            checkpoints=self._standings(),
            decisions=[self._decisions(one.study) for one in self._registry.offers()],
            runs=_runs(self._home.runs),
        )

    def _line(self, visitor: Visitor, one: Offered) -> schema.OfferLine:
        said = {each.site: each.decision for each in self._registry.approvals(one.study)}
        return schema.OfferLine(
            study=one.study,
            name=_name(one),
            offered_at=one.offered_at,
            sites=one.sites,
            decision=said.get(visitor.name, ""),
        )

    def _offered(self, visitor: Visitor, digest: str) -> Offered:
        one = self._registry.offered(fields.digest(digest, "a study's digest"))
        if one is None or (visitor.role == "site" and visitor.name not in one.sites):
            # One answer for both: a site does not learn which studies others are in.
            raise Refused(
                grpc.StatusCode.NOT_FOUND,
                f"Expected a study that was offered to {visitor.name!r}; {digest[:16]}… is none. "
                "`sottovoce client offers` names them.",
            )
        return one

    def _model(self, one: Published) -> schema.Model:
        name = Path(one.file).name
        return schema.Model(
            run=one.run,
            study=one.study,
            name=name,
            n_bytes=one.n_bytes,
            sha256=one.sha256,
            released_at=one.released_at,
            signature=sign_model(self._key, one, name=name),
        )

    def _standings(self) -> list[schema.Standing]:
        seen = self._registry.cosignatures()
        return [
            schema.Standing(
                site=kept.site,
                size=kept.size,
                sent_at=kept.sent_at,
                witnesses=[
                    one.witness
                    for one in seen
                    if (one.site, one.identity, one.size) == (kept.site, kept.identity, kept.size)
                ],
            )
            for kept in self._registry.checkpoints()
        ]

    def _decisions(self, study: str) -> schema.Decisions:
        said = self._registry.approvals(study)
        by = {decision: [one.site for one in said if one.decision == decision] for decision in DECISIONS}
        return schema.Decisions(study=study, approved=by["approved"], denied=by["denied"])


def _name(offered: Offered) -> str:
    try:
        return studies.loads(offered.text).name
    except StudyError:  # offered by an older version: the others are listed all the same
        return offered.study[:16]


def _scope(visitor: Visitor) -> str | None:
    return visitor.name if visitor.role == "site" else None


def _chunks(file: Path, offset: int) -> Iterator[schema.Chunk]:
    try:
        with file.open("rb") as stream:
            stream.seek(offset)
            while data := stream.read(CHUNK_BYTES):
                yield schema.Chunk(offset=offset, data=data)
                offset += len(data)
    except OSError:
        raise Refused(
            grpc.StatusCode.FAILED_PRECONDITION, "Expected the model's file at the coordinator; it is gone."
        ) from None


def _runs(folder: Path) -> Sequence[schema.Run]:
    return [run for path in sorted(folder.glob("*/run.json")) for run in _run(path)]


def _run(path: Path) -> Iterator[schema.Run]:
    try:
        facts = read_run(path)
    except SottovoceError:  # one damaged run does not hide the others
        return
    yield schema.Run(
        name=path.parent.name, study=facts.study_digest, started=facts.started, ended=facts.ended or ""
    )
