"""Corpora of dialogues, whose labels stand in side files: IEMOCAP and MELD."""

import re
from collections import defaultdict
from collections.abc import Iterator

from sottovoce.common.corpus.file_names import preference, report_copies, split_path
from sottovoce.common.corpus.manifest import refusal
from sottovoce.common.corpus.problems import Problems, show
from sottovoce.common.corpus.table import records
from sottovoce.common.corpus.tree import Tree
from sottovoce.common.corpus.types import Reading, Row
from sottovoce.common.errors import CorpusError
from sottovoce.common.labels import CORPUS_LABELS

_IEMOCAP_UTTERANCE = re.compile(r"(Ses\d\d)[FM]_(?:impro|script)\w*_([FM])(?:\d{3}|XX\d+)", re.IGNORECASE)
_IEMOCAP_DIALOGUE = re.compile(r"Ses\d\d[FM]_(?:impro|script)\d\d\w*", re.IGNORECASE)
_IEMOCAP_LINE = re.compile(rb"\[\s*([\d.]+)\s*-\s*([\d.]+)\s*\]\s+(\w+)\s+(\w+)\s+\[")
_MELD_UTTERANCE = re.compile(
    r"(?:(train|dev|val|test)_|final_videos_test)?dia(\d+)_utt(\d+)(?:_(train|dev|val|test))?", re.IGNORECASE
)
_MELD_TABLE = re.compile(r"(train|dev|test)_sent_emo\.csv", re.IGNORECASE)
_MELD_COLUMNS = ("speaker", "emotion", "dialogue_id", "utterance_id")
_SPLITS = {"train": "train", "dev": "dev", "val": "dev", "test": "test"}


class Iemocap:
    """Ses01F_impro01_F000.wav, labelled by EmoEvaluation/Ses01F_impro01.txt.

    The speaker is the session and the letter before the utterance's number. The letter after the session says
    who wore the motion sensors: taking it for the speaker mixes two voices into one.
    """

    name, title, example = (
        "iemocap",
        "IEMOCAP",
        "Ses01F_impro01_F000.wav and EmoEvaluation/Ses01F_impro01.txt",
    )

    def count(self, tree: Tree) -> int:
        """Returns how many recordings have the corpus's names."""
        return sum(_IEMOCAP_UTTERANCE.fullmatch(split_path(file)[1]) is not None for file in tree.audio)

    def read(self, tree: Tree, problems: Problems) -> Reading:
        """Reads every evaluation. Raises: CorpusError if there is none."""
        sounds, n_dialogues = self._sounds(tree, problems)
        rows: dict[str, Row] = {}
        contradictory: set[str] = set()
        for source, number, utterance, label in _iemocap_evaluations(tree):
            row = self._row(utterance, label, sounds, source, number, problems)
            if row is None:
                continue
            if utterance in rows and rows[utterance].corpus_label != row.corpus_label:
                contradictory.add(utterance)
                problems.add(source, number, "the utterance has another label elsewhere; left out.")
            rows.setdefault(utterance, row)
        unnamed = len(set(sounds) - set(rows))
        if unnamed:
            problems.add(".", None, f"{unnamed:,} recordings are named by no evaluation; left out.")
        dialogues = f"IEMOCAP: {n_dialogues:,} recordings of whole dialogues left out: two voices each."
        kept = [row for utterance, row in rows.items() if utterance not in contradictory]
        return Reading(rows=kept, labels=CORPUS_LABELS["iemocap"], losses=(dialogues,) if n_dialogues else ())

    def _sounds(self, tree: Tree, problems: Problems) -> tuple[dict[str, str], int]:
        copies: dict[str, list[str]] = defaultdict(list)
        n_dialogues = 0
        for file in tree.audio:
            stem = split_path(file)[1]
            if _IEMOCAP_UTTERANCE.fullmatch(stem):
                copies[stem.lower()].append(file)
            elif _IEMOCAP_DIALOGUE.fullmatch(stem):
                n_dialogues += 1
            else:
                problems.add(file, None, f"not a name of IEMOCAP such as {self.example}; left out.")
        report_copies(tree, copies, problems)
        return {utterance: min(files, key=preference) for utterance, files in copies.items()}, n_dialogues

    def _row(
        self, utterance: str, label: str, sounds: dict[str, str], source: str, number: int, problems: Problems
    ) -> Row | None:
        if not _IEMOCAP_UTTERANCE.fullmatch(utterance):
            problems.add(
                source, number, f"expected an utterance such as Ses01F_impro01_F000; came {show(utterance)}."
            )
            return None
        if utterance not in sounds:
            problems.add(source, number, f"the recording of {show(utterance)} is not there.")
            return None
        speaker, groups = iemocap_speaker(utterance)
        return Row(
            file=sounds[utterance],
            corpus_label=label,
            speaker=speaker,
            groups=groups,
            source=source,
            row=number,
        )


