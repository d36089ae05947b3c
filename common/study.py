"""A study: one TOML file, one frozen tree, one digest. It holds everything that decides a result.

Guarantees:
  - Every problem of a file is reported at once, with its key, what was expected and what came.
  - Two files that mean the same have the same digest; a changed constant changes it.
  - Nothing that only changes speed is in here: that is `Execution`, which no digest covers.

A folder of recordings is a site's own configuration (`--data NAME=DIR`), never part of a study.
"""

import hashlib
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal

from sottovoce.common import (
    encoders,
    generative_specs,
    group_weights,
    personal_specs,
    privacy_specs,
    transfer_specs,
)
from sottovoce.common import groups as speaker_groups
from sottovoce.common.config import Interval, build, canonical
from sottovoce.common.errors import StudyError
from sottovoce.common.feature_specs import WHISPER_SIZES, FeatureStream, Frames, Whisper
from sottovoce.common.generative_specs import Adversarial, SyntheticRows
from sottovoce.common.group_weights import GroupRobust
from sottovoce.common.groups import Groups, Tables
from sottovoce.common.labels import EMOTIONS
from sottovoce.common.ledger.entries import Purpose
from sottovoce.common.ledger.terms import purpose_problem
from sottovoce.common.model_specs import Fusion, ModelSpec, WhisperLora
from sottovoce.common.personal_specs import Personalisation
from sottovoce.common.privacy_specs import (
    MOST_SITES,
    DistributedPrivacy,
    LocalPrivacy,
    NoPrivacy,
    PrivacySpec,
    Private,
)
from sottovoce.common.transfer_specs import PublicKey, Sha256, Transfer

FORMAT = 1
ACTED = EMOTIONS[:-1]  # what the embedded corpus can act: all but "other"
MAX_STUDY_BYTES = 1_000_000  # a study is a page, not a corpus

Share = Annotated[float, Interval(0.0, 1.0)]
Positive = Annotated[float, Interval(0.0, low_open=True)]
Count = Annotated[int, Interval(1, 1_000_000)]
Name = Annotated[str, Interval(1, 60)]


@dataclass(frozen=True, kw_only=True)
class Synthetic:
    """The embedded corpus: espeak-ng voices with acted prosody (`simulations/voices`).

    `utterances_per_emotion` is a speaker's mean. The skews are between sites: 0 makes all alike; at 1 a
    site's commonest emotion has many times the recordings of its rarest, and some sites hear only one sex.
    """

    n_speakers: Annotated[int, Interval(12, 10_000)] = 24
    utterances_per_emotion: Annotated[int, Interval(1, 100)] = 4
    seed: int = 1
    n_sites: Annotated[int, Interval(1, 10_000)] = 6
    emotions: Annotated[tuple[str, ...], Interval(2, 12)] = EMOTIONS[:8]
    label_skew: Share = 0.4
    sex_skew: Share = 0.4


@dataclass(frozen=True, kw_only=True)
class CorpusSpec:
    """A corpus by name and adapter. `synthetic` is used when no folder is given for it."""

    name: Name
    adapter: str = "auto"
    manifest_sha256: str | None = None
    synthetic: Synthetic | None = None


@dataclass(frozen=True, kw_only=True)
class Labels:
    """The classes a model tells apart; `merge` maps a corpus's emotion to a class. The rest is left out."""

    classes: Annotated[tuple[str, ...], Interval(2, 20)]
    merge: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Audio:
    """From a recording to a waveform.

    `clip_seconds` is how much of a sequence a model hears: longer is cut at the end, shorter is padded and
    masked. Pooled streams are statistics over the whole recording, up to `max_seconds`.
    """

    sample_rate_hz: Literal[8000, 16000] = 16000
    max_seconds: Annotated[float, Interval(0.1, 3600.0)] = 60.0
    clip_seconds: Annotated[float, Interval(0.1, 60.0)] = 4.0
    trim_silence_db: Annotated[float, Interval(10.0, 120.0)] | None = None
    pre_emphasis: Annotated[float, Interval(0.0, 1.0, high_open=True)] = 0.0
    denoise: Literal["none", "spectral_gate"] = "none"
    on_bad_recording: Literal["skip", "stop"] = "stop"


@dataclass(frozen=True, kw_only=True)
class Enrolment:
    """Which recordings a speaker is enrolled by: the first `clips` of these emotions, the first emotion first.

    First is by key. Of an emotion that is itself a class at most half of a speaker's recordings enrol, the rest are for
    learning and scoring. What enrols is never trained on and never scored. `scale` says whose deviation divides: the
    public one, or one drawn from there towards the speaker's own.
    """

    emotions: Annotated[tuple[str, ...], Interval(1, 13)] = ("calm", "neutral")
    clips: Annotated[int, Interval(1, 100)] = 4
    scale: Literal["public", "shrunk"] = "public"


