"""Which rows of a batch belong to which patient, in an order that makes a patient's rows one block.

    rows = Rows.of(np.array([7, 3, 7]))
    rows.order       # [1, 0, 2]: patients with one utterance first, then those with two
    rows.patients    # [3, 7]

Patients with equally many utterances stand together. So the rows of all patients with c utterances are one
block that can be seen as (patients, c, ...) without a copy, and one batched product serves them all.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Group:
    """Patients with `n_utterances` each: their rows in the ordered batch, and their rows in the matrix."""

    utterances: slice
    patients: slice
    n_utterances: int


@dataclass(frozen=True, kw_only=True)
class Rows:
    """A batch in patients' order. `shares` are 1 / (the patient's number of utterances), for each row."""

    order: Indices
    patients: Indices
    groups: tuple[Group, ...]
    shares: npt.NDArray[np.float64]

    @staticmethod
    def of(patients: Indices) -> "Rows":
        """Returns the order for a batch whose utterance i belongs to `patients[i]`."""
        numbers, inverse, counts = np.unique(patients, return_inverse=True, return_counts=True)
        by_count = np.argsort(counts, kind="stable")
        place = np.empty_like(by_count)
        place[by_count] = np.arange(len(by_count))
        return Rows(
            order=np.argsort(place[inverse], kind="stable"),
            patients=numbers[by_count],
            groups=tuple(_groups(counts[by_count])),
            shares=np.repeat(1.0 / counts[by_count], counts[by_count]),
        )

    def parts(self, max_patients: int, max_utterances: int | None = None) -> "list[Rows]":
        """Cuts into runs of at most so many patients, and utterances where one patient has no more than that.

        Each `order` still counts in the whole batch.
        """
        counts = np.array(
            [g.n_utterances for g in self.groups for _ in range(g.patients.start, g.patients.stop)], np.int64
        )
        ends = np.concatenate([[0], np.cumsum(counts)])
        result, first = [], 0
        while first < len(self.patients):
            last = min(first + max_patients, len(self.patients))
            if max_utterances is not None:
                fits = int(np.searchsorted(ends, ends[first] + max_utterances, side="right")) - 1
                last = min(last, max(fits, first + 1))
            span = slice(ends[first], ends[last])
            result.append(
                Rows(
                    order=self.order[span],
                    patients=self.patients[first:last],
                    groups=tuple(_groups(counts[first:last])),
                    shares=self.shares[span],
                )
            )
            first = last
        return result


def _groups(counts: Indices) -> list[Group]:
    """`counts` ascend."""
    groups, utterance, patient = [], 0, 0
    for count, n in zip(*np.unique(counts, return_counts=True), strict=True):
        rows, people = int(count * n), int(n)
        groups.append(
            Group(
                utterances=slice(utterance, utterance + rows),
                patients=slice(patient, patient + people),
                n_utterances=int(count),
            )
        )
        utterance, patient = utterance + rows, patient + people
    return groups
