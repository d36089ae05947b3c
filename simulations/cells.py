"""One cell of a study: a seed, a fold and an arm, from initial weights to predictions of withheld speakers.

Arms: `federated` (the study); for a private study also `federated without privacy`, which shows the price of privacy;
`central` (the same study with everybody's recordings at one site), `local` (each site trains alone and is scored on
its own withheld speakers), the classical baselines by name, and each pooled arm once more on a random split, under a
name that says it leaks. Only `federated` is private in a private study.

Guarantees:
  - Speakers that a fold withholds are scored by weights that no recording of theirs has touched; only the arms
    whose names say that they leak break this.
  - A cell's predictions do not depend on which process computes it, on how many there are, or on a crash.
"""

import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from sottovoce.client.app import withheld
from sottovoce.client.evaluate import log_probabilities
from sottovoce.client.personal import PersonalState
from sottovoce.client.personalise import Round, scored_weights
from sottovoce.common import models, predictions
from sottovoce.common.dataset import SiteData
from sottovoce.common.errors import RunError
from sottovoce.common.files import write_whole
from sottovoce.common.generative import figures, synthetic
from sottovoce.common.generative.added import rows_of
from sottovoce.common.generative_specs import SyntheticRows, is_generative
from sottovoce.common.predictions import LEAKS, Prediction
from sottovoce.common.privacy_specs import NoPrivacy
from sottovoce.common.run_files import CellFacts, Refused, RoundFacts, round_line
from sottovoce.common.study import Execution, Study
from sottovoce.common.transfer import start
from sottovoce.common.weights import Array
from sottovoce.server.exchange import Exchange, GridExchange
from sottovoce.server.made_rows import made_rows
from sottovoce.server.rounds import Cell, Outcome, RoundRecord, run, run_alone
from sottovoce.simulations import site_ledgers
from sottovoce.simulations.engines import open_exchange
from sottovoce.simulations.made_head import addable, figures_of, log_probabilities_by

POOLED = "pooled"
FEDERATED, NO_PRIVACY = "federated", "federated without privacy"
NETWORK_ARMS = (FEDERATED, NO_PRIVACY, "central", "local")


@dataclass(frozen=True, kw_only=True)
class Job:
    """All that a process needs to compute a cell. `sites` holds a folder for each site; `pooled` all of them in one.

    `ledgers` is where sites of a private study keep theirs; `extracts` is where what may be shown of them goes;
    `states` is where sites keep what they need from round to round, until the cell is done; `made` is for the rows of
    a study whose model makes some.
    """

    cell: Cell
    study_file: Path
    sites: Path
    pooled: Path
    ledgers: Path
    extracts: Path
    states: Path
    made: Path
    checkpoint: Path
    rounds: Path
    predictions: Path
    execution: Execution


OnRound = Callable[[RoundFacts], None]


def arms_of(study: Study, *, twins: bool) -> list[str]:
    """Returns the arms of a run, the study's own first."""
    of_private = [NO_PRIVACY] if is_private(study) else []
    twin_arms = [*of_private, "central", "local"] if twins else []
    honest = [FEDERATED, *twin_arms, *study.evaluation.baselines]
    if not study.evaluation.random_split_that_leaks:
        return honest
    return [*honest, *(arm + LEAKS for arm in ["central", *study.evaluation.baselines])]


def n_rounds(study: Study, arm: str, n_sites: int) -> int:
    """Returns how many rounds a cell reports, for a progress bar; a baseline counts as one."""
    base = arm.removesuffix(LEAKS)
    if base not in NETWORK_ARMS:
        return 1
    return study.federation.rounds * (n_sites if base == "local" else 1)


def is_private(study: Study) -> bool:
    """Says whether a study promises its patients anything."""
    return not isinstance(study.privacy, NoPrivacy)


def compute(job: Job, study: Study, on_round: OnRound) -> CellFacts:
    """Computes a cell and writes its rounds and its predictions, each whole or not at all.

    Goes on from a checkpoint, if there is one. Predictions come last: where they are, all of the cell is.
    """
    began = time.monotonic()
    told: list[RoundFacts] = []

    def tell(facts: RoundFacts) -> None:
        told.append(facts)
        on_round(facts)

    rows, digest = (_network if job.cell.arm.removesuffix(LEAKS) in NETWORK_ARMS else _baseline)(
        job, study, tell
    )
    write_whole(job.rounds, "".join(map(round_line, told)).encode())
    predictions.write(job.predictions, rows)
    shutil.rmtree(job.states, ignore_errors=True)
    return CellFacts(
        seed=job.cell.seed,
        fold=job.cell.fold,
        arm=job.cell.arm,
        seconds=round(time.monotonic() - began, 3),
        weights_sha256=digest,
    )


def site_folders(sites: Path) -> list[Path]:
    """Returns the folders of the sites, by name."""
    return sorted(path for path in sites.iterdir() if path.is_dir())


