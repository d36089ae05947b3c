"""Both parts of an empirical audit, as plain data: what audit-empirical.json holds and the page shows."""

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from sottovoce.common.privacy import of_study
from sottovoce.common.progress import OnEvent, Step, silent
from sottovoce.common.study import Study
from sottovoce.simulations.audit import linking, membership, sex
from sottovoce.simulations.audit.figures import CHANCE_AUC, Floats, auc
from sottovoce.simulations.audit.findings import Finding
from sottovoce.simulations.audit.one_run import ERROR, N_CANARIES, SHARES, OneRun, Point, one_run
from sottovoce.simulations.audit.updates import People, gather

SEED = 0  # of canaries, halves and trials; never of a study's noise
ATTACKS = {"sex": sex, "linking": linking, "membership": membership}
TITLES = {
    "sex": "Sex of the speaker, from an update",
    "linking": "Two updates of one speaker, linked",
    "membership": "Membership of a patient",
}
NOT_ATTACKED = (
    "Canaries are trained on softmax regression: the gradient kernels of the study's own model are held by exact "
    "tests, not by this audit.",
    "Evaluation counts, secure sums, timing, and the size of messages.",
    "Attackers that nobody has thought of: that an attack fails does not show that all do.",
    "Claims larger than what the canaries could have proved: errors of a factor of two in noise or clipping are "
    "found by exact tests (docs/pitfalls.md), not by an audit of this size.",
)


@dataclass(frozen=True, kw_only=True)
class Empirical:
    """What came of an audit. `people` and `findings` are empty without attacks."""

    study: Study
    canaries: OneRun
    n_speakers: int
    synthetic: bool
    findings: tuple[Finding, ...]


def audit(
    study: Study,
    data: Mapping[str, Path],
    *,
    n_canaries: int | None = None,
    attacks: bool = True,
    workers: int = 1,
    on_event: OnEvent = silent,
) -> Empirical:
    """Runs the canaries, then the attacks. Raises: see `write_empirical_audit`."""
    found = one_run(study, n_canaries=n_canaries or N_CANARIES, seed=SEED, on_event=on_event)
    if not attacks:
        return Empirical(study=study, canaries=found, n_speakers=0, synthetic=False, findings=())
    with tempfile.TemporaryDirectory(prefix="sottovoce-attacks-") as scratch:
        people = gather(
            study, data, folder=Path(scratch) / "sites", seed=SEED, workers=workers, on_event=on_event
        )
        findings = _attacks(people, on_event)
    return Empirical(
        study=study,
        canaries=found,
        n_speakers=len(people.speakers),
        synthetic=any(corpus.synthetic is not None for corpus in study.corpora) and not data,
        findings=tuple(findings),
    )


def _attacks(people: People, on_event: OnEvent) -> list[Finding]:
    findings: list[Finding] = []
    for done, (name, module) in enumerate(ATTACKS.items()):
        on_event(Step(stage="attacks", done=done, total=len(ATTACKS), detail=TITLES[name]))
        findings += module.attack(people)
    on_event(Step(stage="attacks", done=len(ATTACKS), total=len(ATTACKS)))
    return findings


def plain(found: Empirical) -> dict[str, Any]:
    """Returns the audit as JSON holds it. Scores and coins stay behind: they are of no use without the noise."""
    study, run = found.study, found.canaries
    return {
        "format": 1,
        "made_by": f"sottovoce {metadata.version('sottovoce')}",
        "study": {"name": study.name, "digest": study.digest()},
        "claim": of_study.stamp(study),
        "canaries": {
            "verdict": verdict(run),
            "alarm": run.alarm,
            "n_canaries": run.n_canaries,
            "n_in": run.n_present,
            "sites": run.n_sites,
            "rounds": run.n_rounds,
            "steps": run.n_steps,
            "noise": run.noise,
            "auc": _auc(run.scores, run),
            "figures": [_figure(point) for point in run.points],
            "shares_guessed": list(SHARES),
            "confidence": 1 - ERROR,
            "seed": run.seed,
        },
        "attacks": [
            {
                "attack": name,
                "title": TITLES[name],
                "threat": module.THREAT,
                "note": module.NOTE,
                "rows": [_row(finding) for finding in found.findings if finding.attack == name],
            }
            for name, module in ATTACKS.items()
            if found.findings
        ],
        "speakers": found.n_speakers,
        "synthetic_voices": found.synthetic,
        "seed": SEED,
        "not_attacked": list(NOT_ATTACKED),
    }


def verdict(run: OneRun) -> str:
    """Returns the outcome in one or two words.

    `too weak`: no outcome could have disproved any of the figures, so that their standing says nothing.
    """
    if run.alarm:
        return "disproved"
    return "too weak" if all(point.powerless for point in run.points) else "not disproved"


def _auc(scores: Floats, run: OneRun) -> float:
    both = run.present.any() and not run.present.all()
    return auc(scores[run.present], scores[~run.present]) if both else CHANCE_AUC


def _figure(point: Point) -> dict[str, Any]:
    return {
        "delta": point.delta,
        "claimed": point.claim,
        "lower_bound": point.lower_bound,
        "largest_detectable": point.largest,
        "alarm": point.alarm,
        "powerless": point.powerless,
        "guesses": [{"made": one.n_made, "right": one.n_right} for one in point.guesses],
    }


def _row(finding: Finding) -> dict[str, Any]:
    return {
        "defence": finding.defence,
        "attacker": finding.attacker,
        "measure": finding.measure,
        "value": finding.estimate.value,
        "low": finding.estimate.low,
        "high": finding.estimate.high,
        "chance": finding.chance,
        "beats_chance": finding.beats_chance,
        "n": finding.n,
    }
