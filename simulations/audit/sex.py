"""Is the speaker of an update a woman or a man?

The attacker is the coordinator: it has the update of a site with one patient, the weights it had sent, the study, and
recordings of other speakers whose sex it knows, from which it makes updates by the study's own rule to learn from.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from sottovoce.common.errors import CorpusError
from sottovoce.simulations.audit.figures import CHANCE_AUC, Floats, Indices, auc, resampled
from sottovoce.simulations.audit.findings import OF_NOISELESS, OF_SUCH, Finding
from sottovoce.simulations.audit.updates import Defence, People
from sottovoce.simulations.baselines import fit_predict

THREAT = (
    "The coordinator holds the update of a site with one patient, and learns from updates that it makes itself of "
    "other speakers, whose sex it knows."
)

NOTE = "The mean of rounds: a coordinator may send the same weights in each round, and take the mean of what returns."
MOST_ROUNDS = 20
MOST_KEPT = 4  # updates of each speaker: to learn from, and to be asked about

Updates = npt.NDArray[np.float32]


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
    n_rounds = min(people.study.federation.rounds, MOST_ROUNDS)
    private, mean = _updates(people, "private", n_rounds)
    none, noiseless = (_updates(people, defence, 1)[0] for defence in ("none", "noiseless"))
    tried = [
        ("none", OF_SUCH, none, none),
        ("private", OF_SUCH, private, private),
        ("private", OF_NOISELESS, noiseless, private),
        (f"private, mean of {n_rounds} rounds", OF_NOISELESS, noiseless, mean),
    ]
    return [
        finding
        for defence, attacker, lessons, seen in tried
        for finding in _findings(
            _scores(lessons, seen, truth, people.half, known), truth, people.half, known, defence, attacker
        )
    ]


def _updates(people: People, defence: Defence, n_rounds: int) -> tuple[Updates, Updates]:
    """Returns each speaker's updates of some rounds, (speakers, rounds, parameters), and the mean of all rounds."""
    kept, means = [], []
    for name in people.speakers:
        rows = people.rows[name]
        seen = np.stack([people.update(rows, defence, key=f"sex/{name}/{n}") for n in range(n_rounds)])
        kept.append(seen[:MOST_KEPT].copy())
        means.append(seen.mean(axis=0, keepdims=True))
    return np.stack(kept), np.stack(means)


def _scores(
    lessons: Updates,
    seen: Updates,
    truth: npt.NDArray[np.int64],
    half: npt.NDArray[np.int64],
    known: npt.NDArray[np.int64],
) -> Floats:
    """Returns a score for each speaker's every update; positive says female."""
    scores = np.zeros(seen.shape[:2])
    for attacked in (0, 1):
        mine, theirs = known[half[known] != attacked], known[half[known] == attacked]
        rows, answers = lessons[mine].reshape(-1, lessons.shape[-1]), np.repeat(truth[mine], lessons.shape[1])
        asked = seen[theirs].reshape(-1, seen.shape[-1])
        log_probs = fit_predict("logistic", rows, answers, asked, 0, n_classes=2)
        scores[theirs] = (log_probs[:, 1] - log_probs[:, 0]).reshape(len(theirs), -1)
    return scores


def _findings(
    scores: Floats,
    truth: npt.NDArray[np.int64],
    half: npt.NDArray[np.int64],
    known: npt.NDArray[np.int64],
    defence: str,
    attacker: str,
) -> list[Finding]:
    parts = [known[half[known] == part] for part in (0, 1)]
    female, right = truth == 1, (scores > 0) == (truth == 1)[:, None]

    def mean_auc(people: list[Indices]) -> float:
        drawn = [part[chosen] for part, chosen in zip(parts, people, strict=True)]
        return float(
            np.mean(
                [auc(scores[one[female[one]]].ravel(), scores[one[~female[one]]].ravel()) for one in drawn]
            )
        )

    def share_right(people: list[Indices]) -> float:
        drawn = np.concatenate([part[chosen] for part, chosen in zip(parts, people, strict=True)])
        return float(right[drawn].mean())

    sizes = [*map(len, parts)]
    commonest = float(max(female[known].mean(), 1 - female[known].mean()))
    common: Any = {"attack": "sex", "defence": defence, "attacker": attacker, "n": len(known)}
    return [
        Finding(measure="AUC", estimate=resampled(sizes, mean_auc), chance=CHANCE_AUC, **common),
        Finding(measure="share right", estimate=resampled(sizes, share_right), chance=commonest, **common),
    ]
