"""What a hospital is told of a study beforehand, held against a federation that takes place."""

import io
import json
import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import pytest
from rich.console import Console

from sottovoce.client.preview import Preview, preview
from sottovoce.client.preview_terminal import preview_lines
from sottovoce.client.preview_words import learned_of, not_covered_of, paragraph_of
from sottovoce.client.site_ledger import charges_of
from sottovoce.client.traffic import FROM, MessageKind, messages_of
from sottovoce.common import models
from sottovoce.common.errors import LedgerError
from sottovoce.common.feature_specs import FeatureStream, Ge2e, Whisper
from sottovoce.common.ledger.reading import read_ledger, readable_entries
from sottovoce.common.ledger.state import fold
from sottovoce.common.ledger.terms import policy_from
from sottovoce.common.model_size import n_parameters_of, widths_of
from sottovoce.common.model_specs import Moments
from sottovoce.common.personal_specs import Ditto
from sottovoce.common.privacy import of_study
from sottovoce.common.privacy.budget import PldAccountant
from sottovoce.common.privacy_specs import DistributedPrivacy, LocalPrivacy
from sottovoce.common.provenance import code_sha256
from sottovoce.common.rosters import read_roster
from sottovoce.common.secagg.session import Roster
from sottovoce.common.study import Execution, Study, load
from sottovoce.common.weights import from_state_dict
from sottovoce.server.rounds import Cell, run
from sottovoce.simulations import site_ledgers
from sottovoce.simulations.engines import open_exchange
from tests.fakes import recorded
from tests.fakes.recorded import Recorded
from tests.fakes.sites import (
    DISTRIBUTED,
    GROUPS,
    LINEAR,
    LOCAL,
    N_CLASSES,
    NONE,
    SGD,
    write_sites,
    write_study,
)

APP = "tests.fakes.recorded:recording_app"
PLAIN, SECURE = "secure_sum = false", "secure_sum = true"
STUDIES = {
    "none": (NONE, PLAIN),
    "none, own models": (NONE, f'{PLAIN}, personalisation = {{ kind = "ditto" }}'),
    "none, SCAFFOLD, secure sums": (NONE, f'{SECURE}, strategy = {{ kind = "scaffold" }}'),
    "none, secure sums of 16 bits": (NONE, f"{SECURE}, compression = {{ bits = 16, norm = 1.0 }}"),
    "local": (LOCAL, PLAIN),
    "local, secure sums": (LOCAL, SECURE),
    "local, no counts": (LOCAL.replace("counts_noise_multiplier = 1.0, counts_utterances = 2", ""), PLAIN),
    "distributed": (DISTRIBUTED, ""),
}
WITH_GROUPS = ("none", "local, secure sums", "distributed")
ROBUST = SGD[:-1] + ', group_robust = { attribute = "sex", step = 1.0 } }'
TRAINING = {"local, secure sums": ROBUST, "distributed": ROBUST}


@dataclass(frozen=True, kw_only=True)
class Held:
    """What took place, and the preview of it."""

    study: Study
    roster: Roster | None
    messages: tuple[MessageKind, ...]
    seen: tuple[Recorded, ...]


def study_file(folder: Path, name: str, *, n_sites: int = 3) -> Path:
    privacy, federation = STUDIES[name]
    path = write_study(
        folder / "study.toml",
        n_sites=n_sites,
        rounds=3,
        privacy=re.sub(r",\s*}", " }", privacy),
        model=LINEAR,
        training=SGD.replace(" }", ", steps_per_round = 2 }")
        if "scaffold" in federation
        else TRAINING.get(name, SGD),
        federation=federation,
        evaluation=GROUPS if name in WITH_GROUPS else "",
    )
    n = n_parameters_of(load(path))
    path.write_text(path.read_text().replace("n_parameters = 21", f"n_parameters = {n}"))
    return path


@cache
def plain_study(name: str, folder: Path) -> Study:
    return load(study_file(folder, name))


