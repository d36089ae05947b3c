"""`python -m sottovoce.simulations.audit FILE ... [--bench FILE] --page FILE`: audits that were run, as Markdown.

Each FILE is an audit-empirical.json of `sottovoce audit --empirical`; the bench's is that of
`python -m sottovoce.simulations.bench audit --json`. `make audit` runs them all and writes docs/empirical-audit.md.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sottovoce.server.audit.words import up
from sottovoce.simulations.audit.figures import down

_INTRODUCTION = """\
# The empirical audit, as measured

Written by `make audit`; every figure is of that run. `sottovoce audit --empirical STUDY` makes the page for your own
study. How it works stands in `simulations/audit/`: one-run auditing with canary patients through the whole production
path (Steinke, Nasr and Jagielski 2023, theorem 5.2 with its delta), and three attacks on voices.

An audit disproves claims; it proves none. What one run of m canaries can show at all is bounded, and that bound stands
beside every figure: where it is below the claim, the audit's silence means nothing. Errors of a factor of two in noise
or clipping are below what an audit of this size sees; exact tests hold those (`docs/pitfalls.md`). A large delta blinds
it however many canaries there are: at delta 0.002 and an error of 5 % no such audit can prove more than
log(0.05 / (2 x 0.002)) = 2.5. So a claim is audited at the usual delta too, where the study prints a figure for it.
AUC: how well canaries that are in are told from those that are not, over all rounds.
"""


def main(arguments: Sequence[str]) -> int:
    """Reads what was measured and writes the page."""
    parser = argparse.ArgumentParser(prog="python -m sottovoce.simulations.audit")
    parser.add_argument("audits", nargs="+", type=Path, metavar="FILE")
    parser.add_argument("--bench", type=Path, metavar="FILE")
    parser.add_argument("--page", type=Path, metavar="FILE", required=True)
    chosen = parser.parse_args(arguments)
    audits = [json.loads(path.read_text(encoding="utf-8")) for path in chosen.audits]
    bench = json.loads(chosen.bench.read_text(encoding="utf-8"))["audit"] if chosen.bench else None
    chosen.page.write_text(page_of(audits, bench), encoding="utf-8")
    return 0


def page_of(audits: Sequence[Mapping[str, Any]], bench: Mapping[str, Any] | None) -> str:
    """Returns the page as Markdown."""
    lines = [_INTRODUCTION, "## Canary patients\n", *_canaries(audits)]
    if bench is not None:
        lines += ["\n## Does it find what is there to find?\n", *_bench(bench)]
    for audit in audits:
        if audit["attacks"]:
            lines += [f"\n## Attacks on voices: study `{audit['study']['name']}`\n", *_attacks(audit)]
    lines += ["\n## What was not attacked\n", *(f"- {line}" for line in audits[0]["not_attacked"])]
    return "\n".join(lines) + "\n"


def _canaries(audits: Sequence[Mapping[str, Any]]) -> list[str]:
    rows = [
        (
            f"`{audit['study']['name']}`",
            f"{found['n_canaries']:,} in {found['sites']} site{'s' if found['sites'] > 1 else ''}, "
            f"{found['rounds']} rounds, {found['noise']} noise",
            f"{figure['delta']:g}",
            up(figure["claimed"]),
            f"**{down(figure['lower_bound'])}**",
            down(figure["largest_detectable"]),
            f"{found['auc']:.3f}",
            "disproved" if figure["alarm"] else "too weak to say" if figure["powerless"] else "not disproved",
        )
        for audit in audits
        for found in [audit["canaries"]]
        for figure in found["figures"]
    ]
    headings = (
        "study",
        "canaries",
        "delta",
        "claimed",
        "proved at least",
        "could have proved",
        "AUC",
        "outcome",
    )
    return _table(headings, rows)


def _bench(bench: Mapping[str, Any]) -> list[str]:
    told = (
        "`python -m sottovoce.simulations.bench audit`: honest runs, and four defects that the bench plants in its own "
        "process, around the production functions, without a word to the audit.\n"
    )
    rows = [
        (
            row["what"],
            f"{row['value']:g}",
            row["bar"] + ("" if row["met"] else " **missed**"),
            row.get("note", ""),
        )
        for row in bench["rows"]
    ]
    return [told, *_table(("what", "value", "bar", "note"), rows)]


def _attacks(audit: Mapping[str, Any]) -> list[str]:
    kind = (
        "synthesised voices of the embedded corpus" if audit["synthetic_voices"] else "published recordings"
    )
    lines = [
        f"{audit['speakers']} speakers: {kind}. The study's stamp: {audit['claim']}. `none` is the same study without "
        "privacy. Intervals at 95 %: people resampled. **Bold**: all of the interval is better "
        "than guessing; of twenty intervals, one misses its mark by chance.",
    ]
    for attack in audit["attacks"]:
        rows = [
            (
                row["defence"],
                row["attacker"],
                row["measure"],
                f"**{row['value']:.3f}**" if row["beats_chance"] else f"{row['value']:.3f}",
                f"{row['low']:.3f} to {row['high']:.3f}",
                f"{row['chance']:.2f}",
                f"{row['n']:,}",
            )
            for row in attack["rows"]
        ]
        headings = ("privacy", "attacker", "measure", "value", "95 % interval", "guessing", "of")
        lines += [f"\n### {attack['title']}\n", attack["threat"] + "\n", *_table(headings, rows)]
        lines += [f"\n{attack['note']}"]
    return lines


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [
        f"| {' | '.join(headings)} |",
        "|" + "---|" * len(headings),
        *(f"| {' | '.join(row)} |" for row in rows),
    ]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
