"""Which recordings enrol a speaker: a public rule that looks at one speaker alone."""

from dataclasses import replace
from pathlib import Path

import pytest

from sottovoce.common.corpus import Corpus, Utterance
from sottovoce.common.errors import PrivacyError, StudyError
from sottovoce.common.preparation import NO_CLASS, Recording, recordings_of
from sottovoce.common.privacy_specs import LocalPrivacy
from sottovoce.common.progress import Event, Note, silent
from sottovoce.common.study import Enrolment, Labels, Normalisation, Study, loads
from sottovoce.simulations.study_new import study_text
from sottovoce.simulations.study_shape import EMBEDDED

STUDY = loads(study_text("enrolling", EMBEDDED))


def corpus(*clips: tuple[str, str, int]) -> Corpus:
    return Corpus(
        name="corpus",
        adapter="manifest",
        evidence="made here",
        root=Path("/nowhere"),
        utterances=tuple(
            Utterance(
                key=f"{speaker}-{label}-{number}",
                path=Path("/nowhere"),
                label=label,
                corpus_label=label,
                speaker=speaker,
                patient=speaker,
            )
            for speaker, label, count in sorted(clips)
            for number in range(count)
        ),
    )


def enrolling(study: Study, *clips: tuple[str, str, int]) -> list[str]:
    return [item.key for item in recordings_of(study, corpus(*clips), silent) if item.enrols]


def ruled(**rule: object) -> Study:
    return replace(STUDY, normalisation=replace(STUDY.normalisation, enrolment=Enrolment(**rule)))  # type: ignore[arg-type]


def test_calm_comes_before_neutral_and_at_most_half_of_what_is_taught_enrols() -> None:
    found = enrolling(STUDY, ("a", "calm", 4), ("a", "neutral", 5), ("a", "angry", 9), ("b", "calm", 12))
    assert found == ["a-calm-0", "a-calm-1", "a-neutral-0", "a-neutral-1", *(f"b-calm-{i}" for i in range(4))]


def test_an_emotion_that_is_no_class_enrols_whole_and_is_in_the_study_for_that_alone() -> None:
    study = replace(STUDY, labels=Labels(classes=("angry", "sad")))
    recordings = list(
        recordings_of(study, corpus(("a", "calm", 3), ("a", "fearful", 2), ("a", "sad", 1)), silent)
    )
    assert [(item.key, item.label) for item in recordings] == [
        *((f"a-calm-{i}", NO_CLASS) for i in range(3)),
        ("a-sad-0", 1),
    ]


def test_nobody_elses_recordings_change_what_enrols_a_speaker() -> None:
    mine = (("a", "calm", 6), ("a", "sad", 6))
    assert enrolling(STUDY, *mine) == [
        key for key in enrolling(STUDY, *mine, ("A", "calm", 9), ("b", "neutral", 9)) if key[0] == "a"
    ]


def test_without_the_scheme_nothing_enrols() -> None:
    study = replace(STUDY, normalisation=Normalisation(scheme="speaker"))
    assert enrolling(study, ("a", "calm", 8)) == []


def test_the_number_of_speakers_with_too_little_is_said() -> None:
    told: list[Event] = []
    list(recordings_of(STUDY, corpus(("a", "calm", 8), ("b", "sad", 8)), told.append))
    (note,) = (event for event in told if isinstance(event, Note) and "enrol" in event.text)
    assert "4 recordings enrol 1 of 2 speakers; 1 have fewer than 4 in calm or neutral" in note.text


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ('scheme = "speaker"\nenrolment = {}', "expected with scheme = 'enrolment'"),
        ('scheme = "enrolment"\nenrolment = { emotions = ["serene"] }', "came serene"),
        ('scheme = "enrolment"\nmean.frames = [1.0]', "'statistics' has none"),
    ],
)
def test_an_enrolment_that_cannot_be_is_refused(change: str, said: str) -> None:
    text = study_text("enrolling", EMBEDDED).split("\n# What is usual")[0]
    before, _, after = text.partition("[normalisation]\n")
    with pytest.raises(StudyError, match=said):
        loads(before + "[normalisation]\n" + change + "\n\n[model]" + after.partition("[model]")[2])


def test_a_corpus_that_enrols_nobody_is_said_with_what_to_change() -> None:
    told: list[Event] = []
    list(recordings_of(STUDY, corpus(("a", "angry", 3), ("b", "sad", 3)), told.append))
    assert "no speaker has recordings in calm or neutral to be enrolled by" in str(told[0])
    assert "the scheme 'constants'" in str(told[0])


def test_a_recording_that_enrols_has_no_class() -> None:
    item = corpus(("a", "calm", 1)).utterances[0]
    assert Recording(key="k", speaker="a", patient="a", label=NO_CLASS, utterance=item).enrols
    assert not Recording(key="k", speaker="a", patient="a", label=0, utterance=item).enrols


def test_a_patient_who_only_enrols_another_one_is_refused_in_a_private_mode() -> None:
    # Else nobody would pay for that patient: what enrols is not among the examples that later checks see.
    clips = corpus(("a", "calm", 4), ("a", "sad", 4))
    lent = replace(
        clips,
        utterances=tuple(
            replace(item, patient="b" if item.label == "calm" else "a") for item in clips.utterances
        ),
    )
    private = replace(
        STUDY,
        labels=Labels(classes=("angry", "sad")),
        privacy=LocalPrivacy(
            mode="local",
            clip_norm=1.0,
            noise_multiplier=1.0,
            sampling_prob=0.1,
            n_patients_public=100,
            expected_patients=10,
            steps_per_round=1,
            delta=1e-5,
        ),
    )
    assert len(list(recordings_of(private, clips, silent))) == 8
    with pytest.raises(PrivacyError, match="two patients share a speaker id"):
        list(recordings_of(private, lent, silent))
    constants = replace(private, normalisation=Normalisation(scheme="constants"))
    assert len(list(recordings_of(constants, lent, silent))) == 4
