from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Receipt(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class EnrolRequest(_message.Message):
    __slots__ = ("name", "certificate_request", "node_key", "identity", "signature")
    NAME_FIELD_NUMBER: _ClassVar[int]
    CERTIFICATE_REQUEST_FIELD_NUMBER: _ClassVar[int]
    NODE_KEY_FIELD_NUMBER: _ClassVar[int]
    IDENTITY_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    name: str
    certificate_request: str
    node_key: str
    identity: str
    signature: bytes
    def __init__(self, name: _Optional[str] = ..., certificate_request: _Optional[str] = ..., node_key: _Optional[str] = ..., identity: _Optional[str] = ..., signature: _Optional[bytes] = ...) -> None: ...

class RenewRequest(_message.Message):
    __slots__ = ("certificate_request",)
    CERTIFICATE_REQUEST_FIELD_NUMBER: _ClassVar[int]
    certificate_request: str
    def __init__(self, certificate_request: _Optional[str] = ...) -> None: ...

class Certificate(_message.Message):
    __slots__ = ("certificate",)
    CERTIFICATE_FIELD_NUMBER: _ClassVar[int]
    certificate: str
    def __init__(self, certificate: _Optional[str] = ...) -> None: ...

class ListOffersRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class OfferLine(_message.Message):
    __slots__ = ("study", "name", "offered_at", "sites", "decision")
    STUDY_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    OFFERED_AT_FIELD_NUMBER: _ClassVar[int]
    SITES_FIELD_NUMBER: _ClassVar[int]
    DECISION_FIELD_NUMBER: _ClassVar[int]
    study: str
    name: str
    offered_at: int
    sites: _containers.RepeatedScalarFieldContainer[str]
    decision: str
    def __init__(self, study: _Optional[str] = ..., name: _Optional[str] = ..., offered_at: _Optional[int] = ..., sites: _Optional[_Iterable[str]] = ..., decision: _Optional[str] = ...) -> None: ...

class Offers(_message.Message):
    __slots__ = ("offers",)
    OFFERS_FIELD_NUMBER: _ClassVar[int]
    offers: _containers.RepeatedCompositeFieldContainer[OfferLine]
    def __init__(self, offers: _Optional[_Iterable[_Union[OfferLine, _Mapping]]] = ...) -> None: ...

class FetchOfferRequest(_message.Message):
    __slots__ = ("study",)
    STUDY_FIELD_NUMBER: _ClassVar[int]
    study: str
    def __init__(self, study: _Optional[str] = ...) -> None: ...

class Offer(_message.Message):
    __slots__ = ("study", "text", "sites", "roster", "offered_at", "signature")
    STUDY_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    SITES_FIELD_NUMBER: _ClassVar[int]
    ROSTER_FIELD_NUMBER: _ClassVar[int]
    OFFERED_AT_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    study: str
    text: str
    sites: _containers.RepeatedScalarFieldContainer[str]
    roster: bytes
    offered_at: int
    signature: bytes
    def __init__(self, study: _Optional[str] = ..., text: _Optional[str] = ..., sites: _Optional[_Iterable[str]] = ..., roster: _Optional[bytes] = ..., offered_at: _Optional[int] = ..., signature: _Optional[bytes] = ...) -> None: ...

class Approval(_message.Message):
    __slots__ = ("study", "decision", "instance", "entry", "decided_at", "signature")
    STUDY_FIELD_NUMBER: _ClassVar[int]
    DECISION_FIELD_NUMBER: _ClassVar[int]
    INSTANCE_FIELD_NUMBER: _ClassVar[int]
    ENTRY_FIELD_NUMBER: _ClassVar[int]
    DECIDED_AT_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    study: str
    decision: str
    instance: str
    entry: int
    decided_at: int
    signature: bytes
    def __init__(self, study: _Optional[str] = ..., decision: _Optional[str] = ..., instance: _Optional[str] = ..., entry: _Optional[int] = ..., decided_at: _Optional[int] = ..., signature: _Optional[bytes] = ...) -> None: ...

class Note(_message.Message):
    __slots__ = ("note", "ledger_key", "signature")
    NOTE_FIELD_NUMBER: _ClassVar[int]
    LEDGER_KEY_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    note: str
    ledger_key: str
    signature: bytes
    def __init__(self, note: _Optional[str] = ..., ledger_key: _Optional[str] = ..., signature: _Optional[bytes] = ...) -> None: ...

class SendCheckpointRequest(_message.Message):
    __slots__ = ("note", "from_size", "proof", "bridges")
    NOTE_FIELD_NUMBER: _ClassVar[int]
    FROM_SIZE_FIELD_NUMBER: _ClassVar[int]
    PROOF_FIELD_NUMBER: _ClassVar[int]
    BRIDGES_FIELD_NUMBER: _ClassVar[int]
    note: Note
    from_size: int
    proof: _containers.RepeatedScalarFieldContainer[bytes]
    bridges: _containers.RepeatedCompositeFieldContainer[Bridge]
    def __init__(self, note: _Optional[_Union[Note, _Mapping]] = ..., from_size: _Optional[int] = ..., proof: _Optional[_Iterable[bytes]] = ..., bridges: _Optional[_Iterable[_Union[Bridge, _Mapping]]] = ...) -> None: ...

class Bridge(_message.Message):
    __slots__ = ("from_size", "proof")
    FROM_SIZE_FIELD_NUMBER: _ClassVar[int]
    PROOF_FIELD_NUMBER: _ClassVar[int]
    from_size: int
    proof: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, from_size: _Optional[int] = ..., proof: _Optional[_Iterable[bytes]] = ...) -> None: ...

