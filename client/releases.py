"""What a site answers in a private mode: every number in it went through the ledger, and no other number leaves.

    released = release_update(place, study, model, data, call, proximal_mu=0.0)

Guarantees:
  - Without an approval, or with too little left, nothing is trained; the refusal names public constants only.
  - Whatever goes wrong on private data, the coordinator is told that nothing was released, and not why.
  - Counts are of at most `counts_utterances` recordings of each withheld patient; those of all and of every group
    are noised in one release.
  - At a site that keeps a ledger mode `none` goes through it too.
  - A reservation's manifest is of the recordings' keys, their patients, and of what enrols each speaker, as computed.
  - With seeded noise equal messages give equal bytes; with secret noise only a committed release comes twice.
"""

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from torch import nn

from sottovoce.client.evaluate import log_probabilities
from sottovoce.client.secure import Mask
from sottovoce.client.site_ledger import Ask, Released, SiteLedger
from sottovoce.client.train_private import check_units, gradient_sum, train_private
from sottovoce.common.calibration_counts import cells
from sottovoce.common.dataset import SiteData
from sottovoce.common.errors import PrivacyError, SecureSumError, SottovoceError
from sottovoce.common.groups import Tables
from sottovoce.common.privacy.distributed import masked, site_sum
from sottovoce.common.privacy.plan import release_counts
from sottovoce.common.privacy.sampling import first_recordings
from sottovoce.common.privacy.source import SecretSource, SimulatedNoise_NotPrivate, Source
from sottovoce.common.privacy.stages import PatientGradients
from sottovoce.common.privacy_specs import DistributedPrivacy, LocalPrivacy, Private
from sottovoce.common.streams import derive
from sottovoce.common.study import Study
from sottovoce.common.sums import COUNTS, UPDATE, What, mechanism_of
from sottovoce.common.weights import Weights

_log = logging.getLogger(__name__)

# All that a site with a ledger ever says of why. Denials count withdrawals, errors name files and patients.
NOTHING_RELEASED = "This site released nothing in this round. Its own log and ledger say why."
UNDER_MASKS_ONLY = "This study has secure sums; this site sends nothing in the clear."
LEDGER_SAYS_NO = "This site's ledger says no. Its own log says why."


class Refusal(PrivacyError):
    """One of the fixed texts above: what may be told to a coordinator."""


@dataclass(frozen=True, kw_only=True)
class Called:
    """What the coordinator asked. `model` is the digest of the weights, `how` of the rest of the instruction."""

    seed: int
    fold: int
    round: int
    model: str
    how: str = ""

    def ask(self, what: str, steps: int = 1, attempt: int | None = None) -> Ask:
        """Returns the ask for so many steps of one charge; with `attempt` it is made for that attempt alone."""
        return Ask(
            what=what,
            run=f"{self.seed}-{self.fold}{self.how}",
            steps=steps,
            round=self.round,
            model=self.model,
            attempt=attempt,
        )


def release_update(
    folder: Path,
    study: Study,
    model: nn.Module,
    data: SiteData,
    called: Called,
    *,
    proximal_mu: float = 0.0,
    correction: Weights | None = None,
    group_weights: Sequence[float] = (),
    keep: Callable[[npt.NDArray[np.float32]], None] = lambda values: None,
    device: str = "cpu",
) -> Released:
    """Trains `model` privately on `data` and returns the new weights, flat, as little-endian float32.

    `keep` is called with what was just trained, before it is committed; not with what is sent again.

    Raises:
        Refusal: the site's ledger says no, or nothing could be released.
    """
    spec = _local(study)

    def make(withdrawn: frozenset[str]) -> bytes:
        update = train_private(
            model,
            data,
            study,
            site=data.site,
            round=called.round,
            source=_source(spec, data.site, called, UPDATE),
            withdrawn=withdrawn,
            proximal_mu=proximal_mu,
            correction=correction,
            group_weights=group_weights,
            device=device,
        )
        keep(update.values)
        return update.values.astype("<f4").tobytes()

    ask = called.ask(UPDATE, steps=spec.steps_per_round)
    return _released(folder, study, ask, data, make)


def release_confusion(
    folder: Path, study: Study, model: nn.Module, data: SiteData, called: Called, *, device: str = "cpu"
) -> Released:
    """Counts (table, truth, predicted) over the withheld patients in `data`, noised; flat little-endian int64.

    Raises:
        Refusal: the study pays for no counts, the ledger says no, or nothing could be released.
    """
    spec, tables = _local(study), study.tables

    def make(withdrawn: frozenset[str]) -> bytes:
        check_units(data, study)
        rows = contributions(
            model, _without(data, withdrawn), tables, n_most=spec.counts_utterances, device=device
        )
        source = _source(spec, data.site, called, COUNTS)
        counts = release_counts(PatientGradients(values=rows), spec, source, n_tables=tables.per_recording)
        return counts.astype("<i8").tobytes()

    ask = called.ask(COUNTS)
    return _released(folder, study, ask, data, make)


