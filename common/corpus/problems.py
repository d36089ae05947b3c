"""Collects what is wrong with a corpus: everything is counted, a bounded list is kept.

A hostile manifest may have a million bad rows; a list of a million problems helps nobody and fills memory.
"""

from sottovoce.common.corpus.types import Problem

MAX_PROBLEMS_LISTED = 1_000  # problems; the rest is counted
# What Excel, LibreOffice or Google Sheets take for the start of a formula, and its full-width forms.
FORMULA_STARTS = frozenset("=+-@\t\r\n＝＋－＠")
MAX_SHOWN_CHARACTERS = 80  # of a value or a file name inside a message


class Problems:
    """The problems of one scan, in the order they were found."""

    def __init__(self) -> None:
        self._listed: list[Problem] = []
        self.count = 0

    def add(self, file: str, row: int | None, what: str) -> None:
        """Counts a problem, and lists it while there is room."""
        self.count += 1
        if len(self._listed) < MAX_PROBLEMS_LISTED:
            self._listed.append(Problem(file=show(file), row=row, what=what))

    def listed(self) -> tuple[Problem, ...]:
        """Returns the list; its last entry says how many more there were."""
        beyond = self.count - len(self._listed)
        if not beyond:
            return tuple(self._listed)
        more = Problem(file=".", row=None, what=f"{beyond:,} more problems are not listed.")
        return (*self._listed, more)


def show(text: str) -> str:
    """Returns `text` fit for a terminal: printable, short; what cannot be printed is escaped.

    >>> show("a\\nb"), show("Actor_01/03-01.wav")
    ('a\\\\nb', 'Actor_01/03-01.wav')
    """
    if not text.isprintable():
        text = text.encode("unicode_escape", "surrogateescape").decode("ascii", "backslashreplace")
    return text if len(text) <= MAX_SHOWN_CHARACTERS else text[: MAX_SHOWN_CHARACTERS - 3] + "..."


def is_text(value: str) -> bool:
    """Tells whether `value` can be printed and encoded: no NUL, no line break, no half character."""
    return value.isprintable()
