"""Claims of a hospital's app: what it answers, what it refuses and how it says so, whoever asks."""

import json
import pickle
import re
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sottovoce.client import agent_files
from sottovoce.client import app as client_app
from sottovoce.client import hospital as hospitals
from sottovoce.client.agent_files import SECURITY
from sottovoce.client.features_at_rest import forget_opened
from sottovoce.client.features_at_rest import seal as seal_features
from sottovoce.client.home import Hospital
from sottovoce.client.hospital import SealedApp
from sottovoce.client.personal import PersonalState
from sottovoce.client.releases import LEDGER_SAYS_NO, NOTHING_RELEASED
from sottovoce.client.site_ledger import SiteLedger
from sottovoce.common import models
from sottovoce.common import study as studies
from sottovoce.common.envelope import COORDINATOR, Envelope, header_digest, opened, seal
from sottovoce.common.errors import EnvelopeRefused, RunError
from sottovoce.common.flower import (
    ArrayRecord,
    ConfigRecord,
    Context,
    Message,
    MetricRecord,
    RecordDict,
    adopt_task_identity,
    error_reply,
    stamp,
)
from sottovoce.common.keys import SigningKey, write_secret
from sottovoce.common.ledger.entries import Burn, Commit, Reserve
from sottovoce.common.ledger.verify import entries_of
from sottovoce.common.records import pack, unpack
from sottovoce.common.sealing import LARGE_BODY_BYTES, content_of, records_of, unwrapped, wrapped
from sottovoce.common.weights import from_state_dict
from tests.fakes.hospitals import approve, make_hospital, offer
from tests.fakes.sites import LOCAL, N_CLASSES, SGD, WIDTH, write_sites, write_study

SITE = "site-1"
CONFIG = {"round": 1, "rounds": 3, "seed": 0, "fold": -1, "proximal-mu": 0.0}


@dataclass
class Ward:
    """One hospital, and a coordinator that asks it what a test wants."""

    folder: Path
    privacy: str = '{ mode = "none" }'
    federation: str = ""
    key: SigningKey = field(default_factory=SigningKey.generate)
    n_asked: int = 0

    def __post_init__(self) -> None:
        adopt_task_identity()
        file = write_study(
            self.folder / "study.toml",
            n_sites=1,
            training=SGD,
            privacy=self.privacy,
            federation=self.federation,
        )
        self.study = studies.load(file)
        data = write_sites(self.folder / "sites", 1)[SITE]
        self.hospital = make_hospital(self.folder / "home", SITE, file, data, self.key.public_hex)
        model = models.build(self.study.model, {"pooled": WIDTH}, N_CLASSES, seed=0)
        self.weights = from_state_dict(model.state_dict())
        self.context = Context(1, 1, {"home": str(self.hospital.folder)}, RecordDict(), {})

    def body(self, **config: Any) -> bytes:
        return pack({"arrays": self.weights, "config": CONFIG | config})

    def sealed(self, *, phase: str = "train", key: SigningKey | None = None, **changes: Any) -> Envelope:
        self.n_asked += 1
        facts: dict[str, Any] = {
            "run": self.study.digest(), "round": 1, "phase": phase, "sender": COORDINATOR, "recipient": SITE,
            "sequence": 1_000 + self.n_asked, "body": self.body() if phase != "query" else pack({}),
            "not_after": time.time() + 60,
        }  # fmt: skip
        return seal(key or self.key, **(facts | changes))

    def answer(self, content: RecordDict | Envelope, *, phase: str = "train") -> Message:
        records = wrapped(content) if isinstance(content, Envelope) else content
        message = Message(records, 1, phase, ttl=60.0)
        stamp(message, "message-1")
        return SealedApp()(message, self.context)

    def lines(self) -> list[dict[str, Any]]:
        path = self.hospital.run / SECURITY
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def entries(self) -> list[str]:
        found = entries_of((self.hospital.ledger / "ledger.jsonl").read_bytes())
        return [one.body.kind for one in found if isinstance(one.body, Reserve | Commit | Burn)]

    def read(self, question: Envelope, reply: Message) -> Any:
        """Opens a reply as a coordinator would."""
        envelope = unwrapped(reply.content)
        opened(
            envelope, public_key=self.hospital.identity.public_hex, sender=SITE, recipient=COORDINATOR,
            phase=reply.metadata.message_type, answers=header_digest(question), now=time.time(),
        )  # fmt: skip
        return unpack(envelope.body)


