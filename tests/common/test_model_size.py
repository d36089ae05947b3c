"""What a study says of its model's size is what is built."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from sottovoce.common.feature_specs import Energy, FeatureStream, LogMel
from sottovoce.common.model_size import n_parameters_of, size_problems
from sottovoce.common.model_specs import Cnn, Fusion, Linear, Lstm, Mlp, ModelSpec
from sottovoce.common.models import build
from sottovoce.common.optimiser import FlatParameters
from sottovoce.common.study import load
from tests.fakes.privacy import DISTRIBUTED_STUDY, a_distributed_study

SCENARIOS = sorted((Path(__file__).parents[2] / "simulations" / "scenarios").glob("*.toml"))
STREAMS = (
    FeatureStream(name="pooled", parts=(Energy(kind="energy"),), pooling="statistics"),
    FeatureStream(name="frames", parts=(LogMel(kind="log_mel", n_mels=20), Energy(kind="energy"))),
)
WIDTHS = {"pooled": 4, "frames": 21}  # four statistics of one column; twenty bands and one
MLP, CNN = Mlp(kind="mlp", stream="pooled", hidden=5), Cnn(kind="cnn", stream="frames", channels=(6, 7))
MODELS: list[ModelSpec] = [
    Linear(kind="linear", stream="pooled"),
    MLP,
    CNN,
    Lstm(kind="lstm", stream="frames", hidden=5),
    *(Fusion(kind="fusion", level=level, branches=(MLP, CNN)) for level in ("feature", "decision", "deep")),
]


@pytest.mark.parametrize("model", MODELS, ids=lambda model: getattr(model, "level", model.kind))
def test_the_count_is_of_the_numbers_that_training_moves(model: ModelSpec) -> None:
    study = replace(a_distributed_study(), streams=STREAMS, model=model)
    with FlatParameters(build(model, WIDTHS, n_classes=4, seed=0)) as flat:
        assert n_parameters_of(study) == len(flat.values)


def test_softmax_regression_has_a_weight_for_each_column_and_class_and_a_bias_for_each_class() -> None:
    assert n_parameters_of(a_distributed_study()) == 8 * 4 + 4


@pytest.mark.parametrize("stated", [35, 37])
def test_a_study_that_states_another_number_is_told_the_right_one(stated: int) -> None:
    (problem,) = size_problems(a_distributed_study(n_parameters=stated))
    assert problem.startswith("privacy.n_parameters: expected 36,")
    assert problem.endswith(f"came {stated}.")
    assert size_problems(a_distributed_study()) == []


@pytest.mark.parametrize("path", SCENARIOS, ids=lambda path: path.stem)
def test_every_scenario_states_its_own_size(path: Path) -> None:
    assert size_problems(load(path)) == []


def test_studies_that_state_no_number_load_no_torch() -> None:
    program = (
        "import sys\n"
        "from sottovoce.common.model_size import size_problems\n"
        "from sottovoce.common.study import loads\n"
        f"assert size_problems(loads({DISTRIBUTED_STUDY!r})) == []\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
