"""Manifests from strangers: what is asked for is read; what is hostile is told with its row, or is one error."""

import json
import os
from pathlib import Path

import pytest

from sottovoce.common.corpus import Corpus, Problem, problems, scan, table, tree
from sottovoce.common.errors import CorpusError
from tests.fakes import corpora

GOOD = "good.wav,sad,s"


def scan_rows(root: Path, *rows: str, header: str = "path,label,speaker") -> Corpus:
    """Scans a CSV manifest whose first row is good, so that a bad one must be survived."""
    corpora.put(root, "good.wav")
    corpora.write(root, "manifest.csv", "\n".join([header, GOOD, *rows]) + "\n")
    return scan(root, name="x")


def only_problem(corpus: Corpus) -> Problem:
    (problem,) = [p for p in corpus.problems if p.row is not None]
    assert problem.file in ("manifest.csv", "manifest.jsonl")
    assert [u.key for u in corpus.utterances] == ["good.wav"]
    return problem


def test_all_columns_are_read(tmp_path: Path) -> None:
    header = "path,label,speaker,patient,sex,age,language,site,start_seconds,end_seconds,split,group_accent"
    corpora.put(tmp_path, "ward 3/ä.flac")
    row = "ward 3/ä.flac,Sadness,S12,P07,F,61,deu,north,1.5,4,train,saxon"
    corpora.write(tmp_path, "manifest.csv", f"{header}\n{row}\n")
    (found,) = scan(tmp_path, name="x").utterances
    assert found.key == "ward 3/ä.flac#1.500-4.000"
    assert (found.label, found.corpus_label, found.speaker, found.patient) == ("sad", "Sadness", "S12", "P07")
    assert found.groups == {"sex": "female", "age": "60+", "language": "de", "accent": "saxon"}
    assert (found.site, found.start_seconds, found.end_seconds, found.split) == ("north", 1.5, 4.0, "train")


def test_json_lines_mean_the_same_as_csv(tmp_path: Path) -> None:
    corpora.put(tmp_path / "csv", "a.wav")
    corpora.put(tmp_path / "json", "a.wav")
    corpora.write(tmp_path / "csv", "manifest.csv", "path,label,speaker,age,site\na.wav,sad,7,61,\n")
    row = {"path": "a.wav", "label": "sad", "speaker": 7, "age": 61, "site": None}
    corpora.write(tmp_path / "json", "manifest.jsonl", "\n" + json.dumps(row) + "\n")
    digests = {scan(tmp_path / kind, name="x").manifest_digest() for kind in ("csv", "json")}
    assert len(digests) == 1


@pytest.mark.parametrize("separator", [";", "\t"])
def test_other_separators_are_recognised(separator: str, tmp_path: Path) -> None:
    corpora.put(tmp_path, "a.wav")
    text = "path,label,speaker\na.wav,sad,s\n".replace(",", separator)
    corpora.write(tmp_path, "manifest.csv", text)
    assert len(scan(tmp_path, name="x").utterances) == 1


def test_a_byte_order_mark_spaces_and_windows_line_breaks_do_not_matter(tmp_path: Path) -> None:
    corpora.put(tmp_path, "a/b.wav")
    corpora.write(tmp_path, "manifest.csv", "\ufeff Path , Label,Speaker\r\n.\\a\\b.wav , Sad , s \r\n\r\n")
    corpus = scan(tmp_path, name="x")
    assert ([u.key for u in corpus.utterances], corpus.problems) == (["a/b.wav"], ())


def test_quoted_cells_may_hold_commas_and_line_breaks(tmp_path: Path) -> None:
    header = "path,label,speaker,text"
    corpus = scan_rows(tmp_path, 'b.wav,calm,t,"one, ""two""\nthree"', "c.wav,calm,t,x", header=header)
    assert [p.row for p in corpus.problems] == [3, 5]  # b and c are not there; the row is where it begins
    assert all("is not there" in p.what for p in corpus.problems)


