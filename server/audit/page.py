"""The document as one page: what the template shows, in the words and drawings that it needs."""

import base64
import functools
import hashlib
from pathlib import Path

import jinja2
from markupsafe import Markup

from sottovoce.common.ledger.export import BOUND, VERIFIER, program_text
from sottovoce.common.ledger.verify import STEPS
from sottovoce.common.privacy_specs import USUAL_DELTA
from sottovoce.server.audit import drawing, words
from sottovoce.server.audit.facts import LedgerFacts
from sottovoce.server.audit.whole import Audit, groups, headline
from sottovoce.server.report import text

HERE = Path(__file__).parent
MAX_ROWS = 5000  # of a ledger in the page; audit.json has all
MAX_FOLDED = 20_000  # rows of all ledgers of a run; beyond, those of equal ledgers are in audit.json alone
MAX_LISTED = 200  # of each kind of happening


def render(audit: Audit) -> str:
    """Returns the page."""
    report_css = HERE.parent / "report" / "report.css"
    css = report_css.read_text(encoding="utf-8") + (HERE / "audit.css").read_text(encoding="utf-8")
    grouped = groups(audit.ledgers)
    return _template().render(
        audit=audit,
        groups=grouped,
        n_rows=sum(len(ledger.entries) for ledger in audit.ledgers),
        top=headline(audit.ledgers),
        worst=grouped[0][0] if grouped else None,
        css=Markup(css),  # ours, with nothing of a file in it
        css_sha256=base64.b64encode(hashlib.sha256(css.encode()).digest()).decode(),
        verifier_sha256=hashlib.sha256(program_text(VERIFIER)).hexdigest(),
        bound_sha256=hashlib.sha256(program_text(BOUND)).hexdigest(),
    )


def visible(content: str) -> str:
    """Returns text of a file with its hidden characters written out, at any length."""
    pieces = (content[at : at + text.MAX_NAME] for at in range(0, len(content), text.MAX_NAME))
    return "".join(map(text.show_name, pieces))


@functools.cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"text": visible, "up": words.up, "percent": text.percent}
    environment.globals |= {
        "count": text.count,
        "moment": _moment,
        "meter": drawing.meter,
        "curve": drawing.curve,
        "tier": drawing.tier,
        "shown_rows": _shown_rows,
        "share": _share,
        "not_asked": _not_asked,
        "MAX_LISTED": MAX_LISTED,
        "MAX_ROWS": MAX_ROWS,
        "MAX_FOLDED": MAX_FOLDED,
        "USUAL_DELTA": USUAL_DELTA,
        "SAYS_LITTLE_ABOVE": words.SAYS_LITTLE_ABOVE,
        "STEPS": STEPS,
        "adversaries": words.adversaries,
        "SUMS_DO_NOT_COVER": words.SUMS_DO_NOT_COVER,
        "NOT_COVERED": words.NOT_COVERED,
    }
    return environment.from_string((HERE / "audit.html.j2").read_text(encoding="utf-8"))


def _shown_rows(ledger: LedgerFacts) -> list[tuple[int, object]]:
    """The first and the last rows of a long ledger, all of a short one."""
    rows = ledger.entries
    if len(rows) <= MAX_ROWS:
        return list(enumerate(rows))
    tail = MAX_ROWS - 1000
    return [*enumerate(rows[:1000]), *enumerate(rows[-tail:], start=len(rows) - tail)]


def _share(part: float | None, whole: float) -> str:
    return "" if part is None or part == float("inf") else f"{100 * part / whole:.0f} %"


def _not_asked(ledger: LedgerFacts) -> list[tuple[str, str]]:
    """What this audit could not ask, and the option that would let it."""
    one = (
        "whose key it is:" if ledger.cell is None else "whose keys they are; audit one ledger by itself with"
    )
    remedies = {
        6: (one, "--public-key"),
        8: ("whether it was set back to an older copy:", "--seen"),
        9: ("whether the policy beside it is the one in force: there is none", ""),
    }
    steps = {row["step"]: row["result"] for row in ledger.verification["steps"]}
    return [remedy for step, remedy in remedies.items() if steps[step].startswith("not asked")]


def _moment(time: str) -> str:
    return text.moment(time) if time else "–"
