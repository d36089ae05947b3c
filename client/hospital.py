"""What runs at a hospital: the `ClientApp` of `client/app.py` behind sealed envelopes and the hospital's own approval.

A node's configuration has one entry, `home`: the hospital's folder. Everything else is in that folder: whom it listens
to, what it approved, its keys and data. All that must outlive a process is on disk, so that the same app answers under
a stock `flower-supernode` (a process for each message) and under our agent (a process for many).

A message is worked on after these questions, in this order:
  1. Has this hospital stopped?                                  `stopped`
  2. Is it an envelope of the coordinator that was pinned, for this site, now?  (`common/envelope.py`)
  3. Is the study approved here, in force, and on disk as it was approved?      `study`
  4. Has this question not come before?                                         `replay`
  5. Is the body one of records, and of the round that was signed for?          `content`, `round`
  6. Are seed, fold, rounds and pull those of the study?                        `instruction`
A file of the hospital's own that is missing or damaged is a refusal too: `state`.

Guarantees:
  - Nothing of a message's body is parsed before its envelope was verified and its study found approved.
  - What is computed is what a run of the approved study computes: no other seed, fold, round, pull or split.
  - Nothing in a message, and nothing of a run's configuration, chooses a file, a device or a mode at this site.
  - Each question is answered at most once, whatever processes there are and however they end.
  - Every refusal is a line of `run/security.jsonl`: a time, a reason, and of the header what was verified.
  - Out goes a sealed reply, or one short text that is known beforehand.
"""

import json
import logging
import os
import time
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

from sottovoce.client.agent_files import add_refusal, stop_of
from sottovoce.client.features_at_rest import open_features
from sottovoce.client.home import Hospital
from sottovoce.client.instruction import NOT_OF_THE_STUDY, is_of_study
from sottovoce.client.site_ledger import SiteLedger
from sottovoce.common import group_weights
from sottovoce.common import study as studies
from sottovoce.common.config import as_plain
from sottovoce.common.envelope import (
    COORDINATOR,
    Envelope,
    Header,
    Replays,
    Sequence,
    header_digest,
    opened,
    seal,
    signed_header,
)
from sottovoce.common.errors import DeploymentError, EnvelopeRefused, SottovoceError
from sottovoce.common.flower import (
    CONFIG,
    ClientApp,
    ConfigRecord,
    Context,
    Message,
    MessageType,
    RecordDict,
    error_reply,
)
from sottovoce.common.ledger.store import HEAD_FILE, LEDGER_FILE
from sottovoce.common.pretrained import looking_in
from sottovoce.common.records import pack, unpack
from sottovoce.common.sealing import content_of, records_of, unwrapped, with_content, wrapped
from sottovoce.common.study import Study

REPLAYS, SEQUENCE = "replays", "sequence"

NOT_SET_UP = "This site cannot answer now. Its own log says why."
NOT_APPROVED = "This site has not approved this study, or does not any more."
HAS_STOPPED = "This site was stopped by its own people."
OTHER_ROUND = "Expected the round that was signed for; the body has another."

_log = logging.getLogger(__name__)


class SealedApp(ClientApp):
    """Flower calls this for each message. It never raises: Flower would send the text of what it caught."""

    def __call__(self, message: Message, context: Context) -> Message:
        """Answers a sealed question with a sealed reply, or with an error of one short text."""
        try:
            hospital = Hospital.open(Path(str(context.node_config["home"])))
            return _guarded(hospital, message, context)
        except Exception as error:
            ours = isinstance(error, SottovoceError)  # else it is a defect, and its traceback is wanted
            _log.error("a message was not answered: %s", error, exc_info=not ours)
            return error_reply(message, NOT_SET_UP)


app = SealedApp()


def _guarded(hospital: Hospital, message: Message, context: Context) -> Message:
    try:
        if stop_of(hospital.run) is not None:
            raise EnvelopeRefused("stopped", HAS_STOPPED)
        envelope = unwrapped(message.content)
        header = _opened(hospital, envelope, message.metadata.message_type)
        study = _approved(hospital, header.run)
        # By run: two runs at once may overtake each other on the way here. Only of runs that were approved: a mark of
        # each run that a coordinator makes up would fill the file.
        marks = Replays(hospital.run / REPLAYS)
        marks.accept(f"{hospital.coordinator.public_key}/{header.run}", header.sequence)
        question = with_content(message, _content(envelope, header))
        if header.phase != MessageType.QUERY:
            _check_instruction(study, question.content)
        reply = _answered(hospital, study, question, context)
        return _sealed(hospital, envelope, header, message, reply)
    except EnvelopeRefused as refusal:
        return _refused(hospital, message, refusal)
    except SottovoceError as error:
        _log.error("a message was not answered: %s", error)
        return _refused(hospital, message, EnvelopeRefused("state", NOT_SET_UP))


def _refused(hospital: Hospital, message: Message, refusal: EnvelopeRefused) -> Message:
    note(hospital, refusal, message)
    return error_reply(message, f"refused ({refusal.reason}): {refusal}")


def _opened(hospital: Hospital, envelope: Envelope, phase: str) -> Header:
    """Returns the header of a question of the pinned coordinator."""
    return opened(
        envelope,
        public_key=hospital.coordinator.public_key,
        sender=COORDINATOR,
        recipient="" if phase == MessageType.QUERY else hospital.site,
        phase=phase,
        now=time.time(),
        max_body_bytes=hospital.settings.max_message_bytes,
    )