# --- paths


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("../outside.wav", "with '..'"),
        ("a/../../outside.wav", "with '..'"),
        ("..\\outside.wav", "with '..'"),
        ("/etc/passwd", "absolute"),
        ("/good.wav", "absolute"),
        ("\\good.wav", "absolute"),
        ("C:\\good.wav", "absolute"),
        ("~/good.wav", "absolute"),
        ("file:///good.wav", "absolute"),
        ("nowhere.wav", "not there"),
        ("folder", "a folder"),
        (".hidden.wav", "hidden"),
        ("x" * 5000, "at most 4,096 characters"),
        ("good.wav/good.wav", "not there"),
    ],
)
def test_a_path_that_is_no_recording_inside_is_told(path: str, why: str, tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "folder").mkdir(parents=True)
    corpora.put(tmp_path, "outside.wav")
    corpora.put(root, ".hidden.wav")
    problem = only_problem(scan_rows(root, f"{path},calm,t"))
    assert (problem.row, why in problem.what) == (3, True), problem


@pytest.mark.parametrize("kind", ["file out", "file in", "folder out", "loop", "dangling"])
def test_links_are_never_followed(kind: str, tmp_path: Path) -> None:
    root = tmp_path / "root"
    corpora.put(tmp_path, "outside/secret.wav")
    corpora.put(root, "good.wav")
    path = "link/secret.wav" if kind in ("folder out", "loop") else "link"
    target = {"file out": tmp_path / "outside/secret.wav", "file in": root / "good.wav", "loop": root}
    (root / "link").symlink_to(target.get(kind, tmp_path / "outside" if "out" in kind else "nowhere"))
    corpus = rescan(root, f"{path},calm,t")
    told = [str(p) for p in corpus.problems]
    assert told[0] == "link: links are not followed (1 here; this is the first)."
    assert "manifest.csv, row 3: path: goes through a link" in told[1]
    assert [u.key for u in corpus.utterances] == ["good.wav"]


def rescan(root: Path, *rows: str) -> Corpus:
    corpora.write(root, "manifest.csv", "\n".join(["path,label,speaker", GOOD, *rows]) + "\n")
    return scan(root, name="x")


def test_devices_and_pipes_in_place_of_audio_are_told_and_not_opened(tmp_path: Path) -> None:
    corpora.put(tmp_path, "good.wav")
    os.mkfifo(tmp_path / "pipe.wav")  # opening it would wait for ever
    told = [str(p) for p in rescan(tmp_path, "pipe.wav,calm,t").problems]
    assert "devices, pipes and sockets are left out (1 here" in told[0]
    assert "came a device, a pipe or a socket" in told[1]


@pytest.mark.parametrize("name", ["manifest.csv", "manifest.jsonl"])
@pytest.mark.parametrize("kind", ["pipe", "link", "folder"])
def test_a_manifest_that_is_no_file_is_an_error(kind: str, name: str, tmp_path: Path) -> None:
    root = tmp_path / "root"
    corpora.ravdess(root, actors=(1,))
    outside = corpora.write(tmp_path, "outside.csv", "path,label,speaker\n")
    match kind:
        case "pipe":
            os.mkfifo(root / name)
        case "link":
            (root / name).symlink_to(outside)
        case _:
            (root / name).mkdir()
    with pytest.raises(CorpusError, match=name):
        scan(root, name="x")


def test_a_pipe_that_is_named_as_the_manifest_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "m.csv")
    with pytest.raises(CorpusError, match="regular file"):
        scan(tmp_path / "m.csv", name="x")


def test_a_device_as_the_root_is_an_error() -> None:
    with pytest.raises(CorpusError, match="expected a folder"):
        scan(Path("/dev/zero"), name="x")


def test_file_names_with_line_breaks_or_broken_bytes_are_told_escaped(tmp_path: Path) -> None:
    corpora.put(tmp_path, "good.wav")
    (tmp_path / "a\nb\x1b[31m.wav").write_bytes(b"")
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff\xfe.wav")).write_bytes(b"")
    (problem,) = rescan(tmp_path).problems
    assert "file names with line breaks, or that are not UTF-8, are left out (2 here" in str(problem)
    assert str(problem).isprintable()


