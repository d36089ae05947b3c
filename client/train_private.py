"""One site's private training in one round: what comes out of it may leave, in mode `distributed` under masks.

    update = train_private(model, data, study, site="a", round=3, source=SecretSource())

Each of the study's steps is `plan.draw` -> a gradient for each drawn patient -> `plan.release` -> optimiser. What
follows from those releases and from public numbers (schedule, optimiser, proximal pull, the bound on the update's
norm) is post-processing. `gradient_sum` is the one step of a round of mode `distributed`: the same draw and the same
gradients, clipped and summed with a share of the noise.

Guarantees:
  - The patients' recordings reach the result through `plan.release` alone, `steps_per_round` times: also at a
    site, or in a round, in which nobody is drawn.
  - No loss, no count and no other number computed from private data is returned or logged.
  - The change of weights has a norm of at most `federation.max_update_norm`.
  - The model is left as it was. With a seeded source the result is the same bits in any process and attempt.
"""

import copy
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from sottovoce.client.private import all_rows
from sottovoce.client.private.bookkeeping import BookKeeping
from sottovoce.client.private.lowrank import add_low_rank, merge_low_rank
from sottovoce.client.private.trainable import freeze_all_but
from sottovoce.client.transferred import anchored, stepping
from sottovoce.common.dataset import SiteData
from sottovoce.common.errors import PrivacyError
from sottovoce.common.group_weights import largest, of_recordings
from sottovoce.common.models import streams_of
from sottovoce.common.optimiser import FlatParameters, Optimiser
from sottovoce.common.privacy.distributed import DistributedMechanism, site_sum
from sottovoce.common.privacy.plan import after_steps, draw, release
from sottovoce.common.privacy.source import Source
from sottovoce.common.privacy.stages import PatientGradients, PrivateUpdate, SiteSum
from sottovoce.common.privacy_specs import DistributedPrivacy, LocalPrivacy, Private
from sottovoce.common.schedule import learning_rate_at
from sottovoce.common.study import Study
from sottovoce.common.training import losses_of
from sottovoce.common.weights import Layout, Weights, from_state_dict

HEAD = ("head.",)
NORM_MARGIN = 1e-6  # weights are float32: the coordinator computes the norm from rounded numbers


def train_private(
    model: nn.Module,
    data: SiteData,
    study: Study,
    *,
    site: str,
    round: int,
    source: Source,
    withdrawn: Collection[str] = (),
    proximal_mu: float = 0.0,
    correction: Weights | None = None,
    group_weights: Sequence[float] = (),
    device: str | torch.device = "cpu",
) -> PrivateUpdate:
    """Returns the weights after a round, flat in the order of the model's layout, as what may leave the site.

    `data` are the recordings that may be trained on; `withdrawn` are patients who are not drawn. `correction`, of
    numbers that were released before, is added to the gradient of every step (SCAFFOLD). `group_weights` are those of
    a group-robust study: public, and they multiply a patient's gradient after it was clipped.

    Raises:
        PrivacyError: no guarantee can be given for these data, constants or this source; nothing was released.
    """
    spec = study.privacy
    if not isinstance(spec, LocalPrivacy):
        raise PrivacyError(f"Expected a study of mode local; came mode {spec.mode!r}.")
    check_units(data, study)
    start = from_state_dict(model.state_dict())
    trained = _trained_copy(model, spec, site=site, round=round).to(torch.device(device)).train()
    steps = _steps(
        trained, data, study, spec, round, source, withdrawn, proximal_mu, correction, group_weights
    )
    if spec.trained == "low_rank":
        merge_low_rank(trained)
    weights = from_state_dict(trained.state_dict())
    layout = Layout.of(start)
    bounded = within(layout.flatten(start), layout.flatten(weights), study.federation.max_update_norm)
    return after_steps(bounded, steps)


def gradient_sum(
    model: nn.Module,
    data: SiteData,
    study: Study,
    mechanism: DistributedMechanism,
    *,
    source: Source,
    withdrawn: Collection[str] = (),
    group_weights: Sequence[float] = (),
    device: str | torch.device = "cpu",
) -> SiteSum:
    """Returns a site's part of a round in mode `distributed`: clipped gradients, summed, and a share of noise.

    In the order of the model's layout, in whole grid steps. It is still private: only masks make it fit to leave.

    Raises:
        PrivacyError: no guarantee can be given for these data, constants or this source; nothing was released.
    """
    spec = study.privacy
    if not isinstance(spec, DistributedPrivacy):
        raise PrivacyError(f"Expected a study of mode distributed; came mode {spec.mode!r}.")
    check_units(data, study)
    trained = copy.deepcopy(model).requires_grad_(True).to(torch.device(device)).train()
    if [name for name, _ in trained.named_parameters()] != list(trained.state_dict()):
        raise PrivacyError(
            "Expected a model whose tensors are all trained, in one order; this one has others."
        )
    pool = _Pool.of(data.only(streams_of(trained)), withdrawn, _scales(study, data, group_weights))
    with FlatParameters(trained) as flat:
        engine = _engine(trained, study, spec, len(flat.values))
        gradients = pool.drawn(spec, engine, source, flat.values.device)
    return site_sum(gradients, mechanism, source)


def check_units(data: SiteData, study: Study) -> None:
    """Raises: PrivacyError where two patients share what the study takes for one patient's own."""
    if (data.copies != 0).any():
        raise PrivacyError("Expected recordings as they were made; came augmented copies.")
    people = set(zip(data.speakers, data.patients, strict=True))
    if study.normalisation.by_person and len(people) != len(set(data.speakers)):
        raise PrivacyError(
            "Expected each speaker to be one patient, because features are standardised by speaker; at this site two "
            "patients share a speaker id. Mend the manifest, or take another normalisation."
        )


