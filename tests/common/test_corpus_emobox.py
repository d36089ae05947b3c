"""EmoBox's metadata: both variants, any place of the audio, speakers from the file names it points to."""

from pathlib import Path

import pytest

from sottovoce.common.corpus import scan
from sottovoce.common.errors import CorpusError
from tests.fakes import corpora
from tests.fakes.corpora import emobox_row


def emodb(root: Path, audio: str = "downloads/emodb/wav") -> None:
    """EMO-DB as EmoBox ships it: the whole, two folds, and a duplicate variant with other keys."""
    corpora.put(root, f"{audio}/03a02Wb.wav", f"{audio}/08a05Lc.wav")
    rows = [
        emobox_row("03a02Wb", "emodb", "downloads/emodb/wav/03a02Wb.wav", "anger"),
        emobox_row("08a05Lc", "emodb", "downloads/emodb/wav/08a05Lc.wav", "boredem"),
    ]
    older = emobox_row("03a02Wb", "emodb", "downloads/emodb/wav/03a02Wb.wav", "anger", older=True)
    corpora.write(root, "data/emodb/emodb.jsonl", "".join(rows))
    corpora.write(root, "data/emodb/fold_1/emodb_train_fold_1.jsonl", rows[0])
    corpora.write(root, "data/emodb/fold_1/emodb_test_fold_1.jsonl", rows[1])
    corpora.write(root, "data/emodb/fold_1/emodb_train_fold1.jsonl", older)
    corpora.write(root, "data/emodb/label_map.json", '{"anger": "Angry"}')


def test_folds_and_duplicate_variants_are_one_row_a_recording(tmp_path: Path) -> None:
    emodb(tmp_path)
    corpus = scan(tmp_path, name="x")
    assert corpus.adapter == "emobox"
    assert [(u.speaker, u.label, u.corpus_label) for u in corpus.utterances] == [
        ("03", "angry", "anger"),
        ("08", "boredom", "boredem"),
    ]
    assert corpus.utterances[0].groups == {"sex": "male", "age": "30-44", "language": "de"}
    assert corpus.losses[0].startswith("EmoBox: 3 rows repeat a recording")
    assert corpus.problems == ()
    assert all(u.split is None for u in corpus.utterances)  # EmoBox's folds of EMO-DB share their speakers


@pytest.mark.parametrize("audio", ["emodb/wav", "wav", "."])
def test_the_audio_may_lie_nearer_than_downloads(audio: str, tmp_path: Path) -> None:
    emodb(tmp_path, audio)
    assert len(scan(tmp_path, name="x").utterances) == 2


def test_one_file_may_be_named_itself(tmp_path: Path) -> None:
    corpora.put(tmp_path, "downloads/ravdess/Actor_17/03-01-06-01-02-01-17.wav")
    path = "downloads/ravdess/Actor_17/03-01-06-01-02-01-17.wav"
    named = corpora.write(tmp_path, "r.jsonl", emobox_row("17", "ravdess", path, "Fearful", older=True))
    (found,) = scan(named, name="x").utterances
    assert (found.speaker, found.label, found.groups["sex"]) == ("17", "fearful", "male")


@pytest.mark.parametrize(
    ("dataset", "file", "emotion", "speaker", "label"),
    [
        ("cremad", "AudioWAV/1052_WSI_ANG_XX.wav", "ANG", "1052", "angry"),
        ("savee", "KL_su07.wav", "su", "KL", "surprised"),
        ("urdu", "Angry/SM4_F48_A0100.wav", "A", "SM4", "angry"),
        ("tess", "OAF_back_ps.wav", "ps", "OAF", "surprised"),
        ("subesco", "F_01_OISHI_S_10_ANGRY_1.wav", "ANGRY", "F_01", "angry"),
        (
            "iemocap",
            "Session1/sentences/wav/Ses01F_impro05/Ses01F_impro05_M001.wav",
            "hap",
            "Ses01M",
            "happy",
        ),
    ],
)
def test_speakers_come_from_the_names(
    dataset: str, file: str, emotion: str, speaker: str, label: str, tmp_path: Path
) -> None:
    corpora.put(tmp_path, f"downloads/{dataset}/{file}")
    row = emobox_row("k", dataset, f"downloads/{dataset}/{file}", emotion)
    corpora.write(tmp_path, f"{dataset}.jsonl", row)
    (found,) = scan(tmp_path, name="x").utterances
    assert (found.speaker, found.label) == (speaker, label)


def test_a_dataset_whose_speakers_nobody_tells_is_an_error(tmp_path: Path) -> None:
    corpora.put(tmp_path, "a.wav")
    corpora.write(tmp_path, "casia.jsonl", emobox_row("a", "casia", "a.wav", "angry"))
    with pytest.raises(CorpusError, match=r"casia\.jsonl, row 1: EmoBox does not state the speakers"):
        scan(tmp_path, name="x")


def test_of_many_described_datasets_the_one_whose_recordings_are_there_is_read(tmp_path: Path) -> None:
    emodb(tmp_path)
    corpora.write(tmp_path, "data/savee/savee.jsonl", emobox_row("a", "savee", "KL_a01.wav", "a"))
    assert len(scan(tmp_path, name="x").utterances) == 2


def test_two_datasets_in_one_folder_are_an_error(tmp_path: Path) -> None:
    emodb(tmp_path)
    corpora.put(tmp_path, "KL_a01.wav")
    corpora.write(tmp_path, "data/savee/savee.jsonl", emobox_row("a", "savee", "KL_a01.wav", "a"))
    with pytest.raises(CorpusError, match="expected one dataset; came emodb, savee"):
        scan(tmp_path, name="x")


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("downloads/emodb/wav/99a02Wb.wav", "not there"),
        ("../../03a02Wb.wav", "with '..'"),
        ("/downloads/emodb/wav/03a02Wb.wav", "absolute"),
        ("=03a02Wb.wav", "formula"),
        ("", "expected wav"),
    ],
)
def test_a_path_that_is_no_recording_inside_is_told(path: str, why: str, tmp_path: Path) -> None:
    emodb(tmp_path)
    corpora.write(tmp_path, "z.jsonl", emobox_row("k", "emodb", path, "anger"))
    (problem,) = scan(tmp_path, name="x").problems
    assert (problem.file, problem.row, why in problem.what) == ("z.jsonl", 1, True)
