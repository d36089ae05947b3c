"""Folders with the file names, folders and side files that corpora publish; every recording is a short tone.

ravdess(tmp_path)          # Actor_01/03-01-01-01-01-01-01.wav and 1,439 more
put(tmp_path, "a.flac")    # one recording, in the format of its ending
"""

import itertools
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import soundfile

_FORMATS = {".wav": "WAV", ".flac": "FLAC", ".ogg": "OGG", ".mp3": "MP3"}


def put(root: Path, *files: str) -> None:
    """Writes recordings; one tone a format is encoded once, the others are hard links to it."""
    first: dict[str, Path] = {}
    for file in files:
        path = root / file
        path.parent.mkdir(parents=True, exist_ok=True)
        suffix = path.suffix.lower()
        if suffix in first:
            os.link(first[suffix], path)
        else:
            tone = 0.1 * np.sin(np.arange(800) * 0.2)
            soundfile.write(path, tone, 8000, format=_FORMATS.get(suffix, "WAV"))
            first[suffix] = path


def write(root: Path, file: str, text: str, encoding: str = "utf-8") -> Path:
    """Writes a side file."""
    path = root / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode(encoding))
    return path


def ravdess(root: Path, actors: Iterable[int] = range(1, 25), suffix: str = ".wav") -> None:
    """All 60 speech recordings of each actor: neutral has no strong intensity."""
    fields = itertools.product(actors, range(1, 9), (1, 2), (1, 2), (1, 2))
    put(
        root,
        *(
            f"Actor_{actor:02d}/03-01-{emotion:02d}-{intensity:02d}-{text:02d}-{take:02d}-{actor:02d}{suffix}"
            for actor, emotion, intensity, text, take in fields
            if not (emotion == 1 and intensity == 2)
        ),
    )


def crema_d(root: Path, demographics: bool = True) -> None:
    """Two actors; IEO has three levels, the published oddity SAD_X, and the side file."""
    emotions = ("NEU", "HAP", "SAD", "ANG", "FEA", "DIS")
    put(root, *(f"AudioWAV/{actor}_TIE_{emotion}_XX.wav" for actor in (1001, 1002) for emotion in emotions))
    put(root, "AudioWAV/1001_IEO_ANG_HI.wav", "AudioWAV/1002_ITH_SAD_X.wav")
    if demographics:
        table = "ActorID,Age,Sex,Race,Ethnicity\r\n1001,51,Male,Caucasian,Not Hispanic\r\n1002,21,Female,Asian,\r\n"
        write(root, "VideoDemographics.csv", table)


def emo_db(root: Path) -> None:
    """Ten speakers, seven emotions, one text."""
    speakers = ("03", "08", "09", "10", "11", "12", "13", "14", "15", "16")
    put(root, *(f"wav/{speaker}a01{letter}a.wav" for speaker in speakers for letter in "WLEAFTN"))


def tess(root: Path, folder: str = "TESS Toronto emotional speech set data") -> None:
    """Both actresses, two words, folders as on Kaggle, and the corpus's own typo."""
    folders = {"ps": "pleasant_surprised"}
    labels = ("angry", "disgust", "fear", "happy", "neutral", "ps", "sad")
    for speaker, label in itertools.product(("OAF", "YAF"), labels):
        inside = f"{folder}/{speaker}_{folders.get(label, label)}"
        words = ("back", "bite")
        names = [f"{speaker}_{word}_{label}" for word in words]
        put(root, *(f"{inside}/{name}.wav".replace("OAF_bite_neutral", "OA_bite_neutral") for name in names))


def savee(root: Path, flat: bool = False) -> None:
    """Four men: DC/a01.wav as published, ALL/DC_a01.wav as on Kaggle."""
    codes = ("a", "d", "f", "h", "n", "sa", "su")
    pairs = itertools.product(("DC", "JE", "JK", "KL"), codes)
    put(root, *(f"ALL/{s}_{code}01.wav" if flat else f"AudioData/{s}/{code}01.wav" for s, code in pairs))


def subesco(root: Path) -> None:
    """Two speakers of one number: sex tells them apart."""
    labels = ("ANGRY", "DISGUST", "FEAR", "HAPPY", "NEUTRAL", "SAD", "SURPRISE")
    speakers = ("M_01_EVAN", "F_01_OISHI")
    put(
        root, *(f"{speaker}_S_{n}_{label}_2.wav" for speaker in speakers for n in (8, 10) for label in labels)
    )


