"""What secure sums give back: docs/without-pooling.md, from runs made here and now.

    python -m sottovoce.simulations.without_pooling [--runs DIR] [--workers N] --page docs/without-pooling.md

Three studies of the same voices, model, rounds, rates and folds, each with the noise that epsilon 3 demands of it:

| row           | who adds noise                                                                               |
|---------------|----------------------------------------------------------------------------------------------|
| `distributed` | ten hospitals, shares of one noise, secure sums                                              |
| `pooled`      | nobody has to: all recordings in one place, DP-SGD there (mode `local` at one site)           |
| `local`       | ten hospitals, each all of its own noise                                                     |

Guarantees:
  - Every figure comes out of a run with the same study digest, made here or found finished.
  - Differences are of the same seeds, scored on the same recordings; the interval is Student's, over seeds.
  - A bar that is missed says so.
"""

import argparse
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np

from sottovoce.common import metrics, predictions
from sottovoce.common.errors import SottovoceError
from sottovoce.common.privacy import accountant, distributed, distributed_accountant, distributed_plan, plan
from sottovoce.common.privacy_specs import DistributedPrivacy, LocalPrivacy
from sottovoce.common.study import Study, load, loads
from sottovoce.simulations.cells import FEDERATED
from sottovoce.simulations.pages import ROOT, SCENARIOS, commit, made
from sottovoce.simulations.run_folder import write_text
from sottovoce.simulations.utility import with_values

Row = Literal["distributed", "pooled", "local"]
ROWS: tuple[Row, ...] = ("distributed", "pooled", "local")
EPSILON = 3.0
STUDENT = {3: 4.303, 5: 2.776, 10: 2.262}  # 97.5 % of Student's t, by the number of seeds
WORST_LOSS = -1.0  # points of UAR against pooled data


@dataclass(frozen=True, kw_only=True)
class Difference:
    """One row's UAR less another's, in points: the mean over seeds, and its 95 % interval."""

    mean: float
    low: float
    high: float


@lru_cache
def study_text(row: Row) -> str:
    """Returns the study of a row, from the scenario: other constants, and the noise of epsilon 3."""
    text = (SCENARIOS / "without-pooling.toml").read_text(encoding="utf-8")
    if row == "distributed":
        return with_values(text, {"noise_multiplier": _noise_of_shares(loads(text))})
    # The same patients, of one hospital or of ten; one step in a round, as there.
    n_sites, spec = (1 if row == "pooled" else 10), _distributed(loads(text))
    of_site = 10 // n_sites
    text = with_values(
        text,
        {
            "mode": '"local"',
            "n_sites": f"{n_sites}\nsecure_sum = false",  # exact sums have the same bits; this is quicker
            "n_patients_public": spec.n_patients_public * of_site,
            "expected_patients": spec.expected_patients * of_site,
            "n_parameters": "1\nsteps_per_round = 1",
            "n_min": "1",
            "n_colluding": "1",
        },
    )
    kept = [
        line for line in text.splitlines() if not line.startswith(("n_parameters", "n_min", "n_colluding"))
    ]
    text = "\n".join(kept) + "\n"
    return with_values(text, {"noise_multiplier": _noise_alone(loads(text))})


def _noise_of_shares(study: Study) -> float:
    spec, n_sites = _distributed(study), study.federation.n_sites
    mechanism = distributed_plan.update_mechanism(spec, n_sites=n_sites)
    return distributed.noise_for(
        EPSILON,
        spec.delta,
        mechanism,
        sampling_prob=spec.sampling_prob,
        steps=spec.steps_in(study.federation.rounds),
        n_patients=spec.n_patients_public,
    )


def _noise_alone(study: Study) -> float:
    spec = study.privacy
    if not isinstance(spec, LocalPrivacy):
        raise SottovoceError(f"Expected a study of mode local; came mode {spec.mode!r}.")
    event = plan.training_event(spec, spec.steps_in(study.federation.rounds))
    return accountant.noise_for(EPSILON, spec.delta, event)


def _distributed(study: Study) -> DistributedPrivacy:
    if not isinstance(study.privacy, DistributedPrivacy):
        raise SottovoceError(f"Expected a study of mode distributed; came mode {study.privacy.mode!r}.")
    return study.privacy


def uar_by_seed(run: Path) -> Mapping[int, float]:
    """Returns a run's UAR of each seed, over everybody whom its folds withheld, in percent."""
    study = load(run / "study.toml")
    rows = [
        one
        for one in predictions.read(run / "predictions.jsonl", n_classes=len(study.labels.classes))
        if one.arm == FEDERATED
    ]
    found = {}
    for seed in study.evaluation.seeds:
        counts = np.zeros((len(study.labels.classes),) * 2, np.int64)
        for one in rows:
            if one.seed == seed:
                counts[one.truth, one.predicted] += 1
        found[seed] = 100 * float(metrics.uars(counts[None].astype(np.float64))[0])
    return found


