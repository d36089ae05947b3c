"""Small drawings as inline SVG. No style attribute, no script, no reference to anything outside.

Colours come from the style sheet through classes, so that one drawing serves light, dark and paper. Colour is
never the only carrier: arms differ in shape and dash, and lines carry their names.

Guarantees:
  - Every text and attribute is escaped; a hostile name stays a name.
  - The drawings are well-formed XML for every finite input.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from sottovoce.server.report.text import show_name

_WHISKER_HEIGHT = 24.0


@dataclass(frozen=True, kw_only=True)
class Scale:
    """A linear axis from data to a length in the drawing."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low)
        return round(self.start + min(max(share, 0.0), 1.0) * (self.end - self.start), 2)


@dataclass(frozen=True, kw_only=True)
class Line:
    """One curve. `css` picks colour and dash."""

    name: str
    css: str
    points: tuple[tuple[float, float], ...]


def tag(name: str, *children: str | Markup, **attributes: str | float) -> Markup:
    """Returns one element; `class_` is the class, and an underscore in a name is a hyphen."""
    pairs = ((key.rstrip("_").replace("_", "-"), value) for key, value in attributes.items())
    head = Markup("").join(Markup(' {}="{}"').format(Markup(key), _number(value)) for key, value in pairs)
    return Markup("<{0}{1}>{2}</{0}>").format(Markup(name), head, Markup("").join(map(escape, children)))


def share_scale() -> Scale:
    """Returns the scale of whiskers of shares. Whiskers are as wide as their column, so lengths are percent."""
    return Scale(low=0.0, high=1.0, start=0.0, end=100.0)


def gap_scale(largest: float) -> Scale:
    """Returns a scale around 0 that holds differences of up to `largest`."""
    reach = next((step for step in (0.02, 0.05, 0.1, 0.2, 0.3, 0.5) if step >= largest), 1.0)
    return Scale(low=-reach, high=reach, start=0.0, end=100.0)


def whisker(
    value: float,
    low: float | None,
    high: float | None,
    *,
    scale: Scale,
    css: str,
    reference: float | None = None,
) -> Markup:
    """Draws a value with its interval. The numbers stand beside it, so that it is hidden from screen readers."""
    middle = _WHISKER_HEIGHT / 2
    parts = [tag("line", class_="track", x1="0", x2="100%", y1=middle, y2=middle)]
    if reference is not None:
        parts.append(_upright("reference", scale(reference), 1, _WHISKER_HEIGHT - 1))
    if low is not None and high is not None:
        left, right = scale(low), scale(high)
        parts.append(tag("line", class_="whisker", x1=f"{left:g}%", x2=f"{right:g}%", y1=middle, y2=middle))
        parts += [_upright("cap", end, middle - 4, middle + 4) for end in (left, right)]
    # A nested drawing moves the mark to a percentage and leaves its size alone, however wide the column.
    parts.append(tag("svg", _mark(css, 0.0, middle), x=f"{scale(value):g}%", class_="spark"))
    return tag("svg", *parts, height=_WHISKER_HEIGHT, class_=f"spark {css}", aria_hidden="true")


def axis(scale: Scale, ticks: Sequence[float], *, signed: bool = False) -> Markup:
    """Draws the ticks below a column of whiskers."""
    parts = []
    for tick in ticks:
        text = f"{100 * tick:+g}" if signed and tick else f"{100 * tick:g}"
        at = scale(tick)
        parts.append(_upright("tick", at, 0, 4))
        if at in (0.0, 50.0, 100.0):  # more labels would touch on a telephone
            parts.append(
                tag("text", text.replace("-", "−"), class_="label", x=f"{at:g}%", y=16, text_anchor="middle")
            )
    return tag("svg", *parts, height=20, class_="spark", aria_hidden="true")


