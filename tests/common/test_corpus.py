"""A scanned corpus: which adapter wins, one digest everywhere, plain data for printing, people who do not fit."""

import dataclasses
import json
import os
import random
import sys
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sottovoce.common.corpus import ADAPTERS, Corpus, Utterance, describe, scan
from sottovoce.common.corpus.people import age, language, sex
from sottovoce.common.errors import CorpusError
from tests.fakes import corpora

FEW_SECONDS = (
    60.0  # a loaded machine; a quiet one needs 3, and one that compares each row with each needs hours
)


def manifest(root: Path, *rows: str, header: str = "path,label,speaker", sounds: bool = True) -> Path:
    if sounds:
        names = {row.split(",")[0] for row in rows if row.split(",")[0].endswith(".wav")}
        corpora.put(root, *(name for name in sorted(names) if not (root / name).exists()))
    return corpora.write(root, "manifest.csv", "\n".join([header, *rows]) + "\n")


def test_a_manifest_wins_over_file_names(tmp_path: Path) -> None:
    corpora.ravdess(tmp_path, actors=(1,))
    manifest(tmp_path, "Actor_01/03-01-01-01-01-01-01.wav,sad,me", sounds=False)
    corpus = scan(tmp_path, name="x")
    assert (corpus.adapter, corpus.evidence) == ("manifest", "manifest.csv is a manifest")
    assert [(u.label, u.speaker) for u in corpus.utterances] == [("sad", "me")]
    assert "59 recordings on disk are named by no usable row." in str(corpus.problems[0])


def test_a_named_adapter_wins_over_a_manifest(tmp_path: Path) -> None:
    corpora.ravdess(tmp_path, actors=(1,))
    manifest(tmp_path, "Actor_01/03-01-01-01-01-01-01.wav,sad,me", sounds=False)
    assert len(scan(tmp_path, name="x", adapter="ravdess").utterances) == 60


def test_a_manifest_may_be_named_itself(tmp_path: Path) -> None:
    corpora.put(tmp_path, "a.wav")
    named = corpora.write(tmp_path, "fold.csv", "path,label,speaker\na.wav,sad,s\n")
    corpus = scan(named, name="x")
    assert (corpus.root, corpus.adapter, corpus.utterances[0].key) == (tmp_path, "manifest", "a.wav")


def test_two_manifests_are_an_error(tmp_path: Path) -> None:
    manifest(tmp_path, "a.wav,sad,s")
    corpora.write(tmp_path, "manifest.jsonl", '{"path": "a.wav", "label": "sad", "speaker": "s"}\n')
    with pytest.raises(CorpusError, match=r"manifest\.csv and manifest\.jsonl"):
        scan(tmp_path, name="x")


@pytest.mark.parametrize("adapter", ["manifest", "emobox", "audformat"])
def test_an_adapter_that_was_asked_for_and_finds_nothing_says_what_it_wants(
    adapter: str, tmp_path: Path
) -> None:
    corpora.ravdess(tmp_path, actors=(1,))
    with pytest.raises(CorpusError, match=f"{adapter}: expected .*; found none"):
        scan(tmp_path, name="x", adapter=adapter)


def test_an_adapter_that_fits_no_file_says_which_it_was_and_what_to_take(tmp_path: Path) -> None:
    manifest(tmp_path, "a.wav,sad,s")
    with pytest.raises(CorpusError, match=r"read as ravdess: .*found none\. Take adapter 'auto'"):
        scan(tmp_path, name="x", adapter="ravdess")


def test_an_unknown_adapter_is_an_error_that_lists_the_known(tmp_path: Path) -> None:
    with pytest.raises(CorpusError) as error:
        scan(tmp_path, name="x", adapter="radvess")
    assert all(adapter in str(error.value) for adapter in ADAPTERS)