def _approved(hospital: Hospital, digest: str) -> Study:
    """Returns a study that this hospital's ledger has an open approval of. Raises: EnvelopeRefused."""
    files = (hospital.ledger / name for name in (LEDGER_FILE, HEAD_FILE))
    state = tuple((found.st_ino, found.st_size, found.st_mtime_ns) for found in map(_stat, files) if found)
    return _approval(hospital.ledger, hospital.study_file(digest), digest, state)


@lru_cache(maxsize=16)  # of refusals nothing is kept
def _approval(ledger_folder: Path, study_file: Path, digest: str, state: object) -> Study:
    """Asks the ledger, once for each `state` of its files: a long one is read in tenths of a second."""
    with SiteLedger.open(ledger_folder) as ledger:
        try:
            study = studies.load(study_file)
            if study.digest() != digest:
                raise DeploymentError(
                    f"{study_file}: expected the study of its folder's name; this is another."
                )
            grant = ledger.grant(study)
        except SottovoceError as error:
            _log.warning("study %s was refused: %s", digest[:16], error)
            raise EnvelopeRefused("study", NOT_APPROVED) from None
        policy, domain = ledger.budget.state.policy, ledger.budget.state.domains[ledger.domain(grant)]
        if policy is None or digest not in policy.studies or domain.closed:
            raise EnvelopeRefused("study", NOT_APPROVED)
        return study


def _stat(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except FileNotFoundError:
        return None


def _content(envelope: Envelope, header: Header) -> RecordDict:
    records = records_of(unpack(envelope.body))
    config = records.get(CONFIG)
    if isinstance(config, ConfigRecord) and config.get("round", header.round) != header.round:
        raise EnvelopeRefused("round", OTHER_ROUND)
    return records


def _check_instruction(study: Study, records: RecordDict) -> None:
    config = records.get(CONFIG)
    told: dict[str, Any] = dict(config) if isinstance(config, ConfigRecord) else {}
    whole = [told.get(name) for name in ("seed", "fold", "round", "rounds")]
    whole += [told["counted"]] if "counted" in told else []
    if not all(type(number) is int for number in whole) or not is_of_study(
        study,
        seed=told["seed"],
        fold=told["fold"],
        round=told["round"],
        rounds=told["rounds"],
        proximal_mu=told.get("proximal-mu", -1.0),
        leaks=told.get("leaking-split", False),
        counted=told.get("counted"),
        personal=told.get("personal", False),
        weights=told.get(group_weights.TOLD),
    ):
        raise EnvelopeRefused("instruction", NOT_OF_THE_STUDY)


def _answered(hospital: Hospital, study: Study, question: Message, context: Context) -> Message:
    """Has the question answered by the app that simulations run; a name is said without it."""
    if question.metadata.message_type == MessageType.QUERY:
        return Message(RecordDict({CONFIG: ConfigRecord({"site": hospital.site})}), reply_to=question)
    # Torch, which a refusal should not wait for.
    from sottovoce.client.app import app as plain_app
    from sottovoce.client.releases import NOTHING_RELEASED, Refusal

    digest = study.digest()
    own = Context(
        context.run_id,
        context.node_id,
        {
            "site-folder": str(open_features(hospital, digest)),
            "study-file": str(hospital.study_file(digest)),
            "ledger-folder": str(hospital.ledger),
            "state-folder": str(hospital.state),
            **({} if (key := hospital.settings.features_key) is None else {"state-key": key}),  # its name
            "device": _device(hospital.settings.device),
        },
        context.state,  # itself, not a copy: a secure sum's secrets go from phase to phase in it
        {},
    )
    try:
        with looking_in(hospital.weights):
            return plain_app(question, own)
    except Refusal as refusal:
        return error_reply(question, str(refusal))
    except Exception as error:
        _log.error("nothing released: %s", error, exc_info=not isinstance(error, SottovoceError))
        return error_reply(question, NOTHING_RELEASED)


def _device(setting: str) -> str:
    if setting != "auto":
        return setting
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _sealed(
    hospital: Hospital, envelope: Envelope, header: Header, message: Message, reply: Message
) -> Message:
    """Returns the reply as it leaves: sealed, or an error as it is."""
    if reply.has_error():
        return Message(reply.error, reply_to=message)
    answer = seal(
        hospital.identity,
        run=header.run,
        round=header.round,
        phase=header.phase,
        sender=hospital.site,
        recipient=COORDINATOR,
        sequence=Sequence(hospital.run / SEQUENCE).next(),
        body=pack(content_of(reply.content)),
        not_after=header.not_after,
        answers=header_digest(envelope),
    )
    return Message(wrapped(answer), reply_to=message)


def note(hospital: Hospital, refusal: EnvelopeRefused, message: Message) -> None:
    """Writes a refusal down: when, why, and what of the header was verified. A disk that is full hides none of it."""
    line: dict[str, Any] = {"reason": refusal.reason, "header": "unverified"}
    with suppress(SottovoceError, ValueError):
        if header := signed_header(unwrapped(message.content), hospital.coordinator.public_key):
            line["header"] = as_plain(header)
    _log.warning("a message was refused: %s", json.dumps(line, sort_keys=True))
    add_refusal(hospital.run, line)