def curves(
    lines: Sequence[Line], *, title: str, description: str, x_label: str, y_label: str, shares: bool = False,
    reference: tuple[float, str] | None = None,
) -> Markup:  # fmt: skip
    """Draws lines over rounds, each with its name at its end."""
    values = [y for line in lines for _, y in line.points] + ([reference[0]] if reference else [])
    ticks = nice_ticks(0.0 if shares else min(values), max(values))
    last = max(x for line in lines for x, _ in line.points)
    width, height = 460.0, 264.0
    x = Scale(low=0.0, high=max(last, 1.0), start=44, end=width - 112)
    y = Scale(low=ticks[0], high=ticks[-1], start=height - 40, end=22)
    parts = [tag("title", title), tag("desc", description), tag("text", y_label, class_="label", x=4, y=11)]
    for tick in ticks:
        text = f"{100 * tick:g}" if shares else f"{tick:g}"
        parts += [
            tag("line", class_="grid", x1=x.start, x2=x.end, y1=y(tick), y2=y(tick)),
            tag("text", text, class_="label", x=x.start - 7, y=y(tick) + 4, text_anchor="end"),
        ]
    for tick in nice_ticks(0.0, last):
        if tick <= last and tick == int(tick):
            parts.append(
                tag("text", f"{tick:g}", class_="label", x=x(tick), y=height - 22, text_anchor="middle")
            )
    middle = (x.start + x.end) / 2
    parts.append(tag("text", x_label, class_="label", x=middle, y=height - 5, text_anchor="middle"))
    ends = [(y(line.points[-1][1]), line.name, line.css) for line in lines]
    if reference is not None:
        parts.append(
            tag("line", class_="reference", x1=x.start, x2=x.end, y1=y(reference[0]), y2=y(reference[0]))
        )
        ends.append((y(reference[0]), reference[1], "plain"))
    for line in lines:
        path = " ".join(f"{x(at):g},{y(value):g}" for at, value in line.points)
        at, value = line.points[-1]
        parts.append(
            tag("g", tag("polyline", points=path), _mark(line.css, x(at), y(value)), class_=line.css)
        )
    for (_, name, css), at_y in zip(ends, _apart([end[0] for end in ends], 14.0), strict=True):
        parts.append(tag("text", _short(name), class_=f"name {css}", x=x.end + 9, y=at_y + 4))
    return _svg(*parts, width=width, height=height, class_="figure", role="img")


def dots(
    values: Sequence[float], *, title: str, description: str, css: str, mean: float, chance: float
) -> Markup:
    """Draws one dot per speaker, stacked where they are close, on an axis of shares."""
    width, columns = 460.0, 40
    per_dot = max(1, math.ceil(len(values) / 400))  # a corpus of thousands: one dot stands for several
    x = Scale(low=0.0, high=1.0, start=14, end=width - 14)
    stacks = [0] * (columns + 1)
    for value in values:
        stacks[round(value * columns)] += 1
    heights = [math.ceil(stack / per_dot) for stack in stacks]
    step = min(10.5, 130.0 / max(1, *heights))
    ground = 34.0 + step * max(1, *heights)
    parts = [tag("title", title), tag("desc", description)]
    labels = [
        (x(value), f"{name} {100 * value:.1f}")
        for value, name in sorted([(mean, "mean"), (chance, "chance")])
    ]
    parts += [tag("line", class_="reference", x1=at, x2=at, y1=18, y2=ground) for at, _ in labels]
    (left, one), (right, other) = labels
    if right - left < 80.0:  # side by side they would overlap
        labels = [(min(max((left + right) / 2, 70.0), width - 70.0), f"{one}, {other}")]
    parts += [tag("text", text, class_="label", x=at, y=12, text_anchor="middle") for at, text in labels]
    parts.append(tag("line", class_="track", x1=x.start, x2=x.end, y1=ground, y2=ground))
    for column, stack in enumerate(heights):
        for level in range(stack):
            at = ground - step * (level + 0.5) - 1
            parts.append(tag("circle", class_="dot", cx=x(column / columns), cy=at, r=min(4.7, step / 2)))
    for tick in (0.0, 0.25, 0.5, 0.75, 1.0):
        parts.append(
            tag("text", f"{100 * tick:g}", class_="label", x=x(tick), y=ground + 15, text_anchor="middle")
        )
    legend = "one dot: one speaker" if per_dot == 1 else f"one dot: up to {per_dot} speakers"
    parts.append(
        tag("text", f"UAR in %; {legend}", class_="label", x=width / 2, y=ground + 32, text_anchor="middle")
    )
    return _svg(*parts, width=width, height=ground + 38, class_=f"figure {css}", role="img")


