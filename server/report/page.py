"""A run's files as one page: what the template shows, in the words and drawings it needs."""

import base64
import hashlib
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2
import numpy as np
from markupsafe import Markup

from sottovoce.common import explanation as explanations
from sottovoce.common import metrics, run_files, study, summary
from sottovoce.common.errors import RunError, StudyError
from sottovoce.common.explanation import Explanation
from sottovoce.common.generative import figures as made_figures
from sottovoce.common.generative.added import in_words as added_in_words
from sottovoce.common.generative.figures import MadeFigures
from sottovoce.common.generative_specs import is_generative
from sottovoce.common.predictions import LEAKS, leaks
from sottovoce.common.run_files import RoundFacts, RunFacts
from sottovoce.common.strategy_names import strategy_of
from sottovoce.common.study import Study
from sottovoce.common.summary import Arm, CellFigures, Difference, Estimate, Summary
from sottovoce.common.transfer import in_words
from sottovoce.server.report import calibration, draw, explanation, fairness, text

HERE = Path(__file__).parent
_KNOWN_ARMS = ("federated", "central", "local")
_TICKS = (0.0, 0.25, 0.5, 0.75, 1.0)


@dataclass(frozen=True, kw_only=True)
class Run:
    """What the files of a run say. `facts` and `rounds` are None when their file is missing."""

    study: Study
    study_text: str
    summary: Summary
    facts: RunFacts | None
    rounds: tuple[RoundFacts, ...] | None
    explanation: Explanation | None = None
    made: tuple[MadeFigures, ...] = ()

    @property
    def synthetic(self) -> bool:
        """Whether any voice of the run was made by the embedded synthesis."""
        return self.facts is not None and any(corpus.synthetic for corpus in self.facts.corpora)


def read(folder: Path) -> Run:
    """Reads the files of a run. Raises: RunError when one is damaged, or a necessary one is missing."""
    path = folder / "study.toml"
    run_files.check_is_run(folder, path.name)
    try:
        spec = study.load(path)
        study_text = path.read_text(encoding="utf-8")
    except (StudyError, OSError) as error:
        raise RunError(f"study.toml of the run cannot be used. {error}") from error
    rounds = folder / "rounds.jsonl"
    return Run(
        study=spec,
        study_text=study_text,
        summary=summary.read(folder / "metrics.json"),
        facts=run_files.read_run(folder / "run.json") if (folder / "run.json").exists() else None,
        rounds=tuple(run_files.last_of_each(run_files.read_rounds(rounds))) if rounds.exists() else None,
        explanation=explanations.read(folder),
        made=made_figures.read(folder / made_figures.FOLDER),
    )


def render(run: Run) -> str:
    """Returns the page."""
    css = (HERE / "report.css").read_text(encoding="utf-8")
    environment = _environment()
    template = environment.from_string((HERE / "report.html.j2").read_text(encoding="utf-8"))
    headline = run.summary.arm(run.summary.headline)
    return template.render(
        run=run,
        s=run.summary,
        arm=headline,
        css=Markup(css),  # ours, with nothing of a file in it
        css_sha256=base64.b64encode(hashlib.sha256(css.encode()).digest()).decode(),
        study_digest=run.study.digest(),
        curves=_curves(run.rounds or ()),
        started=in_words(run.facts.initial) if run.facts and run.facts.initial else (),
        speakers=_speaker_dots(run.summary, headline),
        gap_scale=draw.gap_scale(_largest_gap(run.summary.differences)),
        strategy=strategy_of(run.study),
        fairness=fairness.section(run.summary, environment),
        refused=_refused(run.rounds or ()),
        traffic=_traffic(run.rounds or ()),
        by_fold=_by_fold(headline),
        leaking=_beside_honest(run.summary),
        calibration=headline.calibration,
        reliability=calibration.reliability(headline, style(headline.name)),
        temperatures=calibration.temperatures(headline),
        made=run.made,
        added=added_in_words(run.facts.added) if run.facts and run.facts.added else "",
        generative=is_generative(run.study),
        explanation=run.explanation,
        loss_scale=explanation.scale_of(run.explanation) if run.explanation else None,
    )


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "name": text.show_name,
        "percent": text.percent,
        "points": text.points,
        "span": text.span,
        "gap_span": text.gap_span,
        "size": text.size,
        "moment": text.moment,
        "style": style,
        "loss_span": explanation.span,
        "at_chance": explanation.at_chance,
        "strongest": explanation.strongest,
        "shaded": explanation.moments,
        "lines": _visible_lines,
    }
    environment.globals |= {
        "count": text.count,
        "duration": text.duration,
        "share_whisker": _share_whisker,
        "share_axis": draw.axis(draw.share_scale(), _TICKS),
        "gap_whisker": _gap_whisker,
        "gap_axis": lambda scale: draw.axis(scale, (scale.low, 0.0, scale.high), signed=True),
        "row_shares": _row_shares,
        "loss_whisker": explanation.whisker,
        "zip": zip,
    }
    return environment


def style(arm: str) -> str:
    """Returns the class of an arm: its colour, dash and shape."""
    if leaks(arm):
        return "leak"
    return arm if arm in _KNOWN_ARMS else "other"


def loss_lines(rounds: Iterable[RoundFacts]) -> list[draw.Line]:
    """Returns the mean training loss over an arm's models, for each round that states one."""
    losses: dict[tuple[str, int], list[float]] = {}
    for facts in rounds:
        if facts.loss is not None:
            losses.setdefault((_curve(facts), facts.round), []).append(facts.loss)
    return _lines({key: sum(values) / len(values) for key, values in losses.items()})


