"""Claims of simulations/audit: the bound is the theorem's, planted defects are found, attacks find what is there."""

import io
import json
import math
from dataclasses import replace
from fractions import Fraction
from itertools import product
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from scipy.stats import binom
from torch import nn

from sottovoce.cli import app
from sottovoce.client.site_ledger import charges_of
from sottovoce.common import models
from sottovoce.common import study as studies
from sottovoce.common.dataset import Example, SiteData, StreamShape
from sottovoce.common.errors import CorpusError, PrivacyError, QuorumError, SottovoceError
from sottovoce.common.privacy import plan
from sottovoce.common.privacy.budget import PldAccountant
from sottovoce.common.privacy_specs import LocalPrivacy, NoPrivacy
from sottovoce.common.run_files import CorpusFacts
from sottovoce.common.study import Study
from sottovoce.simulations import site_ledgers
from sottovoce.simulations.audit import figures, linking, membership, sex
from sottovoce.simulations.audit.bound import Guesses, judge, lower_bound, p_value
from sottovoce.simulations.audit.canaries import Canaries, audit_study, enrol
from sottovoce.simulations.audit.closing import closing
from sottovoce.simulations.audit.document import Empirical, plain, verdict
from sottovoce.simulations.audit.figures import auc, resampled, true_positives_at
from sottovoce.simulations.audit.findings import Finding
from sottovoce.simulations.audit.one_run import SHARES, OneRun, one_run, score
from sottovoce.simulations.audit.page import render
from sottovoce.simulations.audit.updates import People, check_public
from sottovoce.simulations.audit.wire import Seen
from sottovoce.simulations.bench.audit import MISTAKES

STUDY = """
format = 1
name = "small"
purpose = "research"
corpora = [{ name = "voices", synthetic = { n_speakers = 24 } }]
labels = { classes = ["neutral", "happy"] }
streams = [{ name = "pooled", pooling = "statistics", parts = [{ kind = "energy" }] }]
normalisation = { scheme = "constants" }
model = { kind = "linear", stream = "pooled" }
training = { learning_rate = 0.5, optimiser = "sgd" }
federation = { n_sites = 1, rounds = 8, partition = { kind = "speaker_blocks" } }
evaluation = { folds = { kind = "by_patient_hash", k = 2 }, every_rounds = 1000 }

[privacy]
mode = "local"
clip_norm = 1.0
noise_multiplier = 4.2
sampling_prob = 0.5
n_patients_public = 800
expected_patients = 100.0
steps_per_round = 1
delta = 1e-5
spare_rounds = 0
seeded_noise = true
"""
N_CANARIES = 800


def study_of(**privacy: Any) -> Study:
    """Returns a study of 8 rounds; its claim is 1.4 where nothing else is said."""
    base = studies.loads(STUDY)
    assert isinstance(base.privacy, LocalPrivacy)
    return replace(base, privacy=replace(base.privacy, **privacy))


def guesses(n_canaries: int, n_made: int, n_right: int) -> Guesses:
    return Guesses(n_canaries=n_canaries, n_made=n_made, n_right=n_right)


# --- the bound ------------------------------------------------------------------------------------------


def by_enumeration(one: Guesses, epsilon: Fraction, delta: Fraction) -> Fraction:
    """The theorem in exact fractions, over every outcome of r coins; e^epsilon is given as a fraction."""
    right = epsilon / (1 + epsilon)
    mass = dict.fromkeys(range(one.n_made + 1), Fraction(0))
    for outcome in product((0, 1), repeat=one.n_made):
        mass[sum(outcome)] += right ** sum(outcome) * (1 - right) ** (one.n_made - sum(outcome))
    tail = sum((mass[k] for k in mass if k >= one.n_right), Fraction(0))
    steepest = max(
        (
            sum((mass[k] for k in mass if one.n_right - i <= k < one.n_right), Fraction(0)) / i
            for i in range(1, one.n_right + 1)
        ),
        default=Fraction(0),
    )
    return min(Fraction(1), tail + 2 * one.n_canaries * delta * steepest)


