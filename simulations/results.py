"""The accuracy tables of docs/results.md, from runs made here and now: `make results`.

    python -m sottovoce.simulations.results --ravdess DIR [--seeds 5] [--quick] [--out docs/results.md]

First the nested search (`search.py`), then the studies with what it chose for each fold, then the page. Runs that are
finished are found again; one that was interrupted goes on. `--quick` takes one seed everywhere, one fold of the lost
emotion, and leaves mitigation out: quicker, and wider of the mark.

Guarantees:
  - Every figure comes out of runs with the study's digest, made here or found finished; none is typed in.
  - A fold is scored by models with the setting that was chosen on that fold's training speakers.
  - The page says commit, machine, versions, seeds and intervals, and how many configurations met the outer folds.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

from sottovoce.common.run_files import read_run
from sottovoce.common.summary import Summary
from sottovoce.common.summary import read as read_summary
from sottovoce.simulations import augmentations, skew
from sottovoce.simulations import results_page as blocks
from sottovoce.simulations.augmentation_methods import METHODS
from sottovoce.simulations.pages import ROOT, SCENARIOS, commit, made
from sottovoce.simulations.results_columns import groups_of, merged, run_column
from sottovoce.simulations.results_mitigation import mitigation_block, mitigations
from sottovoce.simulations.results_page import Scored
from sottovoce.simulations.results_private import PrivateRow, private_block, private_rows
from sottovoce.simulations.results_studies import COLUMNS
from sottovoce.simulations.run_folder import write_text
from sottovoce.simulations.search import search_all

CLASSICAL = "results-classical"
PARTS = (
    *(column.title for column in COLUMNS[1:]),
    "mitigation",
    "classical",
    "private",
    "skew",
    "augmentation",
)  # the first is never left out
LEFT_OUT = "Left out of this run (`--leave-out`, `--quick`): no figure."


def page(
    scored: Sequence[Scored],
    paths: Sequence[Path],
    classical: Mapping[str, Summary],
    *,
    mitigation: str,
    private: Sequence[PrivateRow],
    more: Sequence[str],
    command: str,
) -> str:
    """Returns docs/results.md."""
    facts = [read_run(path / "run.json") for path in paths]
    n_compared = sum(len(one.found.compared) for one in scored)
    n_met = sum(len(groups_of(one.found)) for one in scored)
    seeds = ", ".join(map(str, scored[0].summary.protocol.seeds))
    return _PAGE.format(
        commit=commit(),
        command=command,
        seeds=seeds,
        columns=blocks.three_columns(scored),
        n_compared=n_compared,
        n_met=n_met,
        chosen=blocks.chosen([one.found for one in scored]),
        by_class=blocks.by_class(scored),
        for_whom=blocks.for_whom(scored),
        mitigation=mitigation,
        how_sure=blocks.how_sure(scored),
        classical=blocks.classical(classical) if classical else LEFT_OUT,
        private=private_block(private, blocks.pooled_uars(scored)) if private else LEFT_OUT,
        more="\n\n".join(part.strip() for part in more),
        machine=blocks.machine(facts),
    )


_PAGE = """\
# Results

Made by `{command}` at commit {commit}; seeds {seeds}.
RAVDESS, eight emotions, the five folds of Luna-Jiménez et al. 2021: no model has heard the speakers it is scored on.
UAR (unweighted average recall) is over all pooled out-of-fold predictions, mean over seeds; brackets hold the 95 %
interval of a bootstrap over speakers (`docs/metrics.md`). Chance is 12.5 %. Acted speech: a model agrees with what an
actor was asked to play.

## Three columns, by what was heard of a new speaker before

{columns}

- **nothing heard**: one recording, features standardised by public figures of synthetic voices.
- **enrolment**: four calm recordings of normal intensity of each speaker; nobody trains on or scores them.
- **transductive**: all recordings of the speaker, unlabelled, standardise them. Honest where a product has them.

"Pooled" has all training recordings in one place; "federated" is six hospitals of four actors each, FedAvg. The model
is softmax regression on mean and deviation over time of the first three blocks of Whisper tiny.en, frozen (the streams
`both` and `all` have statistics of cepstra, pitch and energy beside them, `all` also GE2E). The last block, which
earlier figures used, hears words rather than how they are said.

## How settings were chosen

{n_compared} settings were compared by inner folds of each outer fold's training speakers (`simulations/search.py`); a
test corrupts the tested speakers and finds the same choice. {n_met} configurations met the outer folds by this; all
that ever did are in `docs/outer-folds.md`.

{chosen}

## Emotion by emotion

Pooled.

{by_class}

## For whom

Difference in UAR between women and men; the bar is an interval that contains 0, or lies inside 7.5 points.

{for_whom}

### Mitigation, and its price

Tried on the columns that miss the bar, federated, seed 0, paired with the column as it is. "Men weigh twice" knows from
the table above who is behind: hindsight, to show what the best guess is worth. Below 0 is a loss of UAR, and a gain in
the last column.

