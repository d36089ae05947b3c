"""The end of a run as a terminal shows it."""

from pathlib import Path

from rich.console import Group
from rich.table import Table
from rich.text import Text

from sottovoce.common.summary import Arm, Summary
from sottovoce.server.report.calibration import line as calibration_line
from sottovoce.server.report.fairness import sentence
from sottovoce.server.report.page import Run
from sottovoce.server.report.text import count, gap_span, percent, points, show_name, span

MAX_SITES = 12  # in a terminal; the page has all
MAX_STAMP = 600


def closing(run: Run, report: Path) -> Group:
    """Returns UAR with its interval and chance, arms, sites, what to know, and where the report lies.

    Names go through `Text`, never through markup: a site called "[red]" is shown, not obeyed.
    """
    arm = run.summary.arm(run.summary.headline)
    parts: list[Text | Table] = [_headline(run.summary, arm), _protocol(run, arm)]
    if len(run.summary.arms) > 1 or run.summary.leaks:
        parts.append(_arms(run.summary))
    parts.append(_sites(arm))
    parts += _groups(run.summary)
    if arm.calibration is not None:
        parts.append(Text(calibration_line(arm.calibration)))
    parts += [Text(f"Note: {show_name(note)}", style="yellow") for note in run.summary.notes]
    parts.append(Text.assemble("Report: ", (str(report), "bold")))
    return Group(*parts)


def _headline(figures: Summary, arm: Arm) -> Text:
    known = "" if arm.uar.low is None else "95 % interval "
    return Text.assemble(
        ("UAR ", "bold"),
        (percent(arm.uar.value), "bold green"),
        f"  ({known}{span(arm.uar)}; chance {percent(figures.chance_uar)})  ",
        (
            f" {show_name(figures.privacy, longest=MAX_STAMP)} ",
            "bold white on red" if "NOT PRIVATE" in figures.privacy else "bold",
        ),
    )


def _protocol(run: Run, arm: Arm) -> Text:
    protocol = run.summary.protocol
    words = [
        f"{show_name(arm.name)} model on {count(arm.n_speakers, 'speaker')} that it never heard",
        f"{protocol.k} folds",
        count(len(protocol.seeds), "seed"),
    ]
    if protocol.transductive:
        words.append("transductive normalisation (a speaker's unlabelled recordings were seen)")
    if protocol.enrolment is not None:
        words.append(f"each speaker enrolled by {protocol.enrolment}, which are not scored")
    if run.synthetic:
        words.append("synthetic voices")
    return Text(", ".join(words) + ".", style="dim")


def _arms(figures: Summary) -> Table:
    table = Table("Arm", title=None, box=None, pad_edge=False)
    for heading in ("UAR %", "95 % interval", f"{show_name(figures.headline)} minus it"):
        table.add_column(Text(heading), justify="right")
    gaps = {gap.minus: f"{points(gap.value, sign=True)} ({gap_span(gap)})" for gap in figures.differences}
    for arm in figures.arms:
        table.add_row(Text(show_name(arm.name)), _number(arm), span(arm.uar), gaps.get(arm.name, ""))
    for arm in figures.leaks.arms if figures.leaks else ():
        table.add_row(Text(show_name(arm.name), style="red"), _number(arm), span(arm.uar), "do not quote")
    return table


def _sites(arm: Arm) -> Table:
    table = Table("Site", box=None, pad_edge=False)
    for heading in ("speakers", "recordings", "UAR %", "95 % interval"):
        table.add_column(heading, justify="right")
    for site in arm.sites[:MAX_SITES]:
        few = " *" if site.few_speakers else "  "
        table.add_row(
            Text(show_name(site.value)),
            str(site.n_speakers) + few,
            str(site.n_utterances),
            f"{100 * site.uar.value:.1f}",
            span(site.uar),
        )
    hidden = len(arm.sites) - MAX_SITES
    more = f"{count(hidden, 'more site')} in the report. " if hidden > 0 else ""
    few_speakers = any(site.few_speakers for site in arm.sites[:MAX_SITES])
    table.caption = more + ("* too few speakers for a claim" if few_speakers else "")
    table.caption_justify = "left"
    return table


def _groups(figures: Summary) -> list[Text | Table]:
    """Returns a line on groups for each source of figures; yellow where somebody should look."""
    found = [one for one in figures.fairness if one.arm == figures.headline]
    return [
        Text(
            f"Groups ({one.source}): {sentence(one)}",
            style="yellow" if one.n_flagged or one.collapse.verdict == "collapsed" else "",
        )
        for one in found
    ]


def _number(arm: Arm) -> str:
    return f"{100 * arm.uar.value:.1f}"