def _network(job: Job, study: Study, on_round: OnRound) -> tuple[list[Prediction], str | None]:
    arm = job.cell.arm.removesuffix(LEAKS)
    folders = [job.pooled] if arm == "central" else site_folders(job.sites)
    parts = [SiteData.open(folder) for folder in folders]
    places = {part.site: folder for part, folder in zip(parts, folders, strict=True)}
    outcomes = (_private if arm == FEDERATED and is_private(study) else _public)(
        job, study, parts, places, on_round
    )
    rows = [row for part in parts for row in _score(job, study, part, outcomes[part.site])]
    if arm == FEDERATED and study.training.synthetic is not None:
        _judge_added(job, study, study.training.synthetic)
    digests = {outcome.digest for outcome in outcomes.values()}
    return rows, digests.pop() if len(digests) == 1 else None


def _private(
    job: Job, study: Study, parts: Sequence[SiteData], places: Mapping[str, Path], on_round: OnRound
) -> Mapping[str, Outcome]:
    ledgers = site_ledgers.open_all(job.ledgers, study, places)
    with open_exchange(
        job.execution, places, study_file=job.study_file, ledgers=job.ledgers, states=job.states
    ) as exchange:
        outcomes = _federated(job, study, parts, exchange, on_round)
    (last,) = {outcome.digest: outcome for outcome in outcomes.values()}.values()
    site_ledgers.keep(ledgers, job.extracts, last.rounds[-1].witnessed)
    return outcomes


def _federated(
    job: Job, study: Study, parts: Sequence[SiteData], exchange: Exchange, on_round: OnRound
) -> Mapping[str, Outcome]:
    """Runs the study's own arm, through secure sums where the study has them."""
    if not study.sums_are_secure:
        return _outcomes(job, study, parts, exchange, on_round)
    if not isinstance(exchange, GridExchange):
        raise RunError(
            f"Expected an engine that asks each site, for secure sums; came {job.execution.engine!r}. Take 'inprocess'."
        )
    with site_ledgers.coordinated(job.ledgers, study, exchange) as secure:
        outcomes = _outcomes(job, study, parts, secure, on_round)
    site_ledgers.keep_federation(job.ledgers, job.extracts)
    return outcomes


def _public(
    job: Job, study: Study, parts: Sequence[SiteData], places: Mapping[str, Path], on_round: OnRound
) -> Mapping[str, Outcome]:
    federated = job.cell.arm == FEDERATED
    execution = job.execution if federated else replace(job.execution, engine="inprocess")
    if federated and study.sums_are_secure:
        site_ledgers.identities(job.ledgers, study, places)
        with open_exchange(
            execution, places, study_file=job.study_file, secure=job.ledgers, states=job.states
        ) as exchange:
            return _federated(job, study, parts, exchange, on_round)
    # Twins sum in the clear: they are for comparison, on this machine.
    twin = is_private(study) or study.sums_are_secure
    with open_exchange(
        execution, places, study_file=job.study_file, states=job.states, without_privacy=twin
    ) as exchange:
        return _outcomes(job, _bare(study), parts, exchange, on_round)


def _bare(study: Study) -> Study:
    plain = replace(study.federation, secure_sum=False, compression=None)
    return replace(study, privacy=NoPrivacy(mode="none"), federation=plain)


def checkpoint_of(study: Study, cell: Cell) -> tuple[str, str]:
    """Returns the name of a cell's checkpoint, and the digest of the study that is written in it."""
    own = cell.arm == FEDERATED and (is_private(study) or study.sums_are_secure)
    name = (replace(cell, arm=f"{cell.arm}@{POOLED}") if cell.arm.startswith("central") else cell).name
    return name, (study if own else _bare(study)).digest()


def _outcomes(
    job: Job, study: Study, parts: Sequence[SiteData], exchange: Exchange, on_round: OnRound
) -> Mapping[str, Outcome]:
    told: set[tuple[str, int]] = set()

    def tell(record: RoundRecord) -> None:
        if (record.arm, record.round) not in told:
            told.add((record.arm, record.round))
            on_round(_facts(record, job.cell.arm))

    weights = start(study, parts[0].widths, seed=job.cell.seed).weights
    common: Any = {"cell": job.cell, "weights": weights, "checkpoint": job.checkpoint, "resume": True}
    if job.cell.arm in (FEDERATED, NO_PRIVACY):
        outcome = run(exchange, study, on_round=tell, **common)
        outcomes = dict.fromkeys((part.site for part in parts), outcome)
    else:
        leaking = {"leaking-split": job.cell.arm.endswith(LEAKS)}
        outcomes = run_alone(exchange, study, on_round=tell, client_config=leaking, **common)
    # Rounds that a crashed process checkpointed and could not tell of any more.
    for record in (record for outcome in outcomes.values() for record in outcome.rounds):
        tell(record)
    return outcomes