{mitigation}

## How sure

Temperature, thresholds and sets are fitted on the speakers of other folds. ECE is over 15 bins of equal mass, after one
temperature. Sets are judged by recordings: those by speakers ask for more than 90 % where there are only 19 speakers to
fit them on, and hold too much by construction. That was decided after both had been seen.

{how_sure}

## Classical classifiers, the same folds

Seed 0; standardised by all of a speaker's recordings.

{classical}

## Under differential privacy

{private}

{more}

{machine}
"""


def main() -> None:
    """Makes the runs that are missing, and writes the page."""
    parser = argparse.ArgumentParser(description="Make the accuracy tables of docs/results.md.")
    parser.add_argument("--ravdess", type=Path, required=True, help="folder of the RAVDESS speech corpus")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument(
        "--quick", action="store_true", help="one seed, no mitigation, one fold of the lost emotion"
    )
    parser.add_argument(
        "--leave-out", nargs="*", choices=PARTS, default=[], help="the page says what it lacks"
    )
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--runs", type=Path, default=Path("runs/results"))
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results.md")
    arguments = parser.parse_args()
    import torch

    if not arguments.ravdess.is_dir():
        parser.error(f"--ravdess: expected the folder of the corpus; came {arguments.ravdess}")
    torch.set_num_threads(1)  # two on two cores are slower, and the figures would be others
    n_seeds = 1 if arguments.quick else arguments.seeds
    command = "make results RAVDESS=DIR " + ("QUICK=1" if arguments.quick else f"SEEDS={n_seeds}")
    command += f" --leave-out {' '.join(arguments.leave_out)}" if arguments.leave_out else ""
    text = make(
        arguments.ravdess,
        arguments.runs,
        n_seeds,
        arguments.workers,
        command,
        without=[*arguments.leave_out, *(["mitigation"] if arguments.quick else [])],
        quick=arguments.quick,
    )
    write_text(arguments.out, text)
    print(arguments.out)


def make(
    ravdess: Path,
    runs: Path,
    n_seeds: int,
    workers: int,
    command: str,
    *,
    without: Sequence[str] = (),
    quick: bool = False,
) -> str:
    """Makes everything, but for what is left out, and returns the page."""
    found = search_all(ravdess, runs / "search.json", workers=workers)
    scored, paths = [], dict[str, list[Path]]()
    for column, one in zip(COLUMNS, found, strict=True):
        if column.title in without:
            continue
        mine = run_column(column, one, ravdess, n_seeds, runs, workers)
        scored.append(Scored(column=column, found=one, summary=merged(mine)))
        paths[column.title] = mine
    classical = {} if "classical" in without else {"statistics": _classical(ravdess, runs, workers)}
    private = [] if "private" in without else private_rows(ravdess, runs, n_seeds, workers)
    mitigated = (
        LEFT_OUT
        if "mitigation" in without
        else mitigation_block(mitigations(scored, paths, ravdess, runs, workers), scored)
    )
    skewed = (
        f"## Skewed hospitals\n\n{LEFT_OUT}"
        if "skew" in without
        else _skewed(ravdess, runs, n_seeds, workers)
    )
    lost = (
        f"## A site that lost 90 % of one emotion\n\n{LEFT_OUT}"
        if "augmentation" in without
        else _augmentations(ravdess, runs, n_seeds, quick)
    )
    return page(
        scored,
        [path for mine in paths.values() for path in mine],
        classical,
        mitigation=mitigated,
        private=private,
        more=[skewed, lost],
        command=command,
    )


def _classical(ravdess: Path, runs: Path, workers: int) -> Summary:
    text = (SCENARIOS / f"{CLASSICAL}.toml").read_text(encoding="utf-8")
    return read_summary(
        made(text, runs / CLASSICAL, data={"ravdess": ravdess}, workers=workers, twins=True) / "metrics.json"
    )


def _skewed(ravdess: Path, runs: Path, n_seeds: int, workers: int) -> str:
    """Returns the block on skewed hospitals, a level lower than as a page of its own."""
    base = (SCENARIOS / "skew.toml").read_text(encoding="utf-8")
    paths = skew.run_all(base, list(skew.STRATEGIES), n_seeds, runs / "skew", {"ravdess": ravdess}, workers)
    return "#" + skew.page(paths, "make results")


def _augmentations(ravdess: Path, runs: Path, n_seeds: int, quick: bool) -> str:
    """Returns the block on a lost emotion, on classical features, and below it the same on an encoder's."""
    title = "## A site that lost 90 % of one emotion"
    first, second = (
        augmentations.block(
            augmentations.document_of(
                SCENARIOS / f"{name}.toml",
                ravdess,
                runs / name,
                seeds=range(n_seeds),
                quick=quick,
                methods=METHODS,
            )
        )
        for name in ("augmentations", "augmentations-embeddings")
    )
    return f"{first}\n{second.replace(title, '### The same on what encoders hear', 1)}"


if __name__ == "__main__":
    main()
