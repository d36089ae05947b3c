"""Checkpoints of ledgers, and the witnesses who cosign them: the coordinator keeps, proves and hands on.

Guarantees:
  - A checkpoint is kept only with the site's word for its ledger's key, and with the proof that it extends the one
    kept before; one that does not is refused, and is an event with both notes in it: the evidence.
  - A witness gets every step from the checkpoint that it keeps to the newest, so that it trusts nobody for them. Where
    the coordinator has lost that checkpoint, with a registry that was restored, the site is asked for a bridge over it.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import grpc

from sottovoce.common.consortium import consortium_pb2 as schema
from sottovoce.common.consortium.statements import CheckpointStatement, holds
from sottovoce.common.errors import LedgerError
from sottovoce.common.ledger.checkpoint import MAX_NOTE_BYTES, parse
from sottovoce.common.ledger.cosignature import cosignature_of
from sottovoce.common.ledger.witness import witness
from sottovoce.server.consortium import fields
from sottovoce.server.consortium.gate import Refused, Visitor, expected
from sottovoce.server.registry import Member, Registry
from sottovoce.server.registry_tables import Kept, Witnessed

MAX_STEPS = 64
MAX_MISSING = 16  # bridges that a site is asked for at once
CLOCKS_APART_SECONDS = 86_400


class Witnessing:
    """Answers about checkpoints and cosignatures."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        # By site and identity: what witnesses said to keep. Only in memory: they say it again.
        self._missing: dict[tuple[str, str], list[int]] = {}

    def send_checkpoint(self, visitor: Visitor, request: Any) -> schema.CheckpointReceipt:
        """Keeps a site's newest checkpoint."""
        member = self._member(visitor)
        note = _checked_note(request.note, member)
        before = self._kept(member)
        size, kept_size = parse(note.note).checkpoint.size, before.size if before else 0
        if request.from_size != kept_size:  # a reply was lost, or the registry was restored: prove from there
            return schema.CheckpointReceipt(accepted=False, kept_size=kept_size)
        proof = fields.proof(list(request.proof))
        try:
            witness(before.note if before else None, note.note, proof, note.ledger_key)
        except LedgerError as error:
            self._registry.log(
                visitor.name,
                "LEDGER DOES NOT EXTEND",
                kept=before.note if before else "",
                shown=note.note,
                ledger_key=note.ledger_key,
                signature=note.signature.hex(),
            )
            raise Refused(grpc.StatusCode.FAILED_PRECONDITION, str(error)) from None
        kept = Kept(
            site=visitor.name,
            identity=member.identity,
            size=size,
            note=note.note,
            ledger_key=note.ledger_key,
            signature=note.signature,
            proof=proof,
            sent_at=int(time.time()),
        )
        self._registry.checkpoint(kept)
        return schema.CheckpointReceipt(
            accepted=True, kept_size=size, missing=self._bridged(kept, list(request.bridges))
        )

    def _bridged(self, kept: Kept, bridges: Sequence[Any]) -> list[int]:
        """Keeps the bridges that were asked for; returns the sizes up to here that are still wanted."""
        wanted = self._missing.get((kept.site, kept.identity), [])
        for bridge in bridges[:MAX_MISSING]:
            if bridge.from_size in wanted and bridge.from_size < kept.size:
                self._registry.bridge(kept, bridge.from_size, fields.proof(list(bridge.proof)))
                wanted.remove(bridge.from_size)
        return [size for size in wanted if size < kept.size]

    def fetch_checkpoints(self, visitor: Visitor, request: Any) -> schema.Checkpoints:
        """Returns other sites' newest checkpoints, with the steps that lead there from those the visitor keeps."""
        if len(request.kept) > fields.MAX_KEPT:
            raise expected(f"at most {fields.MAX_KEPT} checkpoints", len(request.kept), "")
        kept = {(one.site, one.identity): fields.count(one.size, "a size") for one in request.kept}
        lines = [
            self._line(newest, kept.get((newest.site, newest.identity), 0))
            for newest in self._registry.checkpoints()
            if newest.site != visitor.name
        ]
        return schema.Checkpoints(lines=lines)

    def send_cosignature(self, visitor: Visitor, request: Any) -> schema.Receipt:
        """Keeps a witness's cosignature of another site's checkpoint."""
        own, member = self._member(visitor), self._registry.member(request.site)
        if member is None or member.name != request.site or member.name == visitor.name:
            raise expected("another site", request.site, "")
        note = fields.text(request.note, "a checkpoint", MAX_NOTE_BYTES)
        try:
            seen = parse(note)
        except LedgerError as error:
            raise Refused(grpc.StatusCode.INVALID_ARGUMENT, str(error)) from None
        at = fields.count(request.witnessed_at, "a time")
        if abs(at - time.time()) > CLOCKS_APART_SECONDS:
            raise expected("a time of today", at, "Set the clock of this machine.")
        signature = fields.signature(request.signature)
        cosignature = cosignature_of(visitor.name, own.identity, witnessed_at=at, signature=signature)
        if not cosignature.signed_by(own.identity, seen):
            raise expected("a cosignature of this site's identity", "another", "")
        found = self._registry.checkpoints_since(member.name, member.identity, seen.checkpoint.size, 1)
        if not found or found[0].note != note:
            raise Refused(
                grpc.StatusCode.NOT_FOUND, "Expected a checkpoint that the coordinator keeps; came another."
            )
        self._registry.cosign(
            Witnessed(
                site=member.name,
                identity=member.identity,
                size=seen.checkpoint.size,
                witness=visitor.name,
                witness_identity=own.identity,
                witnessed_at=at,
                signature=signature,
            )
        )
        return schema.Receipt()

    def fetch_cosignatures(self, visitor: Visitor, request: Any) -> schema.Cosignatures:
        """Returns who witnessed which checkpoint: a site learns of its own ledger, an auditor of all."""
        found = cosigned(self._registry)
        return schema.Cosignatures(
            cosigned=[
                schema.Cosigned(
                    site=kept.site,
                    note=kept.note,
                    witnesses=[
                        schema.Witness(
                            name=one.witness,
                            identity=one.witness_identity,
                            witnessed_at=one.witnessed_at,
                            signature=one.signature,
                        )
                        for one in witnesses
                    ],
                )
                for kept, witnesses in found
                if visitor.role != "site" or kept.site == visitor.name
            ]
        )

    def _member(self, visitor: Visitor) -> Member:
        member = self._registry.member(visitor.name)
        if member is None:
            raise Refused(grpc.StatusCode.PERMISSION_DENIED, "Expected a member; came a stranger.")
        return member

    def _kept(self, member: Member) -> Kept | None:
        """The newest checkpoint under the identity in force: who enrols anew with another begins anew, and it shows."""
        found = [one for one in self._registry.checkpoints() if one.site == member.name]
        return found[0] if found else None

    def _line(self, newest: Kept, kept_size: int) -> schema.Line:
        steps = self._steps(newest, kept_size) if kept_size else []
        return schema.Line(
            site=newest.site,
            identity=newest.identity,
            newest=_note(newest),
            steps=[schema.Step(note=_note(one), proof=one.proof) for one in steps],
            more=bool(steps) and steps[-1].size < newest.size,
        )

    def _steps(self, newest: Kept, kept_size: int) -> Sequence[Kept]:
        """The checkpoints after the one that a visitor keeps; none where nothing leads on from there."""
        since = partial(self._registry.checkpoints_since, newest.site, newest.identity)
        found = since(kept_size, MAX_STEPS + 1)
        if found and found[0].size == kept_size:
            return found[1:]
        bridge = self._registry.bridge_from(newest.site, newest.identity, kept_size)
        if bridge is not None:
            first, *rest = since(bridge[0], MAX_STEPS)
            return [replace(first, proof=bridge[1]), *rest]
        wanted = self._missing.setdefault((newest.site, newest.identity), [])
        if kept_size not in wanted and len(wanted) < MAX_MISSING:
            wanted.append(kept_size)
        return []


