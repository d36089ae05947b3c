"""Groups in a study, and what their counts cost: which tables there are, and how far one patient moves them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from sottovoce.client.evaluate import confusion
from sottovoce.client.releases import contributions
from sottovoce.client.site_ledger import request_of
from sottovoce.common.dataset import SiteData, StreamShape
from sottovoce.common.errors import PrivacyError
from sottovoce.common.groups import Groups, Tables, problems
from sottovoce.common.privacy.clip import clip, quantised_sum
from sottovoce.common.privacy.distributed_plan import counts_mechanism
from sottovoce.common.privacy.plan import counts_events, release_counts
from sottovoce.common.privacy.source import SimulatedNoise_NotPrivate
from sottovoce.common.privacy.stages import PatientGradients
from sottovoce.common.privacy_specs import COUNT_CELLS, DistributedPrivacy, counts_norm
from sottovoce.common.study import loads
from sottovoce.common.sums import COUNTS, counts_deviation, terms_of
from tests.fakes.federations import STUDY
from tests.fakes.privacy import a_distributed_study, a_spec

N_CLASSES = 3
GROUPS = Groups(
    attributes={"sex": ("female", "male"), "age": ("18-39", "40-64", "65-120"), "language": ("de", "en")},
    intersections=True,
)
TABLES = Tables(n_classes=N_CLASSES, groups=GROUPS)


class Says(nn.Module):
    """Answers with what the features say: one number for each class."""

    streams = ("pooled",)

    def forward(self, inputs: dict[str, Tensor], lengths: dict[str, Tensor]) -> Tensor:
        return inputs["pooled"]


def a_site(stated: Sequence[Mapping[str, str]], patients: Sequence[str], answers: Sequence[int]) -> SiteData:
    """Recordings that are all of the first class; `answers` is what the model says."""
    n = len(stated)
    names = tuple(str(index) for index in range(n))
    return SiteData(
        site="north",
        shapes={"pooled": StreamShape(width=N_CLASSES, n_frames=None)},
        keys=names,
        labels=np.zeros(n, np.int64),
        speakers=tuple(patients),
        patients=tuple(patients),
        groups=tuple(stated),
        copies=np.zeros(n, np.int64),
        trains=np.ones(n, np.bool_),
        enrols=np.zeros(n, np.bool_),
        homes=("north",) * n,
        rows=np.arange(n),
        arrays={"pooled": np.eye(N_CLASSES, dtype=np.float32)[list(answers)].reshape(n, N_CLASSES)},
        stored_lengths={},
    )


@pytest.fixture(autouse=True)
def _reads_the_features(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sottovoce.client.evaluate.streams_of", lambda model: model.streams)


stated = st.fixed_dictionaries(
    {},
    optional={
        "sex": st.sampled_from(["female", "male", "another"]),
        "age": st.sampled_from(["17", "18", "39.9", "40", "70", "20-29", "60-69", "", "-3", "9" * 400]),
        "language": st.sampled_from(["de", "en", "fr"]),
        "site": st.just("north"),
    },
)


@given(stated)
def test_a_recording_is_in_one_table_of_each_attribute_at_most_and_in_no_more_than_is_promised(
    one: dict[str, str],
) -> None:
    found = TABLES.of_recording(one)
    assert found[0] == 0
    assert len(found) <= TABLES.per_recording == 1 + 3 + 3
    for name in TABLES.attributes:
        assert len(set(found) & set(TABLES.of_attribute(name))) <= 1


def test_the_tables_are_those_of_all_values_and_of_all_pairs() -> None:
    assert len(TABLES.all) == 1 + (2 + 3 + 2) + (2 * 3 + 2 * 2 + 3 * 2)
    assert TABLES.n_cells == 24 * 9
    assert Tables(n_classes=3).shape == (1, 3, 3)
    assert len(Tables(n_classes=3, groups=replace(GROUPS, intersections=False)).all) == 8


def test_a_value_that_the_study_does_not_name_counts_in_no_group() -> None:
    assert TABLES.of_recording({"sex": "other", "age": "17"}) == (0,)
    assert [TABLES.all[i].name for i in TABLES.of_recording({"age": "60-64"})] == ["all", "age 40-64"]
    assert TABLES.of_recording({"age": "60-69"}) == (0,)  # of two bands: it may be in either


one_recording = st.tuples(stated, st.integers(0, N_CLASSES - 1))


@settings(max_examples=60, deadline=None)
@given(
    others=st.lists(one_recording, max_size=5),
    own=st.lists(one_recording, min_size=1, max_size=8),
    m=st.integers(1, 4),
)
def test_no_patient_moves_the_release_by_more_than_its_sensitivity(
    others: list[tuple[dict[str, str], int]], own: list[tuple[dict[str, str], int]], m: int
) -> None:
    """Adjacent data: the same patients with and without one, through the site's own counting, exactly."""
    both = [*others, *own]
    who = ["b"] * len(others) + ["a"] * len(own)
    data = a_site([one for one, _ in both], who, [answer for _, answer in both])
    bound = counts_norm(m, TABLES.per_recording)
    released = [
        quantised_sum(
            clip(PatientGradients(values=contributions(Says(), part, TABLES, n_most=m)), bound),
            1 / COUNT_CELLS,
        ).values
        for part in (data, data.select(np.array([name == "b" for name in who])))
    ]
    moved = released[0] - released[1]
    assert int((moved * moved).sum()) <= math.floor((bound * COUNT_CELLS) ** 2)
    counted = contributions(Says(), data, TABLES, n_most=m)
    assert np.abs(released[0] / COUNT_CELLS - counted.sum(axis=0)).max() < 0.01  # nothing honest is clipped


