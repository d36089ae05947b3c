"""Initial files of made-up numbers, for studies of whatever streams and model.

with initial_for(study, folder) as made:      # signed by KEY; found by its SHA-256 meanwhile
    text = with_initial(study_text, made)
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np

from sottovoce.common.initial import Initial, PublicCorpus, Statement, save
from sottovoce.common.keys import SigningKey
from sottovoce.common.models import build
from sottovoce.common.pretrained import looking_in
from sottovoce.common.study import Study
from sottovoce.common.transfer import feature_digests
from sottovoce.common.weights import from_state_dict

KEY = SigningKey.generate()
CORPUS = PublicCorpus(
    name="voices", adapter="manifest", manifest_sha256="ab" * 32, n_recordings=96, n_speakers=12
)


def statement_of(study: Study) -> Statement:
    return Statement(
        signed_by="Public Voices Ltd",
        corpora=(CORPUS,),
        study=study.digest(),
        study_name=study.name,
        features=feature_digests(study),
        normalisation=study.normalisation.scheme,
        classes=study.labels.classes,
        method="supervised",
        reduction_by="none",
        n_epochs=3,
        made="2026-11-22T13:00:00+00:00",
        versions={"python": "3.11.7"},
    )


@contextmanager
def initial_for(
    study: Study,
    folder: Path,
    *,
    widths: Mapping[str, int],
    columns: int | None = None,
    classes: tuple[str, ...] | None = None,
    seed: int = 7,
) -> Iterator[Initial]:
    """Makes a file for a study whose streams have these widths as they are computed, reduced to `columns` if said."""
    draw = np.random.default_rng(seed)
    reduced = {name: columns or width for name, width in widths.items()}
    model = build(study.model, reduced, len(classes or study.labels.classes), seed)
    folder.mkdir(exist_ok=True)
    made = save(
        folder / "made.initial.safetensors",
        replace(statement_of(study), classes=classes or study.labels.classes),
        KEY,
        weights=from_state_dict(model.state_dict()),
        mean={name: draw.normal(size=width) for name, width in widths.items()},
        deviation={name: 0.5 + draw.random(width) for name, width in widths.items()},
        reduction={name: draw.normal(size=(width, columns)) for name, width in widths.items()}
        if columns
        else {},
    )
    with looking_in(folder):
        yield made
