"""Corpora whose file names say it all: RAVDESS, CREMA-D, EMO-DB, TESS, SAVEE, SUBESCO, URDU.

Each corpus is one function from a file name to what it says, any nesting, any case. A recording that is there
twice (as Kaggle ships RAVDESS and TESS, or as WAV beside MP3) is taken once.

>>> ravdess((), "03-01-06-01-02-01-17")
Named(recording='03-01-06-01-02-01-17', label='06', speaker='17', sex='male')
>>> savee(("AudioData", "DC"), "sa07")
Named(recording='DC_sa07', label='sa', speaker='DC', sex='male')
"""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from sottovoce.common.corpus.people import Person, crema_d_people
from sottovoce.common.corpus.problems import Problems
from sottovoce.common.corpus.tree import AUDIO_SUFFIXES, Tree
from sottovoce.common.corpus.types import Reading, Row
from sottovoce.common.labels import CORPUS_LABELS


@dataclass(frozen=True)
class Named:
    """What a file name says. `recording` is the same for every copy of one recording."""

    recording: str
    label: str
    speaker: str
    sex: str | None = None


@dataclass(frozen=True)
class LeftOut:
    """A file that belongs to the corpus and is left out on purpose."""

    why: str


Parse = Callable[[tuple[str, ...], str], Named | LeftOut | None]

_SEX = {"m": "male", "f": "female"}
_RAVDESS = re.compile(r"(\d\d)-(\d\d)-(\d\d)-(\d\d)-(\d\d)-(\d\d)-(\d\d)")
_CREMA_D = re.compile(r"(1\d{3})_[A-Z]{3}_(NEU|HAP|SAD|ANG|FEA|DIS)_[A-Z]{1,2}", re.IGNORECASE)
_EMO_DB = re.compile(r"(\d\d)[ab]\d\d([WLEAFTN])[a-z]?", re.IGNORECASE)
_TESS = re.compile(r"(OAF|OA|YAF)_([a-z'-]+)_(angry|disgust|fear|happy|neutral|ps|sad)", re.IGNORECASE)
_SAVEE = re.compile(r"(?:(DC|JE|JK|KL)_)?(sa|su|[adfhn])(\d\d)", re.IGNORECASE)
_SAVEE_SPEAKERS = ("DC", "JE", "JK", "KL")
_SUBESCO = re.compile(
    r"([MF])_(\d\d)_([A-Z-]+)_S_(\d\d?)_(ANGRY|DISGUST|FEAR|HAPPY|NEUTRAL|SAD|SURPRISE)_(\d)", re.IGNORECASE
)
_URDU = re.compile(r"(S([MF])\d+)_F\d+_([AHNS])\d+", re.IGNORECASE)


def ravdess(folders: tuple[str, ...], stem: str) -> Named | LeftOut | None:
    """Modality, vocal channel, emotion, intensity, statement, repetition, actor; odd actors are men."""
    match = _RAVDESS.fullmatch(stem)
    if match is None:
        return None
    modality, channel, emotion, intensity, statement, repetition, actor = match.groups()
    ranges = ((modality, 3), (channel, 2), (emotion, 8), (intensity, 2), (statement, 2), (repetition, 2))
    if not all(1 <= int(field) <= high for field, high in (*ranges, (actor, 24))):
        return None
    if modality != "03":
        return LeftOut("the sound of a film (modality 01 or 02)")
    if channel != "01":
        return LeftOut("a song (vocal channel 02)")
    return Named(stem, emotion, actor, "male" if int(actor) % 2 else "female")


def crema_d(folders: tuple[str, ...], stem: str) -> Named | None:
    """Actor, sentence, emotion, level. Sex and age are in VideoDemographics.csv."""
    match = _CREMA_D.fullmatch(stem)
    return match and Named(stem.upper(), match[2].upper(), match[1])


def emo_db(folders: tuple[str, ...], stem: str) -> Named | None:
    """Two digits of speaker, three characters of text, a letter of emotion, a letter of version."""
    match = _EMO_DB.fullmatch(stem)
    return match and Named(stem.lower(), match[2].upper(), match[1])


def tess(folders: tuple[str, ...], stem: str) -> Named | None:
    """The older or the younger actress, a word, an emotion; OA_bite_neutral is the corpus's own typo."""
    match = _TESS.fullmatch(stem)
    if match is None:
        return None
    speaker = "OAF" if match[1].upper() == "OA" else match[1].upper()
    word, emotion = match[2].lower(), match[3].lower()
    return Named(f"{speaker}_{word}_{emotion}", emotion, speaker, "female")


def savee(folders: tuple[str, ...], stem: str) -> Named | None:
    """The speaker is in the name (DC_a01) or is the folder (DC/a01)."""
    match = _SAVEE.fullmatch(stem)
    if match is None:
        return None
    folder = folders[-1].upper() if folders else ""
    speaker = (match[1] or folder).upper()
    if speaker not in _SAVEE_SPEAKERS:
        return None
    return Named(f"{speaker}_{match[2].lower()}{match[3]}", match[2].lower(), speaker, "male")


def subesco(folders: tuple[str, ...], stem: str) -> Named | None:
    """Sex, number and name of the speaker, sentence, emotion, take. F_01 and M_01 are two people."""
    match = _SUBESCO.fullmatch(stem)
    if match is None:
        return None
    return Named(stem.upper(), match[5].upper(), f"{match[1]}_{match[2]}".upper(), _SEX[match[1].lower()])


