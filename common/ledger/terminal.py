"""What `show`, `verify` and `recompute` found, and what an approver signs, for a person at a terminal.

Guarantees:
  - What a person must see first comes first; the verdict is the last line.
  - What an approver is shown is the draft that will be signed, with nothing of it cut.
"""

from collections.abc import Iterator, Mapping

from rich.console import RenderableType
from rich.text import Text

from sottovoce.common.config import as_plain
from sottovoce.common.ledger.entries import Approval, DistributedCharge
from sottovoce.common.ledger.show import charge_in_words
from sottovoce.common.privacy.stages import SIMULATED
from sottovoce.common.terminal import Row, facts, table

FLAWED = "bold red"


def show_lines(account: Row, *, n_entries: int, broken: str | None) -> Iterator[RenderableType]:
    """Yields a ledger's account: who, the domains, the studies, the newest entries."""
    if account["entries"]:
        yield from _account(account, n_entries)
    if broken is not None:
        reached = len(account["entries"])
        yield Text(f"NOT WHOLE: nothing is believed from entry {reached} on: {broken}.", style=FLAWED)


def verdict_lines(verdict: Row) -> Iterator[RenderableType]:
    """Yields the ten steps with their results, what is wrong, what to look at, and the verdict."""
    yield Text(f"Ledger of {verdict['site'] or 'an unknown site'}: {verdict['n_entries']:,} entries")
    yield Text(f"instance  {verdict['instance'] or 'unknown'}")
    yield Text(f"root      {verdict['root']}")
    yield table("", map(_step, verdict["steps"]))
    if verdict["findings"]:
        yield table("WRONG", map(_finding, verdict["findings"]))
    if verdict["attention"]:
        yield table("to look at, most important first", map(_place, verdict["attention"]))
    yield _last_line(verdict)


def witness_lines(witnessed: Row) -> Iterator[RenderableType]:
    """Yields who cosigned each checkpoint that was given, or why that cannot be told."""
    for name, said in witnessed.items():
        if said["of"] is None:
            if said["lines"]:
                yield Text(f"{name}: {said['lines']} witnesses; who they are, only --roster can tell.")
            continue
        by = f": {', '.join(said['by'])}" if said["by"] else ""
        yield Text(
            f"{name}: cosigned by {len(said['by'])} of the {said['of']} other sites of the roster{by}."
        )


def figure_lines(found: Row) -> Iterator[RenderableType]:
    """Yields recorded figures beside recomputed ones, domains, what was given away after rounds, the verdict."""
    yield Text(f"Ledger of {found['site']}: {found['n_entries']:,} entries, every figure computed again")
    studies = {study["grant"]: study for study in found["studies"]}
    if found["figures"]:
        yield table("recorded and recomputed", (_figure(figure, studies) for figure in found["figures"]))
    if found["domains"]:
        yield table("domains", map(_domain_recomputed, found["domains"]))
    for study in found["studies"]:
        yield from _study_recomputed(study)
    wrong, count = len(found["different"]), len(found["figures"])
    if wrong:
        yield Text(f"DIFFERENT: {wrong} of {count} figures are not as recorded.", style=FLAWED)
    elif count:
        yield Text(f"SAME: all {count} recorded figures are as computed here.", style="bold")
    else:
        yield Text("NOTHING TO COMPARE: no study was approved for privacy.", style="bold")


def draft_lines(draft: Approval, *, study: str, cap: float) -> Iterator[RenderableType]:
    """Yields what a person is asked to sign: whose budget, what for, what it costs, what is drawn."""
    said = {
        "study": study,
        "digest": draft.study,
        "purpose": f"{draft.purpose}{'' if draft.purpose_reference is None else f' ({draft.purpose_reference})'}",
        "domain": draft.domain,
        "run": f"number {draft.repeat + 1} of this study at this site",
        "this study": _promise(as_plain(draft)),
        "draws": "\n".join(map(charge_in_words, draft.charges)) or "nothing that could be counted",
    }
    if draft.domain_epsilon is not None:
        said["domain then"] = f"epsilon {draft.domain_epsilon:.4f} of {cap:g}, by {_RULES[draft.decided_by]}"
    if sums := [charge for charge in draft.charges if isinstance(charge, DistributedCharge)]:
        said["rests on"] = _rests_on(min(one.n_min for one in sums), min(one.n_colluding for one in sums))
    if draft.sites_per_patient > 1:
        said["sites"] = f"a patient may be in {draft.sites_per_patient}, and gives this away in each"
    yield facts(said)


def _account(account: Row, n_entries: int) -> Iterator[RenderableType]:
    policy = account["policy_version"]
    yield Text(f"Ledger of {account['site']}: {len(account['entries']):,} entries")
    yield Text(f"instance      {account['instance']}")
    yield Text(f"key in force  {account['public_key']}")
    yield Text(f"policy        {'none was adopted' if policy is None else f'version {policy}'}")
    if account["domains"]:
        yield table("domains", map(_domain_shown, account["domains"]))
    for study in account["studies"]:
        yield from _study_shown(study)
    entries = account["entries"][-n_entries:] if n_entries else []
    if entries:
        title = "entries" if len(entries) == len(account["entries"]) else f"the newest {len(entries)} entries"
        yield table(title, ({"": e["index"], "time": e["time"], "what": e["what"]} for e in entries))


def _domain_shown(domain: Row) -> Row:
    return {
        "domain": domain["domain"],
        "patients": f"≤ {domain['n_patients']:,}",
        "delta": f"{domain['delta']:g}",
        "cap": f"{domain['cap']:g}",
        "promised": f"{domain['promised']:.4f}",
        "studies": domain["studies"],
        "withdrew": domain["withdrawals"],
        "state": _state(domain),
    }