class CheckpointReceipt(_message.Message):
    __slots__ = ("accepted", "kept_size", "missing")
    ACCEPTED_FIELD_NUMBER: _ClassVar[int]
    KEPT_SIZE_FIELD_NUMBER: _ClassVar[int]
    MISSING_FIELD_NUMBER: _ClassVar[int]
    accepted: bool
    kept_size: int
    missing: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, accepted: bool = ..., kept_size: _Optional[int] = ..., missing: _Optional[_Iterable[int]] = ...) -> None: ...

class Kept(_message.Message):
    __slots__ = ("site", "identity", "size")
    SITE_FIELD_NUMBER: _ClassVar[int]
    IDENTITY_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    site: str
    identity: str
    size: int
    def __init__(self, site: _Optional[str] = ..., identity: _Optional[str] = ..., size: _Optional[int] = ...) -> None: ...

class FetchCheckpointsRequest(_message.Message):
    __slots__ = ("kept",)
    KEPT_FIELD_NUMBER: _ClassVar[int]
    kept: _containers.RepeatedCompositeFieldContainer[Kept]
    def __init__(self, kept: _Optional[_Iterable[_Union[Kept, _Mapping]]] = ...) -> None: ...

class Step(_message.Message):
    __slots__ = ("note", "proof")
    NOTE_FIELD_NUMBER: _ClassVar[int]
    PROOF_FIELD_NUMBER: _ClassVar[int]
    note: Note
    proof: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, note: _Optional[_Union[Note, _Mapping]] = ..., proof: _Optional[_Iterable[bytes]] = ...) -> None: ...

class Line(_message.Message):
    __slots__ = ("site", "identity", "newest", "steps", "more")
    SITE_FIELD_NUMBER: _ClassVar[int]
    IDENTITY_FIELD_NUMBER: _ClassVar[int]
    NEWEST_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    MORE_FIELD_NUMBER: _ClassVar[int]
    site: str
    identity: str
    newest: Note
    steps: _containers.RepeatedCompositeFieldContainer[Step]
    more: bool
    def __init__(self, site: _Optional[str] = ..., identity: _Optional[str] = ..., newest: _Optional[_Union[Note, _Mapping]] = ..., steps: _Optional[_Iterable[_Union[Step, _Mapping]]] = ..., more: bool = ...) -> None: ...