def _score(job: Job, study: Study, data: SiteData, outcome: Outcome) -> Iterator[Prediction]:
    scored = _scored(job, study, data)
    if len(scored) and is_generative(study):
        made = made_rows(study, outcome.weights, outcome.others, seed=job.cell.seed)
        _keep_made(job, study, made)
        yield from _rows(job.cell, scored, log_probabilities_by(made, scored))
    elif len(scored):
        model = _model(job, study, data)
        weights = _scored_by(job, study, data, model, outcome.weights)
        model.load_state_dict({name: torch.tensor(array) for name, array in weights.items()})
        yield from _rows(job.cell, scored, log_probabilities(model, scored, job.execution.device))


def _keep_made(job: Job, study: Study, made: synthetic.SyntheticRows) -> None:
    """Writes made rows, and for the study's own arm how they stand between the trained on and the withheld."""
    _, digest = synthetic.write(job.made, made)
    if job.cell.arm == FEDERATED:
        _judge(job, study, made, digest)


def _judge_added(job: Job, study: Study, spec: SyntheticRows) -> None:
    """Writes how the rows that sites may add stand between the trained on and the withheld."""
    made = rows_of(study)
    if made is not None:
        _judge(job, study, addable(made, spec.per_class), spec.sha256)


def _judge(job: Job, study: Study, made: synthetic.SyntheticRows, digest: str) -> None:
    everybody = SiteData.open(job.pooled).originals()
    hidden = _withheld(job, study, everybody)
    trained, withheld_ones = everybody.select(everybody.trains & ~hidden), everybody.select(hidden)
    found = figures_of(made, trained, withheld_ones, cell=job.cell.name, file=digest)
    if found is not None:
        figures.write(job.made, found)


def _scored_by(
    job: Job, study: Study, data: SiteData, model: nn.Module, weights: Mapping[str, Array]
) -> Mapping[str, Array]:
    """Returns the weights that a site's own speakers are scored by: its own model's, where it has one."""
    spec = study.federation.personalisation
    if spec is None or job.cell.arm not in (FEDERATED, NO_PRIVACY):
        return weights
    state = PersonalState(
        job.states / data.site, study_digest=study.digest(), seed=job.cell.seed, fold=job.cell.fold
    )
    now = Round(
        study=study,
        site=data.site,
        seed=job.cell.seed,
        round=study.federation.rounds,
        device=job.execution.device,
    )
    trainable = data.select(data.trains & ~_withheld(job, study, data))
    return scored_weights(model, trainable, spec, state, weights, now)


def _model(job: Job, study: Study, data: SiteData) -> nn.Module:
    return models.build(study.model, data.widths, len(study.labels.classes), job.cell.seed)


def _baseline(job: Job, study: Study, on_round: OnRound) -> tuple[list[Prediction], None]:
    from sottovoce.simulations.baselines import fit_predict  # scikit-learn: as long to import as all the rest

    began = time.monotonic()
    data = SiteData.open(job.pooled)
    hidden = _withheld(job, study, data)
    seen = data.select(data.trains & ~hidden & (data.copies == 0))
    scored = _scored(job, study, data)
    stream = study.evaluation.baseline_stream or ""
    log_probs = fit_predict(
        job.cell.arm.removesuffix(LEAKS),  # type: ignore[arg-type]  # the study's type lists the names
        seen.pooled(stream),
        seen.labels,
        scored.pooled(stream),
        job.cell.seed,
        n_classes=len(study.labels.classes),
    )
    facts = RoundFacts(
        seed=job.cell.seed,
        fold=job.cell.fold,
        arm=job.cell.arm,
        round=1,
        sites=(POOLED,),
        seconds=time.monotonic() - began,
    )
    on_round(facts)
    return list(_rows(job.cell, scored, log_probs)), None


def _withheld(job: Job, study: Study, data: SiteData) -> npt.NDArray[np.bool_]:
    leaks = job.cell.arm.endswith(LEAKS)
    return withheld(data, study, seed=job.cell.seed, fold=job.cell.fold, leaking_split=leaks)


def _scored(job: Job, study: Study, data: SiteData) -> SiteData:
    return data.select(_withheld(job, study, data) & (data.copies == 0))


def _rows(cell: Cell, data: SiteData, log_probs: npt.NDArray[np.floating]) -> Iterator[Prediction]:
    for index, row in enumerate(np.asarray(log_probs, np.float64)):
        yield Prediction(
            seed=cell.seed,
            fold=cell.fold,
            arm=cell.arm,
            utterance=data.keys[index],
            speaker=data.speakers[index],
            site=data.homes[index],
            groups=data.groups[index],
            truth=int(data.labels[index]),
            log_probs=tuple(row.tolist()),
        )


def _facts(record: RoundRecord, arm: str) -> RoundFacts:
    return RoundFacts(
        seed=record.seed,
        fold=record.fold,
        arm=record.arm if arm == "local" else arm,  # alone, each site is a curve of its own
        round=record.round,
        loss=record.loss,
        sites=record.sites,
        refused=tuple(Refused(site=site, reason=reason) for site, reason in record.refused.items()),
        bytes_down=record.bytes_down,
        bytes_up=record.bytes_up,
        seconds=record.seconds,
        confusion=record.confusion,
        counted=record.counted,
    )
