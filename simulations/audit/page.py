"""An empirical audit as one page, in the style of the reports: what the template shows, and its drawings."""

import base64
import hashlib
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from sottovoce.server.audit import words
from sottovoce.server.report import draw, text
from sottovoce.server.report.draw import Scale, nice_ticks, tag
from sottovoce.simulations.audit.figures import down

HERE = Path(__file__).parent
STYLES = ("server/report/report.css", "server/audit/audit.css", "simulations/audit/empirical.css")
WIDTH, HEIGHT = 620.0, 92.0


def render(document: Mapping[str, Any]) -> str:
    """Returns the page of a document (`document.plain`)."""
    css = "".join((HERE.parents[1] / path).read_text(encoding="utf-8") for path in STYLES)
    return _template().render(
        doc=document,
        css=Markup(css),  # ours, with nothing of a file in it
        css_sha256=base64.b64encode(hashlib.sha256(css.encode()).digest()).decode(),
    )


def number_line(figure: Mapping[str, Any]) -> Markup:
    """Draws a figure's bound against its claim, and how far the audit could have reached."""
    proved, claimed, reach = (figure[key] for key in ("lower_bound", "claimed", "largest_detectable"))
    ticks = nice_ticks(0.0, 1.02 * max(proved, claimed, reach, 0.1))
    x = Scale(low=0.0, high=ticks[-1], start=10, end=WIDTH - 20)
    over = " over" if figure["alarm"] else ""
    parts = [
        tag("title", f"At delta {figure['delta']:g}"),
        tag(
            "desc",
            f"Proved at least {down(proved)}; claimed {words.up(claimed)}; could have proved {down(reach)} at most.",
        ),
        tag("rect", class_="line-reach", x=x(0), y=38, width=max(x(reach) - x(0), 0.0), height=16, rx=3),
        tag(
            "rect",
            class_=f"line-proved{over}",
            x=x(0),
            y=38,
            width=max(x(proved) - x(0), 1.5),
            height=16,
            rx=3,
        ),
        tag("line", class_="line-claim", x1=x(claimed), x2=x(claimed), y1=30, y2=62),
        tag("text", f"delta {figure['delta']:g}", class_="label", x=x(0), y=12),
        _name(f"claimed {words.up(claimed)}", x(claimed), 24, "line-claim-name"),
    ]
    for tick in ticks:
        parts.append(tag("line", class_="tick", x1=x(tick), x2=x(tick), y1=66, y2=71))
        parts.append(tag("text", f"{tick:g}", class_="label", x=x(tick), y=86, text_anchor="middle"))
    return tag("svg", *parts, viewBox=f"0 0 {WIDTH:g} {HEIGHT:g}", class_="figure number-line", role="img")


def _name(words: str, at: float, y: float, css: str) -> Markup:
    """Writes beside a mark, on the side where there is room."""
    side = "end" if at > WIDTH - 110 else "start" if at < 110 else "middle"
    return tag("text", words, class_=css, x=at, y=y, text_anchor=side)


def _whisker(row: Mapping[str, Any]) -> Markup:
    css = "central" if row["defence"] == "none" else "federated"
    return draw.whisker(
        row["value"], row["low"], row["high"], scale=draw.share_scale(), css=css, reference=row["chance"]
    )


@lru_cache(maxsize=1)
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"text": text.show_name, "up": words.up, "down": down}
    environment.globals |= {"count": text.count, "number_line": number_line, "whisker": _whisker}
    return environment.from_string((HERE / "empirical.html.j2").read_text(encoding="utf-8"))
