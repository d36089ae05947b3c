"""Are two updates of the same speaker?

The attacker is the coordinator: it has two updates that sites with one patient sent, made from different recordings,
and recordings of other speakers, of which it makes pairs of updates to learn what stays the same in one voice.
"""

import numpy as np
import numpy.typing as npt

from sottovoce.common.streams import stream
from sottovoce.simulations.audit.figures import CHANCE_AUC, Indices, auc_of_pairs, resampled
from sottovoce.simulations.audit.findings import OF_NOISELESS, OF_SUCH, Finding
from sottovoce.simulations.audit.updates import DEFENCES, Defence, People
from sottovoce.simulations.baselines import fit_predict

THREAT = (
    "The coordinator holds two updates of sites with one patient each, made from different recordings, and asks "
    "whether it is the same patient; it learns from pairs that it makes itself of other speakers."
)
NOTE = (
    "A cosine far below one half tells as much as one above: where features are standardised over all of a speaker's "
    "recordings, two halves of them mirror each other. The attacker that learns finds that out by itself."
)
N_COMPONENTS = 40
N_OTHERS = 10  # pairs of different speakers for each pair of the same, to learn from

Floats = npt.NDArray[np.float64]


def attack(people: People) -> list[Finding]:
    """Tries to link the two halves of every speaker's recordings."""
    names = [name for name in people.speakers if len(people.rows[name]) >= 2]
    keep = np.isin(people.speakers, names)
    half = people.half[keep]
    pairs: dict[str, Floats] = {defence: _pairs(people, names, defence) for defence in DEFENCES}
    tried = [
        ("none", "cosine", None),
        ("none", OF_SUCH, "none"),
        ("private", "cosine", None),
        ("private", OF_SUCH, "private"),
        ("private", OF_NOISELESS, "noiseless"),
    ]
    return [
        _finding(pairs[defence], None if lesson is None else pairs[lesson], half, defence, attacker)
        for defence, attacker, lesson in tried
    ]


def _pairs(people: People, names: list[str], defence: Defence) -> Floats:
    """Returns (2, speakers, parameters): two updates of each speaker, from disjoint recordings."""
    found = []
    for name in names:
        rows = stream(people.seed, "audit/linking", name).permutation(people.rows[name])
        parts = np.array_split(rows, 2)
        found.append([people.update(part, defence, key=f"link/{name}/{i}") for i, part in enumerate(parts)])
    return np.asarray(found, np.float64).transpose(1, 0, 2)


def _finding(
    seen: Floats, lessons: Floats | None, half: npt.NDArray[np.int64], defence: str, attacker: str
) -> Finding:
    """Scores within each half of the speakers, by what the other half taught."""
    blocks = []
    for attacked in (0, 1):
        pair = seen[:, half == attacked]
        blocks.append(_cosines(pair) if lessons is None else _learned(lessons[:, half != attacked], pair))

    def mean_auc(people: list[Indices]) -> float:
        return float(np.mean([auc_of_pairs(*both) for both in zip(blocks, people, strict=True)]))

    return Finding(
        attack="linking",
        defence=defence,
        attacker=attacker,
        measure="AUC",
        estimate=resampled([len(block) for block in blocks], mean_auc),
        chance=CHANCE_AUC,
        n=len(half),
    )


def _cosines(pair: Floats) -> Floats:
    one, other = (part - part.mean(axis=0) for part in pair)
    lengths = np.linalg.norm(one, axis=1)[:, None] * np.linalg.norm(other, axis=1)
    scores: Floats = one @ other.T / lengths
    return scores


def _learned(lessons: Floats, pair: Floats) -> Floats:
    """Projects on the main directions of the lessons, and weighs how far two updates agree in each."""
    everything = lessons.reshape(-1, lessons.shape[-1])
    centre = everything.mean(axis=0)
    _, sizes, directions = np.linalg.svd(everything - centre, full_matrices=False)
    kept = min(N_COMPONENTS, int((sizes > sizes[0] * 1e-6).sum()))
    basis = directions[:kept].T / sizes[:kept] * np.sqrt(len(everything))
    first, second = (lessons - centre) @ basis
    n = len(first)
    shifts = range(1, min(N_OTHERS, n - 1) + 1)
    same, others = first * second, [first * np.roll(second, shift, axis=0) for shift in shifts]
    rows, truth = np.concatenate([same, *others]), np.repeat([1, 0], [n, n * len(shifts)])
    one, other = (pair - centre) @ basis
    products = (one[:, None, :] * other[None, :, :]).reshape(-1, kept)
    log_probs = fit_predict("logistic", rows, truth, products, 0, n_classes=2)
    return (log_probs[:, 1] - log_probs[:, 0]).reshape(len(one), len(other))
