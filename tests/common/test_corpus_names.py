"""Corpora by their own file names: recognised in any nesting, case and format, read as published."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from sottovoce.common.corpus import Corpus, describe, scan
from sottovoce.common.corpus.adapters import BY_FILE_NAMES
from sottovoce.common.corpus.file_names import crema_d, emo_db, ravdess, savee, subesco, tess, urdu
from sottovoce.common.errors import CorpusError
from tests.fakes import corpora


def whats(corpus: Corpus) -> str:
    return "\n".join(map(str, corpus.problems))


@pytest.mark.parametrize("name", corpora.CORPORA)
def test_a_corpus_is_recognised_by_its_names(name: str, tmp_path: Path) -> None:
    corpora.CORPORA[name](tmp_path)
    corpus = scan(tmp_path, name="some")
    assert corpus.adapter == name
    assert corpus.evidence.split(" of ")[0].isdigit()
    assert [u.key for u in corpus.utterances] == sorted({u.key for u in corpus.utterances})
    assert all(u.path.is_file() and u.path.is_relative_to(tmp_path) for u in corpus.utterances)
    assert all(u.patient == u.speaker for u in corpus.utterances)


@pytest.mark.parametrize("name", corpora.CORPORA)
def test_nesting_does_not_matter(name: str, tmp_path: Path) -> None:
    corpora.CORPORA[name](tmp_path / "plain")
    corpora.CORPORA[name](tmp_path / "deep" / "a b" / "archive")
    plain, deep = scan(tmp_path / "plain", name="x"), scan(tmp_path / "deep", name="x")
    assert facts(plain) == facts(deep)


@pytest.mark.parametrize("change", [str.upper, str.lower])
@pytest.mark.parametrize("name", corpora.CORPORA)
def test_case_does_not_matter(name: str, change: Callable[[str], str], tmp_path: Path) -> None:
    corpora.CORPORA[name](tmp_path / "plain")
    plain = scan(tmp_path / "plain", name="x")
    for path in sorted((tmp_path / "plain").rglob("*"), reverse=True):
        path.rename(path.with_name(change(path.name)))
    assert facts(scan(tmp_path / "plain", name="x")) == facts(plain)


def facts(corpus: Corpus) -> Counter[tuple[str, str, str]]:
    return Counter((u.speaker, u.label, str(sorted(u.groups.items()))) for u in corpus.utterances)


@pytest.mark.parametrize("suffix", [".flac", ".ogg", ".mp3", ".FLAC"])
def test_any_audio_ending_will_do(suffix: str, tmp_path: Path) -> None:
    corpora.ravdess(tmp_path, actors=(1,), suffix=suffix)
    assert len(scan(tmp_path, name="x").utterances) == 60


def test_ravdess_is_counted_as_published(tmp_path: Path) -> None:
    corpora.ravdess(tmp_path)
    found = describe(scan(tmp_path, name="ravdess"))
    assert (found["utterances"], found["speakers"], found["patients"]) == (1440, 24, 24)
    assert found["labels"].pop("neutral") == 96
    assert set(found["labels"].values()) == {192}
    assert len(found["labels"]) == 7
    assert {sex: n["speakers"] for sex, n in found["groups"]["sex"].items()} == {"female": 12, "male": 12}
    assert found["problems"] == found["losses"] == []


def test_songs_and_films_of_ravdess_are_left_out_and_told(tmp_path: Path) -> None:
    corpora.ravdess(tmp_path, actors=(1,))
    corpora.put(tmp_path, "Actor_01/03-02-01-01-01-01-01.wav", "Actor_01/01-01-01-01-01-01-01.wav")
    corpora.write(tmp_path, "Actor_01/01-01-02-01-01-01-01.mp4", "film")
    corpus = scan(tmp_path, name="x")
    assert len(corpus.utterances) == 60
    assert corpus.losses == (
        "RAVDESS: 1 recordings left out: a song (vocal channel 02).",
        "RAVDESS: 1 recordings left out: the sound of a film (modality 01 or 02).",
        "1 films left out: only recordings of sound are read.",
    )


def test_the_second_tree_of_kaggles_ravdess_is_taken_once(tmp_path: Path) -> None:
    corpora.ravdess(tmp_path, actors=(1,))
    corpora.ravdess(tmp_path / "audio_speech_actors_01-24", actors=(1,))
    corpus = scan(tmp_path, name="x")
    assert len(corpus.utterances) == 60
    assert {u.key.split("/")[0] for u in corpus.utterances} == {"Actor_01"}
    assert "60 recordings are there more than once by name; 60 copies left out" in whats(corpus)
    assert "another size" not in whats(corpus)


def test_copies_of_another_size_are_told(tmp_path: Path) -> None:
    corpora.ravdess(tmp_path, actors=(1,))
    copy = corpora.write(tmp_path, "copy/03-01-01-01-01-01-01.wav", "another sound")
    assert "1 of the recordings have copies of another size" in whats(scan(tmp_path, name="x"))
    assert copy.exists()


def test_a_lossless_copy_is_preferred_to_a_nearer_mp3(tmp_path: Path) -> None:
    corpora.put(tmp_path, "1001_TIE_NEU_XX.mp3", "AudioWAV/1001_TIE_NEU_XX.wav")
    assert [u.key for u in scan(tmp_path, name="x").utterances] == ["AudioWAV/1001_TIE_NEU_XX.wav"]


def test_what_systems_leave_behind_is_no_problem(tmp_path: Path) -> None:
    corpora.ravdess(tmp_path, actors=(1,))
    for junk in (".DS_Store", "Actor_01/._03-01-01-01-01-01-01.wav", "__MACOSX/x.wav", "readme.txt"):
        corpora.write(tmp_path, junk, "junk")
    corpus = scan(tmp_path, name="x")
    assert (len(corpus.utterances), corpus.problems) == (60, ())


def test_a_name_that_says_nothing_is_told_and_left_out(tmp_path: Path) -> None:
    corpora.ravdess(tmp_path, actors=(1,))
    corpora.put(tmp_path, "Actor_01/03-01-09-01-01-01-01.wav")
    corpus = scan(tmp_path, name="x")
    assert len(corpus.utterances) == 60
    assert [p.file for p in corpus.problems] == ["Actor_01/03-01-09-01-01-01-01.wav"]


def test_crema_d_takes_sex_and_age_from_its_side_file(tmp_path: Path) -> None:
    corpora.crema_d(tmp_path)
    corpus = scan(tmp_path, name="x")
    groups = {u.speaker: dict(u.groups) for u in corpus.utterances}
    assert groups == {
        "1001": {"sex": "male", "age": "45-59", "language": "en"},
        "1002": {"sex": "female", "age": "18-29", "language": "en"},
    }
    assert "AudioWAV/1002_ITH_SAD_X.wav" in {u.key for u in corpus.utterances}


def test_crema_d_without_its_side_file_says_what_is_unknown(tmp_path: Path) -> None:
    corpora.crema_d(tmp_path, demographics=False)
    corpus = scan(tmp_path, name="x")
    assert "VideoDemographics.csv is not there" in whats(corpus)
    assert all("sex" not in u.groups for u in corpus.utterances)


def test_emo_db_knows_its_ten_speakers(tmp_path: Path) -> None:
    corpora.emo_db(tmp_path)
    found = describe(scan(tmp_path, name="x"))
    assert (found["utterances"], found["speakers"]) == (70, 10)
    assert {sex: n["speakers"] for sex, n in found["groups"]["sex"].items()} == {"female": 5, "male": 5}
    assert set(found["groups"]["language"]) == {"de"}
    assert found["losses"] == [
        "EMO-DB: label 'A' -> fearful (anxiety or fear: the corpus does not tell them apart): 10 utterances."
    ]


def test_the_typo_of_tess_is_the_older_actress(tmp_path: Path) -> None:
    corpora.tess(tmp_path)
    corpus = scan(tmp_path, name="x")
    typo = next(u for u in corpus.utterances if "OA_bite_neutral" in u.key)
    assert (typo.speaker, typo.label, typo.groups["age"]) == ("OAF", "neutral", "60+")
    assert Counter(u.speaker for u in corpus.utterances) == {"OAF": 14, "YAF": 14}
    pleasant = (
        "TESS: label 'ps' -> surprised (pleasant surprise: that it was pleasant is lost): 4 utterances."
    )
    assert corpus.losses == (pleasant,)


def test_tess_as_kaggle_nests_it_twice_is_taken_once(tmp_path: Path) -> None:
    corpora.tess(tmp_path)
    corpora.tess(tmp_path, "TESS Toronto emotional speech set data/TESS Toronto emotional speech set data")
    assert len(scan(tmp_path, name="x").utterances) == 28


def test_both_layouts_of_savee_give_the_same_speakers(tmp_path: Path) -> None:
    corpora.savee(tmp_path / "published")
    corpora.savee(tmp_path / "kaggle", flat=True)
    published, kaggle = scan(tmp_path / "published", name="x"), scan(tmp_path / "kaggle", name="x")
    assert facts(published) == facts(kaggle)
    assert {u.speaker for u in published.utterances} == {"DC", "JE", "JK", "KL"}


def test_speakers_of_subesco_with_one_number_are_two_people(tmp_path: Path) -> None:
    corpora.subesco(tmp_path)
    corpus = scan(tmp_path, name="x")
    assert {(u.speaker, u.groups["sex"]) for u in corpus.utterances} == {("M_01", "male"), ("F_01", "female")}


def test_urdu_tells_sex_from_the_speaker(tmp_path: Path) -> None:
    corpora.urdu(tmp_path)
    corpus = scan(tmp_path, name="x")
    assert {(u.speaker, u.groups["sex"]) for u in corpus.utterances} == {("SM1", "male"), ("SF2", "female")}
    assert len(corpus.utterances) == 16


def test_the_speaker_of_iemocap_is_the_utterances_not_the_sessions(tmp_path: Path) -> None:
    corpora.iemocap(tmp_path)
    corpus = scan(tmp_path, name="x")
    assert {(u.speaker, u.groups["sex"]) for u in corpus.utterances} == {
        ("Ses01F", "female"),
        ("Ses01M", "male"),
    }
    assert [u.label for u in corpus.utterances] == ["neutral", "excited", "angry", "frustrated"]
    assert corpus.problems == ()


def test_iemocap_states_dialogues_and_labels_without_agreement(tmp_path: Path) -> None:
    corpora.iemocap(tmp_path)
    assert scan(tmp_path, name="x").losses == (
        "IEMOCAP: 1 recordings of whole dialogues left out: two voices each.",
        "IEMOCAP: label 'xxx' (the raters did not agree): 2 utterances left out.",
    )


def test_an_evaluation_without_its_recording_is_told_with_its_row(tmp_path: Path) -> None:
    corpora.iemocap(tmp_path)
    next(tmp_path.rglob("Ses01F_impro01_F000.wav")).unlink()
    (problem,) = scan(tmp_path, name="x").problems
    assert (problem.row, problem.file) == (3, "Session1/dialog/EmoEvaluation/Ses01F_impro01.txt")


def test_iemocap_without_evaluations_is_an_error(tmp_path: Path) -> None:
    corpora.put(tmp_path, "Ses01F_impro01_F000.wav")
    with pytest.raises(CorpusError, match="EmoEvaluation"):
        scan(tmp_path, name="x")


def test_meld_keeps_its_splits_apart(tmp_path: Path) -> None:
    corpora.meld(tmp_path)
    corpus = scan(tmp_path, name="x")
    assert {(u.split, u.speaker, u.label) for u in corpus.utterances} == {
        ("train", "Monica", "happy"),
        ("train", "Chandler", "surprised"),
        ("dev", "Phoebe", "angry"),
        ("test", "Ross", "sad"),
    }
    assert not any("final_videos" in u.key for u in corpus.utterances)
    assert "1 films left out: only recordings of sound are read." in corpus.losses


def test_meld_speakers_in_two_splits_are_told(tmp_path: Path) -> None:
    corpora.meld(tmp_path)
    row = "1,Oh.,Monica,anger,negative,0,0,1,1,0,0\n"
    corpora.write(tmp_path, "dev_sent_emo.csv", corpora.MELD_HEADER + row)
    assert "is in two of the corpus's own splits" in whats(scan(tmp_path, name="x"))


@pytest.mark.parametrize("speaker", ["=1+1", "", "a\u202eb"])
def test_a_hostile_speaker_of_meld_is_told(speaker: str, tmp_path: Path) -> None:
    corpora.meld(tmp_path)
    row = f"1,Oh.,{speaker},anger,negative,0,0,1,1,0,0\n"
    corpora.write(tmp_path, "dev_sent_emo.csv", corpora.MELD_HEADER + row)
    corpus = scan(tmp_path, name="x")
    assert "dev" not in {u.split for u in corpus.utterances}
    assert any((p.file, p.row) == ("dev_sent_emo.csv", 2) for p in corpus.problems)


@pytest.mark.parametrize("row", ["1001,=1+1,Male", "1001,51,=x", ",51,Male", "1001", '1001,"51'])
def test_a_hostile_row_of_crema_ds_side_file_is_told(row: str, tmp_path: Path) -> None:
    corpora.crema_d(tmp_path)
    corpora.write(tmp_path, "VideoDemographics.csv", f"ActorID,Age,Sex\n{row}\n1002,21,Female\n")
    corpus = scan(tmp_path, name="x")
    assert [(p.file, p.row) for p in corpus.problems] == [("VideoDemographics.csv", 2)]
    assert {u.groups.get("sex") for u in corpus.utterances if u.speaker == "1001"} == {None}


def test_meld_without_its_tables_is_an_error(tmp_path: Path) -> None:
    corpora.put(tmp_path, "train/dia0_utt0.wav")
    with pytest.raises(CorpusError, match="train_sent_emo"):
        scan(tmp_path, name="x")


def test_films_alone_are_an_error_that_says_so(tmp_path: Path) -> None:
    corpora.write(tmp_path, "train/dia0_utt0.mp4", "film")
    with pytest.raises(CorpusError, match="their sound must be extracted first"):
        scan(tmp_path, name="x")


@pytest.mark.parametrize(
    ("parse", "stem"),
    [
        (ravdess, "03-01-06-01-02-01-25"),
        (ravdess, "03-01-06-01-02-01"),
        (ravdess, "03-01-01-01-01-01-01 (1)"),
        (crema_d, "2001_IEO_NEU_XX"),
        (crema_d, "1001_IEO_BOR_XX"),
        (emo_db, "03c01Fa"),
        (emo_db, "03a01Xa"),
        (tess, "OAF_back_calm"),
        (savee, "XX_a01"),
        (savee, "a01"),
        (subesco, "X_10_EVAN_S_8_DISGUST_2"),
        (urdu, "SX1_F10_A010"),
    ],
)
def test_a_name_that_is_nearly_right_is_refused(parse: Callable[..., object], stem: str) -> None:
    assert parse((), stem) is None


def test_two_corpora_in_one_folder_are_an_error_that_lists_both(tmp_path: Path) -> None:
    corpora.savee(tmp_path)
    corpora.urdu(tmp_path)
    with pytest.raises(CorpusError, match=r"savee \(28 recordings\), urdu \(16 recordings\)"):
        scan(tmp_path, name="x")
    assert len(scan(tmp_path, name="x", adapter="urdu").utterances) == 16


def test_strays_of_another_corpus_do_not_stop_a_scan(tmp_path: Path) -> None:
    corpora.ravdess(tmp_path, actors=(1,))
    corpora.put(tmp_path, "03a01Fa.wav")
    corpus = scan(tmp_path, name="x")
    assert (corpus.adapter, len(corpus.problems)) == ("ravdess", 1)


def test_no_known_corpus_is_an_error_that_lists_all(tmp_path: Path) -> None:
    corpora.put(tmp_path, "hello.wav")
    with pytest.raises(CorpusError) as error:
        scan(tmp_path, name="x")
    assert all(corpus.name in str(error.value) for corpus in BY_FILE_NAMES)
    assert "path, label, speaker" in str(error.value)
