"""Labels: every map ends in the vocabulary, nothing is guessed, what is lost is written down."""

import pytest

from sottovoce.common.corpus.adapters import BY_FILE_NAMES
from sottovoce.common.labels import CORPUS_LABELS, EMOTIONS, WORDS, LabelMap, Meaning

MAPS = {**CORPUS_LABELS, "words": WORDS}


@pytest.mark.parametrize("name", MAPS)
def test_every_map_ends_in_the_vocabulary(name: str) -> None:
    assert set(MAPS[name].emotions.values()) <= set(EMOTIONS)


@pytest.mark.parametrize("name", MAPS)
def test_every_loss_is_of_a_label_that_exists(name: str) -> None:
    labels = MAPS[name]
    assert set(labels.losses) <= set(labels.emotions)
    assert not set(labels.left_out) & set(labels.emotions)


def test_every_corpus_with_file_names_has_its_own_codes() -> None:
    assert {corpus.name for corpus in BY_FILE_NAMES} == set(CORPUS_LABELS)


@pytest.mark.parametrize("label", ["happier", "", "0", "09", "ang ry", "😀", "\0"])
def test_an_unknown_label_is_not_guessed(label: str) -> None:
    assert all(labels.meaning(label) is None for labels in MAPS.values())


def test_case_spaces_and_underscores_do_not_matter() -> None:
    assert WORDS.meaning("  Pleasant_Surprise ") == WORDS.meaning("pleasant surprise")
    assert CORPUS_LABELS["subesco"].meaning("DISGUST") == Meaning("disgust")


def test_codes_of_one_corpus_do_not_leak_into_another() -> None:
    assert CORPUS_LABELS["emo-db"].meaning("a") == Meaning(
        "fearful", "anxiety or fear: the corpus does not tell them apart"
    )
    assert CORPUS_LABELS["savee"].meaning("a") == Meaning("angry")
    assert CORPUS_LABELS["ravdess"].meaning("a") is None


def test_a_label_without_agreement_is_left_out_with_its_reason() -> None:
    assert CORPUS_LABELS["iemocap"].meaning("xxx") == Meaning(None, "the raters did not agree")


def test_each_emotion_has_a_word_in_common_use() -> None:
    assert set(WORDS.emotions.values()) == set(EMOTIONS)


def test_a_map_without_losses_states_none() -> None:
    assert LabelMap(emotions={"x": "sad"}).meaning("X") == Meaning("sad", None)