@pytest.fixture(scope="module", params=[name for name in STUDIES if name != "local, no counts"])
def held(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Held:
    folder = tmp_path_factory.mktemp("federation")
    file = study_file(folder, request.param)
    study = load(file)
    sites = write_sites(folder / "sites", 3, width=widths_of(study)["pooled"])
    is_open = study.privacy.mode == "none"
    made = site_ledgers.identities if is_open else site_ledgers.open_all
    made(folder / "home", study, sites)
    weights = from_state_dict(models.build(study.model, widths_of(study), N_CLASSES, seed=0).state_dict())
    roster, ready = None, folder / "home"
    recorded.seen.clear()
    with open_exchange(
        Execution(),
        sites,
        study_file=file,
        ledgers=None if is_open else ready,
        secure=ready if is_open and study.sums_are_secure else None,
        states=folder / "states",
        app=APP,
    ) as exchange:
        cell = Cell(seed=0, fold=0, arm="federated")
        if study.sums_are_secure:
            roster = read_roster(ready / site_ledgers.COORDINATOR / site_ledgers.ROSTER)
            with site_ledgers.coordinated(ready, study, exchange) as secure:  # type: ignore[arg-type]
                run(secure, study, cell=cell, weights=weights)
        else:
            run(exchange, study, cell=cell, weights=weights)
    seen = tuple(one for one in recorded.seen if one.site.endswith("site-2"))
    return Held(study=study, roster=roster, messages=messages_of(study, roster=roster), seen=seen)


def test_the_messages_of_a_run_are_those_of_the_preview_as_often_as_it_says(held: Held) -> None:
    said = {(one.phase, one.direction): one.n for one in held.messages if one.n}
    assert Counter((one.phase, one.direction) for one in held.seen) == said
    assert said


def test_every_field_of_every_message_is_named_and_no_other(held: Held) -> None:
    kinds = {(one.phase, one.direction): one for one in held.messages}
    for message in held.seen:
        fields = {(field.record, field.name) for field in kinds[message.phase, message.direction].fields}
        assert set(message.sizes) == fields


def test_sizes_are_exact_or_bounds_as_the_preview_says(held: Held) -> None:
    kinds = {(one.phase, one.direction): one for one in held.messages}
    n_exact = 0
    for message in held.seen:
        for field in kinds[message.phase, message.direction].fields:
            came = message.sizes[field.record, field.name]
            n_exact += field.exact
            if field.exact:
                assert came == field.n_bytes, (message.phase, field)
            else:
                assert field.n_bytes / 2 < came <= field.n_bytes, (message.phase, field)
            if field.record == "arrays":
                assert message.shapes[field.name] == field.shape
    assert n_exact > 0


def test_a_bound_without_a_roster_holds_too(held: Held) -> None:
    for known, unknown in zip(held.messages, messages_of(held.study), strict=True):
        assert unknown.n_bytes >= known.n_bytes
        assert [field.name for field in unknown.fields] == [field.name for field in known.fields]


def shown(tmp_path: Path, name: str, **more: object) -> Preview:
    return preview(plain_study(name, tmp_path), site="site-2", **more)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("studies")


@cache
def shown_once(folder: Path, name: str) -> Preview:
    place = folder / re.sub(r"\W", "-", name)
    place.mkdir()
    return preview(load(study_file(place, name)), site="site-2")


@pytest.mark.parametrize("name", ["local", "distributed"])
def test_figures_are_those_that_an_approval_records(folder: Path, name: str) -> None:
    found = shown_once(folder, name)
    study = load(folder / name / "study.toml")
    spec = study.privacy
    assert spec.mode != "none"
    whole = PldAccountant().epsilon(charges_of(study), spec.delta)
    assert found.epsilon[-1].epsilon == whole
    figures = [point.epsilon for point in found.epsilon]
    assert figures == sorted(figures)
    assert found.epsilon[-2].updates == 3
    assert found.epsilon[-2].counts == 2  # after round 2, and at the end
    assert found.epsilon[-1].updates == 3 + spec.spare_rounds
    first = tuple(replace(one, steps=1) for one in charges_of(study) if one.what == "update")
    assert found.epsilon[0].epsilon == PldAccountant().epsilon(first, spec.delta)


def test_releases_say_how_often_and_at_which_charge(folder: Path) -> None:
    update, counts = shown_once(folder, "local").releases
    assert (update.what, update.n, update.n_most) == ("update", 3, 4)
    assert (counts.what, counts.n, counts.n_most) == ("evaluation_counts", 2, 2)
    assert "noise 1, sampling 0.75" in str(update.charge)
    unpaid = shown_once(folder, "local, no counts")
    (alone,) = unpaid.releases
    assert alone.what == "update"
    assert {message.phase for message in unpaid.messages} == {"query", "train"}


def test_releases_name_every_table_of_counts(folder: Path) -> None:
    _, counts = shown_once(folder, "distributed").releases
    assert (
        "the same of each group (sex female; sex male), all in one release, with noise, masked" in counts.form
    )
    assert "over who is trained on, and after the last round over withheld patients" in counts.form
    _, alone = shown_once(folder, "local").releases
    assert "group" not in alone.form
    assert "over withheld patients" in alone.form


def test_mode_none_promises_nothing_in_every_place(folder: Path) -> None:
    found = shown_once(folder, "none")
    assert (found.stamp, found.epsilon) == ("NOT PRIVATE", ())
    assert all(release.charge is None and release.n_most is None for release in found.releases)
    assert "NO PRIVACY IS PROMISED" in found.paragraph
    assert "promises nothing" in found.not_covered[0]
    assert any("NOT PRIVATE" in what for _, what in found.learned)


def test_simulated_noise_is_never_shown_as_a_promise(folder: Path) -> None:
    for name in ("local", "distributed"):
        found = shown_once(folder, name)
        assert "THE NOISE IS SIMULATED" in found.paragraph
        assert "It is promised" not in found.paragraph
        assert found.stamp.startswith("SIMULATED NOISE, NOT PRIVATE")


def test_the_paragraph_has_the_figure_what_it_means_and_what_it_does_not(tmp_path: Path) -> None:
    study = plain_study("distributed", tmp_path)
    assert isinstance(study.privacy, DistributedPrivacy)
    study = replace(study, privacy=replace(study.privacy, seeded_noise=False))
    text = paragraph_of(study, site="St. Anna", epsilon=math.log(9))
    for words in (
        "“tiny” (purpose: research) 3 hospitals",
        "recordings of St. Anna",
        "epsilon is 2.20 at delta 0.01",
        "at most 90.0 % sure",
        "clinician's",
        "stop at any time",
        "cannot be called back",
        "read only the sum of all hospitals",
    ):
        assert words in text
    assert "NO PRIVACY" not in text
    assert "100.0 %" in paragraph_of(study, site="St. Anna", epsilon=12.0)  # a bound is rounded up


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("none", "this hospital's own numbers of each of 3 rounds"),
        ("none", "exact counts of mistakes"),
        ("none, secure sums of 16 bits", "possibly a single update"),
        ("none, SCAFFOLD, secure sums", "with other hospitals lost, possibly a single update"),
        ("local, secure sums", "only sums of at least 3 hospitals"),
        ("local, secure sums", "how well the model does for each group: sex female; sex male"),
        ("distributed", "1 other hospital"),
    ],
)
def test_who_can_learn_what_follows_from_the_study(tmp_path: Path, name: str, words: str) -> None:
    said = " / ".join(f"{who}: {what}" for who, what in learned_of(plain_study(name, tmp_path)))
    assert words in said
    assert "when it answers" in said