@pytest.mark.parametrize("m", [1, 3, 8])
def test_the_sensitivity_is_reached_and_so_no_smaller_one_is_safe(m: int) -> None:
    same = {"sex": "female", "age": "20", "language": "de"}
    (row,) = contributions(Says(), a_site([same] * 9, ["a"] * 9, [1] * 9), TABLES, n_most=m)
    norm = np.linalg.norm(row.astype(np.float64))
    assert norm == pytest.approx(m * math.sqrt(7))
    assert 0 <= counts_norm(m, 7) - norm < 2 / COUNT_CELLS
    assert norm > m * math.sqrt(6)


def test_noise_on_every_table_is_that_of_the_whole_release() -> None:
    wide = Tables(n_classes=20, groups=GROUPS)
    spec = a_spec(counts_noise_multiplier=2.0, counts_utterances=4, seeded_noise=True)
    nobody = PatientGradients(values=np.zeros((0, wide.n_cells), np.float32))
    source = SimulatedNoise_NotPrivate(seed=1, site="north", round=1)
    noise = release_counts(nobody, spec, source, n_tables=wide.per_recording)
    expected = 2.0 * 4 * math.sqrt(7)
    assert np.std(noise) == pytest.approx(
        expected, rel=0.03
    )  # 9,600 cells; without the root it were 0.38 of it
    for table in noise.reshape(24, -1)[[0, 1, -1]]:
        assert np.std(table) == pytest.approx(expected, rel=0.2)


def test_the_charge_is_the_same_multiplier_whatever_tables_there_are() -> None:
    """The ledger's figure is of noise over sensitivity: an auditor needs no word about groups."""
    (event,) = counts_events(a_spec(counts_noise_multiplier=2.0), 3)
    assert (event.noise_multiplier, event.sampling_prob, event.steps) == (2.0, 1.0, 3)
    one, many = (
        counts_mechanism(_distributed(), n_sites=10, tables=tables).event(
            sampling_prob=1.0, steps=1, n_patients=600
        )
        for tables in (Tables(n_classes=N_CLASSES), TABLES)
    )
    assert one.noise_multiplier() == pytest.approx(many.noise_multiplier(), rel=1e-4)
    assert many.n_parameters == TABLES.n_cells


def test_in_a_distributed_sum_a_recording_is_a_whole_number_of_grid_steps() -> None:
    for tables in (Tables(n_classes=N_CLASSES), TABLES):
        mechanism = counts_mechanism(_distributed(), n_sites=10, tables=tables)
        assert (1 / mechanism.grid_step) % 1 == 0
        assert mechanism.clip_norm == counts_norm(8, tables.per_recording)


def _distributed() -> DistributedPrivacy:
    spec = a_distributed_study(counts_noise_multiplier=20.0).privacy
    assert isinstance(spec, DistributedPrivacy)
    return spec