def test_a_tree_deeper_than_the_limit_ends_in_a_problem(tmp_path: Path) -> None:
    corpora.put(tmp_path, "good.wav", "/".join(["d"] * (tree.MAX_DEPTH + 3)) + "/deep.wav")
    assert "folders deeper than 32 are not read" in str(rescan(tmp_path).problems[0])


def test_a_tree_larger_than_the_limit_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    corpora.put(tmp_path, *(f"{n}.wav" for n in range(4)))
    monkeypatch.setattr(tree, "MAX_FILES", 3)
    with pytest.raises(CorpusError, match="at most 3 files"):
        scan(tmp_path, name="x")


# --- cells


@pytest.mark.parametrize("value", ["=cmd|' /C calc'!A0", "+1+1", "-2+3", "@SUM(A1)", "＝1", '"\t=1"', " =1"])
@pytest.mark.parametrize("column", ["path", "label", "speaker", "patient", "sex", "site", "split", "group_x"])
def test_cells_that_a_spreadsheet_would_run_are_refused(column: str, value: str, tmp_path: Path) -> None:
    columns = ("path", "label", "speaker", "patient", "sex", "site", "split", "group_x")
    plain = dict(zip(columns, ("good.wav", "calm", "t", "p", "f", "n", "train", "g"), strict=True))
    row = ",".join((plain | {column: value}).values())
    problem = only_problem(scan_rows(tmp_path, row, header=",".join(columns)))
    assert (problem.row, f"{column}: begins as a formula does" in problem.what) == (3, True)
    assert value.strip(' "\t') not in problem.what


@pytest.mark.parametrize("value", ["s\0", "s\x07t", "s\u202et", "s\u2028t"])
def test_characters_that_cannot_be_printed_are_refused(value: str, tmp_path: Path) -> None:
    problem = only_problem(scan_rows(tmp_path, f"good.wav,calm,{value}"))
    assert problem.row == 3
    assert problem.what.isprintable()


def test_a_broken_surrogate_in_json_is_refused(tmp_path: Path) -> None:
    row = '{"path": "good.wav", "label": "calm", "speaker": "\\ud800"}'
    assert json_problem(tmp_path, row).what == "speaker: has characters that cannot be printed. Left out."


@pytest.mark.parametrize(
    ("times", "fine"),
    [("0,1", True), (",1", True), ("1,", True), ("1,1", False), ("2,1", False), ("-1,1", False),
     ("nan,1", False), ("0,inf", False), ("0,1e9", False), ("x,1", False), ("0,=1", False)],
)  # fmt: skip
def test_times_are_finite_and_in_order(times: str, fine: bool, tmp_path: Path) -> None:
    header = "path,label,speaker,start_seconds,end_seconds"
    corpus = scan_rows(tmp_path, f"good.wav,calm,t,{times}", header=header)
    assert len(corpus.utterances) == 1 + fine
    assert fine or "start_seconds < end_seconds" in only_problem(corpus).what


@pytest.mark.parametrize("row", [",calm,t", "good.wav,,t", "good.wav,calm,", "good.wav,calm"])
def test_an_empty_cell_that_is_needed_is_told(row: str, tmp_path: Path) -> None:
    assert "expected a value; came none" in only_problem(scan_rows(tmp_path, row)).what


def test_more_cells_than_columns_are_told(tmp_path: Path) -> None:
    assert "expected 3 cells" in only_problem(scan_rows(tmp_path, "good.wav,calm,t,x")).what


def test_a_cell_that_is_too_long_is_told_without_its_text(tmp_path: Path) -> None:
    problem = only_problem(scan_rows(tmp_path, "good.wav,calm," + "t" * 501))
    assert problem.what == "speaker: expected at most 500 characters. Left out."


