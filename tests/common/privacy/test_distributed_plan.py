"""Claims of a distributed study's constants: one way from the study to mechanisms, whoever survives."""

import numpy as np
import pytest

from sottovoce.common.groups import Tables
from sottovoce.common.privacy.distributed import decoded
from sottovoce.common.privacy.distributed_plan import counts_mechanism, for_survivors, update_mechanism
from sottovoce.common.privacy_specs import DistributedPrivacy
from tests.fakes.privacy import a_distributed_study


def spec() -> DistributedPrivacy:
    privacy = a_distributed_study(counts_noise_multiplier=20.0).privacy
    assert isinstance(privacy, DistributedPrivacy)
    return privacy


@pytest.mark.parametrize("n_summed", [8, 9, 10])
def test_a_mean_stays_a_mean_when_sites_are_lost(n_summed: int) -> None:
    mechanism = for_survivors(update_mechanism(spec(), n_sites=10), spec(), n_summed)
    of_one_site = np.full(36, round(150 * 0.25 / mechanism.grid_step))  # 150 patients expected, each with 1/4
    assert decoded(n_summed * of_one_site, mechanism, n_summed=n_summed).values == pytest.approx(0.25)


def test_counts_are_of_every_withheld_patient_with_at_most_so_many_recordings() -> None:
    mechanism = counts_mechanism(spec(), n_sites=10, tables=Tables(n_classes=4))
    assert (mechanism.cap, mechanism.n_parameters) == (spec().n_patients_public, 16)
    assert mechanism.clip_norm == spec().counts_utterances