def test_what_no_figure_covers_is_said_for_every_study(tmp_path: Path) -> None:
    study = plain_study("local", tmp_path)
    for scheme, says in (("speaker", True), ("constants", False)):
        changed = replace(study, normalisation=replace(study.normalisation, scheme=scheme))  # type: ignore[arg-type]
        said = " / ".join(not_covered_of(changed))
        assert ("enrolment" in said) == says
        assert "clinician" in said
        assert "time of a reply" in said


def test_a_figure_for_one_recording_is_not_said_to_cover_what_it_does_to_others(tmp_path: Path) -> None:
    study = plain_study("local", tmp_path)
    assert isinstance(study.privacy, LocalPrivacy)
    privacy = replace(study.privacy, unit="utterance", utterances_per_patient=2, noise_multiplier=16.0)
    for scheme, unit, says in (
        ("enrolment", "utterance", "by a few recordings of the speaker"),
        ("speaker", "utterance", "by all of a speaker's recordings"),
        ("speaker", "patient", ""),
        ("constants", "utterance", ""),
    ):
        changed = replace(
            study,
            normalisation=replace(study.normalisation, scheme=scheme),  # type: ignore[arg-type]
            privacy=replace(privacy, unit=unit),  # type: ignore[arg-type]
        )
        said = [text for text in not_covered_of(changed) if "figure for one recording" in text]
        assert bool(said) is bool(says)
        assert says in " ".join(said)
        plan = of_study.with_the_study(changed, "promise", {"not_covered": "other voices"})["not_covered"]
        assert plan == "; ".join(["other voices", *said])


def test_whoever_approves_a_study_that_makes_rows_is_not_told_of_a_classifier(tmp_path: Path) -> None:
    study = plain_study("local", tmp_path)
    sums = replace(study, model=Moments(kind="moments", stream="pooled"))
    assert "makes up numbers like those measured from voices" in paragraph_of(sums, site="A", epsilon=1.0)
    assert "tells 3 emotions" in paragraph_of(study, site="A", epsilon=1.0)


def test_a_model_of_ones_own_without_noise_is_said_to_lie_here(tmp_path: Path) -> None:
    study = plain_study("local", tmp_path)
    own = replace(study, federation=replace(study.federation, personalisation=Ditto(kind="ditto")))
    assert [text for text in not_covered_of(own) if text not in list(not_covered_of(study))] == [
        "this hospital's own model on its disk: it is trained without noise and sent to nobody; when a patient "
        "withdraws it is removed, and begun anew without that patient"
    ]