@pytest.fixture
def ward(tmp_path: Path) -> Ward:
    return Ward(tmp_path)


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="features are opened in a file system of memory")
def test_a_hospital_that_seals_its_features_seals_what_it_trains_of_its_own(tmp_path: Path) -> None:
    ward = Ward(tmp_path, federation='secure_sum = false, personalisation = { kind = "ditto" }')
    digest, key, home = ward.study.digest(), tmp_path / "key", ward.hospital.folder
    write_secret(key, secrets.token_bytes(32))
    with (home / "hospital.toml").open("a") as settings:
        settings.write(f'\nfeatures_key = "{key}"\n')
    ward.hospital = Hospital.open(home)
    features = ward.hospital.features(digest)
    features.rename(tmp_path / "open")
    seal_features(tmp_path / "open", features, key.read_bytes(), site=SITE, study=digest)
    try:
        question = ward.sealed(body=ward.body(personal=True))
        assert not ward.answer(question).has_error()
    finally:
        forget_opened(ward.hospital)
    (kept,) = (path for path in ward.hospital.state.rglob("*") if path.is_file())
    assert kept.suffix == ".sealed"
    state = PersonalState(ward.hospital.state, study_digest=digest, seed=0, fold=-1, key=key.read_bytes())
    assert set(state.read(1)) == set(ward.weights)


def other_study(ward: Ward) -> str:
    file = write_study(ward.folder / "other.toml", n_sites=1, rounds=7, training=SGD)
    return offer(ward.hospital, file, None).digest()


# --- what is answered ---


def test_an_approved_question_is_answered_in_a_sealed_reply_to_it(ward: Ward) -> None:
    question = ward.sealed()
    content = ward.read(question, ward.answer(question))
    assert set(content) == {"arrays", "metrics"}
    assert any((content["arrays"][name] != array).any() for name, array in ward.weights.items())
    assert ward.entries() == ["reserve", "commit"]  # mode none goes through the ledger too
    assert ward.lines() == []


def test_a_reply_is_to_its_question_and_to_no_other(ward: Ward) -> None:
    question, another = ward.sealed(), ward.sealed()
    reply = ward.answer(question)
    with pytest.raises(EnvelopeRefused, match="answers another"):
        ward.read(another, reply)


def test_a_site_says_its_name_to_whoever_the_coordinator_is(ward: Ward) -> None:
    question = ward.sealed(phase="query", recipient="")
    assert ward.read(question, ward.answer(question, phase="query")) == {"config": {"site": SITE}}


def test_in_a_private_mode_a_reply_holds_what_the_ledger_released(tmp_path: Path) -> None:
    ward = Ward(tmp_path, privacy=LOCAL)
    question = ward.sealed()
    content = ward.read(question, ward.answer(question))
    assert set(content) == {"arrays", "metrics", "ledger"}
    assert content["metrics"] == {"n-steps": 1}
    assert ward.entries() == ["reserve", "commit"]


