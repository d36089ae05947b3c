"""Builders for the privacy tests: a spec, an event, gradients, and a source that gives the words it is told to."""

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sottovoce.common.privacy.accountant import Event
from sottovoce.common.privacy.stages import PatientGradients
from sottovoce.common.privacy_specs import DistributedPrivacy, LocalPrivacy
from sottovoce.common.study import Study, loads


def a_spec(**changes: Any) -> LocalPrivacy:
    """A study of at most 1,000 patients, 16 steps a round, a mean draw of 62.5."""
    fields: dict[str, Any] = {
        "mode": "local",
        "clip_norm": 1.0,
        "noise_multiplier": 1.0,
        "sampling_prob": 1 / 16,
        "n_patients_public": 1000,
        "expected_patients": 62.5,
        "steps_per_round": 16,
        "delta": 1e-5,
        "spare_rounds": 0,
    }
    return LocalPrivacy(**(fields | changes))


def an_event(**changes: Any) -> Event:
    """320 steps at noise 2 over 1,000 patients: epsilon 2.56 at 1e-5."""
    fields: dict[str, Any] = {
        "noise_multiplier": 2.0,
        "sampling_prob": 1 / 16,
        "steps": 320,
        "cap": None,
        "n_patients": 1000,
    }
    return Event(**(fields | changes))


def some_gradients(n_rows: int = 4, width: int = 50, scale: float = 1.0, seed: int = 0) -> PatientGradients:
    """Rows of normal numbers."""
    values = np.random.default_rng(seed).standard_normal((n_rows, width)) * scale
    return PatientGradients(values=values.astype(np.float32))


class Told:
    """A source that gives out the words it was told, and then no more."""

    simulated = False

    def __init__(self, words: list[int]) -> None:
        self._words = words

    def words(self, n: int) -> NDArray[np.uint64]:
        given, self._words = self._words[:n], self._words[n:]
        assert len(given) == n, "the fake source was asked for more words than it was told"
        return np.array(given, dtype=np.uint64)


def a_distributed_study(*, rounds: int = 20, every_rounds: int = 20, **privacy: Any) -> Study:
    """Ten sites of at most 200 patients, of which eight must be there and two may collude; linear, 32 numbers."""
    fields: dict[str, Any] = {
        "mode": "distributed",
        "clip_norm": 1.0,
        "noise_multiplier": 6.0,
        "sampling_prob": 1.0,
        "n_patients_public": 200,
        "expected_patients": 150.0,
        "n_parameters": 36,
        "n_min": 8,
        "n_colluding": 2,
        "delta": 1e-5,
        "spare_rounds": 0,
    }
    study = loads(DISTRIBUTED_STUDY)
    return replace(
        study,
        federation=replace(study.federation, rounds=rounds),
        evaluation=replace(study.evaluation, every_rounds=every_rounds),
        privacy=DistributedPrivacy(**(fields | privacy)),
    )


DISTRIBUTED_STUDY = """
format = 1
name = "together"
purpose = "research"
corpora = [{ name = "voices" }]
labels = { classes = ["neutral", "happy", "sad", "angry"] }
streams = [{ name = "statistics", parts = [{ kind = "energy" }, { kind = "zero_crossings" }], pooling = "statistics" }]
normalisation = { scheme = "speaker" }
model = { kind = "linear", stream = "statistics" }
training = { optimiser = "sgd", learning_rate = 0.3 }
federation = { n_sites = 10, rounds = 20, partition = { kind = "corpus_sites" }, strategy = { kind = "fedavgm" } }
privacy = { mode = "none" }
evaluation = { folds = { kind = "by_patient_hash", k = 4 } }
"""