def test_an_unknown_label_is_told_once_with_its_first_row_and_count(tmp_path: Path) -> None:
    rows = ["good.wav,wistful,t"] * 3
    problem = only_problem(scan_rows(tmp_path, *rows))
    assert problem.row == 3
    assert "'wistful' is not one of the vocabulary's; 3 utterances left out" in problem.what


def test_the_same_row_twice_is_taken_once(tmp_path: Path) -> None:
    assert only_problem(scan_rows(tmp_path, GOOD)).what == "the same as row 2; taken once."


def test_rows_that_contradict_each_other_are_both_left_out(tmp_path: Path) -> None:
    corpora.put(tmp_path, "b.wav")
    corpus = scan_rows(tmp_path, "b.wav,sad,t", "b.wav,calm,t", "b.wav,sad,t")
    assert "contradicts row 3 on the same recording; both left out" in corpus.problems[0].what
    assert [u.key for u in corpus.utterances] == ["good.wav"]


@pytest.mark.parametrize(
    "row", ['a"b",calm,t', '"good.wav"x,calm,t', '"good.wav",calm\rx,t', 'good.wav,"c",t\ru,"v"']
)
def test_a_torn_row_is_told(row: str, tmp_path: Path) -> None:
    assert only_problem(scan_rows(tmp_path, row)).row == 3


def test_a_torn_header_is_an_error(tmp_path: Path) -> None:
    corpora.put(tmp_path, "good.wav")
    corpora.write(tmp_path, "manifest.csv", f'path,"label"x\ry,speaker\n{GOOD}\n')
    with pytest.raises(CorpusError, match="row 1: expected the columns"):
        scan(tmp_path, name="x")


def test_an_open_quote_costs_a_few_rows_and_no_more(tmp_path: Path) -> None:
    corpora.put(tmp_path, *(f"{n}.wav" for n in range(30)))
    rows = [f"{n}.wav,calm,t" for n in range(30)]
    rows[3] = '3.wav,calm,"t'
    corpus = scan_rows(tmp_path, *rows)
    lost = {f"{n}.wav" for n in range(30)} - {u.key for u in corpus.utterances}
    assert lost == {f"{n}.wav" for n in range(3, 3 + table.MAX_RECORD_LINES)}
    assert any("a quote is not closed" in p.what and p.row == 6 for p in corpus.problems)


# --- files


def test_rows_that_are_not_utf8_are_told_and_the_others_read(tmp_path: Path) -> None:
    corpora.put(tmp_path, "good.wav", "é.wav")
    lines = ["path,label,speaker", GOOD, "é.wav,calm,t"]
    body = "\n".join(lines).encode() + b"\n\xe9.wav,calm,t\n"
    (tmp_path / "manifest.csv").write_bytes(body)
    corpus = scan(tmp_path, name="x")
    assert [u.key for u in corpus.utterances] == ["good.wav", "é.wav"]
    assert str(corpus.problems[0]) == "manifest.csv, row 4: is not UTF-8. Save the file as UTF-8. Left out."


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be"])
def test_utf16_is_one_clear_error(encoding: str, tmp_path: Path) -> None:
    corpora.put(tmp_path, "good.wav")
    corpora.write(tmp_path, "manifest.csv", f"\ufeffpath,label,speaker\n{GOOD}\n", encoding)
    with pytest.raises(CorpusError, match="UTF-16"):
        scan(tmp_path, name="x")


@pytest.mark.parametrize("name", ["manifest.csv", "manifest.jsonl"])
def test_a_line_of_ten_gigabytes_is_an_error_at_once(name: str, tmp_path: Path) -> None:
    corpora.put(tmp_path, "good.wav")
    path = corpora.write(tmp_path, name, "path,label,speaker\n")
    os.truncate(path, 10_000_000_000)  # sparse: it takes no room on disk
    with pytest.raises(CorpusError, match=f"{name}, row 2: expected lines of at most 65,536 bytes"):
        scan(tmp_path, name="x")


