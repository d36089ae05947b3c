"""Was a patient among those whom a small site trained on?

The attacker is the coordinator: it has the update of a site with eight patients and the recordings of one person, and
asks whether that person is one of the eight. It compares with other people's recordings, who are certainly not.
"""

import numpy as np
import numpy.typing as npt

from sottovoce.common.streams import stream
from sottovoce.simulations.audit.figures import (
    CHANCE_AUC,
    Estimate,
    Floats,
    Indices,
    auc,
    resampled,
    true_positives_at,
)
from sottovoce.simulations.audit.findings import Finding
from sottovoce.simulations.audit.updates import Defence, People

COHORT = 8
N_TRIALS = 2  # of each person, with and without: so often another cohort
FALSE_POSITIVES = (0.01, 0.1)
THREAT = (
    f"The coordinator holds the update of a site with {COHORT} patients and one person's recordings, and asks whether "
    "that person is among the patients; it compares with people who are not."
)

NOTE = "The canaries above ask the same over all rounds, in the worst case that the accounting allows for."


def attack(people: People) -> list[Finding]:
    """Asks for every speaker, as often with the speaker in the cohort as without."""
    signatures = np.stack([_unit(people, name) for name in people.speakers])
    found = []
    for defence in ("none", "private"):
        parts = [_trials(people, defence, signatures, half) for half in (0, 1)]
        found += _findings(defence, parts)
    return found


def _unit(people: People, name: str) -> npt.NDArray[np.float32]:
    """Returns the direction in which a person alone would move the weights: by the study's rule, without its noise."""
    update = people.update(people.rows[name], "noiseless", key=f"signature/{name}")
    return update / np.linalg.norm(update)


def _trials(
    people: People, defence: Defence, signatures: npt.NDArray[np.float32], half: int
) -> tuple[Floats, Floats]:
    """Returns scores with and without each speaker of a half, (speakers, trials). Cohorts are of the same half."""
    mine = np.flatnonzero(people.half == half)
    strangers = signatures[people.half != half]
    scores = np.empty((2, len(mine), N_TRIALS))
    for row, number in enumerate(mine):
        draws = stream(people.seed, "audit/cohorts", people.speakers[number])
        for trial in range(N_TRIALS):
            for absent in (0, 1):
                others = draws.choice(mine[mine != number], COHORT - 1 + absent, replace=False)
                cohort = others if absent else np.append(others, number)
                rows = np.concatenate([people.rows[people.speakers[one]] for one in np.sort(cohort)])
                key = f"cohort/{people.speakers[number]}/{trial}/{absent}"
                update = people.update(rows, defence, key=key)
                background = strangers @ update
                scores[absent, row, trial] = (
                    signatures[number] @ update - background.mean()
                ) / background.std()
    return scores[0], scores[1]


def _findings(defence: str, parts: list[tuple[Floats, Floats]]) -> list[Finding]:
    sizes = [len(present) for present, _ in parts]

    def of(people: list[Indices]) -> tuple[Floats, Floats]:
        chosen = list(zip(parts, people, strict=True))
        present = np.concatenate([part[0][who].ravel() for part, who in chosen])
        return present, np.concatenate([part[1][who].ravel() for part, who in chosen])

    measures: list[tuple[str, Estimate, float]] = [
        ("AUC", resampled(sizes, lambda people: auc(*of(people))), CHANCE_AUC)
    ]
    for rate in FALSE_POSITIVES:

        def found(people: list[Indices], rate: float = rate) -> float:
            return true_positives_at(*of(people), rate)

        measures.append((f"found at {rate:.0%} false alarms", resampled(sizes, found), rate))
    return [
        Finding(
            attack="membership",
            defence=defence,
            attacker="compared with strangers",
            measure=measure,
            estimate=estimate,
            chance=chance,
            n=2 * N_TRIALS * sum(sizes),
        )
        for measure, estimate, chance in measures
    ]
