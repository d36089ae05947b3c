"""Dealing speakers to sites."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sottovoce.common.errors import CorpusError
from sottovoce.common.study import CorpusSites, DirichletLabels, Federation, SpeakerBlocks
from sottovoce.simulations.partition import Row, deal, site_names

BLOCKS = SpeakerBlocks(kind="speaker_blocks")


def federation(n_sites: int, partition: SpeakerBlocks | CorpusSites | DirichletLabels = BLOCKS) -> Federation:
    return Federation(n_sites=n_sites, rounds=1, partition=partition)


def rows(n_speakers: int, each: int = 4, site: str | None = None) -> list[Row]:
    return [
        Row(speaker=f"{speaker:02d}", patient=f"{speaker:02d}", label=clip % 2, site=site)
        for speaker in range(1, n_speakers + 1)
        for clip in range(each)
    ]


def test_twenty_four_actors_fall_into_six_blocks_of_four() -> None:
    dealt = deal(federation(6), rows(24))
    by_site: dict[str, set[str]] = {}
    for row, site in zip(rows(24), dealt.sites, strict=True):
        by_site.setdefault(site, set()).add(row.speaker)
    assert by_site["site-1"] == {"01", "02", "03", "04"}
    assert by_site["site-6"] == {"21", "22", "23", "24"}


@given(st.integers(1, 12), st.integers(12, 30), st.randoms(use_true_random=False))
def test_a_speaker_is_at_one_site_whatever_the_order(n_sites: int, n_speakers: int, random: object) -> None:
    ordered = rows(n_speakers)
    shuffled = list(ordered)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    homes = dict(zip([r.speaker for r in ordered], deal(federation(n_sites), ordered).sites, strict=True))
    again = deal(federation(n_sites), shuffled).sites
    assert all(homes[row.speaker] == site for row, site in zip(shuffled, again, strict=True))
    assert len(set(again)) == n_sites


def test_site_names_sort_by_number() -> None:
    assert site_names(12) == sorted(site_names(12))


def test_a_patient_under_two_speaker_ids_stays_at_one_site() -> None:
    both = [
        Row(speaker=str(i), patient="p" if i in (0, 9) else str(i), label=0, site=None) for i in range(10)
    ]
    sites = deal(federation(5), both).sites
    assert sites[0] == sites[9]


def test_too_few_speakers_say_what_to_do() -> None:
    with pytest.raises(CorpusError, match="at most as many sites as the corpus has patients, 2; came 6"):
        deal(federation(6), rows(2))


def test_stated_sites_are_taken_and_must_fit_the_study() -> None:
    stated = federation(1, CorpusSites(kind="corpus_sites"))
    assert set(deal(stated, rows(3, site="north")).sites) == {"north"}
    with pytest.raises(CorpusError, match="states 1 sites; the study says 2"):
        deal(federation(2, CorpusSites(kind="corpus_sites")), rows(3, site="north"))
    with pytest.raises(CorpusError, match="12 have none"):
        deal(stated, rows(3))


def test_a_corpus_without_sites_is_dealt_in_blocks_if_the_study_says_so() -> None:
    lenient = federation(2, CorpusSites(kind="corpus_sites", otherwise="speaker_blocks"))
    assert set(deal(lenient, rows(4)).sites) == {"site-1", "site-2"}
    with pytest.raises(CorpusError, match="4 have none"):  # some do, some do not: not for us to guess
        deal(lenient, [*rows(1), *rows(1, site="north")])


def test_one_voice_at_two_sites_is_refused() -> None:
    split = [
        Row(speaker="a", patient="a", label=0, site="north"),
        Row(speaker="a", patient="a", label=0, site="south"),
    ]
    with pytest.raises(CorpusError, match="a speaker is at two sites"):
        deal(federation(2, CorpusSites(kind="corpus_sites")), split)


def test_a_small_alpha_skews_labels_and_a_large_one_does_not() -> None:
    def spread(alpha: float) -> float:
        many = rows(40, each=60)
        dealt = deal(federation(4, DirichletLabels(kind="dirichlet_labels", alpha=alpha)), many)
        kept = [
            sum(
                keep and row.label == 0 and site == name
                for row, keep, site in zip(many, dealt.trains, dealt.sites, strict=True)
            )
            for name in site_names(4)
        ]
        assert sum(kept) == pytest.approx(40 * 60 / 2 / 4, rel=0.05)  # shares add up to one over sites
        return float(np.std(kept))

    assert spread(0.1) > 5 * spread(1000.0)


def test_skew_is_the_same_for_the_same_seed() -> None:
    first, second, other = (
        deal(
            federation(4, DirichletLabels(kind="dirichlet_labels", alpha=0.1, seed=seed)), rows(40, each=60)
        ).trains
        for seed in (1, 1, 2)
    )
    assert (first == second).all()
    assert (first != other).any()