def release_part(
    folder: Path,
    study: Study,
    model: nn.Module,
    data: SiteData,
    called: Called,
    what: What,
    *,
    attempt: int,
    mask: Mask,
    group_weights: Sequence[float] = (),
    device: str = "cpu",
) -> Released:
    """Makes this site's part of a sum of mode `distributed` and puts its masks on; each attempt is charged.

    The part is of clipped gradients, or of counts over the withheld patients in `data`, with a share of the noise.

    Raises:
        Refusal: the site's ledger says no, or nothing could be released.
        SecureSumError: the sum's messages were wrong; what was reserved is burned.
    """
    spec, mechanism = _distributed(study), mechanism_of(study, _distributed(study), what)

    def make(withdrawn: frozenset[str]) -> bytes:
        source = _source(spec, data.site, called, what)
        if what == UPDATE:
            total = gradient_sum(
                model,
                data,
                study,
                mechanism,
                source=source,
                withdrawn=withdrawn,
                group_weights=group_weights,
                device=device,
            )
        else:
            kept = _without(data, withdrawn)
            rows = contributions(model, kept, study.tables, n_most=spec.counts_utterances, device=device)
            total = site_sum(PatientGradients(values=rows), mechanism, source)
        return masked(total, mask).message

    return _released(folder, study, called.ask(what, attempt=attempt), data, make)


def release_openly(
    folder: Path, study: Study, data: SiteData, called: Called, what: str, make: Callable[[SiteData], bytes]
) -> Released:
    """Mode `none` at a site that keeps a ledger: its policy must allow it, and the ledger says that it happened.

    `make` is given the data without those who withdrew.

    Raises:
        Refusal: the policy or its approver does not allow it; nothing was trained.
    """
    return _released(folder, study, called.ask(what), data, lambda gone: make(_without(data, gone)))


def contributions(
    model: nn.Module, data: SiteData, tables: Tables, *, n_most: int, device: str = "cpu"
) -> npt.NDArray[np.float32]:
    """Returns one row of (table, truth, predicted) counts, flat, for each patient, over the first `n_most` recordings.

    A recording counts in the table of all, in those of the groups that it belongs to, and in one cell of each table of
    calibration, where the study has them.
    """
    patients = sorted(set(data.patients))
    rows = np.zeros((len(patients), *tables.shape), np.float32)
    if patients:
        owners = np.searchsorted(patients, data.patients).astype(np.int64)
        counted = first_recordings(owners, n_most=n_most)
        chosen = data.select(counted)
        log_probs = log_probabilities(model, chosen, device)
        predicted = log_probs.argmax(axis=1)
        each, within = tables.memberships(chosen.groups)
        np.add.at(rows, (owners[counted][each], within, chosen.labels[each], predicted[each]), 1.0)
        if tables.confidence_bins:
            beside = tables.n_confusions + cells(
                log_probs.astype(np.float64), chosen.labels, tables.confidence_bins
            )
            np.add.at(rows.reshape(len(patients), -1), (owners[counted][:, None], beside), 1.0)
    return rows.reshape(len(patients), tables.n_cells)


def _without(data: SiteData, withdrawn: frozenset[str]) -> SiteData:
    return data.select(np.array([patient not in withdrawn for patient in data.patients], np.bool_))


def _released(
    folder: Path, study: Study, ask: Ask, data: SiteData, make: Callable[[frozenset[str]], bytes]
) -> Released:
    # Whose recordings, which, and what they were standardised by: exchanged, it changes every feature.
    manifest = json.dumps([data.keys, data.patients, data.enrolled], sort_keys=True).encode()
    try:
        with SiteLedger.open(folder) as site:
            if study.sums_are_secure:
                site.roster(study)  # the one that was approved, or nothing
            released = site.release(study, ask, manifest=manifest, make=make)
    except SecureSumError:
        raise  # of messages on the wire: a complaint, and no word of data
    except Exception as error:
        # Why is private: a patient too many, or a list that was lost, says something of a patient.
        ours = isinstance(error, SottovoceError)  # else it is a defect, and its traceback is wanted
        _log.error("round %d, %s: nothing released: %s", ask.round, ask.what, error, exc_info=not ours)
        raise Refusal(NOTHING_RELEASED) from None
    if isinstance(released, Released):
        return released
    _log.error("round %d, %s: the ledger says no: %s", ask.round, ask.what, released.reason)
    raise Refusal(LEDGER_SAYS_NO)


def _local(study: Study) -> LocalPrivacy:
    if not isinstance(study.privacy, LocalPrivacy):
        raise PrivacyError(f"Expected a study of mode local; came mode {study.privacy.mode!r}.")
    return study.privacy


def _distributed(study: Study) -> DistributedPrivacy:
    if not isinstance(study.privacy, DistributedPrivacy):
        raise PrivacyError(f"Expected a study of mode distributed; came mode {study.privacy.mode!r}.")
    return study.privacy


def _source(spec: Private, site: str, called: Called, what: str) -> Source:
    if not spec.seeded_noise:
        return SecretSource()
    # By fold and purpose too: folds that share their noise would make an interval over folds too narrow.
    seed = derive(called.seed, "simulated release", what, called.fold)
    return SimulatedNoise_NotPrivate(seed=seed, site=site, round=called.round)
