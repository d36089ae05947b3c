"""Is the speaker of an update a woman or a man?

The attacker is the coordinator: it has the update of a site with one patient, the weights it had sent, the study, and
recordings of other speakers whose sex it knows, from which it makes updates by the study's own rule to learn from.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from sottovoce.common.errors import CorpusError
from sottovoce.simulations.audit.figures import CHANCE_AUC, Indices, auc, resampled, share
from sottovoce.simulations.audit.findings import OF_NOISELESS, OF_SUCH, Finding
from sottovoce.simulations.audit.updates import DEFENCES, Defence, People
from sottovoce.simulations.baselines import fit_predict

THREAT = (
    "The coordinator holds the update of a site with one patient, and learns from updates that it makes itself of "
    "other speakers, whose sex it knows."
)

NOTE = "The mean of rounds: a coordinator may send the same weights in each round, and take the mean of what returns."
MOST_ROUNDS = 20


def attack(people: People) -> list[Finding]:
    """Tries to tell the sex of every speaker, with the other half of the speakers to learn from.

    Raises:
        CorpusError: the corpus does not say who is what.
    """
    sex = np.array(people.group("sex"))
    known = np.flatnonzero((sex == "female") | (sex == "male"))
    if len({*sex[known]}) < 2 or len(known) < 10:
        raise CorpusError("Expected a corpus that states the sex of its speakers, with some of each.")
    truth = (sex == "female").astype(np.int64)
    seen: dict[str, npt.NDArray[np.float32]] = {defence: _updates(people, defence) for defence in DEFENCES}
    # A coordinator may send the same weights again and again, and take the mean of what comes back.
    n_rounds = min(people.study.federation.rounds, MOST_ROUNDS)
    every = f"private, mean of {n_rounds} rounds"
    seen[every] = _updates(people, "private", n_rounds)
    tried = [
        ("none", OF_SUCH, "none"),
        ("private", OF_SUCH, "private"),
        ("private", OF_NOISELESS, "noiseless"),
        (every, OF_NOISELESS, "noiseless"),
    ]
    return [
        finding
        for defence, attacker, lesson in tried
        for finding in _findings(
            _scores(seen[lesson], seen[defence], truth, people.half, known),
            truth,
            people.half,
            known,
            defence,
            attacker,
        )
    ]


def _updates(people: People, defence: Defence, n_rounds: int = 1) -> npt.NDArray[np.float32]:
    return np.stack([_mean(people, name, defence, n_rounds) for name in people.speakers])


def _mean(people: People, name: str, defence: Defence, n_rounds: int) -> npt.NDArray[np.float32]:
    rows = people.rows[name]
    total = sum(people.update(rows, defence, key=f"sex/{name}/{round}") for round in range(n_rounds))
    return np.asarray(total, np.float32) / np.float32(n_rounds)


def _scores(
    lessons: npt.NDArray[np.float32],
    seen: npt.NDArray[np.float32],
    truth: npt.NDArray[np.int64],
    half: npt.NDArray[np.int64],
    known: npt.NDArray[np.int64],
) -> npt.NDArray[np.float64]:
    scores = np.zeros(len(seen))
    for attacked in (0, 1):
        mine, theirs = known[half[known] != attacked], known[half[known] == attacked]
        log_probs = fit_predict("logistic", lessons[mine], truth[mine], seen[theirs], 0, n_classes=2)
        scores[theirs] = log_probs[:, 1] - log_probs[:, 0]
    return scores


def _findings(
    scores: npt.NDArray[np.float64],
    truth: npt.NDArray[np.int64],
    half: npt.NDArray[np.int64],
    known: npt.NDArray[np.int64],
    defence: str,
    attacker: str,
) -> list[Finding]:
    parts = [known[half[known] == part] for part in (0, 1)]

    def mean_auc(people: list[Indices]) -> float:
        drawn = [part[chosen] for part, chosen in zip(parts, people, strict=True)]
        return float(
            np.mean([auc(scores[one][truth[one] == 1], scores[one][truth[one] == 0]) for one in drawn])
        )

    right = int(((scores[known] > 0) == (truth[known] == 1)).sum())
    commonest = max(truth[known].mean(), 1 - truth[known].mean())
    common: Any = {"attack": "sex", "defence": defence, "attacker": attacker, "n": len(known)}
    return [
        Finding(measure="AUC", estimate=resampled([*map(len, parts)], mean_auc), chance=CHANCE_AUC, **common),
        Finding(measure="right", estimate=share(right, len(known)), chance=float(commonest), **common),
    ]