def test_a_million_columns_are_an_error(tmp_path: Path) -> None:
    corpora.put(tmp_path, "good.wav")
    corpora.write(tmp_path, "manifest.csv", "path,label,speaker" + ",c" * 1_000_000 + "\n")
    with pytest.raises(CorpusError, match="row 1: expected lines of at most"):
        scan(tmp_path, name="x")
    corpora.write(tmp_path, "manifest.csv", "path,label,speaker" + ",c" * 20_000 + "\n")
    with pytest.raises(CorpusError, match="row 1: expected at most 256 columns; came 20,003"):
        scan(tmp_path, name="x")


def test_more_rows_than_the_limit_are_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "MAX_ROWS", 3)
    with pytest.raises(CorpusError, match="at most 3 rows"):
        scan_rows(tmp_path, GOOD, GOOD)


def test_more_bytes_than_the_limit_are_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tree, "MAX_TEXT_BYTES", 40)
    with pytest.raises(CorpusError, match="at most 40 bytes"):
        scan_rows(tmp_path, GOOD, GOOD)


@pytest.mark.parametrize(
    ("header", "why"),
    [
        ("", "it is empty"),
        ("file,emotion,who", "expected the columns path, label, speaker; came file, emotion, who"),
        ("path,label,speaker,Label", "the column label is there twice"),
    ],
)
def test_a_header_that_does_not_fit_is_an_error(header: str, why: str, tmp_path: Path) -> None:
    corpora.put(tmp_path, "good.wav")
    corpora.write(tmp_path, "manifest.csv", f"{header}\n" if header else "")
    with pytest.raises(CorpusError, match=why):
        scan(tmp_path, name="x")


def test_a_group_with_a_hostile_name_is_told(tmp_path: Path) -> None:
    header = "path,label,speaker,group_=1+1"
    corpora.put(tmp_path, "good.wav")
    corpora.write(tmp_path, "manifest.csv", f"{header}\n{GOOD},x\n")
    with pytest.raises(CorpusError, match="expected a group's name"):
        scan(tmp_path, name="x")


def json_problem(root: Path, row: str) -> Problem:
    corpora.put(root, "good.wav")
    good = '{"path": "good.wav", "label": "sad", "speaker": "s"}'
    corpora.write(root, "manifest.jsonl", f"{good}\n{row}\n")
    problem = only_problem(scan(root, name="x"))
    assert problem.row == 2
    return problem


@pytest.mark.parametrize(
    "row",
    [
        "[1, 2]",
        "7",
        "{",
        "[" * 30_000,
        '{"a":' * 9_000,
        '{"path": "good.wav", "label": "calm", "speaker": "t", "speaker": "u"}',
        '{"path": "good.wav", "label": "calm", "speaker": "t", "Speaker": "u"}',
        '{"path": "good.wav", "label": "calm", "speaker": ["t"]}',
        '{"path": "good.wav", "label": "calm", "speaker": true}',
        '{"path": "good.wav", "label": "calm", "speaker": NaN}',
        '{"path": "good.wav", "label": "calm", "speaker": 1e999}',
        '{"path": "good.wav", "label": "calm", "speaker": ' + "9" * 10_000 + "}",
        '{"path": "good.wav", "label": "calm"}',
        '{"path": "../good.wav", "label": "calm", "speaker": "t"}',
        "{" + ",".join(f'"{n}": 1' for n in range(300)) + "}",
        '{"path": "good.wav", "label": "calm", "speaker": "\0"}',
    ],
)
def test_hostile_json_is_told_with_its_row(row: str, tmp_path: Path) -> None:
    assert json_problem(tmp_path, row).what.isprintable()


def test_all_problems_are_counted_and_a_thousand_listed(tmp_path: Path) -> None:
    corpus = scan_rows(tmp_path, *["nowhere.wav,calm,t"] * 5_000)
    assert len(corpus.problems) == problems.MAX_PROBLEMS_LISTED + 1
    assert corpus.problems[-1].what == "4,000 more problems are not listed."
