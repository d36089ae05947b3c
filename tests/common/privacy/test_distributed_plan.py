"""Claims of a distributed study's constants: one way from the study to mechanisms, whoever survives."""

from dataclasses import replace

import numpy as np
import pytest

from sottovoce.common.errors import PrivacyError
from sottovoce.common.groups import Groups, Tables
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


def test_a_grid_on_which_a_recording_is_nothing_is_refused() -> None:
    attributes = dict.fromkeys("pqrs", ("a", "b"))
    tables = Tables(n_classes=3, groups=Groups(attributes=attributes, intersections=True), confidence_bins=15)
    many = replace(spec(), n_min=3, n_colluding=1, counts_noise_multiplier=1.0, counts_utterances=128)
    few = replace(many, n_patients_public=500_000)
    assert counts_mechanism(few, n_sites=8, tables=tables).grid_step == 1.0
    with pytest.raises(PrivacyError, match="single recordings"):
        counts_mechanism(replace(many, n_patients_public=1_000_000), n_sites=7, tables=tables)
