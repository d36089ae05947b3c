"""What a mitigation won and what it cost, from predictions."""

from dataclasses import replace

import pytest

from sottovoce.common.errors import SottovoceError
from sottovoce.common.predictions import Prediction
from sottovoce.common.study import loads
from sottovoce.simulations.results_mitigation import MITIGATIONS, compared, mitigated_text
from sottovoce.simulations.results_studies import COLUMNS, study_text

RIGHT, WRONG = (-0.1, -2.0), (-2.0, -0.1)


def _rows(right_of: dict[str, int]) -> list[Prediction]:
    """Returns four recordings of class 0 for each of four speakers; of each sex so many are recognised."""
    return [
        Prediction(
            seed=0,
            fold=0,
            arm="federated",
            utterance=f"{speaker}-{turn}",
            speaker=speaker,
            site="site-1",
            groups={"sex": sex},
            truth=0,
            log_probs=RIGHT if turn < right_of[sex] else WRONG,
        )
        for speaker, sex in (("a", "female"), ("b", "female"), ("c", "male"), ("d", "male"))
        for turn in range(4)
    ]


PLAIN = _rows({"female": 4, "male": 2})


def test_price_and_gap_are_those_that_one_counts_by_hand() -> None:
    found = compared(_rows({"female": 3, "male": 3}), PLAIN, column="some", title="a mitigation")
    assert found.uar == pytest.approx(0.75)
    assert found.price.value == pytest.approx(0.0)  # 12 of 16 before and after
    assert found.gap.value == pytest.approx(0.0)
    assert found.change.value == pytest.approx(-0.5)
    assert found.change.low <= -0.5 <= found.change.high


def test_a_mitigation_that_does_nothing_wins_and_costs_nothing() -> None:
    found = compared(PLAIN, PLAIN, column="some", title="nothing")
    assert found.gap.value == pytest.approx(0.5)
    assert (found.change.low, found.change.high) == (0.0, 0.0)
    assert (found.price.low, found.price.high) == (0.0, 0.0)


def test_other_recordings_are_not_compared() -> None:
    others = [replace(row, utterance="x" + row.utterance) for row in PLAIN]
    with pytest.raises(SottovoceError, match="the same recordings"):
        compared(others, PLAIN, column="some", title="nothing")


@pytest.mark.parametrize("mitigation", MITIGATIONS, ids=[str(turn) for turn in range(len(MITIGATIONS))])
def test_a_mitigation_is_in_the_study_that_is_run(mitigation: object) -> None:
    text = study_text(COLUMNS[1], COLUMNS[1].grid[0], folds=(0,), n_seeds=1)
    plain, mitigated = loads(text), loads(mitigated_text(text, mitigation))  # type: ignore[arg-type]
    assert mitigated.training.group_robust != plain.training.group_robust or (
        mitigated.federation.strategy != plain.federation.strategy
    )
    assert mitigated.digest() != plain.digest()