def test_a_study_of_encoders_says_that_its_features_name_the_speaker(tmp_path: Path) -> None:
    study = plain_study("local", tmp_path)
    assert "names its speaker" not in " / ".join(not_covered_of(study))
    voices = FeatureStream(name="v", parts=(Ge2e(kind="ge2e"), Whisper(kind="whisper")), pooling="statistics")
    said = " / ".join(not_covered_of(replace(study, streams=(*study.streams, voices))))
    assert (
        "what ge2e and whisper make of a recording names its speaker; it is computed here, and never sent"
        in said
    )


POLICY: Mapping[str, object] = {
    "format": 1,
    "site": "site-2",
    "version": 1,
    "changed_by": "Ada",
    "reason": "first",
    "purposes": ["research"],
    "modes": ["local"],
    "studies": [],
    "max_epsilon_per_study": 100.0,
    "max_sites_per_patient": 1,
    "allow_non_private": True,
    "domains": [{"name": "simulation", "n_patients": 8, "epsilon_cap": 50.0, "delta": 0.05, "small_population": True}],
}  # fmt: skip


def test_a_policy_says_beforehand_what_it_has_against_a_study(tmp_path: Path) -> None:
    study = plain_study("local, no counts", tmp_path)
    listed = {**POLICY, "studies": [study.digest()]}
    for policy, refused in (
        (listed, ()),
        (POLICY, ("study:",)),
        ({**listed, "models": ["lstm"]}, ("model:",)),
        ({**listed, "purposes": ["medical"], "modes": ["none"]}, ("purpose:", "mode:")),
        ({**listed, "max_epsilon_per_study": 0.1, "allow_non_private": False}, ("mode:", "epsilon:")),
    ):
        found = preview(study, site="site-2", policy=policy_from(policy)).refusals
        assert found is not None
        assert [line.split()[0] for line in found] == list(refused)


def test_a_ledger_says_what_becomes_of_its_budget_and_why_it_would_say_no(tmp_path: Path) -> None:
    study = plain_study("local, no counts", tmp_path)
    places = site_ledgers.open_all(tmp_path / "ledgers", study, ["site-2"])
    entries, _ = readable_entries(read_ledger(places["site-2"]).ledger)
    state = fold(entries)

    def asked(study: Study) -> tuple[str, ...]:
        found = preview(study, site="site-2", policy=state.policy, state=state, domain="simulation")
        assert found.standing is not None
        assert found.standing.promised_after > found.standing.promised_before > 0
        assert set(found.standing.problems) <= set(found.refusals or ())
        return found.standing.problems

    (too_much,) = asked(study)  # the domain was opened for one such study
    assert too_much.startswith("epsilon: 'simulation' would have promised")
    assert isinstance(study.privacy, LocalPrivacy)
    secret = replace(study, privacy=replace(study.privacy, seeded_noise=False, n_patients_public=7))
    other_patients, _, bare = asked(secret)
    assert other_patients.startswith("privacy.n_patients_public: expected the domain's 8")
    assert "had releases without secret noise" in bare
    with pytest.raises(LedgerError, match="expected one of simulation"):
        preview(study, site="site-2", state=state, domain="another")


def test_the_terminal_shows_all_of_it_and_json_is_json(folder: Path) -> None:
    found = replace(shown_once(folder, "distributed"), refusals=("mode: no.",))
    console = Console(width=100, record=True, file=io.StringIO())
    for line in preview_lines(found, at_rest="unencrypted"):
        console.print(line)
    text = console.export_text()
    for words in (
        found.digest,
        found.code["sha256"],
        "train.mask",
        "evaluate.reveal",
        "THE POLICY REFUSES",
        "mode: no.",
        "unencrypted",
        "For the ethics board",
        "everything that is reserved",
    ):
        assert words in text
    plain = json.loads(json.dumps(found.plain()))
    assert plain["bytes"][FROM]["in_a_run"] == sum(
        one.n * one.n_bytes for one in found.messages if one.direction == FROM
    )
    assert plain["messages"][0]["phase"] == "query"


def test_the_digest_of_the_program_changes_with_a_line_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    before = code_sha256()
    assert before == code_sha256()
    read = Path.read_bytes

    def changed(path: Path) -> bytes:
        return read(path) + (b"\n# edited" if path.name == "policy.py" else b"")

    monkeypatch.setattr(Path, "read_bytes", changed)
    assert code_sha256() != before
