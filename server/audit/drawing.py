"""The audit's drawings as inline SVG: how full a budget is, how it was filled, and where on the pyramid we are.

Guarantees:
  - Every mark of a curve is a figure that was computed; the lines between them are a help for the eye.
  - Well-formed XML for every ledger; the figures stand beside the drawing, in text.
"""

import math

from markupsafe import Markup

from sottovoce.server.audit.facts import DomainFacts
from sottovoce.server.audit.words import up
from sottovoce.server.report.draw import Scale, nice_ticks, tag


def meter(domain: DomainFacts) -> Markup:
    """Draws spent and promised against the cap. The figures stand beside it."""
    most = 4 * domain.cap  # an infinite figure fills the bar
    spent, promised = min(domain.spent or 0.0, most), min(domain.promised or 0.0, most)
    reach = max(spent, promised, domain.cap) * 1.04
    width = {name: f"{100 * min(value / reach, 1.0):.2f}%" for name, value in (("s", spent), ("p", promised))}
    cap = f"{100 * domain.cap / reach:.2f}%"
    over = " over" if spent > domain.cap else ""
    parts = [
        tag("rect", class_="bar-track", x="0", y=7, width="100%", height=14, rx=3),
        tag("rect", class_="bar-promised", x="0", y=7, width=width["p"], height=14, rx=3),
        tag("rect", class_=f"bar-spent{over}", x="0", y=7, width=width["s"], height=14, rx=3),
        tag("line", class_="bar-cap", x1=cap, x2=cap, y1=1, y2=27),
    ]
    return tag("svg", *parts, height=28, class_="spark", aria_hidden="true")


def curve(domain: DomainFacts) -> Markup:
    """Draws the recomputed epsilon over the releases of an enrolment, with the cap of each moment."""
    points = [
        (float(point.releases), point.epsilon) for point in domain.curve if math.isfinite(point.epsilon)
    ]
    caps = _cap_steps(domain)
    last = domain.curve[-1]
    width, height = 560.0, 270.0
    ticks = nice_ticks(0.0, max([*(value for _, value in points), *(cap for _, cap in caps)]))
    x = Scale(low=0.0, high=float(last.releases), start=44, end=width - 92)
    y = Scale(low=0.0, high=ticks[-1], start=height - 42, end=24)
    parts = [
        tag("title", "Spent epsilon over releases"),
        tag("desc", f"{up(last.epsilon)} after {last.releases} releases; the cap is {domain.cap:g}."),
        tag("text", f"epsilon at delta {domain.delta:g}", class_="label", x=4, y=12),
    ]
    for tick in ticks:
        parts.append(tag("line", class_="grid", x1=x.start, x2=x.end, y1=y(tick), y2=y(tick)))
        parts.append(
            tag("text", f"{tick:g}", class_="label", x=x.start - 7, y=y(tick) + 4, text_anchor="end")
        )
    parts += [
        tag("text", f"{tick:,g}", class_="label", x=x(tick), y=height - 24, text_anchor="middle")
        for tick in nice_ticks(0.0, float(last.releases))
        if tick <= last.releases and tick == int(tick)
    ]
    middle = (x.start + x.end) / 2
    parts.append(
        tag("text", "releases, in their order", class_="label", x=middle, y=height - 6, text_anchor="middle")
    )
    parts.append(_path(caps, x, y, "cap-line"))
    parts.append(_path(points, x, y, "spent-line"))
    parts += [tag("circle", class_="spent-mark", cx=x(at), cy=y(value), r=4) for at, value in points]
    parts += _names(y(domain.cap), y(last.epsilon), x.end + 10, domain.cap, last.epsilon)
    size = {"width": width, "height": height}
    return tag("svg", *parts, viewBox=f"0 0 {width:g} {height:g}", **size, class_="figure wide", role="img")


def tier(level: int) -> Markup:
    """Draws the pyramid with one of its three tiers filled; 0 is the top."""
    shapes = ("28,4 37,19 19,19", "18,21 38,21 48,37 8,37", "7,39 49,39 56,50 0,50")
    parts = [
        tag("polygon", points=shape, class_="tier on" if number == level else "tier")
        for number, shape in enumerate(shapes)
    ]
    return tag("svg", *parts, viewBox="0 0 56 52", width=56, height=52, class_="pyramid", aria_hidden="true")


def _path(points: list[tuple[float, float]], x: Scale, y: Scale, css: str) -> Markup:
    return tag("polyline", class_=css, points=" ".join(f"{x(at):g},{y(value):g}" for at, value in points))


def _names(cap_at: float, spent_at: float, x: float, cap: float, spent: float) -> list[Markup]:
    """The names at the lines' ends, moved apart where they would touch."""
    if abs(cap_at - spent_at) < 16:
        above = cap_at <= spent_at
        cap_at, spent_at = (cap_at - 6, spent_at + 10) if above else (cap_at + 10, spent_at - 6)
    return [
        tag("text", f"cap {cap:g}", class_="name cap-name", x=x, y=cap_at + 4),
        tag("text", f"spent {up(spent)}", class_="name spent-name", x=x, y=spent_at + 4),
    ]


def _cap_steps(domain: DomainFacts) -> list[tuple[float, float]]:
    """The cap over releases as a staircase."""
    steps: list[tuple[float, float]] = []
    for change in domain.caps:
        at = float(change.releases)
        steps += [(at, steps[-1][1])] if steps else []
        steps.append((at, change.cap))
    return [*steps, (float(domain.curve[-1].releases), domain.cap)]
