"""Writes a first study file, commented, that fits a corpus.

Guarantees:
  - The text is a valid study: it loads, and its classes, sites and folds fit the corpus it was written for.
  - A private study costs each patient at most the epsilon that was asked for, at delta 1e-5.
  - No constant of `[privacy]` is taken from the corpus: how many patients there are at most is for a person to say.
"""

import math
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

from sottovoce.common.config import build
from sottovoce.common.corpus import Corpus
from sottovoce.common.errors import CorpusError, StudyError
from sottovoce.common.labels import EMOTIONS
from sottovoce.common.privacy.accountant import noise_for
from sottovoce.common.privacy.plan import training_event
from sottovoce.common.privacy_specs import USUAL_DELTA, LocalPrivacy

MIN_CLASS_UTTERANCES = 10  # a class with fewer cannot be learned or scored
MIN_CLASS_SPEAKERS = 2  # a class of one speaker cannot be scored speaker-independently


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What a study must know of a corpus to fit it."""

    corpus: str
    adapter: str
    classes: tuple[str, ...]
    n_sites: int
    k_folds: int
    named_folds: str | None = None


EMBEDDED = Shape(
    corpus="voices",
    adapter="auto",
    classes=("neutral", "calm", "happy", "sad", "angry", "fearful", "disgust", "surprised"),
    n_sites=6,
    k_folds=4,
)


def shape_of(corpus: Corpus) -> Shape:
    """Returns sites, folds and classes that fit a corpus.

    Raises:
        CorpusError: fewer than two classes or two patients: nothing to learn, or nobody to withhold.
    """
    utterances = Counter(item.label for item in corpus.utterances)
    speakers = {
        label: {item.speaker for item in corpus.utterances if item.label == label} for label in utterances
    }
    enough = {
        label
        for label, count in utterances.items()
        if count >= MIN_CLASS_UTTERANCES and len(speakers[label]) >= MIN_CLASS_SPEAKERS
    }
    classes = tuple(label for label in EMOTIONS if label in enough)
    n_patients = len({item.patient for item in corpus.utterances})
    if len(classes) < 2 or n_patients < 2:
        raise CorpusError(
            f"A study expects two patients and two emotions with {MIN_CLASS_UTTERANCES} recordings of "
            f"{MIN_CLASS_SPEAKERS} speakers each; {corpus.name!r} has {n_patients} and {len(classes)}."
        )
    return Shape(
        corpus=corpus.name,
        adapter=corpus.adapter,
        classes=classes,
        n_sites=max(1, min(6, n_patients // 2)),
        k_folds=min(5, n_patients),
        named_folds="ravdess-luna-jimenez" if corpus.adapter == "ravdess" and n_patients == 24 else None,
    )


@dataclass(frozen=True, kw_only=True)
class Privacy:
    """What a private study promises: each hospital has at most `n_patients`, and each gives away at most `epsilon`."""

    n_patients: int
    epsilon: float = 3.0


def study_text(name: str, shape: Shape, privacy: Privacy | None = None) -> str:
    """Returns the TOML of a study of that shape; with `privacy`, of one in mode `local`.

    Raises:
        PrivacyError: no noise reaches that epsilon.
        StudyError: so few patients that delta 1e-5 is no promise, or more than the study file can state.
    """
    quoted = ", ".join(f'"{label}"' for label in shape.classes)
    synthetic = "\nsynthetic = {}                 # the embedded corpus, used when no folder is given" * (
        shape is EMBEDDED
    )
    folds = (
        f'{{ kind = "named", name = "{shape.named_folds}" }}'
        if shape.named_folds
        else f'{{ kind = "{"by_patient_hash" if privacy else "by_speaker"}", k = {shape.k_folds} }}'
    )
    return TEMPLATE.format(
        name=name,
        corpus=shape.corpus,
        adapter=shape.adapter,
        synthetic=synthetic,
        classes=quoted,
        n_sites=shape.n_sites,
        folds=folds,
        learned=LEARNED_PRIVATELY if privacy else LEARNED,
        rounds=ROUNDS if privacy else 30,
        privacy=_private(privacy) if privacy else NOT_PRIVATE,
    )


def _private(privacy: Privacy) -> str:
    spec = privacy_of(privacy)
    return PRIVATE.format(
        noise_multiplier=spec.noise_multiplier,
        n_patients=spec.n_patients_public,
        expected=spec.expected_patients,
        steps=spec.steps_per_round,
        epsilon=privacy.epsilon,
    )


def privacy_of(privacy: Privacy) -> LocalPrivacy:
    """Returns the constants of a private study. Everybody takes part in every step: the least noise for an epsilon."""
    problems: list[str] = []
    table = {
        "mode": "local",
        "clip_norm": 1.0,
        "noise_multiplier": 1.0,
        "sampling_prob": 1.0,
        "n_patients_public": privacy.n_patients,
        "expected_patients": float(privacy.n_patients),
        "steps_per_round": STEPS,
        "delta": USUAL_DELTA,
    }
    spec = build(LocalPrivacy, table, "--patients", problems)
    if spec is None:
        raise StudyError(problems)
    noise = noise_for(privacy.epsilon, spec.delta, training_event(spec, spec.steps_in(ROUNDS)))
    return replace(spec, noise_multiplier=math.ceil(noise * 1000) / 1000)


def write_study(path: Path, text: str) -> None:
    """Writes a study file; an existing file is never replaced. Raises: CorpusError where it exists."""
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise CorpusError(f"{path}: exists already. Choose another name, or remove it first.") from None
    except OSError as error:
        raise CorpusError(f"{path}: cannot be written ({error.strerror}).") from None


ROUNDS, STEPS = 10, 6  # of a private study

LEARNED = """\
[model]
kind = "fusion"                 # linear, mlp, cnn, rnn, lstm, attention, cnn_lstm_attention, fusion
level = "feature"
branches = [
  { kind = "mlp", stream = "statistics", hidden = 64 },
  { kind = "cnn", stream = "frames", channels = [32, 48] },
]

