"""The private rows of the comparison: sums by class and a GAN, from noised releases at a stated epsilon.

All training patients stand in one place, with one noise for all: what secure sums give to hospitals together (mode
`distributed`), and the best that any of them could have. The releases are those of `client/train_private.py`, the
generator is that of `server/strategies/adversarial.py`. Noise is seeded: SIMULATED, NOT PRIVATE.

Nineteen patients carry little: rows are first brought to `COLUMNS` columns by a random map that has seen no data, and
made rows are brought back by its transpose.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache

import numpy as np

from sottovoce.client.train_private import train_private
from sottovoce.common import models
from sottovoce.common.dataset import SiteData, StreamShape
from sottovoce.common.generative.gaussians import from_sums
from sottovoce.common.generative.networks import Labels, Rows, sample
from sottovoce.common.generative_specs import Adversarial
from sottovoce.common.model_specs import Discriminator, Moments
from sottovoce.common.privacy import accountant
from sottovoce.common.privacy.source import SimulatedNoise_NotPrivate
from sottovoce.common.privacy_specs import LocalPrivacy
from sottovoce.common.streams import stream
from sottovoce.common.study import FedAvg, Study, Training
from sottovoce.common.weights import Layout, from_state_dict
from sottovoce.server.made_rows import noise_on_sums
from sottovoce.server.strategies.adversarial import GENERATOR_MEAN, Game

EPSILON, DELTA, N_PATIENTS = 8.0, 0.03, 24
COLUMNS = 32
STREAM, SITE = "rows", "everybody"
GAN_ROUNDS = 30

Maker = Callable[[Labels, int], Rows]


def private_study(study: Study, *, kind: str, n_patients: int) -> Study:
    """Returns the study of a private generator at one site, with the noise of `EPSILON`."""
    gan = kind == "gan"
    rounds = GAN_ROUNDS if gan else 1
    spec = LocalPrivacy(
        mode="local",
        clip_norm=0.5,
        noise_multiplier=_noise(rounds),
        sampling_prob=1.0,
        n_patients_public=N_PATIENTS,
        expected_patients=float(n_patients),
        steps_per_round=1,
        utterances_per_patient=16 if gan else 64,
        delta=DELTA,
        small_population=True,
        seeded_noise=True,
        spare_rounds=0,
    )
    strategy = Adversarial(kind="adversarial", hidden=COLUMNS) if gan else FedAvg(kind="fedavg")
    model = (
        Discriminator(kind="discriminator", stream=STREAM, hidden=COLUMNS)
        if gan
        else Moments(kind="moments", stream=STREAM)
    )
    training = Training(
        learning_rate=1.0, optimiser="sgd", steps_per_round=1, loss="hinge" if gan else "label_score"
    )
    federation = replace(study.federation, n_sites=1, rounds=rounds, strategy=strategy)
    return replace(study, privacy=spec, model=model, training=training, federation=federation)


def private_gaussians(study: Study, rows: Rows, labels: Labels, patients: Labels, *, seed: int) -> Maker:
    """Reads Gaussians off one noised release of sums by class."""
    own = private_study(study, kind="gaussians", n_patients=len(set(patients.tolist())))
    data, back = _site(rows, labels, patients, seed)
    model = models.build(own.model, data.widths, len(study.labels.classes), seed=0)
    source = SimulatedNoise_NotPrivate(seed=seed, site=SITE, round=1)
    flat = train_private(model, data, own, site=SITE, round=1, source=source).values
    weights = Layout.of(from_state_dict(model.state_dict())).unflatten(flat)
    fitted = from_sums(weights, columns=COLUMNS, noise=noise_on_sums(own))
    return lambda wanted, again: fitted.sample(wanted, seed=again) @ back


def private_gan(study: Study, rows: Rows, labels: Labels, patients: Labels, *, seed: int) -> Maker:
    """Trains a generator against a discriminator that is stepped by noised releases."""
    own = private_study(study, kind="gan", n_patients=len(set(patients.tolist())))
    data, back = _site(rows, labels, patients, seed)
    model = models.build(own.model, data.widths, len(study.labels.classes), seed=0)
    layout = Layout.of(from_state_dict(model.state_dict()))
    game = Game(own, own.federation.strategy, seed)  # type: ignore[arg-type]  # as made above
    state = game.init(layout.flatten(from_state_dict(model.state_dict())))
    for round in range(1, own.federation.rounds + 1):
        source = SimulatedNoise_NotPrivate(seed=seed, site=SITE, round=round)
        sent = game.discriminator(state.weights)
        update = train_private(sent, data, own, site=SITE, round=round, source=source)
        state = game.apply(state, update.values - state.weights)
    generator = game.generator(state.weights, state.others[GENERATOR_MEAN])
    return lambda wanted, again: sample(generator, wanted, seed=again) @ back


@lru_cache
def _noise(rounds: int) -> float:
    event = accountant.Event(
        noise_multiplier=1.0, sampling_prob=1.0, steps=rounds, cap=N_PATIENTS, n_patients=N_PATIENTS
    )
    return accountant.noise_for(EPSILON, DELTA, event)


def _site(rows: Rows, labels: Labels, patients: Labels, seed: int) -> tuple[SiteData, Rows]:
    """Returns the rows in few columns as one site, and the map back."""
    square = stream(seed, "public map", rows.shape[1]).standard_normal((rows.shape[1], COLUMNS))
    directions = np.linalg.qr(square)[0].astype(np.float32)
    few = rows @ directions
    names = tuple(map(str, patients.tolist()))
    n = len(labels)
    data = SiteData(
        site=SITE,
        shapes={STREAM: StreamShape(width=COLUMNS, n_frames=None)},
        keys=tuple(map(str, range(n))),
        labels=labels,
        speakers=names,
        patients=names,
        groups=({},) * n,
        copies=np.zeros(n, np.int64),
        trains=np.ones(n, np.bool_),
        enrols=np.zeros(n, np.bool_),
        homes=(SITE,) * n,
        rows=np.arange(n),
        arrays={STREAM: few},
        stored_lengths={},
    )
    return data, directions.T