def within(
    start: npt.NDArray[np.float32], weights: npt.NDArray[np.float32], norm: float
) -> npt.NDArray[np.float32]:
    """Returns the weights, drawn back towards `start` as far as the norm of their change demands."""
    change = weights.astype(np.float64) - start
    length = float(np.linalg.norm(change))
    if length <= norm * (1 - NORM_MARGIN):
        return weights
    shorter: npt.NDArray[np.float32] = (start + change * (norm * (1 - NORM_MARGIN) / length)).astype(
        np.float32
    )
    return shorter


def utterances_in_a_pass(spec: Private) -> int:
    """Returns how many recordings go through the model at once: from public constants, never from the draw."""
    n_units = spec.n_units if isinstance(spec, LocalPrivacy) else spec.n_patients_public
    expected = n_units * spec.sampling_prob
    return 64 if expected < 256 else 256


def _trained_copy(model: nn.Module, spec: LocalPrivacy, *, site: str, round: int) -> nn.Module:
    """A copy with the parameters that the study trains; adapters are public, and new in each round."""
    trained = copy.deepcopy(model)
    try:
        match spec.trained:
            case "all":
                trained.requires_grad_(True)
            case "head":
                freeze_all_but(trained, HEAD)
            case "low_rank":
                add_low_rank(trained, rank=spec.rank, seed=round, also=HEAD)
    except ValueError as error:
        raise PrivacyError(f"privacy.trained = {spec.trained!r} does not fit this model: {error}") from None
    return trained


def _steps(
    model: nn.Module,
    data: SiteData,
    study: Study,
    spec: LocalPrivacy,
    round: int,
    source: Source,
    withdrawn: Collection[str],
    proximal_mu: float,
    correction: Weights | None,
    group_weights: Sequence[float],
) -> list[PrivateUpdate]:
    pool = _Pool.of(data.only(streams_of(model)), withdrawn, _scales(study, data, group_weights))
    learning_rate = learning_rate_at(study.training, round, study.federation.rounds)
    released = []
    with FlatParameters(model) as flat:
        start = flat.values.clone()
        drift = None if correction is None else flat.vector(correction)
        optimiser = stepping(Optimiser(study.training, flat.values), model, flat, anchored(study, model))
        engine = _engine(model, study, spec, len(flat.values))
        for _ in range(spec.steps_per_round):
            step = release(pool.drawn(spec, engine, source, flat.values.device), spec, source)
            gradient = torch.from_numpy(step.values).to(flat.values.device)
            if proximal_mu:
                gradient.add_(flat.values - start, alpha=proximal_mu)
            if drift is not None:
                gradient.add_(drift)
            optimiser.step(flat.values, gradient, learning_rate)
            released.append(step)
    return released


@dataclass(frozen=True, kw_only=True)
class _Pool:
    """Who may be drawn: recordings, the patient (by number) and scale of each, and who withdrew. Private."""

    data: SiteData
    owners: npt.NDArray[np.int64]
    n_patients: int
    gone: Collection[int]
    scales: npt.NDArray[np.float64] | None = None

    @staticmethod
    def of(
        data: SiteData, withdrawn: Collection[str], scales: npt.NDArray[np.float64] | None = None
    ) -> "_Pool":
        patients = sorted(set(data.patients))
        owners = (
            np.searchsorted(patients, data.patients).astype(np.int64) if patients else np.empty(0, np.int64)
        )
        gone = [number for number, patient in enumerate(patients) if patient in withdrawn]
        return _Pool(data=data, owners=owners, n_patients=len(patients), gone=gone, scales=scales)

    def __repr__(self) -> str:
        return "_Pool(...)"

    def drawn(
        self, spec: Private, engine: BookKeeping, source: Source, device: torch.device
    ) -> PatientGradients:
        """Draws one step's patients and returns a gradient for each."""
        step = draw(spec, self.owners, self.n_patients, source, withdrawn=self.gone)
        values = _gradients(engine, self.data, step.recordings, step.rows, device)
        if self.scales is None:
            return PatientGradients(values=values)
        n_each = np.bincount(step.rows, minlength=len(values))
        summed = np.bincount(step.rows, weights=self.scales[step.recordings], minlength=len(values))
        return PatientGradients(values=values, scales=np.minimum(summed / n_each, 1.0))


def _scales(study: Study, data: SiteData, group_weights: Sequence[float]) -> npt.NDArray[np.float64] | None:
    """Returns what each recording counts over the most that any may, by its group; None where all count alike."""
    weights = of_recordings(study, group_weights, data.groups, data.labels)
    return None if weights is None else weights.astype(np.float64) / largest(study, group_weights)


def _engine(model: nn.Module, study: Study, spec: Private, n_parameters: int) -> BookKeeping:
    return BookKeeping(
        model,
        lambda logits, labels: losses_of(logits, labels, study.training),
        max_floats=spec.draw_cap * n_parameters,
        utterances=utterances_in_a_pass(spec),
    )


def _gradients(
    engine: BookKeeping,
    data: SiteData,
    recordings: npt.NDArray[np.int64],
    rows: npt.NDArray[np.int64],
    device: torch.device,
) -> npt.NDArray[np.float32]:
    if len(recordings) == 0:  # nobody was drawn: noise is released all the same
        return np.empty((0, engine.n_parameters), np.float32)
    found: npt.NDArray[np.float32] = all_rows(engine, data.batch(recordings).to(device), rows).cpu().numpy()
    return found