class Checkpoints(_message.Message):
    __slots__ = ("lines",)
    LINES_FIELD_NUMBER: _ClassVar[int]
    lines: _containers.RepeatedCompositeFieldContainer[Line]
    def __init__(self, lines: _Optional[_Iterable[_Union[Line, _Mapping]]] = ...) -> None: ...

class Cosignature(_message.Message):
    __slots__ = ("site", "note", "witnessed_at", "signature")
    SITE_FIELD_NUMBER: _ClassVar[int]
    NOTE_FIELD_NUMBER: _ClassVar[int]
    WITNESSED_AT_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    site: str
    note: str
    witnessed_at: int
    signature: bytes
    def __init__(self, site: _Optional[str] = ..., note: _Optional[str] = ..., witnessed_at: _Optional[int] = ..., signature: _Optional[bytes] = ...) -> None: ...

class FetchCosignaturesRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Cosigned(_message.Message):
    __slots__ = ("site", "note", "witnesses")
    SITE_FIELD_NUMBER: _ClassVar[int]
    NOTE_FIELD_NUMBER: _ClassVar[int]
    WITNESSES_FIELD_NUMBER: _ClassVar[int]
    site: str
    note: str
    witnesses: _containers.RepeatedCompositeFieldContainer[Witness]
    def __init__(self, site: _Optional[str] = ..., note: _Optional[str] = ..., witnesses: _Optional[_Iterable[_Union[Witness, _Mapping]]] = ...) -> None: ...

class Witness(_message.Message):
    __slots__ = ("name", "identity", "witnessed_at", "signature")
    NAME_FIELD_NUMBER: _ClassVar[int]
    IDENTITY_FIELD_NUMBER: _ClassVar[int]
    WITNESSED_AT_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    name: str
    identity: str
    witnessed_at: int
    signature: bytes
    def __init__(self, name: _Optional[str] = ..., identity: _Optional[str] = ..., witnessed_at: _Optional[int] = ..., signature: _Optional[bytes] = ...) -> None: ...

class Cosignatures(_message.Message):
    __slots__ = ("cosigned",)
    COSIGNED_FIELD_NUMBER: _ClassVar[int]
    cosigned: _containers.RepeatedCompositeFieldContainer[Cosigned]
    def __init__(self, cosigned: _Optional[_Iterable[_Union[Cosigned, _Mapping]]] = ...) -> None: ...

class ListModelsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Model(_message.Message):
    __slots__ = ("run", "study", "name", "n_bytes", "sha256", "released_at", "signature")
    RUN_FIELD_NUMBER: _ClassVar[int]
    STUDY_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    N_BYTES_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    RELEASED_AT_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    run: str
    study: str
    name: str
    n_bytes: int
    sha256: str
    released_at: int
    signature: bytes
    def __init__(self, run: _Optional[str] = ..., study: _Optional[str] = ..., name: _Optional[str] = ..., n_bytes: _Optional[int] = ..., sha256: _Optional[str] = ..., released_at: _Optional[int] = ..., signature: _Optional[bytes] = ...) -> None: ...

class Models(_message.Message):
    __slots__ = ("models",)
    MODELS_FIELD_NUMBER: _ClassVar[int]
    models: _containers.RepeatedCompositeFieldContainer[Model]
    def __init__(self, models: _Optional[_Iterable[_Union[Model, _Mapping]]] = ...) -> None: ...

class FetchModelRequest(_message.Message):
    __slots__ = ("sha256", "offset")
    SHA256_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    sha256: str
    offset: int
    def __init__(self, sha256: _Optional[str] = ..., offset: _Optional[int] = ...) -> None: ...

