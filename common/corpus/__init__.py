"""A folder of recordings, or a manifest of them, into utterances with labels, speakers and patients.

    corpus = scan(Path("ravdess"), name="ravdess")
    corpus.utterances[0].label, corpus.problems, corpus.manifest_digest()

Guarantees:
  - Nothing outside the folder is read; links are not followed; no audio is decoded.
  - What is wrong is a problem with its file and row; only a corpus that cannot be used is an error.
  - A label that means nothing known is never guessed; what a map of labels loses is stated.
"""

from pathlib import Path

from sottovoce.common.corpus.adapters import ADAPTERS, choose
from sottovoce.common.corpus.assemble import assemble
from sottovoce.common.corpus.describe import describe
from sottovoce.common.corpus.problems import Problems
from sottovoce.common.corpus.tree import walk
from sottovoce.common.corpus.types import Corpus, Problem, Utterance
from sottovoce.common.errors import CorpusError

__all__ = ["ADAPTERS", "Corpus", "Problem", "Utterance", "describe", "scan"]

_SHOWN_PROBLEMS = 5  # of a corpus in which nothing can be used


def scan(root: Path, *, name: str, adapter: str = "auto") -> Corpus:
    """Reads a corpus's folder, or a manifest file together with its folder.

    | root                                        | read as                                       |
    |---------------------------------------------|-----------------------------------------------|
    | a .csv or .jsonl file                        | that manifest (or EmoBox), paths beside it    |
    | a folder with manifest.csv or manifest.jsonl | that manifest                                 |
    | a folder with db.yaml                        | an audformat database (extra `audformat`)     |
    | a folder with EmoBox's .jsonl                | EmoBox                                        |
    | another folder                               | the one corpus whose file names it has        |

    Raises:
        CorpusError: no adapter fits, or two do; a side file is missing; a limit is passed; nothing is usable.
    """
    problems = Problems()
    folder, file = _folder_and_manifest(root)
    tree = walk(folder, problems)
    if file is not None and file not in tree.files:
        raise CorpusError(f"{root}: expected a regular file that is no link and not hidden.")
    choice = choose(tree, adapter, file)
    reading = choice.read(problems)
    utterances, losses = assemble(tree, reading, choice.title, problems)
    if choice.name in ("manifest", "emobox", "audformat"):
        _report_unnamed(len(tree.audio), {row.file for row in reading.rows}, problems)
    if tree.n_videos:
        losses.append(f"{tree.n_videos:,} films left out: only recordings of sound are read.")
    if not utterances:
        first = "\n  ".join(map(str, problems.listed()[:_SHOWN_PROBLEMS]))
        asked = (
            "" if adapter == "auto" else " Take adapter 'auto', which recognises a corpus, or the right one."
        )
        raise CorpusError(
            f"{root}: expected at least one usable utterance (read as {choice.name}: {choice.evidence}); found none."
            f"{asked}\n  {first}"
        )
    return Corpus(
        name=name,
        adapter=choice.name,
        evidence=choice.evidence,
        root=folder,
        utterances=tuple(utterances),
        problems=problems.listed(),
        losses=tuple(losses),
    )


def _folder_and_manifest(root: Path) -> tuple[Path, str | None]:
    """Tells a folder from a manifest file. A link that the user names is followed to the root."""
    try:
        resolved = root.expanduser().resolve(strict=True)
    except (OSError, RuntimeError, ValueError) as error:
        raise CorpusError(f"{root}: cannot be read ({getattr(error, 'strerror', None) or error}).") from None
    if resolved.suffix.lower() in (".csv", ".jsonl") and not resolved.is_dir():
        return resolved.parent, resolved.name
    return resolved, None


def _report_unnamed(n_audio: int, named: set[str], problems: Problems) -> None:
    if n_audio > len(named):
        problems.add(".", None, f"{n_audio - len(named):,} recordings on disk are named by no usable row.")