@dataclass(frozen=True, kw_only=True)
class Normalisation:
    """How features are standardised, at the site.

    `constants`: by public figures written in the study, per stream; without figures, features as they are.
    `utterance`: each recording by its own mean and deviation (sequence streams only).
    `speaker`: by all of a speaker's own recordings, unlabelled: transductive, and named so in every report. A speaker
    whose recordings are all of one emotion loses it.
    `enrolment`: by a few recordings of each speaker in a declared emotion, see `Enrolment`; what a clinic can ask for.

    Where public figures are stated, n recordings of a speaker count n / (n + `shrinkage`) against them. `from_initial`
    names, by its SHA-256, the signed file that has them (`sottovoce server pretrain`) instead of the study.
    """

    scheme: Literal["constants", "utterance", "speaker", "enrolment"]
    mean: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    deviation: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    shrinkage: Annotated[float, Interval(0.0, 1000.0)] = 5.0
    enrolment: Enrolment | None = None
    from_initial: Sha256 | None = None

    @property
    def by_person(self) -> bool:
        """Whether features of one recording depend on others of the same speaker."""
        return self.scheme in ("speaker", "enrolment")

    @property
    def enrols(self) -> Enrolment | None:
        """Returns who is enrolled by what, in the scheme that enrols; the usual clips where the study says no more."""
        return (self.enrolment or Enrolment()) if self.scheme == "enrolment" else None


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """Changes to training recordings; each stage has its probability per recording and epoch. Mode `none` only."""

    noise_prob: Share = 0.0
    noise_snr_db: Annotated[float, Interval(-10.0, 60.0)] = 15.0
    speed_prob: Share = 0.0
    speed_range: Annotated[float, Interval(0.0, 0.5)] = 0.1
    pitch_prob: Share = 0.0
    pitch_semitones: Annotated[float, Interval(0.0, 12.0)] = 1.0
    shift_prob: Share = 0.0
    shift_seconds: Annotated[float, Interval(0.0, 5.0)] = 0.3
    copies: Annotated[int, Interval(0, 20)] = 0
    time_masks: Annotated[int, Interval(0, 10)] = 0
    time_mask_seconds: Annotated[float, Interval(0.0, 5.0)] = 0.2
    band_masks: Annotated[int, Interval(0, 10)] = 0
    band_mask_width: Annotated[int, Interval(0, 128)] = 8


@dataclass(frozen=True, kw_only=True)
class Training:
    """Local training at a site. In a private mode `privacy.steps_per_round` decides how much of it there is;

    `batch_size` and `local_epochs` are then those of the twins without privacy. With `steps_per_round` every site
    takes so many steps in a round, epoch after epoch, whatever its size, and `local_epochs` does not count.
    `class_weights` are public constants, one for each class of `labels.classes`; never taken from the data.
    """

    learning_rate: Positive
    optimiser: Literal["sgd", "adam", "adamw"] = "adam"
    momentum: Annotated[float, Interval(0.0, 1.0, high_open=True)] = 0.0
    weight_decay: Annotated[float, Interval(0.0, 10.0)] = 0.0
    batch_size: Annotated[int, Interval(1, 4096)] = 32
    local_epochs: Annotated[int, Interval(1, 1000)] = 1
    steps_per_round: Annotated[int, Interval(1, 100_000)] | None = None
    loss: Literal["cross_entropy", "focal", "hinge", "label_score"] = "cross_entropy"
    label_smoothing: Annotated[float, Interval(0.0, 1.0, high_open=True)] = 0.0
    class_weights: tuple[Positive, ...] | None = None
    schedule: Literal["constant", "cosine"] = "constant"
    augmentation: Augmentation = field(default_factory=Augmentation)
    synthetic: SyntheticRows | None = None
    group_robust: GroupRobust | None = None


@dataclass(frozen=True, kw_only=True)
class SpeakerBlocks:
    """Speakers in sorted order, dealt to sites in equal blocks: 1-4, 5-8, ..."""

    kind: Literal["speaker_blocks"]


@dataclass(frozen=True, kw_only=True)
class CorpusSites:
    """Sites as the corpus states them (the embedded corpus does; a manifest may, in the column `site`).

    `otherwise` says what to do with a corpus that states no site at all.
    """

    kind: Literal["corpus_sites"]
    otherwise: Literal["stop", "speaker_blocks"] = "stop"