def difference(one: Mapping[int, float], other: Mapping[int, float]) -> Difference:
    """Returns the paired difference over the seeds of two rows.

    >>> difference({0: 2.0, 1: 3.0, 2: 4.0}, {0: 1.0, 1: 1.0, 2: 1.0}).mean
    2.0
    """
    gaps = np.array([one[seed] - other[seed] for seed in sorted(one)])
    half = STUDENT[len(gaps)] * float(gaps.std(ddof=1)) / math.sqrt(len(gaps))
    return Difference(mean=float(gaps.mean()), low=float(gaps.mean()) - half, high=float(gaps.mean()) + half)


def page(runs: Path, command: str) -> str:
    """Returns docs/without-pooling.md."""
    uars = {row: uar_by_seed(runs / row) for row in ROWS}
    against = {row: difference(uars["distributed"], uars[row]) for row in ("pooled", "local")}
    lines = [_line(row, uars[row]) for row in ROWS]
    verdicts = (
        ("pooled", against["pooled"], WORST_LOSS, "above -1 point"),
        ("local", against["local"], 0.0, "above 0"),
    )
    said = [
        f"- `distributed` less `{row}`: {gap.mean:+.2f} points [{gap.low:+.2f}, {gap.high:+.2f}]; the bar is an "
        f"interval {bar}: {'met' if gap.low > least else '**missed**'}."
        for row, gap, least, bar in verdicts
    ]
    return _PAGE.format(
        commit=commit(), command=command, table="\n".join(lines), said="\n".join(said), rows=", ".join(ROWS)
    )


def _line(row: Row, uars: Mapping[int, float]) -> str:
    study = loads(study_text(row))
    spec = study.privacy
    if isinstance(spec, DistributedPrivacy):
        charged = distributed_plan.events(
            spec,
            rounds=study.federation.rounds,
            n_sites=study.federation.n_sites,
            n_counts=0,
            tables=study.tables,
        )
        epsilon = distributed_accountant.epsilon(charged, spec.delta)
        shares = study.federation.n_sites / (spec.n_min - spec.n_colluding)
        loudness = (
            spec.noise_multiplier * math.sqrt(shares) / (spec.expected_patients * study.federation.n_sites)
        )
    elif isinstance(spec, LocalPrivacy):
        epsilon = accountant.epsilon(plan.events(spec, study.federation.rounds), spec.delta)
        loudness = spec.noise_multiplier / (spec.expected_patients * math.sqrt(study.federation.n_sites))
    else:
        raise SottovoceError("Expected a private study.")
    each = ", ".join(f"{uar:.1f}" for uar in uars.values())
    cells = (
        f"`{row}`", str(study.federation.n_sites), f"{np.mean(list(uars.values())):.2f}", each, f"{epsilon:.3f}",
        f"{spec.noise_multiplier:.2f}", f"{loudness:.4f}",
    )  # fmt: skip
    return f"| {' | '.join(cells)} |"


_PAGE = """\
# Pooled-data accuracy, without pooling

Made by `{command}` at commit {commit}. Simulated noise on a public corpus: the epsilon of a row is what the same study
costs a patient with secret noise.

1,000 voices of the embedded corpus, 100 at each of ten hospitals; softmax regression on 16 statistics (pitch, energy,
zero crossings), 30 rounds of one step over everybody, momentum 0.9 at the coordinator, the same learning rate for all.
Five folds by patient, so that a seed's UAR is over all 1,000; epsilon at most 3 at delta 1e-5 for each patient, a spare
round included.

| row | sites | UAR %, mean | of each seed | epsilon | noise multiplier | loudness |
|---|---|---|---|---|---|---|
{table}

{said}

- Intervals are Student's, over five paired differences: the same seed has the same folds and initial weights, and
  noise of its own in each row. What they do not cover is another corpus.
- **Loudness** is the deviation of the noise on the mean of everybody's gradients, in clipping norms. `distributed` has
  more of it than `pooled` for two reasons: its accountant is a Renyi bound (6 to 9 % more noise for the same epsilon),
  and its noise is sized for nine survivors of which one tells all (n_min 9, n_colluding 1), while ten are there, and
  each adds a share. `local` has that of ten hospitals which do not trust each other with anything.
- The learning rate and the number of rounds were found on 400 other voices (seed 2), for the noise of `pooled`; for
  that of `local` the same rate was the best of those tried there (0.15 to 2.4) too. That search is no command.
- `local` sums in the clear here and `distributed` by the protocol itself, with keys, masks and signatures.
"""


def main() -> None:
    """Makes the runs that are missing and writes the page."""
    parser = argparse.ArgumentParser(description="Make the table of docs/without-pooling.md.")
    parser.add_argument("--runs", type=Path, default=Path("runs/without-pooling"))
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument(
        "--only-page", action="store_true", help="write the page from the runs that are there"
    )
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "without-pooling.md")
    arguments = parser.parse_args()
    for row in () if arguments.only_page else ROWS:
        made(study_text(row), arguments.runs / row, data={}, workers=arguments.workers)
    command = "python -m sottovoce.simulations.without_pooling --page docs/without-pooling.md"
    write_text(arguments.page, page(arguments.runs, command))
    print(arguments.page)


if __name__ == "__main__":
    main()