def uar_lines(rounds: Sequence[RoundFacts]) -> list[draw.Line]:
    """Returns UAR on the withheld speakers: folds pooled, mean over seeds, for rounds that all models scored."""
    cells: dict[str, set[tuple[int, int, str]]] = {}
    pooled: dict[
        tuple[str, int], dict[tuple[int, int, str], np.ndarray[tuple[int, int], np.dtype[np.float64]]]
    ] = {}
    for facts in rounds:
        model = (facts.seed, facts.fold, facts.arm)
        cells.setdefault(_curve(facts), set()).add(model)
        table = np.array(facts.confusion or (), dtype=np.float64)
        if table.ndim == 2 and table.shape[0] == table.shape[1]:
            pooled.setdefault((_curve(facts), facts.round), {})[model] = table
    values = {}
    for (arm, at), tables in pooled.items():
        if tables.keys() == cells[arm] and len({table.shape for table in tables.values()}) == 1:
            seeds = sorted({seed for seed, _, _ in tables})
            sums = [sum(table for (seed, *_), table in tables.items() if seed == wanted) for wanted in seeds]
            uar = float(np.mean(metrics.uars(np.array(sums))))
            if np.isfinite(uar):
                values[arm, at] = uar
    return _lines(values)


def _curve(facts: RoundFacts) -> str:
    """Returns the arm that a record is drawn with: sites that train alone, `local@NAME`, are one curve."""
    return facts.arm.partition("@")[0]


def _lines(values: dict[tuple[str, int], float]) -> list[draw.Line]:
    arms = sorted({arm for arm, _ in values}, key=lambda arm: (style(arm) == "other", arm))
    lines = []
    for arm in arms:
        points = tuple((float(at), values[name, at]) for name, at in sorted(values) if name == arm)
        lines.append(draw.Line(name=arm, css=style(arm), points=points))
    return lines


def _curves(rounds: Sequence[RoundFacts]) -> list[Markup]:
    drawings = []
    if lines := loss_lines(rounds):
        drawings.append(
            draw.curves(
                lines,
                title="Training loss by round",
                description=_ends(lines, lambda value: f"{value:.2f}"),
                x_label="round",
                y_label="mean training loss",
            )
        )
    if lines := uar_lines(rounds):
        drawings.append(
            draw.curves(
                lines,
                title="UAR on withheld speakers by round",
                description=_ends(lines, text.percent),
                x_label="round; not used for any choice",
                y_label="UAR on withheld speakers, %",
                shares=True,
            )
        )
    return drawings


def _ends(lines: Sequence[draw.Line], show: Callable[[float], str]) -> str:
    ends = [
        f"{text.show_name(line.name)}: {show(line.points[0][1])} at first, {show(line.points[-1][1])} at last"
        for line in lines
    ]
    return "; ".join(ends) + "."


def _speaker_dots(figures: Summary, arm: Arm) -> Markup:
    values = [speaker.uar for speaker in arm.speakers]
    return draw.dots(
        values,
        title="UAR of each speaker",
        description=f"From {text.percent(min(values))} to {text.percent(max(values))}.",
        css=style(arm.name),
        mean=sum(values) / len(values),
        chance=figures.chance_uar,
    )


def _share_whisker(estimate: Estimate, css: str, chance: float | None = None) -> Markup:
    scale = draw.share_scale()
    return draw.whisker(estimate.value, estimate.low, estimate.high, scale=scale, css=css, reference=chance)


def _gap_whisker(difference: Difference, scale: draw.Scale) -> Markup:
    css = style(difference.minus)
    return draw.whisker(
        difference.value, difference.low, difference.high, scale=scale, css=css, reference=0.0
    )


def _largest_gap(differences: Sequence[Difference]) -> float:
    ends = [end for gap in differences for end in (gap.value, gap.low, gap.high) if end is not None]
    return max(map(abs, ends), default=0.02)


def _row_shares(row: Sequence[int]) -> list[int | None]:
    """Returns a row of counts in whole percent; None for a class that never occurs."""
    total = sum(row)
    return [round(100 * count / total) if total else None for count in row]


def _by_fold(arm: Arm) -> tuple[list[int], list[tuple[int, list[CellFigures | None]]]]:
    """Returns the folds, and for each seed its cells in their order; None where nobody was scored."""
    folds = sorted({cell.fold for cell in arm.cells})
    seeds = sorted({cell.seed for cell in arm.cells})
    cells = {(cell.seed, cell.fold): cell for cell in arm.cells}
    return folds, [(seed, [cells.get((seed, fold)) for fold in folds]) for seed in seeds]


def _beside_honest(figures: Summary) -> list[Arm]:
    """Returns each arm that leaks, after its honest twin where there is one."""
    honest = {arm.name: arm for arm in figures.arms}
    pairs = [
        (honest.get(arm.name.removesuffix(LEAKS)), arm)
        for arm in (figures.leaks.arms if figures.leaks else ())
    ]
    return [arm for pair in pairs for arm in pair if arm is not None]


def _refused(rounds: Sequence[RoundFacts]) -> list[tuple[RoundFacts, run_files.Refused]]:
    return [(facts, refused) for facts in rounds for refused in facts.refused]


def _traffic(rounds: Sequence[RoundFacts]) -> int:
    return sum(
        (facts.bytes_down or 0) + (facts.bytes_up or 0) for facts in rounds if facts.arm == "federated"
    )


def _visible_lines(content: str) -> str:
    """Returns text of several lines with hidden characters written out."""
    # show_name cuts long names, so a line goes through it in pieces.
    pieces = [re.findall(f".{{1,{text.MAX_NAME}}}", line) for line in content.expandtabs(4).splitlines()]
    return "\n".join("".join(map(text.show_name, line)) for line in pieces)