@dataclass(frozen=True, kw_only=True)
class DirichletLabels:
    """Speaker blocks, then each site keeps a Dirichlet(alpha) share of each class and drops the rest."""

    kind: Literal["dirichlet_labels"]
    alpha: Positive
    seed: int = 0


Partition = SpeakerBlocks | CorpusSites | DirichletLabels


@dataclass(frozen=True, kw_only=True)
class FedAvg:
    """McMahan et al. 2017."""

    kind: Literal["fedavg"]


@dataclass(frozen=True, kw_only=True)
class FedProx:
    """Li et al. 2020: FedAvg with a pull of strength `mu` towards the round's start."""

    kind: Literal["fedprox"]
    mu: Positive = 0.01


@dataclass(frozen=True, kw_only=True)
class FedAvgM:
    """Hsu, Qi and Brown 2019: FedAvg with momentum at the coordinator."""

    kind: Literal["fedavgm"]
    momentum: Annotated[float, Interval(0.0, 1.0, high_open=True)] = 0.9


@dataclass(frozen=True, kw_only=True)
class FedAdam:
    """Reddi et al. 2021."""

    kind: Literal["fedadam"]
    server_learning_rate: Positive = 0.01
    beta1: Annotated[float, Interval(0.0, 1.0, high_open=True)] = 0.9
    beta2: Annotated[float, Interval(0.0, 1.0, high_open=True)] = 0.99
    tau: Positive = 1e-3


@dataclass(frozen=True, kw_only=True)
class FedYogi:
    """Reddi et al. 2021."""

    kind: Literal["fedyogi"]
    server_learning_rate: Positive = 0.01
    beta1: Annotated[float, Interval(0.0, 1.0, high_open=True)] = 0.9
    beta2: Annotated[float, Interval(0.0, 1.0, high_open=True)] = 0.99
    tau: Positive = 1e-3


@dataclass(frozen=True, kw_only=True)
class Scaffold:
    """Karimireddy et al. 2020, option II: each step is corrected for how its site differs from the mean.

    Sites take the same number of plain SGD steps in a round (`docs/decisions/scaffold.md` says why).
    """

    kind: Literal["scaffold"]
    server_learning_rate: Positive = 1.0


@dataclass(frozen=True, kw_only=True)
class QFedAvg:
    """Li et al. 2020: sites with a larger loss count for more; 0 is the plain mean. Mode `none` only."""

    kind: Literal["qfedavg"]
    q: Annotated[float, Interval(0.0, 100.0)] = 1.0


@dataclass(frozen=True, kw_only=True)
class Median:
    """Yin et al. 2018: the median of each weight's changes."""

    kind: Literal["median"]


@dataclass(frozen=True, kw_only=True)
class TrimmedMean:
    """Yin et al. 2018: the mean of each weight's changes without the `n_poisoned` largest and smallest."""

    kind: Literal["trimmed_mean"]
    n_poisoned: Count = 1


@dataclass(frozen=True, kw_only=True)
class Krum:
    """Blanchard et al. 2017: the update closest to its neighbours, or (multi-Krum) the mean of `n_kept` such."""

    kind: Literal["krum"]
    n_poisoned: Count = 1
    n_kept: Count = 1


@dataclass(frozen=True, kw_only=True)
class NormBound:
    """Sun et al. 2019: the mean of updates shortened to `norm`."""

    kind: Literal["norm_bound"]
    norm: Positive


SingleUpdates = QFedAvg | Median | TrimmedMean | Krum | NormBound  # what must see each site's update
Strategy = FedAvg | FedProx | FedAvgM | FedAdam | FedYogi | Scaffold | Adversarial | SingleUpdates


@dataclass(frozen=True, kw_only=True)
class Compression:
    """Updates in words of 8 or 16 bits instead of 32, under secure sums; modes `none` and `local`.

    An update is turned by a public random rotation and rounded to as many levels as the sum of all sites leaves in a
    word. `norm` is the longest update that is carried whole: a longer one is shortened to it.
    """

    bits: Literal[8, 16]
    norm: Annotated[float, Interval(1e-6, 1e6)]


@dataclass(frozen=True, kw_only=True)
class Federation:
    """Who takes part and how rounds go. Weights are public constants: equal unless `site_weights` says more.

    `secure_sum` hides each site's update, and its evaluation counts, in the sum of all. Left out, it is on where a
    mode promises something and there are sites enough (`Study.sums_are_secure`). `largest_change` is the largest
    change of a single weight, in size, that such a sum carries without compression.
    """

    n_sites: Annotated[int, Interval(1, 10_000)]
    rounds: Annotated[int, Interval(1, 100_000)]
    partition: Partition
    strategy: Strategy = field(default_factory=lambda: FedAvg(kind="fedavg"))
    site_weights: tuple[Positive, ...] | None = None
    sites_per_round: Annotated[int, Interval(1, 10_000)] | None = None
    quorum: Annotated[int, Interval(1, 10_000)] | None = None
    deadline_seconds: Positive = 3600.0
    max_update_norm: Positive = 1e4
    personalisation: Personalisation | None = None
    secure_sum: bool | None = None
    compression: Compression | None = None
    largest_change: Positive = 16.0