@pytest.mark.parametrize("missing", ["nowhere", "nowhere.csv"])
def test_a_folder_that_is_not_there_is_an_error(missing: str, tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="nowhere"):
        scan(tmp_path / missing, name="x")


def test_an_empty_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="expected recordings; found none"):
        scan(tmp_path, name="x")


def test_a_corpus_without_a_usable_row_is_an_error_that_shows_why(tmp_path: Path) -> None:
    manifest(tmp_path, "a.wav,wistful,s")
    with pytest.raises(CorpusError, match=r"row 2: the label 'wistful'"):
        scan(tmp_path, name="x")


def test_an_audformat_header_wins_over_emobox_and_file_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpora.ravdess(tmp_path, actors=(1,))
    row = corpora.emobox_row("k", "ravdess", "Actor_01/03-01-01-01-01-01-01.wav", "Neutral")
    corpora.write(tmp_path, "r.jsonl", row)
    assert scan(tmp_path, name="x").adapter == "emobox"
    corpora.write(tmp_path, "db.yaml", "name: x\n")
    monkeypatch.setitem(sys.modules, "audformat", None)
    with pytest.raises(CorpusError, match="this is an audformat database"):
        scan(tmp_path, name="x")


def test_a_side_file_that_is_no_metadata_does_not_stop_a_scan(tmp_path: Path) -> None:
    corpora.ravdess(tmp_path, actors=(1,))
    corpora.write(tmp_path, "transcripts.jsonl", '{"text": "' + "x" * 100_000 + '"}\n')
    assert scan(tmp_path, name="x").adapter == "ravdess"


def test_a_folder_that_a_spreadsheet_would_run_is_left_out(tmp_path: Path) -> None:
    corpora.ravdess(tmp_path, actors=(1,))
    (tmp_path / "Actor_01").rename(tmp_path / "=Actor_01")
    corpora.ravdess(tmp_path, actors=(2,))
    corpus = scan(tmp_path, name="x")
    assert {u.speaker for u in corpus.utterances} == {"02"}
    assert sum("begins as a formula does" in p.what for p in corpus.problems) == 60


# --- the digest


def utterance(key: str, **changes: object) -> Utterance:
    plain = Utterance(key=key, path=Path(key), label="sad", corpus_label="s", speaker="a", patient="p")
    return dataclasses.replace(plain, **changes)  # type: ignore[arg-type]


def corpus_of(*utterances: Utterance, root: Path = Path("/a")) -> Corpus:
    return Corpus(name="x", adapter="manifest", evidence="", root=root, utterances=utterances)


def test_the_digest_is_the_same_on_every_machine() -> None:
    groups = {"sex": "female", "language": "de"}
    digest = corpus_of(utterance("ä.wav", groups=groups, site="north"), utterance("b.wav")).manifest_digest()
    # sha256sum of the three lines that `types.py` defines, written by hand
    assert digest == "e25462ee5d0cbbf4ff09484e867ce06d63ffc7db4c46530e54feb1cc164e98f4"


def test_the_digest_does_not_depend_on_order_or_folder() -> None:
    many = [utterance(f"{n}.wav", groups={"sex": "male", "age": "60+"}) for n in range(20)]
    flipped = [dataclasses.replace(u, groups=dict(reversed(list(u.groups.items())))) for u in many]
    random.Random(0).shuffle(flipped)
    assert corpus_of(*many).manifest_digest() == corpus_of(*flipped, root=Path("/b")).manifest_digest()


def test_the_digest_of_a_tree_does_not_depend_on_where_it_lies_or_in_which_order_it_was_written(
    tmp_path: Path,
) -> None:
    rows = [f"é{n}.wav,sad,s{n}" for n in range(10)]
    manifest(tmp_path / "one", *rows)
    manifest(tmp_path / "two", *reversed(rows))
    one, two = scan(tmp_path / "one", name="x"), scan(tmp_path / "two", name="y")
    assert one.manifest_digest() == two.manifest_digest()


