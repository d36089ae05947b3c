"""Claims of the auditor's view: what an officer must see, whatever the ledger, and in which order."""

import html.parser
import io
import json
import random
import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from sottovoce.cli import app
from sottovoce.common.errors import KeyFileError, LedgerError, PrivacyError
from sottovoce.common.ledger.entries import AnyCharge
from sottovoce.common.ledger.reader import lines_of
from sottovoce.common.ledger.rule import merged
from sottovoce.common.ledger.store import HEAD_FILE, LEDGER_FILE
from sottovoce.common.ledger.verify import entries_of
from sottovoce.common.privacy.budget import Budget, Denied, Granted
from sottovoce.common.run_files import CellFacts, RunFacts, SiteFacts, write_run
from sottovoce.server.audit import terminal, write_audit
from sottovoce.server.audit.document import audit_ledger, plain
from sottovoce.server.audit.facts import NOT_PRIVATE, SIMULATED, LedgerFacts
from sottovoce.server.audit.page import render
from sottovoce.server.audit.sources import LedgerFiles, Seen, find
from sottovoce.server.audit.whole import Audit, audit, groups
from sottovoce.server.audit.words import guarantee, odds, sure
from tests.fakes.faulty_disk import FaultyDisk, FaultyFolder
from tests.fakes.ledger_mutations import mutations
from tests.fakes.ledger_vectors import forged
from tests.fakes.ledgers import (
    ACCOUNTANT,
    DOMAIN,
    OTHER_STUDY,
    PERSON,
    STUDY,
    charge_of,
    hospital,
    lived_in,
    lived_with_sums,
    reserve,
    sums_of,
)

CELL = "seed0-fold{}-federated"


def files_of(disk: FaultyDisk, **changes: Any) -> LedgerFiles:
    parts = {"ledger": disk.names[LEDGER_FILE].data, "head": disk.names[HEAD_FILE].data.decode(), **changes}
    return LedgerFiles(name="hospital-a", **parts)


def judged(disk: FaultyDisk, **changes: Any) -> Audit:
    return audit(files_of(disk, **changes), accountant=ACCOUNTANT)


def only(found: Audit) -> LedgerFacts:
    (ledger,) = found.ledgers
    return ledger


def spent_by(
    charges: Sequence[AnyCharge], *, n_releases: int = 1, policy: Any = None, **request: Any
) -> FaultyDisk:
    """A ledger whose study releases `n_releases` times, two steps of its first charge each."""
    at, disk = hospital(), FaultyDisk()
    with at.create(FaultyFolder(disk), policy=policy) as ledger:
        budget = Budget(ledger, ACCOUNTANT)
        granted = at.approve(budget, at.request(charges=charges, **request))
        assert isinstance(granted, Granted), granted
        for number in range(n_releases):
            reserve(budget, granted.grant, f"r{number}", round=number)
            budget.commit(f"r{number}", b"update")
    return disk


def seeded() -> FaultyDisk:
    policy = hospital().policy(allow_non_private=True)
    return spent_by([charge_of()], policy=policy, noise="seeded")


def without_noise() -> FaultyDisk:
    at, disk = hospital(), FaultyDisk()
    policy = at.policy(allow_non_private=True, modes=("none",))
    with at.create(FaultyFolder(disk), policy=policy) as ledger:
        budget = Budget(ledger, ACCOUNTANT)
        granted = at.approve(budget, replace(at.request(), mode="none", charges=()))
        assert isinstance(granted, Granted), granted
        reserve(budget, granted.grant)
        budget.commit("r0", b"update")
    return disk


def put(folder: Path, disk: FaultyDisk) -> Path:
    folder.mkdir(parents=True)
    for name in (LEDGER_FILE, HEAD_FILE):
        (folder / name).write_bytes(disk.names[name].data)
    return folder