class Chunk(_message.Message):
    __slots__ = ("offset", "data")
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    offset: int
    data: bytes
    def __init__(self, offset: _Optional[int] = ..., data: _Optional[bytes] = ...) -> None: ...

class StatusRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Participant(_message.Message):
    __slots__ = ("name", "role", "certificate_until", "last_seen", "revoked_at")
    NAME_FIELD_NUMBER: _ClassVar[int]
    ROLE_FIELD_NUMBER: _ClassVar[int]
    CERTIFICATE_UNTIL_FIELD_NUMBER: _ClassVar[int]
    LAST_SEEN_FIELD_NUMBER: _ClassVar[int]
    REVOKED_AT_FIELD_NUMBER: _ClassVar[int]
    name: str
    role: str
    certificate_until: int
    last_seen: int
    revoked_at: int
    def __init__(self, name: _Optional[str] = ..., role: _Optional[str] = ..., certificate_until: _Optional[int] = ..., last_seen: _Optional[int] = ..., revoked_at: _Optional[int] = ...) -> None: ...

class Standing(_message.Message):
    __slots__ = ("site", "size", "sent_at", "witnesses")
    SITE_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    SENT_AT_FIELD_NUMBER: _ClassVar[int]
    WITNESSES_FIELD_NUMBER: _ClassVar[int]
    site: str
    size: int
    sent_at: int
    witnesses: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, site: _Optional[str] = ..., size: _Optional[int] = ..., sent_at: _Optional[int] = ..., witnesses: _Optional[_Iterable[str]] = ...) -> None: ...

class Run(_message.Message):
    __slots__ = ("name", "study", "started", "ended")
    NAME_FIELD_NUMBER: _ClassVar[int]
    STUDY_FIELD_NUMBER: _ClassVar[int]
    STARTED_FIELD_NUMBER: _ClassVar[int]
    ENDED_FIELD_NUMBER: _ClassVar[int]
    name: str
    study: str
    started: str
    ended: str
    def __init__(self, name: _Optional[str] = ..., study: _Optional[str] = ..., started: _Optional[str] = ..., ended: _Optional[str] = ...) -> None: ...

class Decisions(_message.Message):
    __slots__ = ("study", "approved", "denied")
    STUDY_FIELD_NUMBER: _ClassVar[int]
    APPROVED_FIELD_NUMBER: _ClassVar[int]
    DENIED_FIELD_NUMBER: _ClassVar[int]
    study: str
    approved: _containers.RepeatedScalarFieldContainer[str]
    denied: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, study: _Optional[str] = ..., approved: _Optional[_Iterable[str]] = ..., denied: _Optional[_Iterable[str]] = ...) -> None: ...

class Federation(_message.Message):
    __slots__ = ("coordinator", "participants", "checkpoints", "decisions", "runs")
    COORDINATOR_FIELD_NUMBER: _ClassVar[int]
    PARTICIPANTS_FIELD_NUMBER: _ClassVar[int]
    CHECKPOINTS_FIELD_NUMBER: _ClassVar[int]
    DECISIONS_FIELD_NUMBER: _ClassVar[int]
    RUNS_FIELD_NUMBER: _ClassVar[int]
    coordinator: str
    participants: _containers.RepeatedCompositeFieldContainer[Participant]
    checkpoints: _containers.RepeatedCompositeFieldContainer[Standing]
    decisions: _containers.RepeatedCompositeFieldContainer[Decisions]
    runs: _containers.RepeatedCompositeFieldContainer[Run]
    def __init__(self, coordinator: _Optional[str] = ..., participants: _Optional[_Iterable[_Union[Participant, _Mapping]]] = ..., checkpoints: _Optional[_Iterable[_Union[Standing, _Mapping]]] = ..., decisions: _Optional[_Iterable[_Union[Decisions, _Mapping]]] = ..., runs: _Optional[_Iterable[_Union[Run, _Mapping]]] = ...) -> None: ...