def diagonal(
    series: Sequence[tuple[str, str, Sequence[tuple[float, float]]]],
    *,
    title: str,
    description: str,
    x_label: str,
    y_label: str,
) -> Markup:
    """Draws shares against shares, with the diagonal on which both are equal; each series has a name and a class."""
    width, side = 460.0, 300.0
    x, y = (
        Scale(low=0.0, high=1.0, start=40, end=40 + side),
        Scale(low=0.0, high=1.0, start=side + 22, end=22),
    )
    parts = [tag("title", title), tag("desc", description), tag("text", y_label, class_="label", x=4, y=11)]
    for tick in (0.0, 0.25, 0.5, 0.75, 1.0):
        label = f"{100 * tick:g}"
        parts += [
            tag("line", class_="grid", x1=x.start, x2=x.end, y1=y(tick), y2=y(tick)),
            tag("text", label, class_="label", x=x.start - 7, y=y(tick) + 4, text_anchor="end"),
            tag("text", label, class_="label", x=x(tick), y=y.start + 16, text_anchor="middle"),
        ]
    parts.append(tag("line", class_="reference", x1=x(0.0), x2=x(1.0), y1=y(0.0), y2=y(1.0)))
    middle = (x.start + x.end) / 2
    parts.append(tag("text", x_label, class_="label", x=middle, y=y.start + 34, text_anchor="middle"))
    for row, (name, css, points) in enumerate(series):
        path = " ".join(f"{x(at):g},{y(value):g}" for at, value in points)
        marks = [_mark(css, x(at), y(value)) for at, value in points]
        at_y = 40.0 + 20 * row
        key = [
            _mark(css, x.start + 16, at_y - 4),
            tag("text", name, class_=f"name {css}", x=x.start + 26, y=at_y),
        ]
        parts.append(tag("g", tag("polyline", points=path), *marks, *key, class_=css))
    return _svg(*parts, width=width, height=y.start + 40, class_="figure", role="img")


def nice_ticks(low: float, high: float, wanted: int = 5) -> list[float]:
    """Returns round ticks from at most `low` to at least `high`, at least two.

    >>> nice_ticks(0.13, 2.08), nice_ticks(0.0, 40.0)
    ([0.0, 0.5, 1.0, 1.5, 2.0, 2.5], [0.0, 10.0, 20.0, 30.0, 40.0])
    """
    if not high - low > 1e-300:  # equal, or so near that a tenth of the gap is no number any more
        high = low + 1.0
    rough = (high - low) / wanted
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1.0, 2.0, 2.5, 5.0, 10.0) if factor * power >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [float(f"{index * step:.10g}") for index in range(first, max(last, first + 1) + 1)]


def _upright(css: str, at: float, top: float, bottom: float) -> Markup:
    return tag("line", class_=css, x1=f"{at:g}%", x2=f"{at:g}%", y1=top, y2=bottom)


def _mark(css: str, x: float, y: float) -> Markup:
    """Returns the shape of an arm: a circle, a square, a triangle, or a diamond for all others."""
    if css == "federated":
        return tag("circle", class_="mark", cx=x, cy=y, r=5)
    if css == "central":
        return tag("rect", class_="mark", x=x - 4.4, y=y - 4.4, width=8.8, height=8.8)
    shape = [(0, -5.5), (5.4, 4.2), (-5.4, 4.2)] if css == "local" else [(0, -6), (5, 0), (0, 6), (-5, 0)]
    return tag("polygon", class_="mark", points=" ".join(f"{x + dx:g},{y + dy:g}" for dx, dy in shape))


def _short(name: str) -> str:
    shown = show_name(name).replace(" (random split, leaks)", ", leaks")
    return shown if len(shown) <= 14 else shown[:13] + "…"


def _apart(positions: Sequence[float], least: float) -> list[float]:
    """Returns positions moved down as little as keeps them `least` apart, in the order given."""
    moved = list(positions)
    floor = -math.inf
    for index in sorted(range(len(moved)), key=moved.__getitem__):
        moved[index] = floor = max(moved[index], floor + least)
    return moved


def _svg(*children: Markup, width: float, height: float, **attributes: str) -> Markup:
    return tag(
        "svg", *children, viewBox=f"0 0 {width:g} {height:g}", width=width, height=height, **attributes
    )


def _number(value: str | float) -> str:
    return value if isinstance(value, str) else f"{value:g}"