@dataclass(frozen=True, kw_only=True)
class SpeakerFolds:
    """k folds of nearly equal size; each site deals its own speakers, without asking anybody. Mode `none` only:

    a patient more would move others to other folds, and so change more than the one patient's share.
    """

    kind: Literal["by_speaker"]
    k: Annotated[int, Interval(2, 50)] = 5


@dataclass(frozen=True, kw_only=True)
class HashFolds:
    """k folds; a patient's fold follows from that patient's own id alone. Sizes vary as coins do."""

    kind: Literal["by_patient_hash"]
    k: Annotated[int, Interval(2, 50)] = 5


@dataclass(frozen=True, kw_only=True)
class NamedFolds:
    """A published set of folds, by speaker id."""

    kind: Literal["named"]
    name: Literal["ravdess-luna-jimenez", "ravdess-emobox"]


Folds = SpeakerFolds | HashFolds | NamedFolds


@dataclass(frozen=True, kw_only=True)
class ConfidenceCounts:
    """How sure answers are, counted in `bins` and released with the other counts (`common/calibration_counts.py`)."""

    bins: Annotated[int, Interval(4, 40)] = 15


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Speaker-independent evaluation. `random_split_that_leaks` adds a column that nobody should quote.

    `groups` are those that evaluation tells apart: counts of each leave the sites beside those of all, in one release.
    `calibration` adds counts of how sure answers are to the same release: what a temperature and sets follow from.
    """

    folds: Folds
    only_folds: tuple[Annotated[int, Interval(0, 49)], ...] | None = None
    seeds: Annotated[tuple[int, ...], Interval(1, 100)] = (0,)
    every_rounds: Annotated[int, Interval(1, 100_000)] = 10
    bootstrap_samples: Annotated[int, Interval(100, 100_000)] = 2000
    random_split_that_leaks: bool = False
    baselines: tuple[Literal["svm", "decision_tree", "naive_bayes", "mlp", "logistic"], ...] = ()
    baseline_stream: str | None = None
    groups: Groups | None = None
    calibration: ConfidenceCounts | None = None


@dataclass(frozen=True, kw_only=True)
class Study:
    """Everything that decides a result."""

    format: Literal[1]
    name: Name
    purpose: Purpose
    corpora: Annotated[tuple[CorpusSpec, ...], Interval(1, 20)]
    labels: Labels
    streams: Annotated[tuple[FeatureStream, ...], Interval(1, 8)]
    normalisation: Normalisation
    model: ModelSpec
    training: Training
    federation: Federation
    privacy: PrivacySpec
    evaluation: Evaluation
    audio: Audio = field(default_factory=Audio)
    frames: Frames = field(default_factory=Frames)
    purpose_reference: Annotated[str, Interval(1, 300)] | None = None
    transfer: Transfer | None = None
    initial_signed_by: PublicKey | None = None

    @property
    def n_evaluations(self) -> int:
        """How often a run asks sites for counts of their withheld speakers: every so many rounds, and at the end."""
        return -(-self.federation.rounds // self.evaluation.every_rounds)

    @cached_property
    def tables(self) -> Tables:
        """The confusion tables that evaluation counts consist of: of all, and of each group that the study names."""
        counted = self.evaluation.calibration
        return Tables(
            n_classes=len(self.labels.classes),
            groups=self.evaluation.groups,
            confidence_bins=counted.bins if counted else 0,
        )

    @property
    def cohort_size(self) -> int:
        """How many sites a round asks."""
        return min(self.federation.n_sites, self.federation.sites_per_round or self.federation.n_sites)

    @property
    def sums_are_secure(self) -> bool:
        """Whether sites mask what they send: always in mode `distributed`, by default in `local` from 3 sites on."""
        if isinstance(self.privacy, DistributedPrivacy):
            return True
        if self.federation.secure_sum is not None:
            return self.federation.secure_sum
        enough = self.cohort_size >= 3 and self.federation.n_sites <= MOST_SITES
        return isinstance(self.privacy, LocalPrivacy) and enough

    @property
    def steps_per_round(self) -> int | None:
        """How many steps each site takes in a round, where that is public; None where a site's size decides."""
        spec = self.privacy
        return spec.steps_per_round if isinstance(spec, LocalPrivacy) else self.training.steps_per_round

    def digest(self) -> str:
        """Returns the SHA-256 of the study's canonical text, as 64 hexadecimal digits."""
        return self._digest

    @cached_property
    def _digest(self) -> str:  # asked for with every message
        return hashlib.sha256(b"sottovoce/study/1\n" + canonical(self).encode()).hexdigest()