def test_the_digest_does_not_depend_on_how_a_system_composes_characters(tmp_path: Path) -> None:
    corpora.put(tmp_path / "one", "\u00e9.wav")
    corpora.put(tmp_path / "two", "e\u0301.wav")
    for folder in ("one", "two"):
        manifest(tmp_path / folder, "\u00e9.wav,sad,s", sounds=False)
    one, two = scan(tmp_path / "one", name="x"), scan(tmp_path / "two", name="x")
    assert one.manifest_digest() == two.manifest_digest()
    assert two.utterances[0].path.is_file()


@pytest.mark.parametrize(
    "change",
    [
        {"key": "c.wav"},
        {"label": "calm"},
        {"speaker": "b"},
        {"patient": "q"},
        {"groups": {"sex": "male"}},
        {"site": "north"},
        {"split": "test"},
    ],
)
def test_the_digest_changes_with_all_that_is_stated(change: dict[str, object]) -> None:
    plain = utterance("a.wav")
    changed = dataclasses.replace(plain, **change)  # type: ignore[arg-type]
    assert corpus_of(plain).manifest_digest() != corpus_of(changed).manifest_digest()


def test_the_digest_cannot_be_forged_by_moving_text_between_fields() -> None:
    one = utterance("a.wav", speaker='b","speaker":"c')
    two = utterance("a.wav", speaker="b")
    assert corpus_of(one).manifest_digest() != corpus_of(two).manifest_digest()
    assert corpus_of(one, two).manifest_digest() != corpus_of(one).manifest_digest()


# --- people


@pytest.mark.parametrize(
    ("rows", "sentence", "row"),
    [
        (("a.wav,sad,s,p,f,", "b.wav,sad,s,p,m,"), "has two sexes", 3),
        (("a.wav,sad,s,p,f,", "b.wav,sad,s,q,f,"), "belongs to two patients", 3),
        (("a.wav,sad,s,p,f,", "b.wav,sad,t,p,f,"), "has two speakers", 3),
        (("a.wav,sad,s,p,f,x", "b.wav,sad,s,p,f,y"), "is at two sites", 3),
    ],
)
def test_people_who_do_not_fit_are_told_with_their_row(
    rows: tuple[str, ...], sentence: str, row: int, tmp_path: Path
) -> None:
    manifest(tmp_path, *rows, header="path,label,speaker,patient,sex,site")
    (problem,) = scan(tmp_path, name="x").problems
    assert sentence in problem.what
    assert (problem.file, problem.row) == ("manifest.csv", row)


def test_a_problem_tells_no_ones_label_sex_or_age(tmp_path: Path) -> None:
    rows = ("a.wav,sad,s,female,61", "b.wav,sad,s,male,61", "a.wav,angry,s,female,61")
    manifest(tmp_path, *rows, "c.wav,sad,s,female,61", header="path,label,speaker,sex,age")
    told = " ".join(p.what for p in scan(tmp_path, name="x").problems)
    assert "contradicts" in told
    assert "two sexes" in told
    assert not any(word in told for word in ("female", "angry", "sad", "61", "60+"))


def test_one_speaker_with_one_patient_is_no_problem(tmp_path: Path) -> None:
    manifest(tmp_path, "a.wav,sad,s,p", "b.wav,calm,s,p", header="path,label,speaker,patient")
    corpus = scan(tmp_path, name="x")
    assert corpus.problems == ()
    assert {(u.speaker, u.patient) for u in corpus.utterances} == {("s", "p")}


@pytest.mark.parametrize(
    ("text", "band"),
    [("0", "0-17"), ("17", "0-17"), ("18", "18-29"), ("29.0", "18-29"), ("30", "30-44"), ("59", "45-59"),
     ("60", "60+"), ("120", "60+"), ("121", "121"), ("-1", "-1"), ("Thirties", "thirties"), ("1e2", "1e2")],
)  # fmt: skip
def test_an_age_in_years_becomes_a_band(text: str, band: str) -> None:
    assert age(text) == band


