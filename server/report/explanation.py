"""The report's section on what a run's models listen to, and the same in lines for a terminal."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from markupsafe import Markup

from sottovoce.common.explanation import Curve, Evidence, Explanation, Importance
from sottovoce.common.feature_words import WORDS
from sottovoce.server.report import draw, text

if TYPE_CHECKING:
    from rich.console import Group

SHOWN = 3  # families that are named for each emotion
_STEPS = 10  # of shade


def whisker(one: Importance, scale: draw.Scale) -> Markup:
    """Draws what is lost without a family; no interval of no width."""
    low, high = (None, None) if one.low == one.high else (one.low, one.high)
    return draw.whisker(one.lost, low, high, scale=scale, css="federated", reference=0.0)


def scale_of(found: Explanation) -> draw.Scale:
    """Returns a scale that holds every loss and its interval."""
    ends = [end for one in found.importance for end in (one.lost, one.low, one.high) if end is not None]
    return draw.gap_scale(max(map(abs, ends), default=0.02))


def span(one: Importance) -> str:
    """Returns the interval of a loss in points."""
    if one.low is None or one.high is None:
        return "no interval: one speaker"
    if one.low == one.high:
        return "no interval: no draw of speakers changes it" if one.lost else "no interval: no answer changed"
    return f"{text.points(one.low, sign=True)} to {text.points(one.high, sign=True)}"


def strongest(one: Evidence, *, against: bool = False) -> str:
    """Returns the families that speak most for an emotion, or against it, with their share of the evidence."""
    sign = -1.0 if against else 1.0
    total = sum(max(sign * value, 0.0) for value in one.families.values())
    ranked = sorted(one.families.items(), key=lambda pair: -sign * pair[1])
    named = [(name, sign * value) for name, value in ranked if sign * value > 0.05 * total][:SHOWN]
    return ", ".join(f"{_words(name)} ({sign * value:+.2f})".replace("-", "−") for name, value in named)


def shades(curve: Curve) -> list[int]:
    """Returns a curve as shades from 0 (nothing) to 20 (three times an even share, or more)."""
    return [min(20, max(0, round(value / 3.0 * 20))) for value in curve.values]


def sentence(one: Importance) -> str:
    """Returns a family's importance as a sentence of everyday words."""
    return f"{one.words}: {text.points(one.lost)} points of UAR lost when shuffled (95 %: {span(one)})"


def at_chance(found: Explanation) -> str:
    """Returns why nothing is explained: figures of a model that knows nothing say nothing."""
    span = (
        "one speaker, no interval"
        if found.uar_low is None or found.uar_high is None
        else f"95 % interval {text.percent(found.uar_low)} to {text.percent(found.uar_high)}"
    )
    return (
        f"The models may be at chance: UAR {text.percent(found.uar)} ({span}; chance "
        f"{text.percent(found.chance or 0.0)}). What a model that knows nothing "
        "listens to explains nothing, so nothing is shown. Train longer, on more speakers or on other features, and "
        "ask again."
    )


def terminal(found: Explanation, report: Path) -> "Group":
    """Returns what a run's models listen to, as a terminal shows it."""
    from rich.console import Group
    from rich.text import Text

    head = f"{text.show_name(found.arm)}, seed {found.seed}: UAR {text.percent(found.uar)} on "
    head += f"{text.count(found.n_utterances, 'recording')} of {text.count(found.n_speakers, 'speaker')} never heard"
    if found.is_at_chance:
        return Group(
            Text(head, style="bold"),
            Text(at_chance(found), style="yellow"),
            Text.assemble("Report: ", (str(report), "bold")),
        )
    lines = [Text(head, style="bold"), *(Text(sentence(one)) for one in found.importance)]
    lines += [
        Text(f"{text.show_name(one.emotion)}: {strongest(one) or 'nothing in particular'}", style="dim")
        for one in found.evidence
    ]
    lines += [Text(note, style="yellow") for note in found.notes]
    return Group(*lines, Text.assemble("Report: ", (str(report), "bold")))


def moments(curves: Sequence[Curve]) -> list[tuple[str, list[int]]]:
    """Returns a row for each emotion: its name and its shades over the recording."""
    return [(curve.emotion, shades(curve)) for curve in curves]


def _words(family: str) -> str:
    return WORDS.get(family, text.show_name(family))  # type: ignore[call-overload, no-any-return]