@dataclass(frozen=True, kw_only=True)
class Execution:
    """What changes only speed. It changes no figure of privacy, and on one machine no bit of a result."""

    engine: Literal["inprocess", "processes", "cohort", "ray"] = "inprocess"
    workers: Annotated[int, Interval(1, 256)] = 1
    device: Literal["auto", "cpu", "cuda"] = "cpu"


def load(path: Path) -> Study:
    """Reads a study file.

    Raises:
        StudyError: the file cannot be read or has problems; all of them are listed.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_STUDY_BYTES + 1)
    except OSError as error:
        raise StudyError(
            [f"{path}: cannot be read ({error.strerror}). Make one with `sottovoce study new`."]
        ) from None
    if len(data) > MAX_STUDY_BYTES:
        raise StudyError([f"{path}: expected at most {MAX_STUDY_BYTES} bytes; this is no study file."])
    try:
        return loads(data.decode())
    except UnicodeDecodeError as error:
        raise StudyError([f"{path}: expected UTF-8 text; byte {error.start} is not."]) from None


def loads(text: str) -> Study:
    """Builds a study from TOML text. Raises: StudyError with every problem."""
    try:
        table = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise StudyError([f"not TOML: {error}"]) from None
    problems: list[str] = []
    study = build(Study, table, "", problems)
    if not all(sign.isprintable() or sign == "\n" for text in _texts(table) for sign in text):
        # Whoever approves a study reads it at a terminal, and signs what was shown.
        problems.append("expected text that can be printed; some of it holds signs that a terminal obeys.")
    if study is not None:
        problems += combinations(study)
    if study is None or problems:
        raise StudyError(problems)
    return study


def _texts(table: object) -> Iterator[str]:
    if isinstance(table, str):
        yield table
    elif isinstance(table, dict):
        for key, value in table.items():
            yield key
            yield from _texts(value)
    elif isinstance(table, list):
        for value in table:
            yield from _texts(value)


def combinations(study: Study) -> list[str]:
    """Returns what is wrong between keys that are right one by one."""
    return [
        *_synthetic_problems(study),
        *_label_problems(study.labels),
        *(speaker_groups.problems(study.evaluation.groups) if study.evaluation.groups else ()),
        *_calibration_problems(study),
        *_stream_problems(study),
        *_encoder_problems(study),
        *transfer_specs.problems(study),
        *personal_specs.problems(study),
        *_training_problems(study),
        *_federation_problems(study),
        *_strategy_problems(study),
        *generative_specs.problems(study),
        *_privacy_problems(study),
    ]


def _calibration_problems(study: Study) -> list[str]:
    spec = study.privacy
    if study.evaluation.calibration is None or isinstance(spec, NoPrivacy):
        return []
    if spec.counts_noise_multiplier is not None:
        return []
    return [
        "evaluation.calibration: expected privacy.counts_noise_multiplier beside it in a private mode; without it no "
        "counts leave a site."
    ]


def _training_problems(study: Study) -> list[str]:
    weights, n_classes = study.training.class_weights, len(study.labels.classes)
    found = []
    if weights is not None and len(weights) != n_classes:
        found.append(
            f"training.class_weights: expected {n_classes} weights, one for each class; came {len(weights)}."
        )
    if study.training.group_robust is not None:
        spec = study.privacy
        found += group_weights.problems(
            study.training.group_robust,
            study.evaluation.groups,
            n_classes=n_classes,
            paid=isinstance(spec, NoPrivacy) or spec.counts_noise_multiplier is not None,
            several=study.evaluation.every_rounds < study.federation.rounds,
            personal=study.federation.personalisation is not None,
        )
    return found


def _synthetic_problems(study: Study) -> list[str]:
    problems = []
    for index, corpus in enumerate(study.corpora):
        if corpus.synthetic is None:
            continue
        made, key = corpus.synthetic, f"corpora[{index}].synthetic"
        if made.n_sites > made.n_speakers:
            problems.append(
                f"{key}.n_sites: expected at most n_speakers={made.n_speakers}; came {made.n_sites}."
            )
        unknown = set(made.emotions) - set(ACTED)
        if unknown:
            problems.append(f"{key}.emotions: expected some of {', '.join(ACTED)}; came {sorted(unknown)}.")
        problems += [f"{key}.emotions: {name!r} is there twice." for name in sorted(_twice(made.emotions))]
    return problems


def _label_problems(labels: Labels) -> list[str]:
    problems = [f"labels.classes: {name!r} is there twice." for name in sorted(_twice(labels.classes))]
    for name in labels.classes:
        if name not in EMOTIONS and name not in labels.merge.values():
            problems.append(
                f"labels.classes: expected one of {', '.join(EMOTIONS)}, or a class of labels.merge; came {name!r}."
            )
    for source, target in labels.merge.items():
        if source not in EMOTIONS:
            problems.append(
                f"labels.merge: expected one of {', '.join(EMOTIONS)} on the left; came {source!r}."
            )
        if target not in labels.classes:
            problems.append(f"labels.merge.{source}: expected a class of labels.classes; came {target!r}.")
    return problems


def _stream_problems(study: Study) -> list[str]:
    streams = {stream.name: stream for stream in study.streams}
    problems = [
        f"streams: {name!r} is there twice." for name in sorted(_twice([s.name for s in study.streams]))
    ]
    branches = study.model.branches if isinstance(study.model, Fusion) else (study.model,)
    for branch in branches:
        wants = "statistics" if branch.kind in ("linear", "mlp", "discriminator", "moments") else "none"
        stream = streams.get(branch.stream)
        if stream is None:
            problems.append(
                f"model: {branch.kind} expects a stream of {', '.join(streams)}; came {branch.stream!r}."
            )
        elif stream.pooling != wants:
            problems.append(
                f"model: {branch.kind} expects a stream with pooling = {wants!r}; "
                f"{stream.name!r} has {stream.pooling!r}."
            )
        if branch.kind == "attention" and branch.width % branch.heads:
            problems.append(
                f"model: expected width to be a multiple of heads={branch.heads}; came {branch.width}."
            )
    if study.evaluation.baselines:
        stream = streams.get(study.evaluation.baseline_stream or "")
        if stream is None or stream.pooling != "statistics":
            problems.append(
                "evaluation.baseline_stream: baselines expect the name of a stream with pooling = 'statistics'."
            )
    if study.normalisation.scheme == "utterance" and any(s.pooling == "statistics" for s in study.streams):
        problems.append(
            "normalisation.scheme: 'utterance' expects streams with pooling = 'none' only (one row has no deviation)."
        )
    problems += _normalisation_problems(study)
    window = round(study.frames.window_seconds * study.audio.sample_rate_hz)
    if window > study.frames.fft_size:
        problems.append(
            f"frames.fft_size: expected at least the window's {window} samples; came {study.frames.fft_size}."
        )
    return problems


def _normalisation_problems(study: Study) -> list[str]:
    spec, problems = study.normalisation, []
    if spec.enrolment is not None and spec.scheme != "enrolment":
        problems.append(
            f"normalisation.enrolment: expected with scheme = 'enrolment'; the scheme is {spec.scheme!r}."
        )
    if spec.enrols is None:
        return problems
    if unknown := sorted(set(spec.enrols.emotions) - set(EMOTIONS)):
        problems.append(
            f"normalisation.enrolment.emotions: expected some of {', '.join(EMOTIONS)}; came {', '.join(unknown)}."
        )
    for stream in study.streams if spec.from_initial is None else ():
        if stream.name not in spec.mean or stream.name not in spec.deviation:
            problems.append(
                f"normalisation: 'enrolment' expects public figures for every stream, for a speaker without enrolment; "
                f"{stream.name!r} has none in mean or in deviation. `sottovoce study new` writes some."
            )
    return problems


def _encoder_problems(study: Study) -> list[str]:
    found = encoders.problems(study.streams, study.audio.sample_rate_hz)
    masks = study.training.augmentation.time_masks or study.training.augmentation.band_masks
    branches = study.model.branches if isinstance(study.model, Fusion) else (study.model,)
    for branch in branches:
        if isinstance(branch, WhisperLora):
            found += _adapter_problems(study, branch)
    for stream in study.streams:
        if masks and stream.encoders and stream.pooling == "none":
            found.append(
                "training.augmentation: expected no time_masks and band_masks beside a sequence of an encoder; "
                f"{stream.name!r} is one, and its columns are no bands."
            )
    return found


def _adapter_problems(study: Study, spec: WhisperLora) -> list[str]:
    found, normalisation = [], study.normalisation
    stream = next((stream for stream in study.streams if stream.name == spec.stream), None)
    part = stream.parts[0] if stream else None
    if (
        stream is None
        or not isinstance(part, Whisper)
        or (part.sha256, part.numbers) != (spec.sha256, (spec.layer,))
    ):
        return [
            f"model: whisper_lora expects a stream of whisper alone, with its sha256 and layers = [{spec.layer}]; "
            f"{spec.stream!r} is another."
        ]
    if spec.layer + spec.blocks != (last := WHISPER_SIZES[part.size][1]):
        found.append(
            f"model: whisper_lora expects layer + blocks = {last}, as many as a Whisper of size {part.size!r} has; "
            f"came {spec.layer} + {spec.blocks}."
        )
    figures = {*normalisation.mean, *normalisation.deviation}
    if (
        normalisation.scheme != "constants"
        or normalisation.from_initial
        or spec.stream in figures
        or stream.reduction
    ):
        found.append(
            f"normalisation: whisper_lora expects {spec.stream!r} as it is, since frozen blocks read it: scheme = "
            "'constants' without figures of it, and no reduction."
        )
    if isinstance(study.privacy, LocalPrivacy) and study.privacy.trained == "low_rank":
        found.append(
            "privacy.trained: expected 'all' or 'head' with whisper_lora; what it trains is adapters already."
        )
    return found


def _federation_problems(study: Study) -> list[str]:
    federation, problems = study.federation, []
    for key in ("sites_per_round", "quorum"):
        value = getattr(federation, key)
        if value is not None and value > federation.n_sites:
            problems.append(f"federation.{key}: expected at most n_sites={federation.n_sites}; came {value}.")
    if federation.quorum and federation.sites_per_round and federation.quorum > federation.sites_per_round:
        problems.append(
            f"federation.quorum: expected at most sites_per_round={federation.sites_per_round}; "
            f"came {federation.quorum}."
        )
    if federation.site_weights is not None and len(federation.site_weights) != federation.n_sites:
        problems.append(
            f"federation.site_weights: expected n_sites={federation.n_sites} weights; "
            f"came {len(federation.site_weights)}."
        )
    if twice := _twice([corpus.name for corpus in study.corpora]):
        problems.append(f"corpora: expected different names; twice: {', '.join(sorted(twice))}.")
    if isinstance(study.evaluation.folds, SpeakerFolds | HashFolds) and study.evaluation.only_folds:
        beyond = [fold for fold in study.evaluation.only_folds if fold >= study.evaluation.folds.k]
        if beyond:
            problems.append(
                f"evaluation.only_folds: expected folds below k={study.evaluation.folds.k}; came {beyond}."
            )
    return problems


def _strategy_problems(study: Study) -> list[str]:
    strategy = study.federation.strategy
    if isinstance(strategy, Scaffold):
        wants = list(_scaffold_wants(study))
    elif isinstance(strategy, SingleUpdates):
        wants = list(_single_updates_want(study, strategy))
    else:
        wants = []
    return [f"federation.strategy: {strategy.kind!r} expects {wanted}." for wanted in wants]


def _single_updates_want(study: Study, strategy: SingleUpdates) -> Iterator[str]:
    """What lets a rule see each site's update, and enough of them."""
    federation = study.federation
    if isinstance(strategy, QFedAvg) and not isinstance(study.privacy, NoPrivacy):
        yield "mode 'none': each site's loss would be a release that nobody has paid for"
    if study.sums_are_secure:
        yield "federation.secure_sum = false (and not mode 'distributed'): it looks at each site's update"
    if federation.site_weights is not None:
        yield "no federation.site_weights: it weighs updates itself"
    least = 1
    if isinstance(strategy, TrimmedMean):
        least = 2 * strategy.n_poisoned + 1
    if isinstance(strategy, Krum):
        least = max(2 * strategy.n_poisoned + 3, strategy.n_kept)
    quorum = federation.quorum or study.cohort_size // 2 + 1
    if quorum < least:
        yield f"federation.quorum of at least {least} sites, for what it is to withstand; the quorum is {quorum}"