def test_sex_and_language_have_one_spelling() -> None:
    assert [sex(text) for text in ("F", "Female", "w", "M", "male", "Nonbinary")] == [
        *["female"] * 3, "male", "male", "nonbinary"
    ]  # fmt: skip
    assert [language(text) for text in ("deu", "German", "de", "Klingon")] == ["de", "de", "de", "klingon"]


# --- plain data


def test_a_description_is_json_and_counts_what_is_there(tmp_path: Path) -> None:
    header = "path,label,speaker,patient,sex,age,site,split,group_accent,note"
    rows = ("a.wav,Anger,s,p,f,61,north,train,saxon,x", "b.wav,joy,t,q,,30,south,,,y")
    manifest(tmp_path, *rows, header=header)
    found = json.loads(json.dumps(describe(scan(tmp_path, name="x"))))
    assert found["labels"] == {"happy": 1, "angry": 1}
    assert found["corpus_labels"] == {"Anger": 1, "joy": 1}
    assert found["sites"] == {"north": 1, "south": 1}
    assert found["splits"] == {"train": 1}
    assert found["groups"]["sex"] == {
        "female": {"speakers": 1, "utterances": 1},
        "unknown": {"speakers": 1, "utterances": 1},
    }
    assert found["groups"]["accent"]["saxon"] == {"speakers": 1, "utterances": 1}
    assert found["losses"] == ["Columns not used: note."]
    assert found["minutes"] is None


def test_minutes_are_known_only_where_every_stretch_has_an_end(tmp_path: Path) -> None:
    header = "path,label,speaker,start_seconds,end_seconds"
    manifest(tmp_path, "a.wav,sad,s,0,30", "a.wav,calm,s,30,90", header=header)
    assert describe(scan(tmp_path, name="x"))["minutes"] == 1.5
    manifest(tmp_path, "a.wav,sad,s,0,30", "a.wav,calm,s,30,", header=header)
    assert describe(scan(tmp_path, name="x"))["minutes"] is None


def test_a_hundred_thousand_rows_take_seconds(tmp_path: Path) -> None:
    corpora.put(tmp_path, "a.wav")
    rows = [f"a.wav,sad,s{n // 100},{n * 0.5:.1f},{n * 0.5 + 0.5:.1f}" for n in range(100_000)]
    manifest(tmp_path, *rows, header="path,label,speaker,start_seconds,end_seconds")
    started = time.process_time()
    corpus = scan(tmp_path, name="x")
    assert len(corpus.utterances) == 100_000
    assert time.process_time() - started < FEW_SECONDS


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=400) | st.text(max_size=400).map(str.encode))
@pytest.mark.parametrize("name", ["manifest.csv", "manifest.jsonl"])
def test_no_bytes_crash_a_manifest(name: str, content: bytes, tmp_path: Path) -> None:
    corpora.write(tmp_path, name, "").write_bytes(b"path,label,speaker\n" + content)
    with pytest.raises(CorpusError):  # there is no recording, so nothing can be usable
        scan(tmp_path, name="x")
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CorpusError):
        scan(tmp_path, name="x")


@pytest.mark.skipif(
    "SOTTOVOCE_RAVDESS" not in os.environ, reason="SOTTOVOCE_RAVDESS names no copy of RAVDESS"
)
def test_the_real_ravdess_is_read_as_published() -> None:
    found = describe(scan(Path(os.environ["SOTTOVOCE_RAVDESS"]), name="ravdess"))
    assert (found["utterances"], found["speakers"], found["problems"]) == (1440, 24, [])
    assert sorted(found["labels"].values()) == [96, *[192] * 7]
    assert {sex: n["speakers"] for sex, n in found["groups"]["sex"].items()} == {"female": 12, "male": 12}