def test_secure_sums_of_counts_are_as_long_as_all_tables() -> None:
    study = a_distributed_study(counts_noise_multiplier=20.0)
    with_groups = replace(study, evaluation=replace(study.evaluation, groups=GROUPS))
    lengths = [terms_of(one, COUNTS, n_parameters=36).length for one in (study, with_groups)]
    assert lengths[1] == 24 * lengths[0]
    spread = [counts_deviation(one, 10) for one in (study, with_groups)]
    assert spread[1] == pytest.approx(math.sqrt(7) * spread[0], rel=1e-3)


def test_counts_without_a_paid_release_are_refused() -> None:
    with pytest.raises(PrivacyError, match="pays for no evaluation counts"):
        counts_mechanism(replace(_distributed(), counts_noise_multiplier=None), n_sites=10, tables=TABLES)


def test_exact_counts_of_groups_are_those_of_their_recordings() -> None:
    data = a_site(
        [{"sex": "female"}, {"sex": "male"}, {}, {"sex": "male"}], ["a", "b", "c", "b"], [0, 1, 2, 1]
    )
    counts = confusion(Says(), data, TABLES)
    by_name = {table.name: counts[i] for i, table in enumerate(TABLES.all)}
    assert by_name["all"][0].tolist() == [1, 2, 1]
    assert by_name["sex male"][0].tolist() == [0, 2, 0]
    assert by_name["sex female"][0].tolist() == [1, 0, 0]
    assert counts.sum() == 4 + 3


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"attributes": {"site": ("a", "b")}}, "each site's own figures"),
        ({"attributes": {"sex": ("female", "female")}}, "some are there twice"),
        ({"attributes": {"age": ("18-40", "40-64")}}, "some overlap"),
        (
            {"attributes": {name: tuple("abcdefgh") for name in "klm"}, "intersections": True},
            "at most 100 tables",
        ),
    ],
)
def test_groups_that_would_break_the_promise_are_refused(change: dict[str, object], words: str) -> None:
    (problem,) = problems(replace(GROUPS, **{"intersections": False, **change}))  # type: ignore[arg-type]
    assert words in problem


LONG = tuple(f"{n:02} {'x' * 56}" for n in range(40))


@pytest.mark.parametrize(
    ("attributes", "words"),
    [
        ({"a": LONG, "b": LONG}, "at most 4000 characters together"),
        ({"a" * 61: ("x", "y")}, "names of 1 to 60 characters"),
        ({"": ("x", "y")}, "names of 1 to 60 characters"),
        ({"sex": ("female", "male; age 18-39")}, "without ';'"),
        ({"sex": ("female", "male\nall")}, "can be printed"),
    ],
)
def test_groups_that_nobody_could_read_before_signing_are_refused(
    attributes: Mapping[str, tuple[str, ...]], words: str
) -> None:
    (problem,) = problems(Groups(attributes=attributes))
    assert words in problem


@example(attributes={"accent": LONG}, intersections=False)
@given(
    st.dictionaries(
        st.text("abc", min_size=1, max_size=60),
        st.lists(st.text("xyz", min_size=1, max_size=60), min_size=2, max_size=40, unique=True).map(tuple),
        min_size=1,
        max_size=8,
    ),
    st.booleans(),
)
@settings(max_examples=30, deadline=None)
def test_an_approver_signs_for_every_group_whole(
    attributes: Mapping[str, tuple[str, ...]], intersections: bool
) -> None:
    groups = Groups(attributes=attributes, intersections=intersections)
    if problems(groups):
        return
    study = loads(STUDY)
    study = replace(study, evaluation=replace(study.evaluation, groups=groups))
    facts = request_of(study, "d").facts
    parts = [facts[key] for key in facts if key.startswith("groups")]
    assert "; ".join(parts) == "; ".join(study.tables.names[1:])
    assert all(len(part) <= 300 for part in parts)  # what an entry of the ledger takes
    assert len(facts) <= 40


def test_a_study_names_groups_and_its_digest_says_so() -> None:
    text = STUDY.replace(
        "every_rounds = 2", 'every_rounds = 2, groups = { attributes = { sex = ["female", "male"] } }'
    )
    assert [table.name for table in loads(text).tables.all] == ["all", "sex female", "sex male"]
    assert loads(text).digest() != loads(STUDY).digest()
    assert loads(STUDY).tables.shape == (1, 2, 2)
    assert loads(text).tables.n_cells == 12
