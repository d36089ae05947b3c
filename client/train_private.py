"""One site's private training in one round (mode `local`): what comes out of it may leave.

    update = train_private(model, data, study, site="a", round=3, source=SecretSource())

Each of the study's steps is `plan.draw` -> a gradient for each drawn patient -> `plan.release` -> optimiser. What
follows from those releases and from public numbers (schedule, optimiser, proximal pull, the bound on the update's
norm) is post-processing.

Guarantees:
  - The patients' recordings reach the result through `plan.release` alone, `steps_per_round` times: also at a
    site, or in a round, in which nobody is drawn.
  - No loss, no count and no other number computed from private data is returned or logged.
  - The change of weights has a norm of at most `federation.max_update_norm`.
  - The model is left as it was. With a seeded source the result is the same bits in any process and attempt.
"""

import copy
from collections.abc import Collection

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from sottovoce.client.optimiser import FlatParameters, Optimiser
from sottovoce.client.private import all_rows
from sottovoce.client.private.bookkeeping import BookKeeping
from sottovoce.client.private.lowrank import add_low_rank, merge_low_rank
from sottovoce.client.private.trainable import freeze_all_but
from sottovoce.client.train import learning_rate_at, losses_of
from sottovoce.common.dataset import SiteData
from sottovoce.common.errors import PrivacyError
from sottovoce.common.models import streams_of
from sottovoce.common.privacy.plan import after_steps, draw, release
from sottovoce.common.privacy.source import Source
from sottovoce.common.privacy.stages import PatientGradients, PrivateUpdate
from sottovoce.common.privacy_specs import LocalPrivacy
from sottovoce.common.study import Study
from sottovoce.common.weights import Layout, from_state_dict

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
    device: str | torch.device = "cpu",
) -> PrivateUpdate:
    """Returns the weights after a round, flat in the order of the model's layout, as what may leave the site.

    `data` are the recordings that may be trained on; `withdrawn` are patients who are not drawn.

    Raises:
        PrivacyError: no guarantee can be given for these data, constants or this source; nothing was released.
    """
    spec = study.privacy
    if not isinstance(spec, LocalPrivacy):
        raise PrivacyError(f"Expected a study of mode local; came mode {spec.mode!r}.")
    check_units(data, study)
    start = from_state_dict(model.state_dict())
    trained = _trained_copy(model, spec, site=site, round=round).to(torch.device(device)).train()
    steps = _steps(trained, data, study, spec, round, source, withdrawn, proximal_mu)
    if spec.trained == "low_rank":
        merge_low_rank(trained)
    weights = from_state_dict(trained.state_dict())
    layout = Layout.of(start)
    bounded = within(layout.flatten(start), layout.flatten(weights), study.federation.max_update_norm)
    return after_steps(bounded, steps)


def check_units(data: SiteData, study: Study) -> None:
    """Raises: PrivacyError where two patients share what the study takes for one patient's own."""
    if (data.copies != 0).any():
        raise PrivacyError("Expected recordings as they were made; came augmented copies.")
    people = set(zip(data.speakers, data.patients, strict=True))
    if study.normalisation.scheme == "speaker" and len(people) != len(set(data.speakers)):
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


def utterances_in_a_pass(spec: LocalPrivacy) -> int:
    """Returns how many recordings go through the model at once: from public constants, never from the draw."""
    expected = spec.n_units * spec.sampling_prob
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
) -> list[PrivateUpdate]:
    data = data.only(streams_of(model))
    patients = sorted(set(data.patients))
    owners = np.searchsorted(patients, data.patients).astype(np.int64) if patients else np.empty(0, np.int64)
    gone = [number for number, patient in enumerate(patients) if patient in withdrawn]
    learning_rate = learning_rate_at(study.training, round, study.federation.rounds)
    released = []
    with FlatParameters(model) as flat:
        start = flat.values.clone()
        optimiser = Optimiser(study.training, flat.values)
        engine = BookKeeping(
            model,
            lambda logits, labels: losses_of(logits, labels, study.training),
            max_floats=spec.draw_cap * len(flat.values),
            utterances=utterances_in_a_pass(spec),
        )
        for _ in range(spec.steps_per_round):
            drawn = draw(spec, owners, len(patients), source, withdrawn=gone)
            gradients = _gradients(engine, data, drawn.recordings, drawn.rows, flat.values.device)
            step = release(PatientGradients(values=gradients), spec, source)
            gradient = torch.from_numpy(step.values).to(flat.values.device)
            if proximal_mu:
                gradient.add_(flat.values - start, alpha=proximal_mu)
            optimiser.step(flat.values, gradient, learning_rate)
            released.append(step)
    return released


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
