"""Claims of client/policy.py and of the terms it reads."""

from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest

from sottovoce.client.policy import NEW_POLICY, adopt, load, loads, new_policy
from sottovoce.client.site_ledger import request_of
from sottovoce.common.config import canonical
from sottovoce.common.errors import LedgerError, PolicyError
from sottovoce.common.ledger.state import approval_statement
from sottovoce.common.ledger.store import LEDGER_FILE
from sottovoce.common.ledger.terms import policy_from, purpose_problem
from sottovoce.common.ledger.verify import entries_of
from sottovoce.common.model_specs import Kind, ModelSpec
from sottovoce.common.privacy.budget import Budget, Denied, Granted
from sottovoce.common.study import load as load_study
from tests.fakes.faulty_disk import Fault, FaultyDisk, FaultyFolder, Killed
from tests.fakes.ledgers import ACCOUNTANT, DOMAIN, SITE, hospital, reserve
from tests.fakes.sites import write_study


def test_the_first_policy_is_one_and_agrees_to_nothing_that_is_not_private() -> None:
    policy = loads(new_policy("clinic-7"))
    assert policy.site == "clinic-7"
    assert not policy.allow_non_private
    assert policy.modes == ("local",)
    assert (policy.studies, policy.approvers) == ((), ())
    assert (policy.domains[0].epsilon_cap, policy.max_sites_per_patient) == (8.0, 1)


@pytest.mark.parametrize("site", ["", "a\nb", 'a"b', "x" * 121, "a\\b"])
def test_a_site_name_that_would_break_the_file_is_refused(site: str) -> None:
    with pytest.raises(PolicyError):
        new_policy(site)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("format = 1", "format = 2", "format"),
        ("version = 1 ", "version = 0 ", "version"),
        ('purposes = ["medical"]', 'purposes = ["marketing"]', "purposes"),
        ("max_epsilon_per_study = 8.0", "max_epsilon = 8.0", "unknown key"),
        ("studies = []", 'studies = ["abc"]', "studies"),
        ("delta = 1e-5", "delta = 1e-3", "below 1/n_patients"),
        ("delta = 1e-5", "delta = 1.1e-5", "small_population"),
        ('reason = "first policy"', 'reason = "a\\u001b[2J"', "printable"),
        ("studies = []", f'studies = ["{"ab" * 32}", "{"ab" * 32}"]', "twice"),
        ("format = 1", "format = = 1", "not TOML"),
    ],
)  # fmt: skip
def test_what_is_no_policy_is_refused_with_its_key(old: str, new: str, words: str) -> None:
    assert old in NEW_POLICY
    with pytest.raises(PolicyError, match=words):
        loads(NEW_POLICY.replace(old, new, 1))


def test_every_problem_is_reported_at_once() -> None:
    with pytest.raises(PolicyError) as caught:
        policy_from({"format": 1, "site": 7, "version": "x", "colour": "red"})
    assert all(key in str(caught.value) for key in ("site", "version", "colour", "purposes", "domains"))


def test_a_file_that_cannot_be_read_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match="policy new"):
        load(tmp_path / "none.toml")
    (tmp_path / "policy.toml").write_bytes(b"\xff")
    with pytest.raises(PolicyError, match="UTF-8"):
        load(tmp_path / "policy.toml")
    (tmp_path / "policy.toml").write_bytes(b"#" * 60_000)
    with pytest.raises(PolicyError, match="at most"):
        load(tmp_path / "policy.toml")
    (tmp_path / "policy.toml").write_text(NEW_POLICY)
    assert load(tmp_path / "policy.toml") == loads(NEW_POLICY)


@pytest.mark.parametrize("purpose", ["workplace", "education"])
def test_workplace_and_education_need_a_medical_or_safety_reference(purpose: str) -> None:
    assert purpose_problem(purpose, None)
    assert purpose_problem(purpose, "because we want to")
    assert purpose_problem(purpose, "medical: CE 0123, MDR class IIa") is None
    assert purpose_problem("research", None) is None


def test_adopting_twice_writes_nothing_and_the_ledger_holds_the_text() -> None:
    disk, at = FaultyDisk(), hospital()
    with at.create(FaultyFolder(disk)) as ledger:
        assert adopt(at.policy(), ledger) == 0
    texts = [
        entry.body.text for entry in entries_of(disk.names[LEDGER_FILE].data) if entry.body.kind == "policy"
    ]
    assert texts == [canonical(at.policy())]


def test_an_older_version_and_another_sites_policy_are_refused() -> None:
    at = hospital()
    with at.create(FaultyFolder(FaultyDisk())) as ledger:
        with pytest.raises(LedgerError, match="version above 1"):
            adopt(at.policy(reason="the same version, changed"), ledger)
        with pytest.raises(LedgerError, match=f"policy of the site '{SITE}'"):
            adopt(at.policy(version=2, site="hospital-b"), ledger)


def test_a_domains_public_constants_never_change() -> None:
    at = hospital()
    with at.create(FaultyFolder(FaultyDisk())) as ledger:
        terms = replace(at.policy().domains[0], n_patients=3000)
        with pytest.raises(PolicyError, match="new enrolment period is a new domain"):
            adopt(at.policy(version=2, domains=(terms,)), ledger)