def run_of(folder: Path, disks: Sequence[Sequence[FaultyDisk | None]], **facts: Any) -> Path:
    """A run: a row of ledgers for each cell, one for each site; None is a ledger that is missing."""
    sites = [f"site-{number}" for number in range(len(disks[0]))] if disks else []
    for fold, row in enumerate(disks):
        for site, disk in zip(sites, row, strict=True):
            if disk is not None:
                put(folder / "ledgers" / CELL.format(fold) / site, disk)
    folder.mkdir(exist_ok=True)
    told = {
        "study_digest": STUDY,
        "stamp": "epsilon 1.83 at delta 1e-05 for each patient",
        "sites": tuple(SiteFacts(site=site, n_speakers=9, n_utterances=90) for site in sites),
        "cells": tuple(CellFacts(seed=0, fold=fold, arm="federated") for fold in range(len(disks))),
    }
    write_run(folder / "run.json", RunFacts(format=1, name=folder.name, **{**told, **facts}))
    return folder


class Outline(html.parser.HTMLParser):
    """Reads a page as a strict reader would: every element closed in order; keeps tags, attributes and text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.pieces: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in {"meta", "br"}:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not {"style", "title"} & set(self.open):
            self.pieces.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.pieces).split())


def text_of(found: Audit) -> str:
    return Outline(render(found)).text


@pytest.fixture(scope="module")
def lived() -> FaultyDisk:
    return lived_in()


@pytest.fixture(scope="module")
def everything(lived: FaultyDisk, tmp_path_factory: pytest.TempPathFactory) -> Audit:
    """A run with every kind of trouble."""
    broken = lived.copy()
    broken.names[LEDGER_FILE].data = broken.names[LEDGER_FILE].data[:-300]
    rows: list[list[FaultyDisk | None]] = [[lived, seeded(), lived], [without_noise(), None, broken]]
    return audit(find(run_of(tmp_path_factory.mktemp("runs") / "all", rows)), accountant=ACCOUNTANT)


def test_the_page_is_well_formed_and_needs_nothing_from_outside(everything: Audit) -> None:
    page = render(everything)
    outline = Outline(page)
    assert outline.open == []
    assert not {"script", "link", "img", "iframe", "object", "form", "base"} & {
        tag for tag, _ in outline.tags
    }
    for _, attributes in outline.tags:
        assert not any(name == "style" or name.startswith("on") for name in attributes)
        assert (attributes.get("href") or "#").startswith("#")
        assert not {"src", "srcset", "action"} & attributes.keys()
    assert not re.search(r"url\(|@import|https?:", page)
    assert re.search(r"Content-Security-Policy\" content=\"default-src 'none'; style-src 'sha256-", page)


def test_every_table_has_a_caption_every_drawing_words_and_every_link_a_target(everything: Audit) -> None:
    tags = Outline(render(everything)).tags
    names = [tag for tag, _ in tags]
    assert names.count("table") == names.count("caption") > 20
    for tag, attributes in tags:
        if tag == "svg":
            assert attributes.get("role") == "img" or attributes.get("aria-hidden") == "true"
    ids = [attributes["id"] for _, attributes in tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    targets = {(attributes.get("href") or "")[1:] for tag, attributes in tags if tag == "a"}
    assert targets
    assert targets <= set(ids)


def test_a_cap_raised_after_spending_stands_above_everything(lived: FaultyDisk, everything: Audit) -> None:
    assert text_of(judged(lived)).startswith(
        "A CAP WAS RAISED AFTER SPENDING intake-2026 : from 3 to 4, when 1.62"
    )
    assert text_of(everything).startswith("A CAP WAS RAISED AFTER SPENDING"), (
        "even above NOT PRIVATE and FAILED"
    )
    assert not judged(spent_by([charge_of()])).caps_raised_after_spending


def test_an_officer_finds_four_answers_before_anything_else(lived: FaultyDisk) -> None:
    text = text_of(judged(lived))
    answers = text[: text.index("In plain language")]
    for words in (
        "Is it valid? PASSED",
        "How much was spent? 1.83",
        "Of what cap? 4",
        "What is weak? NOTHING",
    ):
        assert words in answers
    assert "whose key it is: --public-key" in answers, "what was not asked is said beside PASSED"
    assert "whether it was set back to an older copy: --seen" in answers


@pytest.mark.parametrize(
    ("make", "stamp"), [(seeded, SIMULATED), (without_noise, NOT_PRIVATE)], ids=["seeded", "none"]
)
def test_what_is_not_private_is_stamped_at_the_top(make: Any, stamp: str) -> None:
    found = judged(make())
    assert found.stamp == only(found).stamp == stamp
    assert text_of(found).startswith(stamp)
    assert "nothing here protects a patient" in found.in_plain_language[0]
    assert "What is weak? ALL OF IT" in text_of(found)


def test_no_figure_is_given_where_something_left_without_noise() -> None:
    found = judged(without_noise())
    (domain,) = only(found).domains
    assert (domain.spent, domain.promised, domain.curve, domain.in_sites) == (None, None, (), ())
    assert "How much was spent? no figure" in text_of(found)


def test_a_damaged_ledger_gives_a_page_that_says_failed_and_what_could_be_read(lived: FaultyDisk) -> None:
    data = lived.names[LEDGER_FILE].data
    lines = lines_of(data)
    broken = b"".join([*lines[:9], lines[9].replace(b"index", b"indes"), *lines[10:]])
    found = judged(lived, ledger=broken)
    ledger, text = only(found), text_of(found)
    assert text.startswith("VERIFICATION FAILED")
    assert (ledger.ok, ledger.lower_bounds, ledger.n_entries, ledger.n_unjudged) == (False, True, 9, 7)
    assert len(ledger.entries) == 16, "every line is in the table"
    assert [row.judged for row in ledger.entries] == [True] * 9 + [False] * 7
    assert "not judged: release run/last committed" in text
    assert "≥ " in text[: text.index("In plain language")]
    assert "no promise can be read" in found.in_plain_language[0]


def test_no_damage_makes_it_raise_or_pass(lived: FaultyDisk) -> None:
    source = lived.names[LEDGER_FILE].data
    for number, (mutated, _) in enumerate(mutations(source, random.Random(5))):
        if number == 40:
            break
        found = judged(lived, ledger=mutated)
        assert found.ok == (mutated == source)
        if number % 10 == 0:
            assert Outline(render(found)).open == []
    for data in (b"", b"\n", b"\x00" * 99, source[:-1], source * 2):
        found = judged(lived, ledger=data, head="\udcff", policy="{")
        assert not found.ok
        assert "VERIFICATION FAILED" in text_of(found)


def test_a_rolled_back_ledger_fails_against_a_checkpoint_and_its_spend_is_a_lower_bound() -> None:
    older = spent_by([charge_of()], n_releases=0)
    newer = older.copy()
    with hospital().open(FaultyFolder(newer)) as ledger:
        budget = Budget(ledger, ACCOUNTANT)
        reserve(budget, 3)
        note = budget.commit("r0", b"update")
    assert judged(older).ok, "alone, nobody can tell"
    found = audit(files_of(older), accountant=ACCOUNTANT, seen=[Seen(name="kept.txt", note=note)])
    assert not found.ok
    assert "How much was spent? ≥ 0" in text_of(found)
    assert "it was rolled back" in text_of(found)


def test_a_figure_that_was_recorded_too_low_fails_though_every_signature_is_good(lived: FaultyDisk) -> None:
    def cheaper(entry: Any) -> Any:
        return (
            replace(entry, body=replace(entry.body, epsilon=0.5)) if entry.body.kind == "approval" else entry
        )

    ledger, head = forged([cheaper(entry) for entry in entries_of(lived.names[LEDGER_FILE].data)])
    found = judged(lived, ledger=ledger, head=head)
    assert only(found).verification["ok"]
    assert not found.ok
    assert "epsilon is recorded as 0.5000 and computed again as 1.8286" in text_of(found)
    assert "How much was spent? 1.83" in text_of(found), "the figure shown is the computed one"


def test_figures_are_the_accountants_and_the_curve_ends_at_the_spend(lived: FaultyDisk) -> None:
    (domain,) = only(judged(lived)).domains
    assert domain.spent == ACCOUNTANT.epsilon(merged([charge_of(steps=8)]), 1e-5)
    assert [point.releases for point in domain.curve] == [1, 2, 3, 4]
    assert domain.curve[-1].epsilon == domain.spent
    assert [(step.releases, step.cap) for step in domain.caps] == [(0, 3.0), (3, 4.0)]
    assert domain.spent_replace_one is not None
    assert domain.spent_replace_one > domain.spent


def test_a_burned_release_counts_in_its_round(lived: FaultyDisk) -> None:
    (study,) = only(judged(lived)).studies
    assert [(row.round, row.committed, row.burned) for row in study.rounds] == [
        (0, 1, 0),
        (1, 0, 1),
        (2, 1, 0),
        (3, 1, 0),
    ]
    figures = [row.epsilon_after for row in study.rounds]
    assert all(value is not None for value in figures)
    assert figures == sorted(figures)  # type: ignore[type-var]


SMALL: dict[str, Any] = {"sampling_prob": 1.0, "n_patients": 20}


def weak_ledger() -> FaultyDisk:
    terms = replace(
        hospital().policy().domains[0], n_patients=20, delta=0.03, small_population=True, epsilon_cap=8.0
    )
    policy = hospital().policy(domains=(terms,), max_epsilon_per_study=8.0, max_sites_per_patient=3)
    return spent_by([charge_of(4, 4.0, **SMALL)], policy=policy, delta=0.03, sites_per_patient=3)


def test_what_is_weak_is_named_with_the_epsilon_at_the_usual_delta() -> None:
    found = judged(weak_ledger())
    (domain,) = only(found).domains
    assert found.ok
    assert [reason.split(",")[0] for reason in domain.weak] == ["at most 20 patients", "delta is 0.03"]
    spent = merged([charge_of(2, 4.0, **SMALL)])
    assert domain.spent_at_usual_delta == ACCOUNTANT.epsilon(spent, 1e-5)
    assert domain.spent_at_usual_delta > (domain.spent or 0.0)
    assert "What is weak? 2 THINGS" in text_of(found)
    assert "These figures are weak" in found.in_plain_language[-1]


def test_a_large_figure_is_said_to_say_little_even_where_nothing_else_is_weak(lived: FaultyDisk) -> None:
    found = judged(lived)
    (domain,) = only(found).domains
    large = replace(only(found), domains=(replace(domain, spent=6.0),))
    assert "So large a figure alone says little." in text_of(replace(found, ledgers=(large,)))
    assert "it does not hide who took part" in guarantee(large, n_ledgers=1)[0]
    assert "So large" not in text_of(found)


def test_recordings_drawn_one_by_one_are_weak() -> None:
    disk = spent_by([charge_of(2, 20.0, records_per_patient=2)], n_releases=0)
    assert only(judged(disk)).weak == ("recordings were drawn and clipped one by one, not patients",)


def test_a_patient_in_k_sites_is_given_the_composed_figure() -> None:
    (domain,) = only(judged(weak_ledger())).domains
    assert [row.sites for row in domain.in_sites] == [1, 2, 3]
    for row in domain.in_sites:
        spent = [replace(charge_of(2, 4.0, **SMALL), steps=2 * row.sites)]
        assert row.spent == ACCOUNTANT.epsilon(merged(spent), 0.03)
    assert "in 3 sites" in text_of(judged(weak_ledger()))


def test_events_of_the_ledger_are_listed_and_withdrawals_never_say_whose(lived: FaultyDisk) -> None:
    ledger = only(judged(lived))
    assert [
        len(rows) for rows in (ledger.withdrawals, ledger.key_rotations, ledger.burns, ledger.cap_changes)
    ] == [1] * 4
    assert [policy.version for policy in ledger.policies] == [1, 2]
    assert [study.person for study in ledger.studies] == [PERSON]
    assert ledger.withdrawals[0].what == f"a patient of {DOMAIN} withdrew consent"
    text = text_of(judged(lived))
    for entry in ledger.entries:
        assert entry.what in text


def test_a_denial_is_listed_with_its_reason() -> None:
    at, disk = hospital(), FaultyDisk()
    with at.create(FaultyFolder(disk)) as ledger:
        assert isinstance(at.approve(Budget(ledger, ACCOUNTANT), at.request(purpose="workplace")), Denied)
    assert "prohibited for emotion recognition" in only(judged(disk)).denials[0].what
    assert "nothing computed from recordings has left so far" in judged(disk).in_plain_language[0]


HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "{{ 7 * 7 }}{% raw %}",
    "</title></style></svg><h1>",
]


@pytest.mark.parametrize("name", HOSTILE, ids=range(len(HOSTILE)))
def test_a_hostile_text_of_a_ledger_stays_a_text(name: str) -> None:
    at, disk = hospital(), FaultyDisk()
    terms = replace(at.policy().domains[0], name=name)
    policy = at.policy(reason=name, changed_by=name, domains=(terms,), max_sites_per_patient=2)
    with at.create(FaultyFolder(disk), policy=policy) as ledger:
        budget = Budget(ledger, ACCOUNTANT)
        granted = at.approve(budget, at.request(domain=name, facts={name: name}))
        assert isinstance(granted, Granted), granted
        reserve(budget, granted.grant, name)
        budget.burn(name, name)
    page = render(audit(replace(files_of(disk), name=name), accountant=ACCOUNTANT))
    outline = Outline(page)
    assert outline.open == []
    assert not {"script", "img"} & {tag for tag, _ in outline.tags}
    assert [tag for tag, _ in outline.tags].count("h1") == 1
    assert name in outline.text
    assert "{{" in page if "{{" in name else "49" not in outline.text[:40]


def test_equal_ledgers_of_a_run_share_a_line_and_the_worst_comes_first(
    lived: FaultyDisk, tmp_path: Path
) -> None:
    good = spent_by([charge_of()])
    found = audit(
        find(run_of(tmp_path / "run", [[good, good, lived], [good, lived, good]])), accountant=ACCOUNTANT
    )
    assert found.ok
    assert [len(group) for group in groups(found.ledgers)] == [2, 4]
    assert groups(found.ledgers)[0][0].caps_raised_after_spending
    assert "and 3 equal" in text_of(found)


def test_all_cells_of_a_run_together_cost_more_than_one(lived: FaultyDisk, tmp_path: Path) -> None:
    found = audit(find(run_of(tmp_path / "run", [[lived], [lived]])), accountant=ACCOUNTANT)
    assert found.run is not None
    (together,) = found.run.together
    assert together.spent == ACCOUNTANT.epsilon(merged([charge_of(16)]), 1e-5)
    assert "if the models of all 2 cells are published" in text_of(found)


def test_a_ledger_that_a_run_should_have_and_has_not_fails_the_run(lived: FaultyDisk, tmp_path: Path) -> None:
    found = audit(find(run_of(tmp_path / "run", [[lived, None]])), accountant=ACCOUNTANT)
    assert all(ledger.ok for ledger in found.ledgers)
    assert not found.ok
    assert "expected a ledger of site site-1" in text_of(found)
    assert found.in_plain_language[0].startswith("This run did not pass its checks")


def test_a_run_whose_ledgers_approved_another_study_or_seeded_noise_unsaid_fails(tmp_path: Path) -> None:
    other = audit(find(run_of(tmp_path / "a", [[seeded()]], study_digest=OTHER_STUDY)), accountant=ACCOUNTANT)
    assert other.run is not None
    assert [
        "approval of the run's study" in what or "says otherwise" in what for what in other.run.findings
    ] == [True] * 2
    honest = run_of(tmp_path / "b", [[seeded()]], stamp=f"{SIMULATED}; this study would cost epsilon 1")
    assert audit(find(honest), accountant=ACCOUNTANT).ok


def test_the_coordinators_own_checkpoint_in_a_run_is_asked(lived: FaultyDisk, tmp_path: Path) -> None:
    folder = run_of(tmp_path / "run", [[lived]])
    place = folder / "ledgers" / CELL.format(0) / "site-0"
    shutil.copy(place / HEAD_FILE, place / "seen.txt")
    steps = only(audit(find(folder), accountant=ACCOUNTANT)).verification["steps"]
    assert steps[7]["result"] == "passed"
    stranger = Seen(name="other.txt", note=spent_by([charge_of()]).names[HEAD_FILE].data.decode())
    found = audit(find(folder), accountant=ACCOUNTANT, seen=[stranger])
    assert found.run is not None
    assert found.run.findings == (
        "other.txt: expected a checkpoint of a ledger of this run; it is of another",
    )


def test_a_run_without_ledgers_says_not_private_or_that_they_are_missing(tmp_path: Path) -> None:
    bare = audit(find(run_of(tmp_path / "bare", [], stamp=NOT_PRIVATE)))
    assert (bare.ok, bare.stamp) == (False, NOT_PRIVATE)
    assert text_of(bare).startswith("NOT PRIVATE This run was made in mode none")
    lost = audit(find(run_of(tmp_path / "lost", [])))
    assert "run.json states a privacy figure, and the run has no ledger" in text_of(lost)
    assert "mode none" not in text_of(lost)
    assert "nothing can be checked" in lost.in_plain_language[0]


def test_a_figure_that_cannot_be_computed_fails_and_is_told(lived: FaultyDisk) -> None:
    class Speechless:
        facts_of = ACCOUNTANT.facts_of

        def epsilon(
            self,
            charges: Sequence[AnyCharge],
            delta: float,
            *,
            n_colluding: int | None = None,
            n_sites: int = 1,
        ) -> float:
            raise PrivacyError("no answer")

    ledger = audit_ledger(files_of(lived), accountant=Speechless())
    assert not ledger.ok
    assert ledger.figures_problem == "The figures cannot be computed from these entries: no answer"
    assert [raised.after for raised in ledger.caps_raised_after_spending] == [4.0], "still shown first"


def test_figures_of_secure_sums_say_what_they_rest_on_and_what_is_left_if_all_others_collude() -> None:
    found = judged(lived_with_sums())
    ledger, page = only(found), text_of(found)
    assert ledger.ok
    (domain,), sums = ledger.domains, ledger.studies[0]
    assert domain.modes == ("distributed", "local")
    assert domain.sums is not None
    assert (domain.sums.n_min, domain.sums.n_colluding) == (5, 2)
    assert domain.spent < domain.sums.spent < domain.sums.promised  # type: ignore[operator]
    assert list(sums.by_colluding) == ["0", "1", "2", "3", "4"]
    assert ledger.studies[1].sums is None
    for said in (
        "secure sums over at least 5 hospitals, 2 of which may collude",
        "if all other hospitals of a sum collude",
        "is the sum of at least 5 hospitals, under secure sums: never one hospital's own part",
        "at most 2 of the 5 hospitals that a sum needs work together against a patient",
        "distributed_bound.py, which it needs beside itself",
        "by a Renyi bound (RDP)",
        "RDP, as the enrolment's first study" if sums.decided_by == "rdp" else "the Renyi filter",
    ):
        assert said in page, said


def test_a_ledger_without_secure_sums_says_nothing_of_them(lived: FaultyDisk) -> None:
    page = text_of(judged(lived))
    for said in ("secure sum", "collude", "distributed_bound"):
        assert said not in page, said


def test_sums_over_few_hospitals_are_weak_and_the_patients_of_all_that_a_sum_needs_are_a_crowd() -> None:
    def weak_of(**changes: Any) -> tuple[str, ...]:
        at = hospital()
        terms = replace(at.policy().domains[0], n_patients=250)
        policy = at.policy(modes=("distributed",), domains=(terms,))
        charge = sums_of(4, 8.0, n_patients=250, **changes)
        return only(judged(spent_by([charge], policy=policy, mode="distributed"))).weak

    assert weak_of() == ()
    assert weak_of(n_min=3, n_colluding=1) == (
        "at most 750 patients, fewer than 1,000",
        "sums over as few as 3 hospitals, fewer than 5",
    )


def test_both_files_are_the_same_bytes_every_time_and_name_no_path(lived: FaultyDisk, tmp_path: Path) -> None:
    folder = put(tmp_path / "ledger", lived)
    first = write_audit(folder, out=tmp_path / "a")
    second = write_audit(folder / LEDGER_FILE, out=tmp_path / "b")
    for name in ("audit.html", "audit.json"):
        written = (tmp_path / "a" / name).read_bytes()
        assert written == (tmp_path / "b" / name).read_bytes()
        assert str(tmp_path).encode() not in written
    assert first.document == second.document
    table = json.loads(first.document, parse_constant=pytest.fail)
    assert table["ledgers"][0]["domains"][0]["spent"] == only(first.audit).domains[0].spent
    assert table["in_plain_language"]


def test_an_infinite_figure_is_a_word_in_json() -> None:
    assert plain({"a": [float("inf"), 1.0]}) == {"a": ["infinite", 1.0]}


def test_a_terminal_shows_verdict_spend_and_where_to_read_on(lived: FaultyDisk, tmp_path: Path) -> None:
    from rich.console import Console

    console = Console(width=100, record=True, file=io.StringIO())
    console.print(terminal(write_audit(put(tmp_path / "ledger", lived))))
    text = console.export_text()
    assert text.startswith("CAP RAISED AFTER SPENDING: intake-2026, from 3 to 4")
    for words in ("Verification PASSED", "1.83", "audit.html"):
        assert words in text


def commands(tmp_path: Path, lived: FaultyDisk) -> Iterator[tuple[list[str], int, str]]:
    folder, out = str(put(tmp_path / "ledger", lived)), str(tmp_path / "out")
    key, wrong = hospital().key.public_hex, "0" * 64
    yield [folder, "--out", out, "--public-key", key, "--seen", f"{folder}/head"], 0, "Verification PASSED"
    yield [folder, "--out", out, "--public-key", wrong], 1, "expected the key 0000000000000000"
    yield [folder, "--out", out, "--json"], 0, '"kind": "ledger"'


def test_the_command_ends_in_0_only_where_everything_passed(lived: FaultyDisk, tmp_path: Path) -> None:
    for arguments, status, words in commands(tmp_path, lived):
        result = CliRunner().invoke(app, ["audit", *arguments])
        assert (result.exit_code, words in result.output) == (status, True), result.output


def test_what_cannot_be_audited_is_one_clear_error(lived: FaultyDisk, tmp_path: Path) -> None:
    folder = put(tmp_path / "ledger", lived)
    with pytest.raises(LedgerError, match="came neither"):
        write_audit(tmp_path)
    with pytest.raises(KeyFileError, match="64 hexadecimal"):
        write_audit(folder, public_key="zz")
    with pytest.raises(LedgerError, match="with one ledger"):
        write_audit(run_of(tmp_path / "run", [[lived]]), public_key="0" * 64)
    with pytest.raises(LedgerError, match=r"ledger\.jsonl: Expected a ledger checkpoint"):
        write_audit(folder, seen=[folder / LEDGER_FILE])
    (tmp_path / "file").touch()
    with pytest.raises(LedgerError, match="--out"):
        write_audit(folder, out=tmp_path / "file")


def test_words_for_figures_round_to_the_safe_side() -> None:
    assert (sure(0.0), sure(1.0), sure(8.0)) == ("50 %", "74 %", "practically certain")
    assert (odds(0.0), odds(20.0)) == ("1.0", "more than a million")