[training]
optimiser = "adam"
learning_rate = 0.001
batch_size = 32
local_epochs = 1
label_smoothing = 0.1

"""

LEARNED_PRIVATELY = """\
[model]
kind = "linear"                 # small: noise goes to every trained number. mlp, cnn, lstm, attention, ... work too
stream = "statistics"

[training]                      # batch_size and local_epochs are those of the twins without privacy
optimiser = "sgd"
momentum = 0.9
learning_rate = 0.3
schedule = "cosine"
batch_size = 32
local_epochs = 5

"""

NOT_PRIVATE = """\
mode = "none"                   # research only: every artefact says NOT PRIVATE
"""

PRIVATE = """\
mode = "local"                  # what leaves a hospital is private already
clip_norm = 1.0                 # no patient moves a step further than this
noise_multiplier = {noise_multiplier}        # epsilon {epsilon:g}; after a change ask `sottovoce privacy plan`
sampling_prob = 1.0             # everybody is in every step: the least noise for an epsilon
n_patients_public = {n_patients}        # of every hospital at most: a public bound, never a count
expected_patients = {expected}      # a public guess; the noisy sum is divided by it
steps_per_round = {steps}
delta = 1e-5
seeded_noise = true             # for simulation: NOT PRIVATE. Take this line out where patients are real
"""

TEMPLATE = """\
# A study: everything that decides a result. Its digest is what a hospital approves: `sottovoce study digest`.
# Folders are not in here: they are given when it runs, `--data {corpus}=DIR`.
format = 1
name = "{name}"
purpose = "research"            # research, medical, safety, workplace, education

[[corpora]]
name = "{corpus}"
adapter = "{adapter}"           # how labels and speakers are read; "auto" recognises them{synthetic}

[labels]                        # emotions that are not listed are left out; merge = {{ calm = "neutral" }} joins two
classes = [{classes}]

[audio]
sample_rate_hz = 16000
clip_seconds = 3.5              # of a sequence: longer is cut, shorter is padded and masked
trim_silence_db = 40.0          # silence at both ends goes
on_bad_recording = "skip"       # or "stop"

[[streams]]                     # a sequence of frames, for CNN, RNN, LSTM and attention
name = "frames"
parts = [{{ kind = "log_mel", n_mels = 40 }}]

[[streams]]                     # mean, deviation, 20th and 80th percentile over a recording
name = "statistics"
pooling = "statistics"
parts = [
  {{ kind = "mfcc", n_mfcc = 20, deltas = 1 }},
  {{ kind = "pitch" }},
  {{ kind = "energy" }},
  {{ kind = "zero_crossings" }},
  {{ kind = "spectral_shape" }},
]

[normalisation]
scheme = "speaker"              # by all of a speaker's own recordings, unlabelled: reports say "transductive"

{learned}[federation]
n_sites = {n_sites}
rounds = {rounds}
partition = {{ kind = "speaker_blocks" }}
strategy = {{ kind = "fedavg" }}  # fedavg, fedprox, fedavgm, fedadam, fedyogi

[privacy]
{privacy}
[evaluation]
folds = {folds}
seeds = [0]
baselines = ["svm"]
baseline_stream = "statistics"
"""
