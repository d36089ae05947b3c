"""The report's section on groups: what is beyond a threshold stands out, and what is suppressed is not there."""

import dataclasses
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest

from sottovoce.common import fairness
from sottovoce.common.fairness_figures import Collapse, Fairness, Gap, Offsets
from sottovoce.common.groups import Groups, Tables
from sottovoce.common.run_files import Counted
from sottovoce.common.summary import Summary
from sottovoce.server.report.fairness import section, sentence
from sottovoce.server.report.page import Run, _environment, read
from tests.fakes.runs import FakeRun, write_run

RUN = FakeRun(repetitions=1, seeds=(0,), skill=(("federated", 2.0), ("central", 2.1)))
HOSTILE = "fe<b>male</b> & co"
GROUPS = Groups(attributes={"sex": (HOSTILE, "male")}, minimum_size=100)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return read(write_run(Path(tmp_path_factory.mktemp("runs")) / "demo", RUN))


def found(run: Run, *, of_men: int, noise: float = 0.0, arm: str = "federated") -> Fairness:
    """Women are understood in 40 of 50, men in `of_men` of 50 recordings of each emotion."""
    n = len(run.summary.classes)
    tables = []
    for right in (40, of_men):
        table = np.full((n, n), (50 - right) // (n - 1))
        np.fill_diagonal(table, right)
        tables.append(table)
    counts = [tables[0] + tables[1], *tables]
    counted = Counted(deviation=noise, tables=tuple(tuple(map(tuple, table.tolist())) for table in counts))
    return fairness.of_released(
        counted, Tables(n_classes=n, groups=GROUPS), classes=run.summary.classes, minimum_size=100, arm=arm
    )


def drawn(run: Run, *parts: Fairness) -> str:
    figures: Summary = dataclasses.replace(run.summary, fairness=parts)
    markup = str(section(figures, _environment()))
    ET.fromstring(f"<main>{markup}</main>")  # well formed, drawings and all
    return " ".join(markup.split())


def test_a_gap_beyond_its_threshold_stands_out_and_none_is_made_up(run: Run) -> None:
    unfair, fair = found(run, of_men=15), found(run, of_men=40)
    assert '<strong class="warn">beyond 7.5</strong>' in drawn(run, unfair)
    assert "beyond 7.5" not in drawn(run, fair)
    assert "Worst served: sex male, UAR 30" in sentence(unfair)
    assert "0 are surely beyond the threshold" in sentence(fair)


def test_a_suppressed_group_has_a_name_and_no_figure(run: Run) -> None:
    noisy = found(run, of_men=40, noise=60.0)
    text = drawn(run, noisy)
    assert text.count("suppressed: too small, or too much noise, to say anything") == 2
    assert "noise of deviation 60.0 on each" in text
    assert "Every group is too small" in sentence(noisy)
    assert "equal opportunity" not in text.lower()
    assert str(noisy.groups[0].n_utterances) not in text


def test_a_hostile_group_stays_a_name(run: Run) -> None:
    text = drawn(run, found(run, of_men=15))
    assert HOSTILE not in text
    assert "fe&lt;b&gt;male&lt;/b&gt; &amp; co" in text


def test_a_collapsed_model_is_said_to_be_one_first(run: Run) -> None:
    gone = Collapse(in_truth=8.0, verdict="collapsed", most_answered="sad", share=0.93, answered=1.4)
    said = sentence(dataclasses.replace(found(run, of_men=40), collapse=gone))
    assert said.startswith("THE MODEL HAS COLLAPSED: answers spread over 1.4 of 8.0 emotions, 93.0")


def test_the_price_of_offsets_stands_beside_their_gain_and_every_arm_in_one_table(run: Run) -> None:
    gain = Offsets(
        attribute="sex",
        gap_before=0.12,
        gap_after=0.04,
        change=Gap(value=-0.08, low=-0.1, high=-0.02),
        price=Gap(value=-0.011, low=-0.02, high=0.001),
    )
    arms = [
        dataclasses.replace(found(run, of_men=men, arm=arm), source="answers", offsets=(gain,))
        for arm, men in (("federated", 15), ("central", 40))
    ]
    arms = [
        dataclasses.replace(
            one, groups=tuple(dataclasses.replace(group, n_speakers=12) for group in one.groups)
        )
        for one in arms
    ]
    text = drawn(run, *arms)
    assert "from 12.0 to 4.0 points" in text
    assert "−1.1" in text
    assert "They would narrow the gap." in text
    assert "what each way to train costs whom" in text


def test_a_study_without_groups_is_told_how_to_name_some(run: Run) -> None:
    assert "names no groups (<code>evaluation.groups</code>)" in drawn(run)
