"""The report's section on groups: who is served worse, by how much, and what is too small to say.

    markup = section(summary, environment)

Guarantees:
  - Of a suppressed group nothing is drawn but its name.
  - Figures of released counts stand under their own heading, with their noise beside it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2
from markupsafe import Markup

from sottovoce.common.fairness_figures import AttributeFairness, Fairness, Gap, GroupFairness
from sottovoce.common.summary import Estimate, Summary
from sottovoce.server.report import draw, text

TEMPLATE = Path(__file__).with_name("fairness.html.j2")
MOST_GROUPS = 12  # columns of a table of emotions


@dataclass(frozen=True, kw_only=True)
class _Part:
    """One `Fairness` as it is shown, with its heading."""

    heading: str
    found: Fairness
    sentence: str
    scale: draw.Scale

    @property
    def stated(self) -> tuple[GroupFairness, ...]:
        """The groups that something is said of."""
        return tuple(group for group in self.found.groups if group.uar is not None)


def section(figures: Summary, environment: jinja2.Environment) -> Markup:
    """Returns the section; it says so where the study names no groups."""
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    answers = [found for found in figures.fairness if found.source == "answers"]
    return Markup(
        template.render(
            s=figures,
            parts=[_part(found) for found in figures.fairness if found.arm == figures.headline],
            arms=answers if len(answers) > 1 else [],
            whisker=_whisker,
            gap=_gap,
            sides=_sides,
            most_groups=MOST_GROUPS,
        )
    )


def sentence(found: Fairness) -> str:
    """Returns what matters first, in one or two sentences.

    A comparison is a group's UAR, or one emotion's recall or precision, against that of all.
    """
    gaps = [gap for group in found.groups for gap in group.gaps]
    n_open, hidden = (
        sum(gap.verdict == "open" for gap in gaps),
        sum(group.suppressed for group in found.groups),
    )
    said = list(_collapse(found))
    if not gaps:
        said.append("Every group is too small, or has too much noise on it, for anything to be said.")
        return " ".join(said)
    worst = next(group for group in found.groups if group.group == found.worst_group)
    said.append(f"Worst served: {text.show_name(worst.group)}, UAR {text.percent(worst.uar or 0.0)}.")
    said.append(
        f"Of {text.count(len(gaps), 'comparison')} with all, {found.n_flagged} "
        f"{'is' if found.n_flagged == 1 else 'are'} surely beyond the threshold, {n_open} "
        f"{'is' if n_open == 1 else 'are'} open, {len(gaps) - found.n_flagged - n_open} surely within."
    )
    if hidden:
        said.append(f"{text.count(hidden, 'group')} suppressed.")
    return " ".join(said)


def _collapse(found: Fairness) -> Iterator[str]:
    one = found.collapse
    if one.answered is None or one.share is None:
        yield "Noise drowns the answers: whether the model has collapsed cannot be told."
        return
    spread = f"answers spread over {one.answered:.1f} of {one.in_truth:.1f} emotions"
    often = f"{text.percent(one.share)} are “{text.show_name(one.most_answered or '')}”"
    if one.verdict == "collapsed":
        yield f"THE MODEL HAS COLLAPSED: {spread}, {often}."
    elif one.verdict == "open":
        yield f"Whether the model has collapsed is open: {spread}, {often}."
    if one.never_answered:
        yield f"Never answered: {', '.join(map(text.show_name, one.never_answered))}."


def _part(found: Fairness) -> _Part:
    heading = "From the answers of this simulation"
    if found.source != "answers":
        noise = (
            f"noise of deviation {found.noise_deviation:,.1f} on each" if found.noise_deviation else "exact"
        )
        heading = f"From the counts that left the sites: {noise}"
    ends = [
        end
        for group in found.groups
        if (gap := group.minus_all) is not None
        for end in (gap.value, gap.low, gap.high, gap.threshold)
        if end is not None
    ]
    scale = draw.gap_scale(max(map(abs, ends), default=0.1))
    return _Part(heading=heading, found=found, sentence=sentence(found), scale=scale)


def _whisker(group: GroupFairness, chance: float) -> Markup:
    estimate = Estimate(value=group.uar or 0.0, low=group.low, high=group.high)
    return draw.whisker(
        estimate.value,
        estimate.low,
        estimate.high,
        scale=draw.share_scale(),
        css="federated",
        reference=chance,
    )


def _gap(gap: Gap, scale: draw.Scale) -> Markup:
    return draw.whisker(gap.value, gap.low, gap.high, scale=scale, css="other", reference=0.0)


def _sides(attributes: Sequence[AttributeFairness]) -> bool:
    """Says whether any two groups of one attribute can be compared."""
    return any(attribute.uar is not None for attribute in attributes)