def _scaffold_wants(study: Study) -> Iterator[str]:
    """What makes a site's control follow from its update, and the sites' mean from the mean update."""
    training = study.training
    if training.optimiser != "sgd" or training.momentum:
        yield "training.optimiser = 'sgd' without momentum: a site's control is the mean of its gradients"
    if training.steps_per_round is None:
        yield "training.steps_per_round: the same number of steps at every site"
    if isinstance(study.privacy, DistributedPrivacy):
        yield "mode 'none' or 'local': one step in a round has nothing to correct"
    if isinstance(study.privacy, LocalPrivacy) and study.privacy.trained == "low_rank":
        yield "privacy.trained 'all' or 'head': adapters are new in each round"
    if study.federation.compression is not None:
        yield "no federation.compression: what it rounds off would gather in the control"


def _privacy_problems(study: Study) -> list[str]:
    spec, federation = study.privacy, study.federation
    problem = purpose_problem(study.purpose, study.purpose_reference)
    found = [problem] if problem else []
    found += privacy_specs.problems(spec, rounds=federation.rounds, n_sites=federation.n_sites)
    found += _secure_sum_problems(study)
    if isinstance(spec, NoPrivacy):
        return found
    found += _cross_influence_problems(study, spec)
    return found if found or isinstance(spec, LocalPrivacy) else _distributed_problems(study, spec)


