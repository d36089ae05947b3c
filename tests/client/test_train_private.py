"""Private training in a site: one patient changes one clipped share, noise comes always, nothing else goes out."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from sottovoce.client.train_private import train_private, within
from sottovoce.common import models
from sottovoce.common import study as studies
from sottovoce.common.dataset import Example, SiteData, StreamShape
from sottovoce.common.errors import PrivacyError
from sottovoce.common.privacy.source import SecretSource, SimulatedNoise_NotPrivate
from sottovoce.common.streams import stream
from sottovoce.common.study import Study
from sottovoce.common.weights import from_state_dict
from tests.fakes.sites import TWO_STREAMS, WIDTH, private_study, write_sites

SITE = "site-1"


class ByCall:
    """A seeded source whose n-th call gives the same words whatever the calls before it asked for."""

    simulated = True

    def __init__(self) -> None:
        self._calls = 0

    def words(self, n: int) -> NDArray[np.uint64]:
        self._calls += 1
        words: NDArray[np.uint64] = stream(5, "by call", self._calls).bit_generator.random_raw(n)
        return words


@pytest.fixture
def data(tmp_path: Path) -> SiteData:
    return SiteData.open(write_sites(tmp_path / "sites", 1)[SITE])


def study_of(tmp_path: Path, **changes: str) -> Study:
    return studies.load(private_study(tmp_path / "study.toml", rounds=3, **changes))


def model_of(study: Study) -> nn.Module:
    return models.build(study.model, {"pooled": WIDTH}, len(study.labels.classes), seed=0)


def flat(model: nn.Module) -> NDArray[np.float32]:
    return np.concatenate([array.reshape(-1) for array in from_state_dict(model.state_dict()).values()])


def update(model: nn.Module, data: SiteData, study: Study, **more: object) -> NDArray[np.float32]:
    arguments = {"site": SITE, "round": 1, "source": ByCall()} | more
    return train_private(model, data, study, **arguments).values  # type: ignore[arg-type]


def without(data: SiteData, patient: str) -> SiteData:
    return data.select(np.array([one != patient for one in data.patients]))


def test_one_patient_moves_the_update_by_at_most_one_clip_over_the_public_constant(
    tmp_path: Path, data: SiteData
) -> None:
    study = study_of(tmp_path, sampling_prob="1.0")
    model, last = model_of(study), max(data.patients)
    loud = replace(
        data, arrays={"pooled": np.asarray(data.arrays["pooled"]) * 1e4}
    )  # gradients far above the bound
    change = update(model, loud, study) - update(model, without(loud, last), study)
    assert 0.49 < np.linalg.norm(change.astype(np.float64)) <= 0.5 * (1 + 1e-5)


def test_without_the_clip_one_patient_moves_it_further(tmp_path: Path, data: SiteData) -> None:
    study = study_of(tmp_path, sampling_prob="1.0", clip_norm="100.0")
    model, last = model_of(study), max(data.patients)
    loud = replace(data, arrays={"pooled": np.asarray(data.arrays["pooled"]) * 1e4})
    change = update(model, loud, study) - update(model, without(loud, last), study)
    assert np.linalg.norm(change) > 1.0


def test_a_site_without_patients_releases_noise(tmp_path: Path, data: SiteData) -> None:
    study = study_of(tmp_path)
    model = model_of(study)
    change = update(model, data.select(np.empty(0, np.int64)), study) - flat(model)
    assert 0.3 < change.std() < 0.7  # noise 1.0 x clip 1.0, over 2


def test_who_withdrew_changes_no_bit(tmp_path: Path, data: SiteData) -> None:
    study = study_of(tmp_path, sampling_prob="1.0")
    gone = data.patients[0]
    own = np.array([patient == gone for patient in data.patients])
    features = np.array(data.arrays["pooled"])
    features[own] += 3.0
    other = replace(data, arrays={"pooled": features})
    model = model_of(study)
    np.testing.assert_array_equal(
        update(model, data, study, withdrawn={gone}), update(model, other, study, withdrawn={gone})
    )
    assert (update(model, data, study) != update(model, other, study)).any()


def test_seeded_noise_gives_the_same_bits_and_secret_noise_never_does(tmp_path: Path, data: SiteData) -> None:
    study = study_of(tmp_path)
    model = model_of(study)
    first, again = (
        update(model, data, study, source=SimulatedNoise_NotPrivate(seed=0, site=SITE, round=1)) for _ in "ab"
    )
    np.testing.assert_array_equal(first, again)
    secret = [update(model, data, study, source=SecretSource()) for _ in "ab"]
    assert (secret[0] != secret[1]).all()


def test_the_model_is_left_as_it_was_and_the_result_is_marked(tmp_path: Path, data: SiteData) -> None:
    study = study_of(tmp_path, steps_per_round="3")
    model = model_of(study)
    before = flat(model)
    result = train_private(model, data, study, site=SITE, round=1, source=ByCall())
    np.testing.assert_array_equal(flat(model), before)
    assert (result.steps, result.simulated) == (3, True)


@pytest.mark.parametrize(("trained", "moves"), [('"all"', 4), ('"head"', 2), ('"low_rank"', 3)])
def test_only_what_the_study_trains_moves(tmp_path: Path, data: SiteData, trained: str, moves: int) -> None:
    study = study_of(tmp_path, trained=trained, rank="2", steps_per_round="2")
    model = model_of(study)
    names = {name: tensor.numel() for name, tensor in model.state_dict().items()}
    found = np.split(update(model, data, study), np.cumsum(list(names.values()))[:-1])
    before = np.split(flat(model), np.cumsum(list(names.values()))[:-1])
    changed = [name for name, new, old in zip(names, found, before, strict=True) if (new != old).any()]
    assert len(changed) == moves, changed


def test_the_change_of_weights_stays_within_the_public_norm() -> None:
    start = np.ones(1000, np.float32)
    far = start + np.float32(100.0)
    bounded = within(start, far, 5.0)
    length = np.linalg.norm(bounded.astype(np.float64) - start)
    assert 4.99 < length <= 5.0
    np.testing.assert_array_equal(within(start, far, 1e5), far)


def test_two_patients_under_one_speaker_id_are_refused_where_features_are_standardised_by_speaker(
    tmp_path: Path, data: SiteData
) -> None:
    study = study_of(tmp_path)
    mixed = replace(data, patients=("other", *data.patients[1:]))
    by_speaker = replace(study, normalisation=replace(study.normalisation, scheme="speaker"))
    with pytest.raises(PrivacyError, match="each speaker to be one patient"):
        update(model_of(study), mixed, by_speaker)
    assert update(model_of(study), mixed, study).dtype == np.float32


def test_more_patients_than_the_study_allows_for_are_refused(tmp_path: Path, data: SiteData) -> None:
    study = study_of(tmp_path, n_patients_public="3", delta="0.05", expected_patients="2.0")
    with pytest.raises(PrivacyError, match="n_patients_public=3"):
        update(model_of(study), data, study)


def test_torch_s_global_random_state_is_not_touched(tmp_path: Path, data: SiteData) -> None:
    study = study_of(tmp_path)
    model = model_of(study)
    before = torch.random.get_rng_state()
    update(model, data, study)
    assert torch.equal(torch.random.get_rng_state(), before)


FUSION = """{ kind = "fusion", level = "LEVEL", branches = [
  { kind = "mlp", stream = "pooled", hidden = 5 }, { kind = "lstm", stream = "frames", hidden = 8 },
] }"""
KINDS = {
    "linear": '{ kind = "linear", stream = "pooled" }',
    "mlp": '{ kind = "mlp", stream = "pooled", hidden = 5 }',
    "cnn": '{ kind = "cnn", stream = "frames", channels = [8, 8] }',
    "rnn": '{ kind = "rnn", stream = "frames", hidden = 8 }',
    "lstm": '{ kind = "lstm", stream = "frames", hidden = 8, bidirectional = true }',
    "attention": '{ kind = "attention", stream = "frames", width = 8, heads = 2 }',
    "cnn_lstm_attention": '{ kind = "cnn_lstm_attention", stream = "frames" }',
    **{level: FUSION.replace("LEVEL", level) for level in ("feature", "decision", "deep")},
}


def frames_and_rows(folder: Path) -> SiteData:
    draw = np.random.default_rng(0)
    shapes = {"pooled": StreamShape(width=6, n_frames=None), "frames": StreamShape(width=5, n_frames=40)}
    examples = [
        Example(
            key=str(i),
            label=i % 3,
            speaker=f"s{i % 4}",
            patient=f"s{i % 4}",
            groups={},
            features={
                "pooled": draw.normal(size=6).astype(np.float32),
                "frames": draw.normal(size=(20 + i, 5)).astype(np.float32),
            },
        )
        for i in range(12)
    ]
    return SiteData.write(folder, site=SITE, shapes=shapes, examples=examples)


@pytest.mark.parametrize("unit", ["patient", "utterance"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_model_of_the_project_trains_privately(tmp_path: Path, kind: str, unit: str) -> None:
    data = frames_and_rows(tmp_path / "site")
    path = tmp_path / "study.toml"
    study = studies.load(private_study(path, model=KINDS[kind], streams=TWO_STREAMS, unit=f'"{unit}"'))
    for trained in ("all", "head", "low_rank") if kind != "linear" else ("all", "head"):
        privacy = replace(study.privacy, trained=trained)  # type: ignore[arg-type]
        model = models.build(study.model, {"pooled": 6, "frames": 5}, 3, seed=0)
        found = update(model, data, replace(study, privacy=privacy))
        assert np.isfinite(found).all()
        assert (found != flat(model)).any()