@pytest.mark.parametrize(("n_canaries", "n_made", "n_right"), [(9, 7, 6), (12, 8, 8), (5, 5, 1), (6, 4, 0)])
def test_the_p_value_is_the_theorems_over_every_outcome(n_canaries: int, n_made: int, n_right: int) -> None:
    one = guesses(n_canaries, n_made, n_right)
    for odds, delta in product((Fraction(1), Fraction(3), Fraction(15, 2)), (Fraction(0), Fraction(1, 100))):
        exact = by_enumeration(one, odds, delta)
        assert p_value(one, math.log(odds), float(delta)) == pytest.approx(float(exact), rel=1e-12, abs=1e-15)


def test_the_p_value_agrees_with_scipy_at_the_size_of_an_audit() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        n_canaries = int(rng.integers(100, 2000))
        n_made = int(rng.integers(1, n_canaries))
        n_right = int(rng.integers(n_made // 2, n_made + 1))
        epsilon, delta = float(rng.uniform(0, 5)), float(10 ** rng.uniform(-6, -2))
        q = 1 / (1 + math.exp(-epsilon))
        below = np.cumsum(binom.pmf(np.arange(n_right - 1, -1, -1), n_made, q)) / np.arange(1, n_right + 1)
        other = binom.sf(n_right - 1, n_made, q) + 2 * n_canaries * delta * below.max(initial=0.0)
        ours = p_value(guesses(n_canaries, n_made, n_right), epsilon, delta)
        assert ours == pytest.approx(min(1.0, float(other)), rel=1e-8, abs=1e-12)


@pytest.mark.parametrize("delta", [0.0, 0.001])
def test_a_mechanism_that_is_as_bad_as_claimed_is_disproved_in_one_of_twenty_audits_at_most(
    delta: float,
) -> None:
    n, epsilon = 60, 1.2
    proved = [lower_bound(guesses(n, n, v), delta=delta, error=0.05) > epsilon for v in range(n + 1)]

    # Randomised response, and with probability delta the truth: nothing of (epsilon, delta) is more telling.
    def alarms(true_epsilon: float) -> float:
        q = delta + (1 - delta) / (1 + math.exp(-true_epsilon))
        return float(binom.pmf(np.arange(n + 1), n, q) @ np.array(proved))

    assert alarms(epsilon) <= 0.05
    assert alarms(3.0) > 0.5  # the twin: one that is worse is found


def test_more_right_guesses_never_prove_less() -> None:
    for delta in (0.0, 0.002):
        bounds = [lower_bound(guesses(120, 60, v), delta=delta, error=0.05) for v in range(61)]
        assert bounds == sorted(bounds)
        assert bounds[30] == 0.0
    assert bounds[60] < lower_bound(guesses(120, 60, 60), delta=0.0, error=0.05)


def test_more_right_guesses_than_guesses_are_refused() -> None:
    with pytest.raises(SottovoceError, match="no more right guesses than guesses"):
        guesses(10, 5, 6)


def test_scores_that_know_nothing_prove_nothing() -> None:
    alarms = 0
    for trial in range(300):
        rng = np.random.default_rng(trial)
        present = rng.random(N_CANARIES) < 0.5
        found = judge(rng.standard_normal(N_CANARIES), present, shares=SHARES, delta=1e-5)
        alarms += found.lower_bound > 0
    assert alarms <= 0.05 * 300
    knowing = judge(present + 0.1 * rng.standard_normal(N_CANARIES), present, shares=SHARES, delta=1e-5)
    assert knowing.lower_bound > 3  # the twin: scores that know are believed


# --- canaries through the whole path --------------------------------------------------------------------


@pytest.fixture(scope="module")
def honest() -> OneRun:
    return one_run(study_of(), n_canaries=N_CANARIES, seed=0)


def test_an_honest_run_stays_below_its_claim_and_could_have_been_found_out(honest: OneRun) -> None:
    (point,) = honest.points
    recorded = PldAccountant().epsilon(charges_of(study_of()), 1e-5)
    assert recorded - 1e-3 < point.claim <= recorded  # what a ledger records, which it rounds up
    assert 0 < point.lower_bound < point.claim < point.largest
    assert not honest.alarm


@pytest.mark.parametrize("name", ["no noise", "a quarter of the noise", "no clipping"])
def test_the_audit_alone_finds_a_mechanism_that_is_broken(name: str, honest: OneRun) -> None:
    with MISTAKES[name]():
        broken = one_run(study_of(), n_canaries=N_CANARIES, seed=0)
    assert broken.points[0].claim == honest.points[0].claim  # nothing but the audit can tell
    assert broken.alarm


def test_the_audit_alone_finds_an_accountant_that_forgets_rounds() -> None:
    study = study_of(noise_multiplier=2.0)
    study = replace(study, federation=replace(study.federation, rounds=16))
    with MISTAKES["accountant reset in each round"]():
        found = one_run(study, n_canaries=N_CANARIES, seed=0)
    assert found.points[0].claim < 2
    assert found.alarm
    # The twin: with the whole account the same updates disprove nothing.
    assert found.points[0].lower_bound < PldAccountant().epsilon(charges_of(study), 1e-5)


def test_the_audits_study_costs_what_the_audited_study_costs() -> None:
    for study in (study_of(), study_of(unit="utterance", utterances_per_patient=3, trained="head")):
        spec = _local(study)
        audited, _ = audit_study(study, spec, enrol(spec, 1000, 0))
        assert plan.events(_local(audited), 8) == plan.events(spec, 8)
        assert _local(audited).delta == spec.delta


def test_who_is_in_follows_from_the_audits_seed_alone() -> None:
    spec = _local(study_of())
    one, same = enrol(spec, 1000, 7), enrol(replace(spec, noise_multiplier=9.0), 1000, 7)
    assert (one.present == same.present).all()
    assert (one.present != enrol(spec, 1000, 8).present).any()
    assert max(np.bincount(one.site)) <= spec.n_patients_public


def test_a_score_is_the_step_down_the_canarys_own_gradient() -> None:
    canaries = Canaries(
        sites=("a",),
        site=np.zeros(3, np.int64),
        dimension=np.arange(3),
        label=np.array([0, 1, 1]),
        present=np.array([True, False, True]),
        reach=4.0,
    )
    rng = np.random.default_rng(0)
    model = nn.Linear(3, 2)
    sent = {"head.weight": rng.normal(size=(2, 3)) / 5, "head.bias": rng.normal(size=2) / 5}
    change = {name: rng.normal(size=array.shape) for name, array in sent.items()}
    returned = {name: (array + change[name]).astype(np.float32) for name, array in sent.items()}
    seen = Seen(site="a", round=1, sent={k: v.astype(np.float32) for k, v in sent.items()}, returned=returned)
    model.load_state_dict(
        {name.removeprefix("head."): torch.tensor(array) for name, array in seen.sent.items()}
    )
    for number, found in enumerate(score([seen], canaries)):
        features = torch.zeros(1, 3)
        features[0, number] = 4.0
        loss = nn.functional.cross_entropy(model(features), torch.tensor([int(canaries.label[number])]))
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        flat = torch.cat([gradient.reshape(-1) for gradient in gradients]).double().numpy()
        moved = np.concatenate([seen.change(name).ravel() for name in sent])
        assert found == pytest.approx(-flat @ moved / np.linalg.norm(flat), rel=1e-4)


def test_a_site_that_refuses_is_an_error_and_not_an_audit_of_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(site_ledgers, "open_all", lambda *_: {})
    with pytest.raises(QuorumError, match="ledger"):
        one_run(study_of(), n_canaries=20)


def test_a_study_that_claims_nothing_is_not_audited() -> None:
    with pytest.raises(PrivacyError, match="claims nothing"):
        one_run(replace(study_of(), privacy=NoPrivacy(mode="none")))


def _local(study: Study) -> LocalPrivacy:
    assert isinstance(study.privacy, LocalPrivacy)
    return study.privacy


# --- attacks --------------------------------------------------------------------------------------------


@pytest.fixture
def people_of(tmp_path: Path) -> Any:
    def made(*, telling: bool, noise_multiplier: float = 4.2) -> People:
        """24 speakers of eight recordings; telling ones have a voice of their own, and of their sex."""
        study = study_of(noise_multiplier=noise_multiplier)
        rng = np.random.default_rng(0)
        examples = []
        for number in range(24):
            voice = rng.normal(size=60)
            voice[:20] += 1.5 * (-1) ** number
            examples += [
                Example(
                    key=f"{number}/{take}",
                    label=int(take > 5),  # were labels balanced, a voice would cancel out
                    speaker=f"s{number:02d}",
                    patient=f"s{number:02d}",
                    groups={"sex": "male" if number % 2 else "female"},
                    features={"pooled": (voice * telling / 2 + rng.normal(size=60) / 4).astype(np.float32)},
                )
                for take in range(8)
            ]
        folder = tmp_path / f"{telling}"
        shapes = {"pooled": StreamShape(width=60, n_frames=None)}
        data = SiteData.write(folder, site="pooled", shapes=shapes, examples=examples)
        model = models.build(study.model, data.widths, 2, 0)
        return People(study=study, data=data, model=model, seed=0)

    return made


def best(findings: list[Finding], defence: str) -> float:
    return max(one.estimate.value for one in findings if one.measure == "AUC" and one.defence == defence)


@pytest.mark.parametrize(
    "attack", [sex, linking, membership], ids=lambda module: module.__name__.split(".")[-1]
)
def test_an_attack_finds_voices_that_tell_and_no_others(
    attack: ModuleType, people_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(figures, "N_DRAWS", 50)
    monkeypatch.setattr(membership, "COHORT", 2)
    monkeypatch.setattr(membership, "N_TRIALS", 1)
    monkeypatch.setattr(sex, "MOST_ROUNDS", 2)
    telling = attack.attack(people_of(telling=True))
    assert best(telling, "none") > 0.85
    assert best(telling, "none") - best(telling, "private") > 0.15
    if attack is not membership:  # who took part shows by the noise of the recordings themselves
        assert best(attack.attack(people_of(telling=False)), "none") < 0.75


def test_halves_of_attackers_and_attacked_share_no_speaker_and_no_lack_of_a_sex(people_of: Any) -> None:
    people = people_of(telling=True)
    female = np.array(people.group("sex")) == "female"
    assert [int(female[people.half == half].sum()) for half in (0, 1)] == [6, 6]
    assert len(people.half) == len(people.speakers) == 24


def test_noise_differs_from_update_to_update_and_comes_again(people_of: Any) -> None:
    people = people_of(telling=True)
    rows = people.rows["s00"]
    one, other = (people.update(rows, "private", key=key) for key in "ab")
    assert (one != other).any()
    assert (one == people.update(rows, "private", key="a")).all()


@pytest.mark.parametrize(("adapter", "synthetic", "public"), [
    ("manifest", False, False), ("audformat", False, False), ("manifest", True, True), ("ravdess", False, True),
])  # fmt: skip
def test_only_public_recordings_are_attacked(adapter: str, synthetic: bool, public: bool) -> None:
    facts = CorpusFacts(
        name="ward", adapter=adapter, n_utterances=1, n_speakers=1, manifest_sha256="0", losses=(), synthetic=synthetic
    )  # fmt: skip
    if public:
        check_public(facts)
        return
    with pytest.raises(CorpusError, match="public recordings only"):
        check_public(facts)


def test_figures_of_attacks_are_the_textbooks() -> None:
    rng = np.random.default_rng(0)
    positive, negative = rng.integers(0, 9, 30).astype(float), rng.integers(0, 7, 40).astype(float)
    pairs = [(p > n) + 0.5 * (p == n) for p in positive for n in negative]
    assert auc(positive, negative) == pytest.approx(np.mean(pairs))
    assert true_positives_at(np.array([5.0, 1.0]), np.arange(10.0) / 2, 0.1) == 0.5


def test_intervals_hold_what_they_promise() -> None:
    held = 0
    for trial in range(30):
        values = np.random.default_rng(trial).normal(size=40)
        found = resampled([40], lambda people, values=values: float(values[people[0]].mean()), seed=trial)  # type: ignore[misc]
        held += found.low <= 0.0 <= found.high
    assert 25 <= held <= 30
    assert not found.low <= 1.0 <= found.high


# --- what is shown --------------------------------------------------------------------------------------


def test_the_page_says_what_was_found_and_escapes_what_it_is_given(honest: OneRun) -> None:
    study = replace(study_of(), name="<script>alert(1)</script>")
    document = plain(Empirical(study=study, canaries=honest, n_speakers=0, synthetic=False, findings=()))
    json.dumps(document, allow_nan=False)
    page = render(document)
    assert "CLAIM NOT DISPROVED" in page
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert "http://" not in page.replace("http://www.w3.org", "")
    point = replace(honest.points[0], lower_bound=9.0)
    worse = replace(honest, points=(point,))
    assert verdict(worse) == "disproved"
    alarmed = render(
        plain(Empirical(study=study, canaries=worse, n_speakers=0, synthetic=False, findings=()))
    )
    assert "THE CLAIM IS DISPROVED" in alarmed
    weak = replace(honest, points=(replace(honest.points[0], largest=1.0, lower_bound=0.0),))
    assert verdict(weak) == "too weak"


def test_the_command_writes_the_page_and_says_what_it_found(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = tmp_path / "study.toml"
    study.write_text(STUDY.replace("rounds = 8", "rounds = 2"))
    options = [
        "--empirical",
        str(study),
        "--no-attacks",
        "--canaries",
        "40",
        "--out",
        str(tmp_path / "out"),
        "--json",
    ]
    with pytest.raises(SystemExit) as ended:
        app(["audit", *options])
    told = json.loads(capsys.readouterr().out)
    assert ended.value.code == 0
    assert told == json.loads((tmp_path / "out" / "audit-empirical.json").read_text())
    assert told["canaries"]["verdict"] == "not disproved"
    assert told["attacks"] == []
    assert "CLAIM NOT DISPROVED" in (tmp_path / "out" / "audit-empirical.html").read_text()
    with pytest.raises(SottovoceError, match="--data: expected it with --empirical only"):
        app(["audit", str(tmp_path), "--data", "voices=somewhere"])


def test_the_best_attackers_stand_side_by_side() -> None:
    rows = [
        {
            "defence": defence,
            "measure": "AUC",
            "value": value,
            "low": value - 0.1,
            "high": value + 0.1,
            "chance": 0.5,
        }
        for defence, value in (
            ("none", 0.7),
            ("none", 0.9),
            ("private", 0.4),
            ("private, mean of 2 rounds", 0.55),
        )
    ]
    for row in rows:
        row["beats_chance"] = float(row["low"]) > 0.5  # type: ignore[arg-type]
    document = {
        "study": {"name": "[red]s"},
        "canaries": {
            "verdict": "not disproved",
            "n_canaries": 9,
            "rounds": 1,
            "noise": "secret",
            "figures": [],
        },
        "attacks": [{"attack": "sex", "rows": rows}],
    }
    console = Console(width=80, file=io.StringIO())
    console.print(closing(document, Path("page.html")))
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert "0.90 [0.80, 1.00]" in shown
    assert "0.55 [0.45, 0.65]" in shown
    assert "[red]s" in shown
