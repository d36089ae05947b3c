"""A guarantee in words that a patients' representative can read, each figure with what it means.

>>> odds(1.0), sure(1.0), one_in(1e-5)
('2.7', '74 %', '1 in 100,000')
"""

import math

from sottovoce.common.privacy_specs import USUAL_DELTA
from sottovoce.server.audit.facts import NOT_PRIVATE, SIMULATED, DomainFacts, LedgerFacts

ADVERSARY_VIEW = (
    "Somebody who sees every release of this site, knows the whole study, and holds everything that all other sites "
    "hold. Not seen: the site's coins and noise, and gradients before the noise."
)
SUMS_VIEW = (
    "Somebody who sees every total, knows the whole study, and holds everything that {n_colluding} of the hospitals in "
    "it hold. What the coordinator sees is the sum of at least {n_min} hospitals, under secure sums: never one "
    "hospital's own part. Each adds a share of the noise; who colludes can take its own share off."
)
NOT_COVERED = (
    "A patient who is enrolled under two names or numbers, or in two enrolments: each counts by itself.",
    "A patient who is in several sites, beyond the table of 1 to k sites.",
    "Other voices in a recording, such as the clinician's.",
    "What a model learns about people in general: it may be true of a patient who took no part.",
    "What was published elsewhere about the same recordings, and anything that left past this ledger.",
    "How long training took, how large messages were, and when they were sent.",
    "A site that lies about its own list of patients, or that runs another program than it records.",
)
SUMS_DO_NOT_COVER = (
    "More hospitals that collude, or leave their noise out, than a study states; see the figures beside."
)
SAYS_LITTLE_ABOVE = 5.0  # of epsilon: fifty-fifty becomes 99 % sure; beyond, the figure alone says little


def guarantee(ledger: LedgerFacts | None, *, n_ledgers: int, n_findings: int = 0) -> tuple[str, ...]:
    """Returns the guarantee as paragraphs: what to distrust first, then what is promised, then what is weak.

    `ledger` is the worst of `n_ledgers`; `n_findings` are those about a run as a whole.
    """
    if ledger is None and n_findings:
        return (
            "This run has no privacy ledger, and does not say that it is not private: nothing can be checked.",
        )
    if ledger is None:
        return (
            "Nothing here protects a patient. This run has no privacy ledger: it ran in mode “none”, for research "
            "on public recordings. Whoever has its models may learn who took part and how they sound.",
        )
    paragraphs = []
    if n_findings:
        paragraphs.append(
            "This run did not pass its checks: a ledger is missing, or what the run says of itself is not what its "
            "ledgers say. What follows is about the ledgers that are there; nobody should rely on it for the run."
        )
    if n_ledgers > 1:
        paragraphs.append(
            f"There are {n_ledgers} ledgers, one for each hospital in each part of the run. The following is about "
            "the worst of them."
        )
    if not ledger.ok:
        paragraphs.append(
            "This ledger did not pass its checks, so no promise can be read from it: it may have been changed, or part "
            f"of it may be missing. {_readable(ledger)}"
        )
        return tuple(paragraphs)
    for domain in ledger.domains:
        paragraphs += _domain(ledger, domain)
    if not ledger.domains:
        paragraphs.append("Nothing is promised: no enrolment of patients was ever opened in this ledger.")
    return tuple(paragraphs)


def adversaries(ledger: LedgerFacts) -> tuple[tuple[str, str], ...]:
    """Returns whom the figures are against, for each mode that this ledger has studies of: (mode, in words)."""
    views = []
    modes = {mode for domain in ledger.domains for mode in domain.modes}
    if modes != {"distributed"}:
        views.append(("", ADVERSARY_VIEW) if "distributed" not in modes else ("mode local", ADVERSARY_VIEW))
    for domain in ledger.domains:
        if domain.sums:
            seen = SUMS_VIEW.format(n_min=domain.sums.n_min, n_colluding=domain.sums.n_colluding)
            views.append(("secure sums", seen))
    return tuple(dict.fromkeys(views))


def up(epsilon: float | None) -> str:
    """Returns a figure with two decimals, rounded upwards: what is shown is never less than what was computed.

    >>> up(1.2301), up(0.0), up(None), up(math.inf)
    ('1.24', '0', 'no figure', '∞')
    """
    if epsilon is None:
        return "no figure"
    if math.isinf(epsilon):
        return "∞"
    return f"{math.ceil(round(100 * epsilon, 6)) / 100:.2f}" if epsilon else "0"