def cosigned(registry: Registry) -> Iterator[tuple[Kept, tuple[Witnessed, ...]]]:
    """Yields each site's newest checkpoint that somebody cosigned, with its witnesses; where none was, the newest."""
    seen = registry.cosignatures()
    for newest in registry.checkpoints():
        mine = [one for one in seen if (one.site, one.identity) == (newest.site, newest.identity)]
        size = max((one.size for one in mine), default=newest.size)
        (kept,) = registry.checkpoints_since(newest.site, newest.identity, size, 1)
        yield kept, tuple(one for one in mine if one.size == size)


def _note(kept: Kept) -> schema.Note:
    return schema.Note(note=kept.note, ledger_key=kept.ledger_key, signature=kept.signature)


def _checked_note(note: Any, member: Member) -> schema.Note:
    text = fields.text(note.note, "a checkpoint", MAX_NOTE_BYTES)
    said = CheckpointStatement(
        site=member.name, ledger_key=fields.digest(note.ledger_key, "a ledger's key"), note=text
    )
    if not holds(said, fields.signature(note.signature), member.identity):
        raise expected("a checkpoint with this site's word for it", "one signed by another identity", "")
    try:
        parse(text)
    except LedgerError as error:
        raise Refused(grpc.StatusCode.INVALID_ARGUMENT, str(error)) from None
    return schema.Note(note=text, ledger_key=note.ledger_key, signature=note.signature)
