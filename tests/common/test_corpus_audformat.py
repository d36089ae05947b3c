"""audformat databases: read where the extra is installed, refused where they would run a stranger's code."""

import pickle
import sys
from pathlib import Path
from typing import Any

import pytest

from sottovoce.common.corpus import scan
from sottovoce.common.errors import CorpusError
from tests.fakes import corpora

NEEDS_EXTRA = "the extra sottovoce[audformat] is not installed"
FILES = ("audio/a.wav", "audio/b.wav", "audio/c.wav")


def database(root: Path, *, storage: str = "csv", gold: bool = True, misc: bool = False) -> Any:
    """A small database in the shape of audformat's own tutorial on EMO-DB."""
    audformat = pytest.importorskip("audformat", reason=NEEDS_EXTRA)
    pandas = pytest.importorskip("pandas", reason=NEEDS_EXTRA)
    corpora.put(root, *FILES)
    db = audformat.Database("emo", source="internal", usage="unrestricted", languages=["deu"])
    facts = {3: {"gender": "male", "age": 31}, 8: {"gender": "female", "age": 34}}
    if misc:
        index = pandas.Index([3, 8], dtype="Int64", name="speaker")
        db.schemes["gender"] = audformat.Scheme("str")
        db["people"] = audformat.MiscTable(index)
        db["people"]["gender"] = audformat.Column(scheme_id="gender")
        db["people"]["gender"].set(["male", "female"])
    db.schemes["emotion"] = audformat.Scheme(labels=["anger", "neutral", "boredom"])
    db.schemes["speaker"] = audformat.Scheme("int", labels="people" if misc else facts)
    db["files"] = audformat.Table(audformat.filewise_index(list(FILES)))
    db["files"]["speaker"] = audformat.Column(scheme_id="speaker")
    db["files"]["speaker"].set([3, 8, 8])
    name = "emotion.categories.test.gold_standard" if gold else "emotion"
    db[name] = audformat.Table(audformat.filewise_index(list(FILES)))
    db[name]["emotion"] = audformat.Column(scheme_id="emotion")
    db[name]["emotion"].set(["anger", "boredom", None])
    db.save(str(root), storage_format=storage)
    return db


@pytest.mark.parametrize("storage", ["csv", "parquet"])
def test_a_database_is_read_with_its_speakers(storage: str, tmp_path: Path) -> None:
    database(tmp_path, storage=storage)
    corpus = scan(tmp_path, name="x")
    assert corpus.adapter == "audformat"
    assert [(u.key, u.speaker, u.label, dict(u.groups)) for u in corpus.utterances] == [
        ("audio/a.wav", "3", "angry", {"sex": "male", "age": "30-44", "language": "de"}),
        ("audio/b.wav", "8", "boredom", {"sex": "female", "age": "30-44", "language": "de"}),
    ]
    told = "db.emotion.categories.test.gold_standard, row 4: emotion: expected a value; came none. Left out."
    assert str(corpus.problems[0]) == told


def test_speakers_may_be_described_in_a_table_of_their_own(tmp_path: Path) -> None:
    database(tmp_path, misc=True)
    assert [u.groups["sex"] for u in scan(tmp_path, name="x").utterances] == ["male", "female"]


def test_a_gold_standard_is_preferred_to_single_votes(tmp_path: Path) -> None:
    db = database(tmp_path)
    audformat = pytest.importorskip("audformat", reason=NEEDS_EXTRA)
    db["emotion.categories.votes"] = audformat.Table(audformat.filewise_index(list(FILES)))
    db["emotion.categories.votes"]["emotion"] = audformat.Column(scheme_id="emotion")
    db["emotion.categories.votes"]["emotion"].set(["neutral"] * 3)
    db.save(str(tmp_path), storage_format="csv")
    corpus = scan(tmp_path, name="x")
    assert [u.label for u in corpus.utterances] == ["angry", "boredom"]
    assert corpus.losses == ("audformat: only tables of the gold standard are used.",)


def test_stretches_keep_their_times(tmp_path: Path) -> None:
    db = database(tmp_path, gold=False)
    audformat = pytest.importorskip("audformat", reason=NEEDS_EXTRA)
    db.drop_tables(["emotion"])
    index = audformat.segmented_index(["audio/a.wav"] * 2, ["0s", "1.5s"], ["1.5s", None])
    db["emotion"] = audformat.Table(index)
    db["emotion"]["emotion"] = audformat.Column(scheme_id="emotion")
    db["emotion"]["emotion"].set(["anger", "neutral"])
    db.save(str(tmp_path), storage_format="csv")
    found = scan(tmp_path, name="x").utterances
    assert [u.key for u in found] == ["audio/a.wav#0.000-1.500", "audio/a.wav#1.500-"]
    assert [(u.start_seconds, u.end_seconds, u.speaker) for u in found] == [(0, 1.5, "3"), (1.5, None, "3")]


