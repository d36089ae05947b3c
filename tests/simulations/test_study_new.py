"""A first study fits the corpus it is written for."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sottovoce.common.corpus import Corpus, Utterance
from sottovoce.common.errors import CorpusError, StudyError
from sottovoce.common.features import width
from sottovoce.common.folds import fold_of
from sottovoce.common.model_size import size_problems
from sottovoce.common.privacy import distributed_accountant
from sottovoce.common.privacy.accountant import epsilon
from sottovoce.common.privacy.of_study import distributed_events
from sottovoce.common.privacy.plan import events
from sottovoce.common.privacy.planning_distributed import colluders_withstood, quorum
from sottovoce.common.privacy_specs import DistributedPrivacy, LocalPrivacy
from sottovoce.common.study import Enrolment, NamedFolds, SpeakerFolds, loads
from sottovoce.simulations import public_figures
from sottovoce.simulations.partition import site_names
from sottovoce.simulations.study_new import (
    Privacy,
    colluding_sites,
    least_sites,
    study_text,
    write_study,
)
from sottovoce.simulations.study_shape import EMBEDDED, shape_of, with_sites


def corpus(n_speakers: int, *, adapter: str = "savee", each: int = 12) -> Corpus:
    return Corpus(
        name="corpus",
        adapter=adapter,
        evidence="made here",
        root=Path("/nowhere"),
        utterances=tuple(
            Utterance(
                key=f"{speaker}-{label}-{clip}",
                path=Path("/nowhere"),
                label=label,
                corpus_label=label,
                speaker=f"{speaker:02d}",
                patient=f"{speaker:02d}",
            )
            for speaker in range(1, n_speakers + 1)
            for label in ("neutral", "angry")
            for clip in range(each)
        ),
    )


def test_the_embedded_study_loads() -> None:
    assert loads(study_text("demo", EMBEDDED)).corpora[0].synthetic is not None


@pytest.mark.parametrize(("n_speakers", "n_sites"), [(2, 1), (4, 2), (5, 2), (10, 5), (91, 6)])
def test_sites_and_folds_fit_the_number_of_speakers_and_no_fold_is_empty(
    n_speakers: int, n_sites: int
) -> None:
    study = loads(study_text("small", shape_of(corpus(n_speakers))))
    assert study.federation.n_sites == n_sites
    folds = study.evaluation.folds
    assert isinstance(folds, SpeakerFolds)
    assert folds.k == 5 or n_speakers < 91
    blocks = np.array_split([f"{number:02d}" for number in range(1, n_speakers + 1)], n_sites)
    used = {
        fold
        for name, block in zip(site_names(n_sites), blocks, strict=True)
        for fold in fold_of(folds, 0, name, block.tolist()).values()
    }
    assert used == set(range(folds.k))


def changed(whole: Corpus, **of_item: Callable[[Utterance], Any]) -> Corpus:
    """Returns the corpus with fields of each utterance as functions of it."""
    utterances = (
        replace(item, **{name: make(item) for name, make in of_item.items()}) for item in whole.utterances
    )
    return replace(whole, utterances=tuple(utterances))


def test_sites_are_the_corpus_s_own_where_each_person_is_at_one() -> None:
    shape = shape_of(changed(corpus(6), site=lambda item: "north" if item.speaker < "03" else "south"))
    federation = loads(study_text("small", shape)).federation
    assert (federation.n_sites, federation.partition.kind) == (2, "corpus_sites")
    assert "Sites are those that the corpus states." in shape.remarks
    fewer = with_sites(shape, 3)
    federation = loads(study_text("small", fewer)).federation
    assert (federation.n_sites, federation.partition.kind) == (3, "speaker_blocks")
    assert "states 2 sites; --sites 3" in fewer.remarks[-1]
    assert "Sites are those that the corpus states." not in fewer.remarks


@pytest.mark.parametrize(
    ("site", "said"),
    [
        (lambda item: "north" if item.speaker == "01" else None, "60 recordings state no site"),
        (lambda item: "north", "all state the same one"),
        (lambda item: "north" if item.key.endswith("1") else "south", "6 of 6 speakers are at several"),
    ],
)
def test_sites_that_cannot_be_used_are_said_with_what_to_do(
    site: Callable[[Utterance], str | None], said: str
) -> None:
    shape = shape_of(changed(corpus(6, each=6), site=site))
    assert loads(study_text("small", shape)).federation.partition.kind == "speaker_blocks"
    (remark,) = shape.remarks
    assert said in remark
    assert "dealt to sites in blocks" in remark


def test_nothing_is_said_of_a_corpus_that_is_used_as_it_is() -> None:
    assert shape_of(corpus(6)).remarks == ()


def test_an_emotion_that_is_too_rare_is_named_with_its_count_and_the_way_out() -> None:
    rare = changed(
        corpus(6), label=lambda item: "sad" if item.key in ("1-angry-1", "2-angry-1") else item.label
    )
    shape = shape_of(rare)
    assert shape.classes == ("neutral", "angry")
    (remark,) = shape.remarks
    assert remark.startswith("sad is left out: 2 recordings of 2 speakers; a class needs 10 of 2.")
    assert "merge" in remark


def test_speakers_of_one_emotion_and_without_calm_recordings_are_said() -> None:
    single = changed(corpus(6), label=lambda item: "angry" if item.speaker < "04" else "sad")
    shape = shape_of(single)
    assert "too few speakers have two recordings in calm or neutral" in shape.remarks[0].lower()
    assert "6 of 6 speakers were recorded in one emotion alone" in shape.remarks[1]


def test_speakers_are_enrolled_where_most_have_calm_recordings_and_never_by_all_of_their_own() -> None:
    calm = loads(study_text("small", shape_of(corpus(4)))).normalisation
    assert (calm.scheme, calm.enrols) == ("enrolment", Enrolment(emotions=("calm", "neutral"), clips=4))
    without = replace(
        corpus(4),
        utterances=tuple(
            replace(item, label="sad" if item.label == "neutral" else item.label)
            for item in corpus(4).utterances
        ),
    )
    assert loads(study_text("small", shape_of(without))).normalisation.scheme == "constants"


def test_public_figures_are_those_of_todays_embedded_corpus_and_extractor() -> None:
    assert public_figures.stated() == public_figures.made_with(), "run the command in the file's head"
    study = loads(study_text("small", EMBEDDED))
    for stream in study.streams:
        columns = width(stream, study.frames, study.audio.sample_rate_hz)
        for figures in (study.normalisation.mean, study.normalisation.deviation):
            assert len(figures[stream.name]) == columns
    assert all(value > 0 for values in study.normalisation.deviation.values() for value in values)


def test_classes_are_those_that_the_corpus_can_teach() -> None:
    assert loads(study_text("small", shape_of(corpus(4)))).labels.classes == ("neutral", "angry")


def test_ravdess_gets_its_published_folds() -> None:
    folds = loads(study_text("small", shape_of(corpus(24, adapter="ravdess")))).evaluation.folds
    assert folds == NamedFolds(kind="named", name="ravdess-luna-jimenez")


@pytest.mark.parametrize("asked", [1.0, 8.0])
def test_a_private_study_costs_at_most_what_was_asked(asked: float) -> None:
    study = loads(study_text("small", EMBEDDED, Privacy(n_patients=700, epsilon=asked)))
    spec = study.privacy
    assert isinstance(spec, LocalPrivacy)
    assert (spec.n_patients_public, spec.delta, spec.small_population) == (700, 1e-5, False)
    spent = epsilon(events(spec, study.federation.rounds), spec.delta)
    assert 0.98 * asked < spent <= asked


@pytest.mark.parametrize(
    ("n_sites", "n_patients", "delta"), [(3, 300, 1e-5), (10, 200, 1e-5), (50, 5000, 1e-6)]
)
def test_a_distributed_study_costs_at_most_what_was_asked_and_states_its_own_size(
    n_sites: int, n_patients: int, delta: float
) -> None:
    shape = replace(EMBEDDED, n_sites=n_sites)
    privacy = Privacy(n_patients=n_patients, epsilon=3.0, mode="distributed")
    study = loads(study_text("together", shape, privacy))
    spec = study.privacy
    assert isinstance(spec, DistributedPrivacy)
    assert size_problems(study) == []
    assert (spec.n_patients_public, spec.delta, spec.small_population) == (n_patients, delta, False)
    spent = distributed_accountant.epsilon(distributed_events(study, spec), spec.delta)
    assert 0.98 * 3.0 < spent <= 3.0
    made = study.corpora[0].synthetic
    assert made is not None
    assert made.n_speakers >= n_sites


@pytest.mark.parametrize("n_sites", range(3, 51))
def test_no_more_may_collude_than_a_secure_sum_withstands_and_a_third_may_be_lost(n_sites: int) -> None:
    needed = least_sites(n_sites)
    assert needed == quorum(n_sites, needed) == quorum(n_sites, 1)
    assert 1 <= colluding_sites(n_sites) <= colluders_withstood(n_sites, needed)


@pytest.mark.parametrize("n_sites", [2, 51])
def test_a_secure_sum_of_too_few_or_too_many_sites_is_refused(n_sites: int) -> None:
    with pytest.raises(StudyError, match="expected 3 sites or more in a round, and 50 or fewer"):
        study_text(
            "together", replace(EMBEDDED, n_sites=n_sites), Privacy(n_patients=200, mode="distributed")
        )


def test_many_patients_call_for_a_smaller_delta() -> None:
    spec = loads(study_text("large", EMBEDDED, Privacy(n_patients=100_000, epsilon=8.0))).privacy
    assert isinstance(spec, LocalPrivacy)
    assert spec.delta == 1e-6 < 100_000**-1.1


def test_no_private_constant_comes_from_the_corpus() -> None:
    privacy = Privacy(n_patients=300)
    found = {loads(study_text("small", shape_of(corpus(n)), privacy)).privacy for n in (4, 24)}
    assert len(found) == 1


def test_a_corpus_that_teaches_nothing_is_refused() -> None:
    with pytest.raises(CorpusError, match="two patients and two emotions"):
        shape_of(corpus(1))


def test_an_existing_file_is_never_replaced(tmp_path: Path) -> None:
    path = tmp_path / "study.toml"
    write_study(path, "mine")
    with pytest.raises(CorpusError, match="exists already"):
        write_study(path, "another")
    assert path.read_text() == "mine"
