"""Canary patients, and the study that they are enrolled in: the audited study's privacy, on a model that hides nothing.

Each canary has features on a dimension of its own, far out, so that its gradient is longer than any clipping norm and
at right angles to every other canary's. That is the worst case that the accounting allows for; a patient with a voice
is never as easy to tell.

Guarantees:
  - A canary is made of numbers that a formula gives: nobody's recording is read.
  - Who is in follows from the audit's seed alone. The seed of the noise, or its secret, is another.
  - Each site gets at most `n_patients_public` canaries; a canary is at one site.
  - The audit's study costs what the audited study costs, to the digit: same noise, sampling, steps, counts and delta.

What is replaced: model (softmax regression), features, optimiser (SGD with a step so small that the weights hardly
move) and site weights. `trained` is "all". In unit `utterance` a canary has as many recordings as the study takes.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from sottovoce.common.config import as_plain
from sottovoce.common.dataset import Example, SiteData, StreamShape
from sottovoce.common.errors import PrivacyError
from sottovoce.common.privacy_specs import LocalPrivacy
from sottovoce.common.streams import stream
from sottovoce.common.study import Study, loads

STREAM, CLASSES = "canaries", ("neutral", "happy")
REACH = 20.0  # clipping norms: a canary's gradient is 14 of them long, and 5 % of it is on the shared bias
DRIFT = 0.1  # of a logit: how far noise moves one over the whole audit
_STUDY = """\
format = 1
name = "audit"
purpose = "research"
corpora = [{{ name = "canaries" }}]
labels = {{ classes = {classes} }}
streams = [{{ name = "{stream}", pooling = "statistics", parts = [{{ kind = "energy" }}] }}]
normalisation = {{ scheme = "constants" }}
model = {{ kind = "linear", stream = "{stream}" }}
training = {{ optimiser = "sgd", learning_rate = {learning_rate!r} }}
evaluation = {{ folds = {{ kind = "by_patient_hash", k = 2 }}, every_rounds = {every_rounds} }}

[federation]
n_sites = {n_sites}
rounds = {rounds}
quorum = {n_sites}
partition = {{ kind = "speaker_blocks" }}

[privacy]
{privacy}
"""


@dataclass(frozen=True, kw_only=True)
class Canaries:
    """All canaries of an audit: at which site, with which label and dimension, and whether the coin put it in."""

    sites: tuple[str, ...]
    site: npt.NDArray[np.int64]  # an index of `sites`
    dimension: npt.NDArray[np.int64]
    label: npt.NDArray[np.int64]
    present: npt.NDArray[np.bool_]
    reach: float

    def __len__(self) -> int:
        return len(self.site)

    @property
    def width(self) -> int:
        """Returns the columns of the stream."""
        return int(self.dimension.max()) + 1


def enrol(privacy: LocalPrivacy, n_canaries: int, seed: int) -> Canaries:
    """Deals canaries to as few sites as the study's bound on patients allows, and tosses their coins.

    Raises:
        PrivacyError: fewer than two canaries.
    """
    if n_canaries < 2:
        raise PrivacyError(f"Expected at least 2 canaries; came {n_canaries}.")
    n_sites = -(-n_canaries // privacy.n_patients_public)
    coins = stream(seed, "audit/canaries")
    number = np.arange(n_canaries)
    return Canaries(
        sites=tuple(f"audited-{index + 1}" for index in range(n_sites)),
        site=number % n_sites,
        dimension=number // n_sites,
        label=coins.integers(len(CLASSES), size=n_canaries),
        present=coins.random(n_canaries) < 0.5,
        reach=REACH * privacy.clip_norm,
    )


def audit_study(study: Study, privacy: LocalPrivacy, canaries: Canaries) -> tuple[Study, str]:
    """Returns the study that the canaries are enrolled in, and its text."""
    text = _STUDY.format(
        classes=json.dumps(CLASSES),
        stream=STREAM,
        learning_rate=learning_rate(privacy, study.federation.rounds),
        n_sites=len(canaries.sites),
        rounds=study.federation.rounds,
        every_rounds=study.evaluation.every_rounds,
        privacy=_privacy_text(privacy, n_sites=len(canaries.sites)),
    )
    return loads(text), text


def learning_rate(privacy: LocalPrivacy, rounds: int) -> float:
    """Returns the step with which noise moves a canary's logit by `DRIFT` over all rounds."""
    deviation = privacy.noise_multiplier * privacy.clip_norm / privacy.expected_patients
    n_steps = rounds * privacy.steps_per_round
    return DRIFT / (deviation * REACH * privacy.clip_norm * float(np.sqrt(n_steps)))


def write_sites(folder: Path, canaries: Canaries, privacy: LocalPrivacy) -> dict[str, Path]:
    """Writes each site's data, with the canaries that are in; returns the folders by name."""
    shapes = {STREAM: StreamShape(width=canaries.width, n_frames=None)}
    places = {name: folder / name for name in canaries.sites}
    for index, (name, place) in enumerate(places.items()):
        SiteData.write(place, site=name, shapes=shapes, examples=_examples(canaries, index, privacy))
    return places


def _examples(canaries: Canaries, site: int, privacy: LocalPrivacy) -> Iterator[Example]:
    for number in np.flatnonzero(canaries.present & (canaries.site == site)):
        features = np.zeros(canaries.width, np.float32)
        features[canaries.dimension[number]] = canaries.reach
        for copy in range(privacy.records_per_patient):
            yield Example(
                key=f"canary-{number}/{copy}",
                label=int(canaries.label[number]),
                speaker=f"canary-{number}",
                patient=f"canary-{number}",
                groups={},
                features={STREAM: features},
            )


def _privacy_text(privacy: LocalPrivacy, *, n_sites: int) -> str:
    table = {key: value for key, value in as_plain(privacy).items() if value is not None}
    # A canary is at one site; how many sites a patient may be in changes another figure, not the one that is audited.
    table |= {"trained": "all", "max_sites_per_patient": min(privacy.max_sites_per_patient, n_sites)}
    return "\n".join(f"{key} = {json.dumps(value)}" for key, value in table.items())
