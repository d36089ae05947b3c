"""Claims about the order of a batch by patient."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from sottovoce.client.private.rows import Rows

PATIENTS = st.lists(st.integers(-3, 12), max_size=40).map(lambda numbers: np.array(numbers, np.int64))


def expanded(rows: Rows) -> list[int]:
    """Returns the patient of each row, as the groups tell it."""
    owners: list[int] = []
    for group in rows.groups:
        assert group.utterances.start == len(owners)
        for patient in rows.patients[group.patients]:
            owners += [int(patient)] * group.n_utterances
        assert group.utterances.stop == len(owners)
    return owners


@given(PATIENTS)
def test_every_row_stands_once_in_its_patients_block(patients: np.ndarray) -> None:
    rows = Rows.of(patients)
    assert sorted(rows.order) == list(range(len(patients)))
    assert expanded(rows) == patients[rows.order].tolist()
    assert sorted(rows.patients) == sorted(set(patients.tolist()))


@given(PATIENTS, st.integers(1, 7))
def test_parts_are_the_whole_cut_between_patients(patients: np.ndarray, at_once: int) -> None:
    rows = Rows.of(patients)
    parts = rows.parts(at_once)
    assert all(1 <= len(part.patients) <= at_once for part in parts)
    for field in ("order", "patients", "shares"):
        joined = [value for part in parts for value in getattr(part, field)]
        assert joined == list(getattr(rows, field))
    for part in parts:
        assert expanded(part) == patients[part.order].tolist()


@given(PATIENTS)
def test_a_patients_shares_add_up_to_one(patients: np.ndarray) -> None:
    rows = Rows.of(patients)
    owners = patients[rows.order]
    for patient in rows.patients:
        assert abs(rows.shares[owners == patient].sum() - 1.0) < 1e-12