def _secure_sum_problems(study: Study) -> list[str]:
    federation, found = study.federation, []
    if isinstance(study.privacy, DistributedPrivacy) and federation.secure_sum is False:
        found.append(
            "federation.secure_sum: expected true in mode 'distributed': one share of noise is thin."
        )
    if study.sums_are_secure and (study.cohort_size < 3 or federation.n_sites > MOST_SITES):
        found.append(
            f"federation.secure_sum: expected 3 sites or more in a round, and {MOST_SITES} or fewer in all; came "
            f"{study.cohort_size} and {federation.n_sites}."
        )
    if federation.compression is not None and not study.sums_are_secure:
        found.append(
            "federation.compression: expected secure_sum = true beside it; it is a part of secure sums."
        )
    if federation.compression is not None and isinstance(study.privacy, DistributedPrivacy):
        found.append(
            "federation.compression: expected none in mode 'distributed'; each patient's share is exact whole numbers "
            "there, and their sum needs all 32 bits (docs/decisions/secure-sums.md)."
        )
    return found


def _distributed_problems(study: Study, spec: DistributedPrivacy) -> list[str]:
    """What would make rounds anything but steps of DP-SGD, and constants that no secure sum can carry."""
    from sottovoce.common.errors import PrivacyError
    from sottovoce.common.privacy import distributed_plan
    from sottovoce.common.privacy.planning_distributed import colluders_withstood

    training, federation, found = study.training, study.federation, []
    if training.optimiser != "sgd" or training.momentum or training.weight_decay:
        found.append(
            "training.optimiser: expected 'sgd' without momentum and weight_decay in mode 'distributed'; sites sum "
            "gradients only. The study's strategy is the optimiser: 'fedavgm' has momentum, 'fedadam' moments."
        )
    if federation.sites_per_round is not None or federation.site_weights is not None:
        found.append("federation: expected no sites_per_round and no site_weights in mode 'distributed'.")
    if isinstance(federation.strategy, FedProx):
        found.append(
            "federation.strategy: expected another than 'fedprox' in mode 'distributed': no pull in one step."
        )
    if spec.n_colluding > (most := colluders_withstood(federation.n_sites, spec.n_min)):
        found.append(
            f"privacy.n_colluding: expected at most {most}, what masks of {federation.n_sites} sites withstand with "
            f"n_min = {spec.n_min} (docs/protocol.md); came {spec.n_colluding}. A larger n_min withstands more."
        )
    try:
        distributed_plan.events(spec, rounds=1, n_sites=federation.n_sites, n_counts=1, tables=study.tables)
    except PrivacyError as error:
        found.append(f"privacy: {error}")
    return found


