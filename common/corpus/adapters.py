"""Which adapter reads a folder: by name, by its manifest or header, or by the evidence of its file names.

Guarantees:
  - A manifest at the top wins, then an audformat header, then EmoBox's metadata, then file names.
  - Two corpora in one folder, or none that is known, are an error that lists what is known.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from sottovoce.common.corpus import audformat, emobox, manifest
from sottovoce.common.corpus.dialogues import Iemocap, Meld
from sottovoce.common.corpus.file_names import NAMED_CORPORA
from sottovoce.common.corpus.problems import Problems, show
from sottovoce.common.corpus.table import first_object
from sottovoce.common.corpus.tree import Tree
from sottovoce.common.corpus.types import Reading
from sottovoce.common.errors import CorpusError

MIN_EVIDENCE_SHARE = 0.05  # of the recordings; fewer names of a corpus are strays, not a second corpus


class Named(Protocol):
    """A corpus that is recognised by its file names."""

    @property
    def name(self) -> str: ...
    @property
    def title(self) -> str: ...
    @property
    def example(self) -> str: ...
    def count(self, tree: Tree) -> int: ...
    def read(self, tree: Tree, problems: Problems) -> Reading: ...


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The adapter that reads a folder, why this one, and its reading."""

    name: str
    title: str
    evidence: str
    read: Callable[[Problems], Reading]


BY_FILE_NAMES: tuple[Named, ...] = (*NAMED_CORPORA, Iemocap(), Meld())
ADAPTERS = (*(corpus.name for corpus in BY_FILE_NAMES), "manifest", "emobox", "audformat")


def choose(tree: Tree, adapter: str, file: str | None) -> Choice:
    """Returns the adapter for a tree. `file`: the manifest that was named instead of a folder.

    Raises:
        CorpusError: the name is unknown, or "auto" found no adapter, or two.
    """
    if adapter not in ("auto", *ADAPTERS):
        raise CorpusError(f"adapter: expected auto or one of {', '.join(ADAPTERS)}; came {show(adapter)}.")
    if adapter in ("auto", "manifest", "emobox"):
        choice = _by_metadata(tree, adapter, file)
        if choice is not None:
            return choice
    if adapter in ("auto", "audformat") and audformat.is_database(tree):
        return _audformat(tree)
    if adapter == "auto":
        return _by_file_names(tree)
    for corpus in BY_FILE_NAMES:
        if corpus.name == adapter:
            return _named(tree, corpus, "it was asked for")
    raise CorpusError(f"{adapter}: expected {_wants(adapter)}; found none.")


def _by_metadata(tree: Tree, adapter: str, file: str | None) -> Choice | None:
    """Returns the manifest's or EmoBox's reading; None where neither lies there."""
    plain = file or (manifest.only(tree) if adapter != "emobox" else None)
    if plain is not None:
        if adapter == "emobox" or (adapter == "auto" and emobox.is_emobox(first_object(tree, plain))):
            return _emobox(tree, [plain], f"{show(plain)} has rows of EmoBox")
        evidence = f"{show(plain)} is a manifest"
        return Choice(
            name="manifest",
            title="the vocabulary",
            evidence=evidence,
            read=lambda problems: manifest.read(tree, plain, problems),
        )
    if adapter == "manifest" or (adapter == "auto" and audformat.is_database(tree)):
        return None
    files = emobox.find(tree)
    return _emobox(tree, files, f"{show(files[0])} has rows of EmoBox") if files else None


def _emobox(tree: Tree, files: list[str], evidence: str) -> Choice:
    return Choice(
        name="emobox",
        title="EmoBox",
        evidence=evidence,
        read=lambda problems: emobox.read(tree, files, problems),
    )


def _audformat(tree: Tree) -> Choice:
    return Choice(
        name="audformat",
        title="audformat",
        evidence=f"{audformat.HEADER} is an audformat header",
        read=lambda problems: audformat.read(tree, problems),
    )


def _named(tree: Tree, corpus: Named, evidence: str) -> Choice:
    return Choice(
        name=corpus.name,
        title=corpus.title,
        evidence=evidence,
        read=lambda problems: corpus.read(tree, problems),
    )


def _by_file_names(tree: Tree) -> Choice:
    if not tree.audio:
        videos = (
            f" It holds {tree.n_videos:,} films; their sound must be extracted first."
            if tree.n_videos
            else ""
        )
        raise CorpusError(f"{tree.root}: expected recordings; found none.{videos}")
    counts = [(corpus.count(tree), corpus) for corpus in BY_FILE_NAMES]
    fits = [(n, corpus) for n, corpus in counts if n and n >= MIN_EVIDENCE_SHARE * len(tree.audio)]
    if len(fits) == 1:
        n, corpus = fits[0]
        evidence = f"{n:,} of {len(tree.audio):,} recordings have names such as {corpus.example}"
        return _named(tree, corpus, evidence)
    if fits:
        found = ", ".join(f"{corpus.name} ({n:,} recordings)" for n, corpus in fits)
        raise CorpusError(
            f"{tree.root}: expected one corpus; came {found}. Scan one folder at a time, or name the adapter."
        )
    known = "; ".join(f"{corpus.name} ({corpus.example})" for corpus in BY_FILE_NAMES)
    raise CorpusError(
        f"{tree.root}: no known corpus has such file names, and no manifest.csv or manifest.jsonl is there. "
        f"Known: {known}; or write a manifest with the columns {', '.join(manifest.COLUMNS)}."
    )


def _wants(adapter: str) -> str:
    wants = {
        "manifest": "manifest.csv or manifest.jsonl at the top of the folder",
        "emobox": "a .jsonl file with EmoBox's keys (key, dataset, wav, emo)",
        "audformat": f"{audformat.HEADER} at the top of the folder",
    }
    return wants[adapter]