def urdu(folders: tuple[str, ...], stem: str) -> Named | None:
    """Sex and number of the speaker, number of the file, letter of the emotion and a running number."""
    match = _URDU.fullmatch(stem)
    return match and Named(stem.upper(), match[3].upper(), match[1].upper(), _SEX[match[2].lower()])


@dataclass(frozen=True, kw_only=True)
class NamedCorpus:
    """A corpus recognised by its file names. `people` and `side_file`: what is known of speakers."""

    name: str
    title: str
    example: str
    parse: Parse
    language: str
    people: Mapping[str, Person] = field(default_factory=dict)
    side_file: Callable[[Tree, Problems], Mapping[str, Person]] | None = None

    def count(self, tree: Tree) -> int:
        """Returns how many recordings have the corpus's names."""
        return sum(self.parse(*split_path(file)) is not None for file in tree.audio)

    def read(self, tree: Tree, problems: Problems) -> Reading:
        """Reads every recording's name; a name that says nothing is a problem."""
        left_out: Counter[str] = Counter()
        copies: dict[str, list[tuple[str, Named]]] = defaultdict(list)
        for file in tree.audio:
            match self.parse(*split_path(file)):
                case Named() as named:
                    copies[named.recording].append((file, named))
                case LeftOut(why):
                    left_out[why] += 1
                case None:
                    problems.add(file, None, f"not a name of {self.title} such as {self.example}; left out.")
        kept = [min(files, key=lambda entry: preference(entry[0])) for files in copies.values()]
        report_copies(tree, {name: [f for f, _ in files] for name, files in copies.items()}, problems)
        people = self.side_file(tree, problems) if self.side_file is not None else self.people
        rows = [self._row(file, named, people) for file, named in kept]
        losses = [f"{self.title}: {n:,} recordings left out: {why}." for why, n in sorted(left_out.items())]
        return Reading(rows=rows, labels=CORPUS_LABELS[self.name], losses=tuple(losses))

    def groups(self, named: Named, people: Mapping[str, Person] | None = None) -> dict[str, str]:
        """Returns what is known of a recording's speaker."""
        person = (self.people if people is None else people).get(named.speaker, Person())
        stated = {"sex": named.sex or person.sex, "age": person.age, "language": self.language}
        return {key: value for key, value in stated.items() if value}

    def _row(self, file: str, named: Named, people: Mapping[str, Person]) -> Row:
        groups = self.groups(named, people)
        return Row(file=file, corpus_label=named.label, speaker=named.speaker, groups=groups, source=file)


def split_path(file: str) -> tuple[tuple[str, ...], str]:
    """Returns a relative path's folders, and its file name without the ending."""
    path = PurePosixPath(file)
    return path.parts[:-1], path.stem


def preference(file: str) -> tuple[int, int, str]:
    """Orders the copies of one recording: lossless first, then nearest to the root, then by name."""
    suffix = PurePosixPath(file).suffix.lower()
    rank = AUDIO_SUFFIXES.index(suffix) if suffix in AUDIO_SUFFIXES else len(AUDIO_SUFFIXES)
    return rank, file.count("/"), file


def report_copies(tree: Tree, copies: Mapping[str, Iterable[str]], problems: Problems) -> None:
    """Says once how many recordings are there more than once, and whether the copies differ in size."""
    several = [sorted(files, key=preference) for files in map(list, copies.values()) if len(files) > 1]
    if not several:
        return
    n_files = sum(len(files) - 1 for files in several)
    n_differ = sum(len({tree.size_bytes(file) for file in files}) > 1 for files in several)
    what = f"{len(several):,} recordings are there more than once by name; {n_files:,} copies left out"
    alike = f", {n_differ:,} of the recordings have copies of another size" if n_differ else ""
    problems.add(
        min(files[1] for files in several), None, f"{what}{alike} (this is the first copy left out)."
    )


_EMO_DB_PEOPLE = {
    "03": Person("male", "31"),
    "08": Person("female", "34"),
    "09": Person("female", "21"),
    "10": Person("male", "32"),
    "11": Person("male", "26"),
    "12": Person("male", "30"),
    "13": Person("female", "32"),
    "14": Person("female", "35"),
    "15": Person("male", "25"),
    "16": Person("female", "31"),
}
_TESS_PEOPLE = {"OAF": Person("female", "64"), "YAF": Person("female", "26")}

NAMED_CORPORA = (
    NamedCorpus(
        name="ravdess", title="RAVDESS", example="03-01-06-01-02-01-17.wav", parse=ravdess, language="en"
    ),
    NamedCorpus(
        name="crema-d",
        title="CREMA-D",
        example="1001_IEO_NEU_XX.wav",
        parse=crema_d,
        language="en",
        side_file=crema_d_people,
    ),
    NamedCorpus(
        name="emo-db",
        title="EMO-DB",
        example="03a01Fa.wav",
        parse=emo_db,
        language="de",
        people=_EMO_DB_PEOPLE,
    ),
    NamedCorpus(
        name="tess",
        title="TESS",
        example="OAF_back_angry.wav",
        parse=tess,
        language="en",
        people=_TESS_PEOPLE,
    ),
    NamedCorpus(name="savee", title="SAVEE", example="DC_a01.wav, or DC/a01.wav", parse=savee, language="en"),
    NamedCorpus(
        name="subesco", title="SUBESCO", example="M_10_EVAN_S_8_DISGUST_2.wav", parse=subesco, language="bn"
    ),
    NamedCorpus(name="urdu", title="URDU", example="SM1_F10_A010.wav", parse=urdu, language="ur"),
)
