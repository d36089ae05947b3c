"""Folds: each speaker once, each site alone, every fold alike."""

from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sottovoce.common.errors import CorpusError
from sottovoce.common.folds import NAMED_FOLDS, fold_of, leaking_random_fold, n_folds
from sottovoce.common.study import NamedFolds, SpeakerFolds

SPEAKERS = st.lists(st.text(min_size=1, max_size=8), max_size=40, unique=True)
BY_SPEAKER = SpeakerFolds(kind="by_speaker", k=5)
LUNA = NamedFolds(kind="named", name="ravdess-luna-jimenez")
EMOBOX = NamedFolds(kind="named", name="ravdess-emobox")


@given(speakers=SPEAKERS, seed=st.integers(0, 2**63), site=st.text(max_size=8), k=st.integers(2, 50))
def test_each_speaker_is_in_exactly_one_fold(speakers: list[str], seed: int, site: str, k: int) -> None:
    folds = fold_of(SpeakerFolds(kind="by_speaker", k=k), seed, site, speakers)
    assert sorted(folds) == sorted(speakers)
    assert all(0 <= fold < k for fold in folds.values())


@given(speakers=SPEAKERS, order=st.randoms(use_true_random=False))
def test_the_order_and_repetition_of_speakers_do_not_matter(speakers: list[str], order: Random) -> None:
    shuffled = speakers * 2
    order.shuffle(shuffled)
    assert fold_of(BY_SPEAKER, 3, "site-1", shuffled) == fold_of(BY_SPEAKER, 3, "site-1", speakers)


@given(speakers=SPEAKERS, k=st.integers(2, 12))
def test_folds_of_a_site_differ_by_at_most_one_speaker(speakers: list[str], k: int) -> None:
    folds = fold_of(SpeakerFolds(kind="by_speaker", k=k), 0, "site-1", speakers)
    sizes = np.bincount(list(folds.values()), minlength=k)
    assert sizes.max() - sizes.min() <= 1


def test_a_site_is_dealt_alone_and_differently_from_its_neighbour() -> None:
    speakers = [f"s{index}" for index in range(20)]
    alone = fold_of(BY_SPEAKER, 0, "site-1", speakers)
    fold_of(BY_SPEAKER, 0, "site-2", [*speakers, "another"])  # no state is kept between sites
    assert fold_of(BY_SPEAKER, 0, "site-1", speakers) == alone
    assert fold_of(BY_SPEAKER, 0, "site-2", speakers) != alone


def test_no_fold_is_larger_over_many_sites() -> None:
    """Four speakers in five folds: one fold stays empty at each site, none more often."""
    sizes = np.zeros(5, dtype=int)
    for site in range(1000):
        folds = fold_of(BY_SPEAKER, 0, f"site-{site}", ["a", "b", "c", "d"])
        sizes += np.bincount(list(folds.values()), minlength=5)
    # Each fold is the empty one at Binomial(1000, 1/5) sites: standard deviation 12.6; five of them is 63.
    assert np.abs(sizes - 800).max() < 63


def test_dealing_that_always_starts_at_the_first_fold_would_be_noticed() -> None:
    """The twin of the test above: without a start of its own each site leaves the last fold empty."""
    sizes = np.bincount([turn % 5 for _ in range(1000) for turn in range(4)], minlength=5)
    assert np.abs(sizes - 800).max() >= 63


def test_folds_change_with_the_seed_and_named_folds_do_not() -> None:
    speakers = [f"{number:02d}" for number in range(1, 25)]
    assert fold_of(BY_SPEAKER, 0, "site-1", speakers) != fold_of(BY_SPEAKER, 1, "site-1", speakers)
    assert fold_of(LUNA, 0, "site-1", speakers) == fold_of(LUNA, 1, "site-2", speakers)


@pytest.mark.parametrize("name", sorted(NAMED_FOLDS))
def test_a_named_set_holds_the_24_actors_once(name: str) -> None:
    assert sorted(actor for fold in NAMED_FOLDS[name] for actor in fold) == list(range(1, 25))


def test_named_folds_are_the_published_ones() -> None:
    assert n_folds(LUNA) == 5
    assert fold_of(LUNA, 0, "a", ["02", "03", "10", "08", "22"]) == {
        "02": 0,
        "03": 1,
        "08": 3,
        "10": 2,
        "22": 4,
    }
    assert n_folds(EMOBOX) == 6
    assert fold_of(EMOBOX, 0, "a", ["01", "04", "08", "03", "02", "06"]) == {
        "01": 0,
        "02": 4,
        "03": 3,
        "04": 1,
        "06": 5,
        "08": 2,
    }


@pytest.mark.parametrize("written", ["7", "07", "007"])
def test_an_actor_may_be_written_with_or_without_zeros(written: str) -> None:
    assert fold_of(LUNA, 0, "a", [written]) == {written: 1}


@pytest.mark.parametrize("speaker", ["25", "0", "00", "-1", "1001", "anna", "", "٣", "3 "])
def test_a_speaker_outside_a_named_set_is_an_error(speaker: str) -> None:
    with pytest.raises(CorpusError, match="expected the speakers 01 to 24 of 'ravdess-luna-jimenez'"):
        fold_of(LUNA, 0, "a", ["01", speaker])


@given(labels=st.lists(st.integers(0, 7), max_size=200), k=st.integers(2, 10), seed=st.integers(0, 99))
def test_the_leaking_split_is_stratified(labels: list[int], k: int, seed: int) -> None:
    folds = leaking_random_fold(seed=seed, site="site-1", labels=labels, k=k)
    assert len(folds) == len(labels)
    for members in (folds, *(folds[np.asarray(labels) == label] for label in set(labels))):
        sizes = np.bincount(members, minlength=k)
        assert sizes.max() - sizes.min() <= 1


def test_the_leaking_split_is_random_and_repeatable() -> None:
    labels = [0, 1] * 30
    first = leaking_random_fold(seed=0, site="site-1", labels=labels, k=5)
    assert np.array_equal(first, leaking_random_fold(seed=0, site="site-1", labels=labels, k=5))
    assert not np.array_equal(first, leaking_random_fold(seed=1, site="site-1", labels=labels, k=5))
    assert not np.array_equal(first, leaking_random_fold(seed=0, site="site-2", labels=labels, k=5))