def _study_shown(study: Row) -> Iterator[RenderableType]:
    yield Text()
    name = study["facts"].get("study", "")
    yield Text(f"study {name} (grant {study['grant']}), {study['purpose']}, domain {study['domain']}".strip())
    yield Text(f"  digest {study['study']}")
    yield Text(f"  {_promise(study)}; decided by {_RULES[study['decided_by']]}")
    if study["sums"]:
        yield Text(f"  {_rests_on(**study['sums'])}")
    yield from (Text(f"  {charge}") for charge in study["charges"])
    releases = f"{study['committed']} committed, {study['burned']} burned, {study['open']} open"
    drawn = ", ".join(f"{steps:,} steps of {what}" for what, steps in study["drawn"].items()) or "nothing"
    yield Text(f"  releases: {releases}; drawn so far: {drawn}{'; closed' if study['closed'] else ''}")


def _promise(study: Row) -> str:
    if study["mode"] == "none":
        return "NOT PRIVATE: mode 'none'"
    said = f"epsilon {study['epsilon']:.4f} at delta {study['delta']:g} for each patient"
    return said if study["noise"] == "secret" else f"{SIMULATED}; it would cost {said}"


def _rests_on(n_min: int, n_colluding: int) -> str:
    return (
        f"secure sums: nobody sees less than the sum of {n_min} sites; the figure holds while at most {n_colluding} of "
        "those collude, `ledger recompute` has those against more"
    )


def _step(step: Row) -> Row:
    asked = not step["result"].startswith("not asked")
    result = step["result"] if asked else f"not asked: {_OPTIONS[step['step']]}"
    return {"": step["step"], "step": step["what"], "result": result}


_OPTIONS = {6: "--public-key", 8: "--seen", 9: "--policy"}


def _finding(finding: Row) -> Row:
    return {"step": finding["step"], **_place(finding)}


def _place(finding: Row) -> Row:
    return {"where": finding["where"], "what": finding["what"]}


def _last_line(verdict: Row) -> Text:
    if not verdict["ok"]:
        count = len(verdict["findings"])
        return Text(f"NOT VALID: {count} thing{'s are' if count > 1 else ' is'} wrong.", style=FLAWED)
    if not verdict["pinned"]:
        said = "VALID in itself. Whose ledger it is, only --public-key can tell, as you got it from the site."
    elif not verdict["n_seen"]:
        said = "VALID. Whether it was rolled back or rewritten by its own site, only --seen can tell."
    else:
        said = "VALID, and it contains every checkpoint that was given."
    return Text(said, style="bold")


def _figure(figure: Row, studies: Mapping[int, Row]) -> Row:
    study, recorded = studies[figure["entry"]], figure["recorded"]
    return {
        "entry": figure["entry"],
        "study": study["study"][:12],
        "epsilon of": _FIGURES.get(figure["what"], figure["what"]),
        "recorded": "none" if recorded is None else f"{recorded:.6f}",
        "recomputed": f"{figure['recomputed']:.6f}",
        "": "same" if figure["same"] else "DIFFERENT",
    }


_FIGURES = {"epsilon": "the study", "domain_epsilon": "its domain, so far"}
_RULES = {"pld": "PLD", "rdp": "RDP", "rdp_filter": "the Rényi filter", "not_private": "no rule: NOT PRIVATE"}


def _domain_recomputed(domain: Row) -> Row:
    return {
        "domain": domain["domain"],
        "delta": f"{domain['delta']:g}",
        "cap": f"{domain['cap']:g}",
        "spent": _number(domain["epsilon_spent"]),
        "promised": _promised(domain),
        "withdrew": domain["withdrawals"],
        "state": _state(domain),
    }


def _promised(domain: Row) -> str:
    """The figure of the rule that decided: where a later study was allowed, PLD is no bound of all together."""
    if domain["decided_by"] == "rdp_filter":
        return f"{_number(domain['epsilon_promised_by_filter'])} by filter"
    return _number(domain["epsilon_promised"])


def _study_recomputed(study: Row) -> Iterator[RenderableType]:
    if study["mode"] == "none":
        yield Text(f"study {study['study'][:12]} (entry {study['grant']}): NOT PRIVATE, no figure exists.")
        return
    if study["rounds"]:
        given = "given away" if study["noise"] == "secret" else f"{SIMULATED}; it would give away"
        title = f"{given}, study {study['study'][:12]} (entry {study['grant']}), delta {study['delta']:g}"
        rows = ({**row, "epsilon": f"{row['epsilon']:.6f}"} for row in study["rounds"])
        yield table(title, rows)
    if by_colluding := study["epsilon_by_colluding"]:
        last = len(by_colluding) - 1
        title = f"study {study['study'][:12]}, by how many of the {last + 1} sites that a sum needs collude"
        rows = (
            {"collude": f"all others ({t})" if int(t) == last else t, "epsilon": f"{e:.4f}"}
            for t, e in by_colluding.items()
        )
        yield table(title, rows)
    if len(study["epsilon_in_sites"]) > 1:
        title = f"study {study['study'][:12]}, for a patient in several sites"
        yield table(
            title, ({"sites": k, "epsilon": f"{e:.4f}"} for k, e in study["epsilon_in_sites"].items())
        )


def _state(domain: Row) -> str:
    words = ["NOT PRIVATE"] if domain["not_private"] else []
    words += ["weak"] if domain.get("weak") else []
    return ", ".join([*words, "closed" if domain["closed"] else "open"])


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.4f}"
