"""The files of a corpus's folder, listed once, without following a link; the only files a scan may name.

Guarantees:
  - Nothing outside the root is listed, opened or measured.
  - Links, devices, pipes and sockets are never opened; they are counted and reported.
  - A loop of links, a folder too deep or too large ends in an error or a problem, never in a hang.
  - A line longer than the limit is refused before it is in memory.
"""

import os
import stat
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from sottovoce.common.corpus.problems import Problems, is_text, show
from sottovoce.common.errors import CorpusError

AUDIO_SUFFIXES = (".wav", ".flac", ".aif", ".aiff", ".au", ".ogg", ".oga", ".opus", ".mp3")  # lossless first
VIDEO_SUFFIXES = (".mp4", ".avi", ".flv", ".mkv", ".mov", ".webm", ".m4v")
MAX_FILES = 2_000_000  # files below the root
MAX_DEPTH = 32  # folders below the root
MAX_LINE_BYTES = 65_536  # of one line of any manifest or side file
MAX_TEXT_BYTES = 4_000_000_000  # of one manifest
MAX_PATH_CHARACTERS = 4_096

_LEFT_BY_SYSTEMS = ("__MACOSX", "@eaDir", "lost+found")


@dataclass(frozen=True, kw_only=True)
class Tree:
    """A folder's regular files by their relative path (forward slashes, as on disk), sorted."""

    root: Path
    files: tuple[str, ...]

    @cached_property
    def audio(self) -> tuple[str, ...]:
        """The recordings, by their file names' endings."""
        return tuple(file for file in self.files if file.lower().endswith(AUDIO_SUFFIXES))

    @cached_property
    def n_videos(self) -> int:
        """How many films there are: their sound is not read."""
        return sum(file.lower().endswith(VIDEO_SUFFIXES) for file in self.files)

    @cached_property
    def by_name(self) -> Mapping[str, str]:
        """The files by their composed (NFC) path: some systems store é as two characters."""
        return {unicodedata.normalize("NFC", file): file for file in self.files}

    def find(self, path: str) -> str | None:
        """Returns the listed file that a manifest means by `path`; None when there is none."""
        if path in self.by_name:
            return self.by_name[path]
        if path.startswith(("/", "\\")):
            return None  # absolute, even where the rest of it would be a file of ours
        for spelling in (path, path.replace("\\", "/")):
            parts = [part for part in spelling.split("/") if part not in ("", ".")]
            found = self.by_name.get(unicodedata.normalize("NFC", "/".join(parts)))
            if found is not None:
                return found
        return None

    def lines(self, file: str) -> Iterator[tuple[int, bytes]]:
        """Yields the lines of a listed text file with their numbers, each without its line break.

        Raises:
            CorpusError: the file or a line of it is too large, or it is no longer a regular file.
        """
        n_bytes = 0
        with _open_regular(self.root / file, file) as stream:
            number = 0
            while line := stream.readline(MAX_LINE_BYTES + 1):
                number += 1
                n_bytes += len(line)
                if len(line) > MAX_LINE_BYTES:
                    raise CorpusError(
                        f"{show(file)}, row {number}: expected lines of at most {MAX_LINE_BYTES:,} bytes; "
                        "this one is longer. It is no manifest."
                    )
                if n_bytes > MAX_TEXT_BYTES:
                    raise CorpusError(f"{show(file)}: expected at most {MAX_TEXT_BYTES:,} bytes. Split it.")
                yield number, line.rstrip(b"\r\n")

    def size_bytes(self, file: str) -> int:
        """Returns a listed file's size."""
        return (self.root / file).lstat().st_size


def walk(root: Path, problems: Problems) -> Tree:
    """Lists a folder. Raises: CorpusError if it is no folder, or has more than `MAX_FILES` files."""
    if not root.is_dir():
        raise CorpusError(f"{root}: expected a folder of recordings, or a manifest; found neither.")
    files: list[str] = []
    odd: dict[str, list[str]] = {}
    pending = [("", 0)]
    while pending:
        folder, depth = pending.pop()
        for entry in _entries(root, folder, problems):
            path = folder + entry.name
            kind = _kind(entry, depth)
            if kind == "folder":
                pending.append((path + "/", depth + 1))
            elif kind == "file":
                files.append(path)
            elif kind is not None:
                odd.setdefault(kind, []).append(path)
        if len(files) > MAX_FILES:
            raise CorpusError(f"{root}: expected at most {MAX_FILES:,} files. Scan a smaller folder.")
    _report_odd(odd, problems)
    return Tree(root=root, files=tuple(sorted(files)))


def why_not(tree: Tree, path: str) -> str:
    """Returns why a manifest's `path` is not one of the tree's files. Opens nothing."""
    spelling = path.replace("\\", "/")
    if not is_text(path) or not path:
        return "expected a path; came an empty one, or one with characters that cannot be printed."
    if len(path) > MAX_PATH_CHARACTERS:
        return f"expected a path of at most {MAX_PATH_CHARACTERS:,} characters."
    if spelling.startswith(("/", "~")) or spelling[1:2] == ":" or "://" in spelling:
        return "expected a path relative to the corpus's folder; came an absolute one."
    if ".." in spelling.split("/"):
        return "expected a path inside the corpus's folder; came one with '..'."
    here = tree.root
    for part in PurePosixPath(spelling).parts:
        here = here / part
        try:
            mode = here.lstat().st_mode
        except OSError:
            return "the recording is not there."
        if stat.S_ISLNK(mode):
            return "goes through a link; links are not followed. Put the recording itself in the folder."
        if not stat.S_ISDIR(mode) and not stat.S_ISREG(mode):
            return "expected a recording; came a device, a pipe or a socket."
    return "expected a recording; came a folder, or a file that is hidden."


def _entries(root: Path, folder: str, problems: Problems) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(root / folder) as entries:
            return list(entries)
    except OSError as error:
        problems.add(folder or ".", None, f"the folder cannot be read ({error.strerror}).")
        return []


def _kind(entry: os.DirEntry[str], depth: int) -> str | None:
    """Returns "folder", "file", a sentence for what is odd, or None for what systems leave behind."""
    if entry.is_symlink():
        return "links are not followed"
    if entry.name.startswith(".") or entry.name in _LEFT_BY_SYSTEMS:
        return None  # .DS_Store, ._x.wav and the like: no corpus publishes hidden recordings
    if not is_text(entry.name):
        return "file names with line breaks, or that are not UTF-8, are left out"
    if entry.is_dir(follow_symlinks=False):
        return "folder" if depth < MAX_DEPTH else f"folders deeper than {MAX_DEPTH} are not read"
    return "file" if entry.is_file(follow_symlinks=False) else "devices, pipes and sockets are left out"


def _report_odd(odd: dict[str, list[str]], problems: Problems) -> None:
    for kind, paths in sorted(odd.items()):
        problems.add(min(paths), None, f"{kind} ({len(paths):,} here; this is the first).")


def _open_regular(path: Path, name: str) -> BinaryIO:
    # Not blocking, so that a pipe put there after the walk cannot hang us; no link, so that one cannot
    # lead us out.
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    try:
        descriptor = os.open(path, flags | getattr(os, "O_CLOEXEC", 0))
    except OSError as error:
        raise CorpusError(f"{show(name)}: cannot be read ({error.strerror}).") from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise CorpusError(f"{show(name)}: expected a regular file; came a device, a pipe or a folder.")
    return os.fdopen(descriptor, "rb")
