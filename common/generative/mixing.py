"""A row between two rows of one class, as SMOTE and mixup make them. Mode `none` only: it mixes patients.

Chawla et al., "SMOTE", JAIR 2002, without its choice of neighbours; Zhang et al., "mixup", ICLR 2018, within a class.

Guarantees:
  - A made row lies on the line between two rows of its own class.
  - A class with one row is repeated; a class with none gives none.
"""

import numpy as np

from sottovoce.common.errors import PrivacyError
from sottovoce.common.generative.networks import Labels, Rows
from sottovoce.common.privacy_specs import NoPrivacy, PrivacySpec


def mix_within_class(
    rows: Rows, labels: Labels, wanted: Labels, *, privacy: PrivacySpec, random: np.random.Generator
) -> tuple[Rows, Labels]:
    """Makes a row for each wanted label whose class has rows.

    Raises:
        PrivacyError: the study is private: a mixed row is two patients in one gradient, and one clip is not enough.
    """
    if not isinstance(privacy, NoPrivacy):
        raise PrivacyError(
            f"Expected mode none for mixing recordings of several patients; came mode {privacy.mode!r}."
        )
    members = {label: np.flatnonzero(labels == label) for label in np.unique(labels)}
    kept = np.array([label for label in wanted if label in members], np.int64)
    if not len(kept):
        return np.empty((0, rows.shape[1]), np.float32), kept
    one, other = (np.array([random.choice(members[label]) for label in kept]) for _ in "ab")
    share = random.random((len(kept), 1))
    return (share * rows[one] + (1 - share) * rows[other]).astype(np.float32), kept