def test_a_domain_that_is_no_longer_listed_releases_nothing() -> None:
    at = hospital()
    with at.create(FaultyFolder(FaultyDisk())) as ledger:
        budget = Budget(ledger, ACCOUNTANT)
        at.approve(budget)
        adopt(at.policy(version=2, domains=()), ledger)
        assert isinstance(reserve(budget, 3), Denied)
        assert DOMAIN in ledger.state.domains


def test_a_crash_between_a_version_and_its_caps_spends_nothing_until_adopt_has_finished() -> None:
    at = hospital()
    lower = at.policy(version=2, domains=(replace(at.policy().domains[0], epsilon_cap=2.0),))
    n_between = 0
    for operation in range(1, 20):
        disk = FaultyDisk()
        with at.create(FaultyFolder(disk)) as ledger:
            at.approve(Budget(ledger, ACCOUNTANT))

        def fault(n: int, what: str, stop: int = operation) -> Fault | None:
            return "kill_after" if n == stop else None

        disk.n_operations, disk.fault = 0, fault
        try:
            with at.open(FaultyFolder(disk)) as ledger:
                adopt(lower, ledger)
        except Killed:
            disk.crash(power_cut=False)
        disk.fault = lambda n, what: None
        with at.open(FaultyFolder(disk)) as ledger:
            version = ledger.state.policy.version if ledger.state.policy else 0
            between = version == 2 and ledger.state.domains[DOMAIN].cap == 3.0
            n_between += between
            if between:
                assert isinstance(reserve(Budget(ledger, ACCOUNTANT), 3), Denied)
            adopt(lower, ledger)
            assert ledger.state.domains[DOMAIN].cap == 2.0
    assert n_between > 0


def test_a_policy_without_a_list_of_models_has_the_text_it_always_had() -> None:
    assert "models" not in canonical(hospital().policy())
    assert '"models":["lstm"]' in canonical(hospital().policy(models=("lstm",)))


# Models that make rows, or bring weights along: a hospital adds them where it wants them.
OPT_IN = {"whisper_lora", "discriminator", "moments"}


def test_a_first_policy_lists_every_usual_kind_of_model_and_any_other_word_is_a_problem() -> None:
    kinds = {kind for one in get_args(ModelSpec) for kind in get_args(one.__annotations__["kind"])}
    assert set(loads(NEW_POLICY).models or ()) == kinds - OPT_IN
    assert kinds == set(get_args(Kind))
    for wrong in ("transformer", 'lstm", "lstm'):
        with pytest.raises(PolicyError, match="models"):
            loads(NEW_POLICY.replace('"fusion"]', f'"{wrong}"]'))


@pytest.mark.parametrize(
    ("models", "stated", "fits"),
    [
        (None, {}, True),
        (None, {"model": "lstm"}, True),
        (("lstm", "mlp"), {"model": "lstm"}, True),
        (("cnn", "mlp"), {"model": "lstm"}, False),
        (("fusion", "mlp", "cnn"), {"model": "fusion mlp cnn"}, True),
        (("fusion", "mlp"), {"model": "fusion mlp cnn"}, False),
        (("mlp",), {"model": "fusion mlp"}, False),
        (("mlp",), {}, False),
        ((), {"model": "mlp"}, False),
    ],
)
def test_a_model_of_a_kind_that_is_not_on_the_list_is_refused(
    models: tuple[Kind, ...] | None, stated: dict[str, str], fits: bool
) -> None:
    at = hospital()
    with at.create(FaultyFolder(FaultyDisk()), policy=at.policy(models=models)) as ledger:
        answer = at.approve(Budget(ledger, ACCOUNTANT), at.request(facts=stated))
    assert isinstance(answer, Granted) == fits
    if isinstance(answer, Denied):
        assert f"model: expected one of {', '.join(models or ()) or 'none'}" in answer.reason


def test_a_model_that_a_later_policy_leaves_out_is_trained_no_more() -> None:
    at = hospital()
    with at.create(FaultyFolder(FaultyDisk())) as ledger:
        budget = Budget(ledger, ACCOUNTANT)
        granted = at.approve(budget, at.request(facts={"model": "lstm"}))
        assert isinstance(granted, Granted)
        adopt(at.policy(version=2, models=("mlp",)), ledger)
        refused = reserve(budget, granted.grant)
        assert isinstance(refused, Denied)
        assert "does not allow this model any more" in refused.reason
        adopt(at.policy(version=3, models=("mlp", "lstm")), ledger)
        assert not isinstance(reserve(budget, granted.grant), Denied)


def test_an_approval_states_the_kinds_of_its_model_under_its_persons_signature(tmp_path: Path) -> None:
    branches = """[{ kind = "mlp", stream = "pooled" }, { kind = "linear", stream = "pooled" }, \
{ kind = "mlp", stream = "pooled", hidden = 3 }]"""
    model = f'{{ kind = "fusion", level = "feature", branches = {branches} }}'
    study = load_study(write_study(tmp_path / "study.toml", n_sites=1, model=model))
    request = request_of(study, DOMAIN)
    assert request.facts["model"] == "fusion mlp linear"
    at = hospital()
    policy = at.policy(
        studies=(study.digest(),), purposes=("research",), modes=("none",), allow_non_private=True
    )
    with at.create(FaultyFolder(FaultyDisk()), policy=policy) as ledger:
        granted = at.approve(Budget(ledger, ACCOUNTANT), request)
        assert isinstance(granted, Granted)
        approval = ledger.state.grants[granted.grant].approval
        said = approval_statement(ledger.state.instance, approval)
        assert b'"model":"fusion mlp linear"' in said