def _cross_influence_problems(study: Study, spec: Private) -> list[str]:
    """What would let one patient change more than that patient's own clipped share."""
    found = []
    if isinstance(study.evaluation.folds, SpeakerFolds):
        found.append(
            "evaluation.folds: expected kind 'by_patient_hash' or 'named' in a private mode; with 'by_speaker' one "
            "patient more moves others to other folds."
        )
    if isinstance(study.federation.partition, DirichletLabels):
        found.append(
            "federation.partition: expected 'speaker_blocks' or 'corpus_sites' in a private mode; with "
            "'dirichlet_labels' one patient more decides which recordings of others are kept."
        )
    if study.evaluation.random_split_that_leaks:
        found.append("evaluation.random_split_that_leaks: expected false in a private mode.")
    if study.training.augmentation != Augmentation():
        found.append("training.augmentation: expected none in a private mode.")
    if isinstance(spec, DistributedPrivacy):
        return found
    if spec.trained == "low_rank" and study.model.kind == "linear":
        found.append("privacy.trained: expected 'all' or 'head' for a linear model; it has no body to adapt.")
    if study.normalisation.scheme == "speaker" and spec.unit == "utterance":
        found.append(
            "normalisation.scheme: expected 'constants' or 'utterance' where the unit is the utterance; by 'speaker' "
            "each recording is changed by the patient's others."
        )
    return found


def _twice(names: tuple[str, ...] | list[str]) -> set[str]:
    return {name for name in names if names.count(name) > 1}