def test_large_bodies_travel_beside_their_envelope(ward: Ward, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sottovoce.common.sealing.LARGE_BODY_BYTES", 100)
    question = ward.sealed()
    records = wrapped(question)
    assert isinstance(records["body"], ArrayRecord)
    reply = ward.answer(records)
    assert isinstance(reply.content["body"], ArrayRecord)
    assert ward.read(question, reply)["arrays"]


# --- what is refused: the reason, and whether its header was verified ---


def _closed(ward: Ward) -> Envelope:
    with SiteLedger.open(ward.hospital.ledger) as ledger:
        ledger.budget.close_study(ledger.grant(ward.study), "consent was withdrawn")
    return ward.sealed()


def _domain_closed(ward: Ward) -> Envelope:
    with SiteLedger.open(ward.hospital.ledger) as ledger:
        ledger.budget.close_domain(ledger.domain(ledger.grant(ward.study)), person="Anna", reason="over")
    return ward.sealed()


def _listed_no_more(ward: Ward) -> Envelope:
    policy = ward.hospital.folder / "policy.toml"
    text = policy.read_text().replace("version = 1", "version = 2")
    policy.write_text(text.replace(ward.study.digest(), "0" * 64))
    with SiteLedger.open(ward.hospital.ledger) as ledger:
        ledger.adopt(policy)
    return ward.sealed()


def _seeded_anew(ward: Ward) -> Envelope:
    path = ward.hospital.study_file(ward.study.digest())
    path.write_text(path.read_text().replace("rounds = 3", "rounds = 300"))
    hospitals._approval.cache_clear()
    return ward.sealed()


def _no_file(ward: Ward) -> Envelope:
    ward.hospital.study_file(ward.study.digest()).unlink()
    hospitals._approval.cache_clear()
    return ward.sealed()


def _stopped(ward: Ward) -> Envelope:
    (ward.hospital.run / "stopped").touch()
    return ward.sealed()


def _damaged(ward: Ward) -> Envelope:
    (ward.hospital.run / "replays").write_text("{}")
    return ward.sealed()


def _no_keys(ward: Ward) -> Envelope:
    (ward.hospital.ledger / "keys").rename(ward.folder / "moved")
    return ward.sealed()


def _came_before(ward: Ward) -> Envelope:
    question = ward.sealed(phase="query", recipient="")
    ward.answer(question, phase="query")
    return ward.sealed(sequence=ward.n_asked + 1_000)


def _bare(ward: Ward) -> RecordDict:
    return records_of({"arrays": ward.weights, "config": CONFIG})


def _too_large(ward: Ward) -> Envelope:
    settings = ward.hospital.folder / "hospital.toml"
    settings.write_text(settings.read_text() + "max_message_bytes = 10_000\n")
    return ward.sealed(body=bytes(10_001))


def _with(name: str, record: Any) -> Callable[[Ward], RecordDict]:
    def make(ward: Ward) -> RecordDict:
        records = wrapped(ward.sealed())
        records[name] = record
        return records

    return make


REFUSED: dict[str, tuple[Callable[[Ward], Envelope | RecordDict], str, bool]] = {
    "a plain message": (_bare, "frame", False),
    "no records": (lambda w: RecordDict(), "frame", False),
    "one record more": (_with("more", ConfigRecord({"a": 1})), "frame", False),
    "two bodies": (_with("body", ArrayRecord()), "frame", False),
    "numbers for an envelope": (_with("sealed", MetricRecord({"header": 1})), "frame", False),
    "text for bytes": (
        _with("sealed", ConfigRecord({"header": "a", "signature": b"b", "body": b"c"})),
        "frame",
        False,
    ),
    "above this site's bound": (_too_large, "size", True),
    "another's key": (lambda w: w.sealed(key=SigningKey.generate()), "signature", False),
    "its own key": (lambda w: w.sealed(key=w.hospital.identity), "signature", False),
    "another sender": (lambda w: w.sealed(sender="site-2"), "sender", True),
    "another site": (lambda w: w.sealed(recipient="site-2"), "recipient", True),
    "everybody": (lambda w: w.sealed(recipient=""), "recipient", True),
    "another phase": (lambda w: w.sealed(phase="evaluate"), "phase", True),
    "an answer": (lambda w: w.sealed(answers="1" * 64), "answers", True),
    "an old one": (lambda w: w.sealed(not_after=time.time() - 5), "expired", True),
    "a swapped body": (lambda w: replace(w.sealed(), body=w.body(seed=1)), "body", True),
    "a number that came before": (_came_before, "replay", True),
    "a study that was never offered": (lambda w: w.sealed(run="0" * 64), "study", True),
    "a study that was offered alone": (lambda w: w.sealed(run=other_study(w)), "study", True),
    "a study that was closed": (_closed, "study", True),
    "a domain that was closed": (_domain_closed, "study", True),
    "a study that the policy lists no more": (_listed_no_more, "study", True),
    "a study whose file was changed": (_seeded_anew, "study", True),
    "a study whose file is gone": (_no_file, "study", True),
    "a pickle": (lambda w: w.sealed(body=pickle.dumps(CONFIG)), "content", True),
    "no body": (lambda w: w.sealed(body=b""), "content", True),
    "a round of no run": (lambda w: w.sealed(round=4, body=w.body(round=4)), "instruction", True),
    "more rounds": (lambda w: w.sealed(body=w.body(rounds=77)), "instruction", True),
    "a seed of no run": (lambda w: w.sealed(body=w.body(seed=99)), "instruction", True),
    "a fold of no run": (lambda w: w.sealed(body=w.body(fold=9)), "instruction", True),
    "a pull that the study has not": (
        lambda w: w.sealed(body=w.body(**{"proximal-mu": 5.0})),
        "instruction",
        True,
    ),
    "a split by recording": (
        lambda w: w.sealed(body=w.body(fold=0, **{"leaking-split": True})),
        "instruction",
        True,
    ),
    "no instruction": (lambda w: w.sealed(body=pack({"arrays": w.weights})), "instruction", True),
    "another round inside": (lambda w: w.sealed(body=w.body(round=2)), "round", True),
    "a stopped hospital": (_stopped, "stopped", True),
    "a ledger without its keys": (_no_keys, "state", True),
    "marks that are damaged": (_damaged, "state", True),
}


@pytest.mark.parametrize("how", REFUSED)
def test_it_is_refused_with_a_word_and_a_line_and_nothing_is_trained(
    ward: Ward, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, reason, verified = REFUSED[how]
    asked = make(ward)
    if reason not in ("content", "round", "instruction"):
        monkeypatch.setattr(hospitals, "unpack", None)  # nothing of the body is parsed before
    reply = ward.answer(asked)
    assert reply.has_error()
    assert re.fullmatch(rf"refused \({reason}\): [^/\d]+", reply.error.reason or ""), reply.error.reason
    line = ward.lines()[-1]
    assert set(line) == {"time", "reason", "header"}
    assert line["reason"] == reason
    assert (line["header"] != "unverified") == verified
    if verified:
        assert isinstance(asked, Envelope)
        assert line["header"] == json.loads(asked.header)
    assert ward.entries() == []


def test_a_question_is_answered_once_by_whatever_process(ward: Ward) -> None:
    question = ward.sealed()
    assert not ward.answer(question).has_error()
    hospitals._approval.cache_clear()  # as in a process that has just begun
    again = ward.answer(question)
    assert "replay" in (again.error.reason or "")
    assert ward.entries() == ["reserve", "commit"]


def test_an_approval_that_ends_between_two_messages_is_seen(ward: Ward) -> None:
    assert not ward.answer(ward.sealed()).has_error()
    assert "(study)" in (ward.answer(_closed(ward)).error.reason or "")
    approve(ward.hospital, ward.study)
    assert not ward.answer(ward.sealed()).has_error()


def test_an_approved_study_in_the_place_of_another_is_refused(ward: Ward) -> None:
    file = write_study(ward.folder / "other.toml", n_sites=1, rounds=7, training=SGD)
    other = offer(ward.hospital, file, None)
    approve(ward.hospital, other, also=ward.study)
    assert not ward.answer(ward.sealed()).has_error()
    ward.hospital.study_file(ward.study.digest()).write_bytes(file.read_bytes())
    hospitals._approval.cache_clear()
    assert "(study)" in (ward.answer(ward.sealed()).error.reason or "")


def test_a_ledger_that_did_not_change_is_not_read_again(ward: Ward, monkeypatch: pytest.MonkeyPatch) -> None:
    questions = [ward.sealed(phase="query", recipient="") for _ in range(3)]
    assert not ward.answer(questions[0], phase="query").has_error()
    monkeypatch.setattr(SiteLedger, "open", None)
    assert not ward.answer(questions[1], phase="query").has_error()
    (ward.hospital.ledger / "ledger.jsonl").touch()
    assert ward.answer(questions[2], phase="query").has_error()


def test_asking_on_when_the_grant_is_used_up_makes_the_ledger_no_longer(tmp_path: Path) -> None:
    ward, sizes, answers = Ward(tmp_path, privacy=LOCAL), list[int](), list[str | None]()
    for _ in range(9):
        ward.weights = {name: array + 1 for name, array in ward.weights.items()}
        reply = ward.answer(ward.sealed())
        answers.append(reply.error.reason if reply.has_error() else None)
        sizes.append((ward.hospital.ledger / "ledger.jsonl").stat().st_size)
    assert answers[0] is None
    assert answers[-3:] == [LEDGER_SAYS_NO] * 3
    assert sizes[-3] == sizes[-1]
    kinds = [one.body.kind for one in entries_of((ward.hospital.ledger / "ledger.jsonl").read_bytes())]
    assert kinds.count("denial") == 1


def test_runs_that_a_coordinator_makes_up_leave_no_mark(ward: Ward) -> None:
    assert not ward.answer(ward.sealed()).has_error()
    marks = (ward.hospital.run / "replays").read_bytes()
    for number in range(5):
        assert "(study)" in (ward.answer(ward.sealed(run=f"{number:064x}")).error.reason or "")
    assert (ward.hospital.run / "replays").read_bytes() == marks


def test_two_runs_at_once_may_overtake_each_other(ward: Ward) -> None:
    file = write_study(ward.folder / "other.toml", n_sites=1, rounds=7, training=SGD)
    other = offer(ward.hospital, file, None)
    early, late = ward.sealed(phase="query", recipient=""), ward.sealed(run=other.digest())
    ward.answer(late)
    assert not ward.answer(early, phase="query").has_error()


def test_neither_message_nor_run_chooses_what_is_read_here(ward: Ward) -> None:
    ward.context.run_config = {
        "site-folder": "/nowhere", "study-file": "/nowhere", "without-privacy": True, "device": "cuda",
    }  # fmt: skip
    ward.context.node_config |= {"without-privacy": True, "site-folder": "/nowhere", "study-file": "/nowhere"}
    question = ward.sealed(body=ward.body(**{"without-privacy": True, "site-folder": "/nowhere"}))
    reply = ward.answer(question)
    assert not reply.has_error()
    assert ward.entries() == ["reserve", "commit"]


# --- what is said, and what is not ---


def test_what_goes_wrong_inside_is_one_text(ward: Ward, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ValueError("/data/Anna-1961: 17 recordings")

    monkeypatch.setattr(client_app, "withheld", fail)
    assert ward.answer(ward.sealed()).error.reason == NOTHING_RELEASED
    monkeypatch.setattr(client_app, "app", fail)
    assert ward.answer(ward.sealed()).error.reason == NOTHING_RELEASED
    assert "Anna" not in json.dumps(ward.lines())


@pytest.mark.parametrize("config", [{}, {"home": "/nowhere"}, {"home": 3}])
def test_it_never_raises(ward: Ward, config: dict[str, Any]) -> None:
    message = Message(wrapped(ward.sealed()), 1, "train", ttl=60.0)
    reply = SealedApp()(message, Context(1, 1, config, RecordDict(), {}))
    assert reply.error.reason == hospitals.NOT_SET_UP
    nothing = error_reply(message, "an error is no question")
    assert SealedApp()(nothing, ward.context).error.reason == hospitals.NOT_SET_UP


def test_a_hospital_without_a_coordinator_or_a_key_answers_nobody(ward: Ward) -> None:
    (identity,) = (ward.hospital.ledger / "secure").glob("signing-*.pem")
    identity.rename(ward.folder / "moved")
    assert "(state)" in (ward.answer(ward.sealed()).error.reason or "")
    (ward.hospital.folder / "coordinator.json").unlink()
    assert "(state)" in (ward.answer(ward.sealed()).error.reason or "")
    assert [line["reason"] for line in ward.lines()] == ["state", "state"]


def test_the_file_of_refusals_is_bounded_and_closed_to_others(
    ward: Ward, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agent_files, "MAX_SECURITY_BYTES", 300)
    for _ in range(30):
        ward.answer(_bare(ward))
    path = ward.hospital.run / SECURITY
    assert path.stat().st_size < 600
    assert path.with_name("security.jsonl.1").stat().st_size < 600
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_refusal_that_cannot_be_written_down_is_still_one(ward: Ward) -> None:
    (ward.hospital.run / SECURITY).mkdir()
    assert "(frame)" in (ward.answer(_bare(ward)).error.reason or "")


def test_a_device_of_auto_is_one_that_is_there(ward: Ward) -> None:
    settings = ward.hospital.folder / "hospital.toml"
    settings.write_text(settings.read_text() + 'device = "auto"\n')
    assert not ward.answer(ward.sealed()).has_error()


# --- records in and out of envelopes ---


def test_a_record_without_a_place_in_a_body_is_refused_and_not_left_out(ward: Ward) -> None:
    for name, record in (("more", ConfigRecord({"a": 1})), ("arrays", MetricRecord({"a": 1}))):
        with pytest.raises(EnvelopeRefused, match="Expected records"):
            content_of(RecordDict({name: record}))


def test_a_sealed_message_is_three_objects_and_a_large_one_is_cut_by_flower(ward: Ward) -> None:
    from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree
    from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents

    small = Message(wrapped(ward.sealed()), 1, "train", ttl=60.0)
    assert len(get_all_nested_objects(small)) == 3
    body = pack({"arrays": {"w": np.arange(LARGE_BODY_BYTES, dtype="f4")}})
    envelope = ward.sealed(body=body)
    large = Message(wrapped(envelope), 1, "train", ttl=60.0)
    contents = {key: one.deflate() for key, one in get_all_nested_objects(large).items()}
    assert max(map(len, contents.values())) < 6_000_000
    found = inflate_object_from_contents(get_object_tree(large).object_id, contents)
    assert isinstance(found, Message)
    assert unwrapped(found.content) == envelope


def test_an_array_that_lies_about_itself_is_no_body(ward: Ward) -> None:
    from tests.fakes.federations import _raw

    raw = np.zeros(10, np.uint8)
    for fields in (
        {"shape": (11,)},
        {"shape": (2, 5)},
        {"shape": (-1,)},
        {"shape": (2**70,)},
        {"data": b""},
        {"stype": "x"},
    ):
        record = wrapped(ward.sealed())
        del record["sealed"]["body"]
        record["body"] = ArrayRecord({"body": _raw(raw, **fields)})
        assert "(frame)" in (ward.answer(record).error.reason or "")


def test_errors_of_a_hospital_s_own_are_no_defects(ward: Ward, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(folder: Path) -> Hospital:
        raise RunError("a path of this site: /data/x")

    monkeypatch.setattr(Hospital, "open", fail)
    assert ward.answer(ward.sealed()).error.reason == hospitals.NOT_SET_UP
