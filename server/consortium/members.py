"""Enrolment and certificates: how an invitation becomes a member, and how a member's certificate is renewed.

Guarantees:
  - Name and role of a certificate are those of the invitation or of the certificate before, never of the request.
  - All keys of a new member are signed for by its identity; a node's key is one that the SuperLink takes.
"""

from typing import Any

import grpc

from sottovoce.common.consortium import consortium_pb2 as schema
from sottovoce.common.consortium.statements import EnrolmentStatement, holds, sha256, statement_bytes
from sottovoce.common.errors import CertificateError, DeploymentError
from sottovoce.common.pki import Authority, Role, checked_node_key, peer_of
from sottovoce.server.consortium import fields
from sottovoce.server.consortium.gate import Refused, Visitor, expected
from sottovoce.server.registry import Registry


class Members:
    """Answers Enrol and Renew."""

    def __init__(self, registry: Registry, authority: Authority, *, hours: float, own_key: str) -> None:
        self._registry, self._authority = registry, authority
        self._hours, self._own_key = hours, own_key

    def enrol(self, visitor: Visitor, request: Any) -> schema.Certificate:
        """Turns an invitation into a certificate, once; the same request again gets the same one."""
        said = _enrolment(visitor, request, self._own_key)
        digest = sha256(statement_bytes(said))
        try:
            given = self._registry.certificate_given(visitor.serial, digest)
            if given is None:
                given = self._enrolled(visitor, said, digest)
        except DeploymentError as error:
            raise Refused(grpc.StatusCode.PERMISSION_DENIED, str(error)) from None
        return schema.Certificate(certificate=given)

    def renew(self, visitor: Visitor, request: Any) -> schema.Certificate:
        """Gives a member a certificate for a new key."""
        pem = self._issued(request.certificate_request, visitor.name, visitor.role)
        leaf = peer_of(pem)
        try:
            self._registry.renewed(visitor.name, serial=leaf.serial, not_after=leaf.not_after)
        except DeploymentError as error:  # revoked in this very moment
            raise Refused(grpc.StatusCode.PERMISSION_DENIED, str(error)) from None
        return schema.Certificate(certificate=pem)

    def _enrolled(self, visitor: Visitor, said: EnrolmentStatement, digest: str) -> str:
        invited = self._registry.invitation(visitor.serial)
        if invited is None:
            raise DeploymentError("Expected an invitation on record; came another.")
        if bool(said.node_key) != (invited.role == "site"):
            raise expected("a node key from a site and from nobody else", f"one of role {invited.role}", "")
        pem = self._issued(said.certificate_request, invited.name, invited.role)
        leaf = peer_of(pem)
        return self._registry.enrolled(
            invitation=visitor.serial,
            request_sha256=digest,
            identity=said.identity,
            node_key_pem=said.node_key,
            certificate_pem=pem,
            serial=leaf.serial,
            not_after=leaf.not_after,
        )

    def _issued(self, request_pem: str, name: str, role: Role) -> str:
        fields.text(request_pem, "a certificate request", fields.MAX_PEM_CHARS)
        try:
            return self._authority.issue(request_pem, name=name, role=role, hours=self._hours)
        except CertificateError as error:
            raise Refused(grpc.StatusCode.INVALID_ARGUMENT, str(error)) from None


def _enrolment(visitor: Visitor, request: Any, own_key: str) -> EnrolmentStatement:
    if request.name != visitor.name:
        raise expected(f"the invitation's name {visitor.name!r}", request.name, "Enrol under that name.")
    said = EnrolmentStatement(
        name=request.name,
        certificate_request=fields.text(
            request.certificate_request, "a certificate request", fields.MAX_PEM_CHARS
        ),
        node_key=fields.text(request.node_key, "a node key", 1_000, least=0),
        identity=fields.digest(request.identity, "an identity"),
    )
    if said.identity == own_key:
        raise expected("an identity of your own", "the coordinator's", "Make one.")
    if not holds(said, fields.signature(request.signature), said.identity):
        raise expected("a signature of the identity over the whole request", "another", "")
    if said.node_key:
        try:
            checked_node_key(said.node_key)
        except CertificateError as error:
            raise Refused(grpc.StatusCode.INVALID_ARGUMENT, str(error)) from None
    return said
