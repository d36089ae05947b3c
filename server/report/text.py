"""Words for figures, and names from files made safe to show.

>>> percent(0.6583), points(-0.0112), show_name("site\\x1b[31m")
('65.8\\u202f%', '−1.1', 'site\\\\x1b[31m')
"""

import unicodedata
from datetime import datetime

from sottovoce.common.fairness_figures import Gap
from sottovoce.common.summary import Difference, Estimate

MAX_NAME = 120
_HIDDEN = {"Cc", "Cf", "Cs", "Co", "Zl", "Zp"}  # they steer a terminal, or the direction of text, unseen


def percent(value: float) -> str:
    """Returns a share as a percentage with one decimal."""
    return f"{100.0 * value:.1f}\u202f%"


def points(value: float, *, sign: bool = False) -> str:
    """Returns a difference of shares in percentage points, with a true minus sign."""
    return f"{100.0 * value:{'+' if sign else ''}.1f}".replace("-", "−")


def span(estimate: Estimate) -> str:
    """Returns an interval in percent."""
    if estimate.low is None or estimate.high is None:
        return "no interval: one speaker"
    return f"{100.0 * estimate.low:.1f} to {100.0 * estimate.high:.1f}"


def gap_span(difference: Difference | Gap) -> str:
    """Returns the interval of a difference in points."""
    if difference.low is None or difference.high is None:
        return "no interval: one speaker"
    return f"{points(difference.low, sign=True)} to {points(difference.high, sign=True)}"


def show_name(name: str, *, longest: int = MAX_NAME) -> str:
    """Returns a name of a file's author with hidden characters written out, and cut when it is long.

    Guarantees:
      - The result has no control, format or surrogate character: it cannot steer a terminal or turn text.
      - An ordinary name is returned as it is.
    """
    shown = "".join(
        ascii(letter)[1:-1] if unicodedata.category(letter) in _HIDDEN else letter
        for letter in name[:longest]
    )
    return shown + "…" if len(name) > longest else shown


def count(number: int, one: str, more: str | None = None) -> str:
    """Returns a number with its noun.

    >>> count(1, "speaker"), count(1440, "recording"), count(0, "class", "classes")
    ('1 speaker', '1,440 recordings', '0 classes')
    """
    return f"{number:,} {one if number == 1 else more or one + 's'}"


def size(n_bytes: int) -> str:
    """Returns a number of bytes in words.

    >>> size(999), size(187_392_000)
    ('999 B', '187 MB')
    """
    value, units = float(n_bytes), ["B", "kB", "MB", "GB", "TB"]
    while value >= 999.5 and len(units) > 1:
        value, units = value / 1000.0, units[1:]
    return f"{value:.3g} {units[0]}"


def moment(time: str) -> str:
    """Returns an ISO 8601 time for people; what is no time as it is.

    >>> moment("2026-11-22T09:00:07+00:00"), moment("2026-11-22T09:00:07+01:00"), moment("today")
    ('2026-11-22 09:00 UTC', '2026-11-22 09:00 UTC+01:00', 'today')
    """
    try:
        return f"{datetime.fromisoformat(time):%Y-%m-%d %H:%M %Z}".strip()
    except ValueError:
        return show_name(time)


def duration(started: str | None, ended: str | None) -> str | None:
    """Returns how long a run took, or None when a time is missing or no time.

    >>> duration("2026-11-22T09:00:00+00:00", "2026-11-22T09:41:10+00:00")
    '41 min 10 s'
    """
    try:
        seconds = (
            datetime.fromisoformat(ended or "") - datetime.fromisoformat(started or "")
        ).total_seconds()
    except (ValueError, TypeError):  # TypeError: one has an offset and the other has none
        return None
    hours, minutes = int(seconds // 3600), int(seconds // 60) % 60
    parts = [f"{hours} h"] * (hours > 0) + [f"{minutes} min"] * (hours + minutes > 0)
    return " ".join([*parts, f"{seconds % 60:.0f} s"]) if seconds >= 0 else None