def urdu(root: Path) -> None:
    """Two speakers, four folders, the running number with its odd zeros."""
    folders = {"A": "Angry", "H": "Happy", "N": "Neutral", "S": "Sad"}
    numbers = ("010", "0100")
    names = itertools.product(folders.items(), ("SM1", "SF2"), numbers)
    put(
        root,
        *(f"URDU-Dataset-master/{folder}/{who}_F10_{code}{n}.wav" for (code, folder), who, n in names),
    )


def iemocap(root: Path) -> None:
    """One session: two voices in a dialogue whose name says F, a summary, one rater's own file, junk."""
    base = "Session1/sentences/wav/Ses01F_impro01"
    names = [f"Ses01F_impro01_{who}{n:03d}" for who in "FM" for n in range(3)]
    put(root, *(f"{base}/{name}.wav" for name in names), "Session1/dialog/wav/Ses01F_impro01.wav")
    labels = ("neu", "xxx", "exc", "ang", "fru", "xxx")
    lines = ["% [START_TIME - END_TIME] TURN_NAME EMOTION [V, A, D]", ""]
    for number, (name, label) in enumerate(zip(names, labels, strict=True)):
        lines += [f"[{number}.2901 - {number}.9100]\t{name}\t{label}\t[2.5000, 2.5000, 2.5000]"]
        lines += ["C-E2:\tNeutral;\t()", "A-E3:\tval 3; act 2; dom  2;\t()", ""]
    folder = "Session1/dialog/EmoEvaluation"
    write(root, f"{folder}/Ses01F_impro01.txt", "\n".join(lines))
    write(root, f"{folder}/Categorical/Ses01F_impro01_e1_cat.txt", "Ses01F_impro01_F000 :Sadness; ()\n")
    write(root, f"{folder}/._Ses01F_impro01.txt", "\0\0junk")


MELD_HEADER = (
    "Sr No.,Utterance,Speaker,Emotion,Sentiment,Dialogue_ID,Utterance_ID,Season,Episode,StartTime,EndTime\n"
)


def meld(root: Path) -> None:
    """Three splits with the same dialogue numbers, cp1252 in the text, a quoted comma, a line break, films."""
    put(
        root,
        "train/train_splits/dia0_utt0.wav",
        "train/train_splits/dia0_utt1.wav",
        "dev/dev_splits_complete/dia0_utt0.wav",
        "test/output_repeated_splits_test/dia0_utt0.wav",
        "test/output_repeated_splits_test/final_videos_testdia0_utt0.wav",
    )
    rows = (
        '1,"Well, that\x92s \x85 it",Monica,joy,positive,0,0,8,21,"00:00:01,000","00:00:02,000"\n'
        '2,"two\nlines",Chandler,surprise,negative,0,1,8,21,"00:00:01,000","00:00:02,000"\n'
    )
    path = root / "train" / "train_sent_emo.csv"
    path.write_bytes((MELD_HEADER + rows).encode("latin-1"))  # 0x92 and 0x85 are cp1252, and no UTF-8
    write(root, "dev_sent_emo.csv", MELD_HEADER + "1,Oh.,Phoebe,anger,negative,0,0,1,1,0,0\n")
    write(root, "test_sent_emo.csv", MELD_HEADER + "1,Oh.,Ross,sadness,negative,0,0,1,1,0,0\n")
    write(root, "train/train_splits/dia9_utt9.mp4", "not read")


def emobox_row(key: str, dataset: str, path: str, emotion: str, *, older: bool = False) -> str:
    """One line of EmoBox's metadata; `older` is the variant with audio and label."""
    names = ("audio", "label") if older else ("wav", "emo")
    row: Mapping[str, object] = {
        "key": f"{dataset}-{key}",
        "dataset": dataset,
        names[0]: path,
        "type": "raw",
        "sample_rate": 16000,
        "num_frame": 33978.0,
        "task": "category",
        names[1]: emotion,
        "channel": 1,
    }
    return json.dumps(row) + "\n"


CORPORA = {
    "ravdess": lambda root: ravdess(root, actors=(1, 2)),
    "crema-d": crema_d,
    "emo-db": emo_db,
    "tess": tess,
    "savee": savee,
    "subesco": subesco,
    "urdu": urdu,
    "iemocap": iemocap,
    "meld": meld,
}