def test_a_pickled_table_is_refused_unread(tmp_path: Path) -> None:
    database(tmp_path)
    (tmp_path / "db.files.pkl").write_bytes(pickle.dumps(Booby(tmp_path / "ran")))
    with pytest.raises(CorpusError, match=r"db\.files\.pkl: pickled tables are refused"):
        scan(tmp_path, name="x")
    assert not (tmp_path / "ran").exists()


class Booby:
    """Whoever unpickles it makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[Path]]:
        return Path.mkdir, (self.path,)


def test_the_booby_trap_of_these_tests_works(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Booby(tmp_path / "ran")))
    assert (tmp_path / "ran").exists()


def test_a_header_that_names_python_objects_runs_nothing(tmp_path: Path) -> None:
    database(tmp_path)
    header = (tmp_path / "db.yaml").read_text()
    trap = f"author: !!python/object/apply:os.mkdir ['{tmp_path}/ran']\n"
    corpora.write(tmp_path, "db.yaml", trap + header)
    with pytest.raises(CorpusError, match=r"db\.yaml: is no audformat header \(ConstructorError\)"):
        scan(tmp_path, name="x")
    assert not (tmp_path / "ran").exists()


def test_a_table_whose_name_leaves_the_folder_is_refused(tmp_path: Path) -> None:
    root = tmp_path / "root"
    database(root)
    (root / "db").mkdir()
    header = (root / "db.yaml").read_text().replace("  files:", "  /../../outside:")
    corpora.write(root, "db.yaml", header)
    corpora.write(tmp_path, "outside.csv", "file,speaker\naudio/a.wav,3\n")
    with pytest.raises(CorpusError, match="expected table names of letters"):
        scan(root, name="x")


def test_a_table_that_is_a_link_is_refused(tmp_path: Path) -> None:
    database(tmp_path / "root")
    table = tmp_path / "root" / "db.files.csv"
    table.rename(tmp_path / "outside.csv")
    table.symlink_to(tmp_path / "outside.csv")
    with pytest.raises(CorpusError, match=r"expected db\.files\.csv or db\.files\.parquet"):
        scan(tmp_path / "root", name="x")


@pytest.mark.parametrize("header", ["", "7", "[]", "name: x", "a: [" * 3000, "\0", "tables: {x: 7}"])
def test_a_damaged_header_is_an_error(header: str, tmp_path: Path) -> None:
    pytest.importorskip("audformat", reason=NEEDS_EXTRA)
    corpora.put(tmp_path, *FILES)
    corpora.write(tmp_path, "db.yaml", header)
    with pytest.raises(CorpusError, match=r"db\.yaml: is no audformat header"):
        scan(tmp_path, name="x")


@pytest.mark.parametrize("text", ["", "\0\0", "file,speaker\n../../etc/passwd,3\n", "a,b\n1,2\n"])
def test_a_damaged_or_hostile_table_is_an_error_or_a_problem(text: str, tmp_path: Path) -> None:
    database(tmp_path)
    corpora.write(tmp_path, "db.files.csv", text)
    with pytest.raises(CorpusError):
        scan(tmp_path, name="x")


def test_paths_that_leave_the_folder_are_told(tmp_path: Path) -> None:
    database(tmp_path)
    table = tmp_path / "db.emotion.categories.test.gold_standard.csv"
    table.write_text(table.read_text().replace("audio/b.wav", "../b.wav"))
    corpus = scan(tmp_path, name="x")
    assert [u.key for u in corpus.utterances] == ["audio/a.wav"]
    assert any(p.row == 3 and "with '..'" in p.what for p in corpus.problems)


def test_a_database_without_speakers_is_an_error(tmp_path: Path) -> None:
    db = database(tmp_path)
    db.drop_tables(["files"])
    db.save(str(tmp_path), storage_format="csv")
    with pytest.raises(CorpusError, match="'speaker'; found none"):
        scan(tmp_path, name="x")


def test_without_the_extra_the_error_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "audformat", None)  # as Python itself marks what cannot be imported
    corpora.put(tmp_path, *FILES)
    corpora.write(tmp_path, "db.yaml", "name: x\n")
    with pytest.raises(CorpusError, match=r"pip install 'sottovoce\[audformat\]'"):
        scan(tmp_path, name="x")