class Meld:
    """dia0_utt0.wav in a folder of its split, labelled by train_sent_emo.csv, dev_..., test_...."""

    name, title, example = "meld", "MELD", "dia0_utt0.wav and train_sent_emo.csv"

    def count(self, tree: Tree) -> int:
        """Returns how many recordings have the corpus's names."""
        return sum(_MELD_UTTERANCE.fullmatch(split_path(file)[1]) is not None for file in tree.audio)

    def read(self, tree: Tree, problems: Problems) -> Reading:
        """Reads the three tables. Raises: CorpusError if there is none."""
        tables = _meld_tables(tree)
        sounds = self._sounds(tree, [split for split, _ in tables], problems)
        rows: dict[tuple[str, int, int], Row] = {}
        for split, table in tables:
            for number, cells in records(tree, table, problems, columns=_MELD_COLUMNS, encoding="cp1252"):
                row = self._row(split, cells, sounds, table, number, problems)
                if row is not None:
                    rows.setdefault((split, int(cells["dialogue_id"]), int(cells["utterance_id"])), row)
        unnamed = len(set(sounds) - set(rows))
        if unnamed:
            problems.add(".", None, f"{unnamed:,} recordings are named by no table; left out.")
        return Reading(rows=list(rows.values()), labels=CORPUS_LABELS["meld"])

    def _sounds(self, tree: Tree, splits: list[str], problems: Problems) -> dict[tuple[str, int, int], str]:
        copies: dict[tuple[str, int, int], list[str]] = defaultdict(list)
        for file in tree.audio:
            folders, stem = split_path(file)
            match = _MELD_UTTERANCE.fullmatch(stem)
            if match is None:
                problems.add(file, None, f"not a name of MELD such as {self.example}; left out.")
                continue
            split = _SPLITS.get((match[1] or match[4] or "").lower()) or _split_of(folders, splits)
            if split is None:
                problems.add(file, None, "expected a folder named after train, dev or test; left out.")
                continue
            copies[split, int(match[2]), int(match[3])].append(file)
        names = {
            f"{split}/{dialogue}/{utterance}": files for (split, dialogue, utterance), files in copies.items()
        }
        report_copies(tree, names, problems)
        return {identity: min(files, key=_meld_preference) for identity, files in copies.items()}

    def _row(
        self,
        split: str,
        cells: dict[str, str],
        sounds: dict[tuple[str, int, int], str],
        table: str,
        number: int,
        problems: Problems,
    ) -> Row | None:
        dialogue, utterance = cells["dialogue_id"], cells["utterance_id"]
        if not re.fullmatch(r"\d{1,6}", dialogue) or not re.fullmatch(r"\d{1,6}", utterance):
            problems.add(table, number, "expected whole numbers in Dialogue_ID and Utterance_ID.")
            return None
        file = sounds.get((split, int(dialogue), int(utterance)))
        speaker = " ".join(cells["speaker"].split())
        why = refusal({"Speaker": speaker, "Emotion": cells["emotion"]})
        if file is None:
            why = f"the recording dia{dialogue}_utt{utterance} is not there."
        elif not speaker:
            why = "Speaker: expected a name; came none. Left out."
        if file is None or why is not None:
            problems.add(table, number, why or "Left out.")
            return None
        return Row(
            file=file,
            corpus_label=cells["emotion"],
            speaker=speaker,
            groups={"language": "en"},
            split=split,
            source=table,
            row=number,
        )


def iemocap_speaker(utterance: str) -> tuple[str, dict[str, str]]:
    """Returns who speaks in an utterance, and their groups; an empty text for a name that is none of IEMOCAP.

    >>> iemocap_speaker("Ses01F_impro01_M003")
    ('Ses01M', {'sex': 'male', 'language': 'en'})
    """
    match = _IEMOCAP_UTTERANCE.fullmatch(utterance)
    if match is None:
        return "", {}
    letter = match[2].upper()
    groups = {"sex": "female" if letter == "F" else "male", "language": "en"}
    return match[1].capitalize() + letter, groups


def _iemocap_evaluations(tree: Tree) -> Iterator[tuple[str, int, str, str]]:
    """Yields (file, row, utterance in lower case, label) of every evaluation's summary lines."""
    # Beside the summaries lie one rater's own files (Categorical/, Attribute/), whose lines look otherwise.
    sources = [file for file in tree.files if file.lower().endswith(".txt") and _is_evaluation(file)]
    if not sources:
        raise CorpusError(
            "IEMOCAP: expected EmoEvaluation/Ses01F_impro01.txt and the like; found none. "
            "Scan the folder that holds Session1 to Session5."
        )
    for source in sources:
        for number, line in tree.lines(source):
            match = _IEMOCAP_LINE.match(line)
            if match is not None:
                yield source, number, match[3].decode("latin-1").lower(), match[4].decode("latin-1").lower()


def _is_evaluation(file: str) -> bool:
    folders, stem = split_path(file)
    in_evaluation = bool(folders) and folders[-1].lower() == "emoevaluation"
    return in_evaluation and _IEMOCAP_DIALOGUE.fullmatch(stem) is not None


def _meld_tables(tree: Tree) -> list[tuple[str, str]]:
    tables: dict[str, str] = {}
    for file in sorted(tree.files, key=lambda file: (file.count("/"), file)):
        match = _MELD_TABLE.fullmatch(file.rsplit("/", 1)[-1])
        if match is not None:
            tables.setdefault(match[1].lower(), file)
    if not tables:
        raise CorpusError(
            "MELD: expected train_sent_emo.csv, dev_sent_emo.csv or test_sent_emo.csv; found none. "
            "They lie at the top of MELD.Raw; put them into the scanned folder."
        )
    return sorted(tables.items())


def _split_of(folders: tuple[str, ...], splits: list[str]) -> str | None:
    """Returns the split of the nearest folder that names exactly one; or the only one with a table."""
    for folder in reversed(folders):
        words = re.split(r"[^a-z]+", folder.lower())
        named = {_SPLITS[word] for word in words if word in _SPLITS}
        if len(named) == 1:
            return named.pop()
    return splits[0] if len(splits) == 1 else None


def _meld_preference(file: str) -> tuple[bool, tuple[int, int, str]]:
    # The test folder holds a second cut of some utterances, named final_videos_test...: the plain one counts.
    return "final_videos" in file.lower(), preference(file)