def odds(epsilon: float) -> str:
    """Returns the factor by which odds can move."""
    if epsilon > math.log(1e6):
        return "more than a million"
    factor = math.exp(epsilon)
    return f"{factor:.1f}" if factor < 10 else f"{factor:,.0f}"


def sure(epsilon: float) -> str:
    """Returns how sure of a patient's part somebody can become who began at fifty-fifty; rounded upwards."""
    share = 100.0 / (1.0 + math.exp(-epsilon))
    if share > 99.0:
        return "more than 99 %" if share < 99.9 else "practically certain"
    return f"{math.ceil(share - 1e-9)} %"


def one_in(delta: float) -> str:
    """Returns a small probability as people say it."""
    return f"1 in {1 / delta:,.0f}"


def _readable(ledger: LedgerFacts) -> str:
    """What a ledger that failed still shows: that at least so much was given away."""
    if not ledger.domains:
        return "Nothing of what patients have given away can be read in it."
    figures = [f"{up(domain.spent)} in “{domain.domain}”" for domain in ledger.domains]
    return f"What can be read in it adds up to epsilon {', '.join(figures)}. It may be more."


def _domain(ledger: LedgerFacts, domain: DomainFacts) -> list[str]:
    who = f"{ledger.site}, enrolment “{domain.domain}” (at most {domain.n_patients:,} patients)"
    if domain.stamp == NOT_PRIVATE:
        return [
            f"{who}: nothing here protects a patient. A study was allowed that takes numbers from recordings without "
            "any noise. There is no figure, neither for it nor for anything that this enrolment released."
        ]
    parts = []
    if domain.stamp == SIMULATED:
        parts.append(
            f"{who}: nothing here protects a patient. The noise was simulated: whoever knows the study can take it "
            "off again."
        )
    if not domain.spent:
        parts.append(
            f"{who}: nothing computed from recordings has left so far. At most epsilon {domain.cap:g} ever may."
        )
        return parts
    parts.append(_promise("With secret noise this would hold" if domain.stamp else who, domain))
    if domain.weak:
        usual = domain.spent_at_usual_delta
        beside = "" if usual is None else f" At delta {USUAL_DELTA:g} the spent epsilon is {up(usual)}."
        parts.append(f"These figures are weak: {'; '.join(domain.weak)}.{beside}")
    return parts


def _promise(who: str, domain: DomainFacts) -> str:
    spent = domain.spent or 0.0
    said = (
        f"{who}: everything that was computed from recordings {_how_it_left(domain)}. Somebody who sees all of it, and "
        "knows everything about all other patients, can find out only so much about whether one given patient took "
        f"part: the odds move by a factor of at most {odds(spent)} (epsilon {up(spent)}). Who thought it fifty-fifty "
        f"can be {_at_most_sure(spent)} afterwards, apart from a remainder of {one_in(domain.delta)} (delta)."
    )
    limit = f" The hospital allows at most epsilon {domain.cap:g} in all ({_at_most_sure(domain.cap)})."
    doubt = (
        " At this size the figure alone says little: it limits what can be learned, it does not hide who took part."
        if spent > SAYS_LITTLE_ABOVE
        else ""
    )
    return said + limit + _collusion(domain) + doubt


def _how_it_left(domain: DomainFacts) -> str:
    blurred = "left the hospital was blurred with random noise first"
    if domain.sums is None:
        return f"and {blurred}"
    summed = (
        f"left the hospital under masks, and can be seen only in sums over at least {domain.sums.n_min} hospitals, to "
        "which each adds its share of random noise"
    )
    return summed if domain.modes == ("distributed",) else f"and {blurred}, or {summed}"


def _collusion(domain: DomainFacts) -> str:
    if domain.sums is None:
        return ""
    n_min, n_colluding = domain.sums.n_min, domain.sums.n_colluding
    return (
        f" This holds while at most {n_colluding} of the {n_min} hospitals that a sum needs work together against a "
        f"patient. If all others did, the figure would be epsilon {up(domain.sums.spent)} "
        f"({_at_most_sure(domain.sums.spent)})."
    )


def _at_most_sure(epsilon: float) -> str:
    share = sure(epsilon)
    return f"at most {share} sure" if share[0].isdigit() else f"{share} sure" if "%" in share else share
