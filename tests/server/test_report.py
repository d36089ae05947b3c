"""The report: one safe page from a run's files, whatever is in them."""

import dataclasses
import html.parser
import io
import re
import shutil
import subprocess
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from sottovoce.common import run_files, summarise, summary
from sottovoce.common.errors import RunError
from sottovoce.common.generative.figures import MadeFigures
from sottovoce.common.model_specs import Discriminator
from sottovoce.common.run_files import AddedRows
from sottovoce.server.report import closing, draw, terminal, write_report
from sottovoce.server.report.page import Run, loss_lines, read, render, uar_lines
from sottovoce.server.report.text import show_name
from tests.fakes.runs import FakeRun, predictions_of, rounds_of, study_of, write_run

RUN = FakeRun(repetitions=1)
VOID = {"meta", "br"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "demo", RUN)


@pytest.fixture
def own(folder: Path, tmp_path: Path) -> Path:
    """A copy of the run, to damage."""
    return Path(shutil.copytree(folder, tmp_path / "run", ignore=shutil.ignore_patterns("*.html")))


@pytest.fixture(scope="module")
def run(folder: Path) -> Run:
    return read(folder)


@pytest.fixture(scope="module")
def page(run: Run) -> str:
    return render(run)


class Outline(html.parser.HTMLParser):
    """Reads a page as a strict reader would: every element closed in order; keeps tags, attributes and text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def test_the_page_is_well_formed_and_holds_no_script_and_no_reference_outside(page: str) -> None:
    outline = Outline(page)
    assert outline.open == []
    assert not {"script", "link", "img", "iframe", "object", "form", "base"} & {
        tag for tag, _ in outline.tags
    }
    for _, attributes in outline.tags:
        assert not any(name == "style" or name.startswith("on") for name in attributes)
        assert (attributes.get("href") or "#").startswith("#")
        assert not {"src", "srcset", "action"} & attributes.keys()
    assert not re.search(r"url\(|@import|https?:", page)


def test_the_page_forbids_everything_but_its_own_style_sheet(page: str) -> None:
    policies = [
        a["content"] for tag, a in Outline(page).tags if a.get("http-equiv") == "Content-Security-Policy"
    ]
    assert len(policies) == 1
    assert re.match(r"default-src 'none'; style-src 'sha256-[A-Za-z0-9+/=]+'; base-uri", policies[0] or "")


def test_the_figures_stand_beside_their_limits(page: str) -> None:
    text = " ".join("".join(Outline(page).texts).split())
    arm = summarise.summarise(predictions_of(RUN), study_of(RUN)).arm("federated")
    assert f"{100 * arm.uar.value:.1f} %" in text
    for claim in (
        "NOT PRIVATE",
        "chance 12.5",
        "95 % interval",
        "5 folds by speaker",
        "Transductive.",
        "not used for any choice",
        "How sure, and how right",
        "If only the surest recordings are answered",
        "do not quote",
        "What this cannot tell you",
        "A diagnosis.",
        "AI Act, Article 5(1)(f)",
        "max_update_norm = 1e+04",
        "the file ends after 1,024 bytes",
        study_of(RUN).digest(),
    ):
        assert claim in text, claim


def test_every_table_has_a_caption_and_every_drawing_words(page: str) -> None:
    tags = [tag for tag, _ in Outline(page).tags]
    assert tags.count("table") == tags.count("caption") > 8
    for tag, attributes in Outline(page).tags:
        if tag == "svg" and "class" in attributes and attributes.get("role") != "img":
            assert attributes.get("aria-hidden") == "true" or attributes["class"] == "spark"
    drawings = re.findall(r"<svg[^>]*role=\"img\".*?</svg>", page, re.DOTALL)
    assert len(drawings) == 4
    assert all("<title>" in drawing and "<desc>" in drawing for drawing in drawings)


def test_the_same_files_give_the_same_bytes(folder: Path) -> None:
    first = write_report(folder).read_bytes()
    assert write_report(folder).read_bytes() == first
    assert not list(folder.glob("*.partial"))


HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "'; background: url(http://evil)",
    "{{ 7 * 7 }}{% raw %}",
    "</title></style></svg><h1>",
    "&lt;b&gt;",
    "\u202eevil\u0000\x1b[31m",
    "x" * 5000,
]


@pytest.mark.parametrize("name", HOSTILE, ids=range(len(HOSTILE)))
def test_a_hostile_name_stays_a_name(name: str) -> None:
    spec = study_of(RUN)
    rows = [
        dataclasses.replace(
            row,
            site=name,
            speaker=name + row.speaker,
            groups={name: name},
            arm=name if row.arm == "svm" else row.arm,
        )
        for row in predictions_of(RUN)
        if row.arm in ("federated", "svm")
    ]
    facts = run_files.RunFacts(
        format=1,
        name=name,
        study_digest=name,
        stamp=name,
        started=name,
        ended=name,
        engine=name,
        device=name,
        versions={name: name},
        machine=run_files.Machine(system=name, cores=1, cpu_capability=name, processor=name),
        corpora=(
            run_files.CorpusFacts(name=name, adapter=name, n_utterances=1, n_speakers=1, losses=(name,)),
        ),
        sites=(run_files.SiteFacts(site=name, n_speakers=1, n_utterances=1, labels={name: 1}),),
        skipped=(run_files.Skipped(recording=name, reason=name),),
        cells=(run_files.CellFacts(seed=0, fold=0, arm=name, weights_sha256=name),),
    )
    rounds = [
        dataclasses.replace(line, arm=name, refused=(run_files.Refused(site=name, reason=name),))
        for line in rounds_of(RUN, rounds=5)
        if line.arm == "central"
    ]
    figures = dataclasses.replace(summarise.summarise(rows, spec), study=name, notes=(name,))
    run = Run(study=spec, study_text=f"# {name}\n", summary=figures, facts=facts, rounds=tuple(rounds))
    page = render(run)
    outline = Outline(page)
    assert not {"script", "img", "h4", "b"} & {tag for tag, _ in outline.tags}
    assert sum(tag == "h1" for tag, _ in outline.tags) == 1
    assert not any(
        key.startswith("on") or key == "style" for _, attributes in outline.tags for key in attributes
    )
    assert not re.search("[\x00-\x08\x0b-\x1f\u202e]", page)
    assert any(show_name(name) in text for text in outline.texts)


def test_a_hostile_name_cannot_steer_a_terminal(own: Path) -> None:
    name = "[bold red]site[/] [link=http://evil]x\x1b]8;;http://evil\x07\u202e"
    rows = [dataclasses.replace(row, site=name) for row in predictions_of(RUN) if row.arm == "federated"]
    summary.write(own / "metrics.json", summarise.summarise(rows, study_of(RUN)))
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(terminal(own))
    shown = console.export_text(styles=True)
    assert "[bold red]site[/] [link=http://evil]x\\x1b]8;;http://evil\\x07\\u202e" in shown
    assert "\x1b]8" not in shown


def test_the_terminal_ends_with_uar_interval_chance_sites_and_path(folder: Path) -> None:
    console = Console(width=110, record=True, file=io.StringIO())
    console.print(terminal(folder))
    shown = console.export_text()
    assert re.match(
        r"UAR \d\d\.\d\u202f%  \(95 % interval \d\d\.\d to \d\d\.\d; chance 12\.5\u202f%\) +NOT PRIVATE",
        shown,
    )
    assert all(f"site-{number}" in shown for number in range(1, 7))
    assert "do not quote" in shown
    assert str(folder / "report.html") in shown.replace("\n", "")


def test_of_one_speaker_no_interval_is_said_once() -> None:
    run = FakeRun(repetitions=1, seeds=(0,), skill=(("federated", 2.0),))
    figures = summarise.summarise(predictions_of(run), study_of(run))
    arm = figures.arm(figures.headline)
    alone = dataclasses.replace(arm, uar=dataclasses.replace(arm.uar, low=None, high=None))
    assert "  (no interval: one speaker; chance" in closing._headline(figures, alone).plain
    assert "  (95 % interval " in closing._headline(figures, arm).plain


@pytest.mark.parametrize(
    ("missing", "claim"),
    [("run.json", "versions, machine and weights are unknown"), ("rounds.jsonl", "there are no curves")],
)
def test_a_missing_optional_file_is_shown_as_missing(own: Path, missing: str, claim: str) -> None:
    (own / missing).unlink()
    page = write_report(own).read_text()
    assert f"{missing} is missing" in page
    assert claim in page


@pytest.mark.parametrize("name", ["study.toml", "metrics.json"])
def test_a_missing_necessary_file_is_an_error(own: Path, name: str) -> None:
    (own / name).unlink()
    with pytest.raises(RunError, match=name):
        write_report(own)
    assert not (own / "report.html").exists()


@pytest.mark.parametrize("name", ["study.toml", "metrics.json", "run.json", "rounds.jsonl"])
def test_a_damaged_file_is_an_error_that_names_it(own: Path, name: str) -> None:
    content = (own / name).read_bytes()
    (own / name).write_bytes(content[: len(content) * 2 // 3 + 5])
    with pytest.raises(RunError, match=name):
        write_report(own)


def test_metrics_of_another_study_are_pointed_out(run: Run) -> None:
    other = dataclasses.replace(run, summary=dataclasses.replace(run.summary, study_digest="0" * 64))
    assert "do not belong together" in render(other)
    assert "do not belong together" not in render(run)


def test_synthetic_voices_are_said_beside_the_figure(run: Run) -> None:
    assert run.facts is not None
    corpora = tuple(dataclasses.replace(corpus, synthetic=True) for corpus in run.facts.corpora)
    page = render(dataclasses.replace(run, facts=dataclasses.replace(run.facts, corpora=corpora)))
    assert "The voices are synthetic." in page
    assert "The voices are synthetic." not in render(run)


def test_a_workplace_study_is_told_of_the_prohibition_first(run: Run) -> None:
    page = render(dataclasses.replace(run, study=dataclasses.replace(run.study, purpose="workplace")))
    assert page.index("is prohibited") < page.index("UAR on speakers never heard")


def test_a_run_of_one_speaker_one_arm_and_no_groups_is_drawn(run: Run) -> None:
    rows = [
        dataclasses.replace(row, groups={})
        for row in predictions_of(RUN)
        if (row.arm, row.speaker) == ("federated", "01")
    ]
    page = render(dataclasses.replace(run, summary=summarise.summarise(rows, run.study)))
    assert "no interval: one speaker" in page
    assert "states no groups" in page
    assert "too few for a claim" in page


def test_curves_pool_folds_and_leave_out_rounds_that_some_model_did_not_score() -> None:
    rounds = rounds_of(RUN, rounds=10)
    lines = {line.name: line for line in uar_lines(rounds)}
    assert [at for at, _ in lines["federated"].points] == [5.0, 10.0]
    partial = [line for line in rounds if (line.fold, line.round, line.arm) != (3, 10, "federated")]
    partial += [dataclasses.replace(rounds[0], fold=3, round=10, confusion=None)]
    assert [at for at, _ in {line.name: line for line in uar_lines(partial)}["federated"].points] == [5.0]
    losses = [
        line.loss for line in rounds if (line.arm, line.round) == ("local", 4) and line.loss is not None
    ]
    local = next(line for line in loss_lines(rounds) if line.name == "local")
    assert dict(local.points)[4.0] == pytest.approx(sum(losses) / len(losses))


@given(
    points=st.lists(st.tuples(st.integers(0, 10**6), st.floats(-1e6, 1e6)), min_size=1, max_size=30),
    name=st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
)
def test_curves_are_well_formed_for_every_finite_input(points: list[tuple[int, float]], name: str) -> None:
    lines = [draw.Line(name=name, css="other", points=tuple((float(x), y) for x, y in sorted(points)))]
    drawing = draw.curves(lines, title=name[:0] + "t", description="d", x_label="x", y_label="y")
    assert ET.fromstring(drawing).tag == "svg"
    assert "nan" not in drawing.replace(str(name), "")


@given(values=st.lists(st.floats(0.0, 1.0), min_size=1, max_size=900))
def test_dots_are_at_most_a_few_hundred(values: list[float]) -> None:
    drawing = draw.dots(values, title="t", description="d", css="local", mean=0.5, chance=0.1)
    assert 1 <= len(ET.fromstring(drawing).findall("circle")) <= 450


@pytest.mark.parametrize(("mean", "n_labels"), [(0.14, 1), (0.12, 1), (0.6, 2)])
def test_mean_and_chance_are_one_label_where_two_would_overlap(mean: float, n_labels: int) -> None:
    drawing = draw.dots([mean], title="t", description="d", css="local", mean=mean, chance=0.125)
    texts = [text.text or "" for text in ET.fromstring(drawing).findall("text")]
    assert len([text for text in texts if "mean" in text or "chance" in text]) == n_labels


@given(low=st.floats(-1e9, 1e9), high=st.floats(-1e9, 1e9))
def test_ticks_are_round_and_hold_the_data(low: float, high: float) -> None:
    ticks = draw.nice_ticks(low, high)
    assert 2 <= len(ticks) <= 9
    assert ticks == sorted(ticks)
    slack = 1e-6 * (ticks[-1] - ticks[0]) + 1e-9 * abs(high)
    assert ticks[0] <= low + slack
    assert ticks[-1] >= high - slack


@given(st.text(max_size=200))
def test_shown_names_are_short_and_have_no_hidden_characters(name: str) -> None:
    shown = show_name(name)
    assert shown.isprintable() or not set(shown) & set("\x1b\x07\u202e\u2066\n\r")
    assert len(shown) <= 10 * 120 + 1
    if name.isascii() and name.isprintable() and len(name) <= 120:
        assert shown == name


# ---- in a real browser

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--host-resolver-rules=MAP * ~NOTFOUND",  # nothing leaves the machine, whatever the page or browser asks for
    "--enable-logging=stderr",
]


def complaints(page: Path, scratch: Path) -> list[str]:
    """Opens a page in a browser; returns what the console says and which requests the page started."""
    net_log = scratch / "net.json"
    done = subprocess.run(
        [str(CHROMIUM), *FLAGS, f"--user-data-dir={scratch / 'profile'}", f"--log-net-log={net_log}", "--dump-dom",
         page.as_uri()],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert "</html>" in done.stdout, f"the browser did not open the page: {done.stderr[-500:]}"
    console = re.findall(r"CONSOLE.*", done.stderr)
    # The browser's own requests have no page as their initiator ("not an origin").
    return console + re.findall(r'"initiator":"(?!not an origin)[^"]*"', net_log.read_text())


browser = pytest.mark.skipif(
    CHROMIUM is None, reason="no chromium on this machine: the page is not opened for real"
)


@browser
def test_a_browser_opens_the_page_without_request_and_without_complaint(folder: Path, tmp_path: Path) -> None:
    assert complaints(write_report(folder), tmp_path) == []


REQUEST = '<img src="https://example.org/a.png">'
REFUSED_STYLE = (
    """<meta http-equiv="Content-Security-Policy" content="default-src 'none'"><p style="color:red">"""
)


@browser
@pytest.mark.parametrize("body", [REQUEST, REFUSED_STYLE], ids=["a request", "a refused style"])
def test_a_page_that_asks_outside_or_breaks_its_policy_would_be_noticed(tmp_path: Path, body: str) -> None:
    """The twin that must fail."""
    page = tmp_path / "bad.html"
    page.write_text(f"<!doctype html><html><head></head><body>{body}</body></html>")
    assert complaints(page, tmp_path) != []


def test_accuracy_of_made_rows_is_said_to_be_that(run: Run, page: str) -> None:
    figures = MadeFigures(
        cell="seed0-fold0-federated", file="ab" * 32, n_rows=800, copies=0.5, membership=0.52
    )
    model = Discriminator(kind="discriminator", stream="statistics")
    made = render(
        dataclasses.replace(run, study=dataclasses.replace(run.study, model=model), made=(figures,))
    )
    for figure in ("made rows alone", "0.52", "50.0", "800"):
        assert figure in made
    assert "made rows alone" not in page


def test_rows_that_sites_added_are_named_and_judged(run: Run, page: str) -> None:
    figures = MadeFigures(
        cell="seed0-fold0-federated", file="ab" * 32, n_rows=77, copies=0.5, membership=0.52, uar=0.234,
        uar_of_real=0.567,
    )  # fmt: skip
    added = AddedRows(
        sha256="ab" * 32, per_class=33, fill="rarer", facts={"corpora": "voices", "method": "gan"}
    )
    assert run.facts is not None
    with_rows = dataclasses.replace(run, facts=dataclasses.replace(run.facts, added=added), made=(figures,))
    shown = render(with_rows)
    for said in ("at most 33 of each class that a site lacks", "heard voices alone", "23.4", "56.7", ">77<"):
        assert said in shown
    assert "rows that nobody said" not in page.lower()
