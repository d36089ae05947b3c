"""Writes a first study file, commented, that fits a corpus.

Guarantees:
  - The text is a valid study: it loads, and its classes, sites and folds fit the corpus it was written for.
  - A private study costs each patient at most the epsilon that was asked for, at delta 1e-5, or at less where so
    many patients call for it.
  - In mode `distributed` a third of the sites may be lost, and fewer may collude than a secure sum withstands.
  - No constant of `[privacy]` is taken from the corpus: how many patients there are at most is for a person to say.
"""

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from sottovoce.common.config import build
from sottovoce.common.errors import CorpusError, StudyError
from sottovoce.common.model_size import n_parameters_of
from sottovoce.common.privacy import accountant, distributed_plan
from sottovoce.common.privacy.plan import training_event
from sottovoce.common.privacy_specs import USUAL_DELTA, DistributedPrivacy, LocalPrivacy, largest_delta
from sottovoce.common.study import Study, loads
from sottovoce.simulations import public_figures
from sottovoce.simulations.study_shape import EMBEDDED, Shape


@dataclass(frozen=True, kw_only=True)
class Privacy:
    """What a private study promises: each hospital has at most `n_patients`, and each gives away at most `epsilon`."""

    n_patients: int
    epsilon: float = 3.0
    mode: Literal["local", "distributed"] = "local"


def study_text(name: str, shape: Shape, privacy: Privacy | None = None) -> str:
    """Returns the TOML of a study of that shape; with `privacy`, of a private one.

    Raises:
        PrivacyError: no noise reaches that epsilon.
        StudyError: more patients or sites than a study can state, or too few sites for a secure sum.
    """
    if privacy is None:
        return _text(name, shape, learned=LEARNED, rounds=30, strategy=AVERAGE, privacy=NOT_PRIVATE)
    if privacy.mode == "distributed":
        return _distributed(name, shape, privacy)
    return _text(
        name,
        shape,
        learned=LEARNED_PRIVATELY,
        rounds=ROUNDS,
        strategy=AVERAGE,
        privacy=_local(privacy),
        folds="by_patient_hash",
    )


def _text(
    name: str,
    shape: Shape,
    *,
    learned: str,
    rounds: int,
    strategy: str,
    privacy: str,
    folds: Literal["by_speaker", "by_patient_hash"] = "by_speaker",
) -> str:
    return TEMPLATE.format(
        name=name,
        corpus=shape.corpus,
        adapter=shape.adapter,
        synthetic=_synthetic(shape),
        classes=", ".join(f'"{label}"' for label in shape.classes),
        n_sites=shape.n_sites,
        partition="corpus_sites" if shape.states_sites else "speaker_blocks",
        folds=f'{{ kind = "named", name = "{shape.named_folds}" }}'
        if shape.named_folds
        else f'{{ kind = "{folds}", k = {shape.k_folds} }}',
        learned=learned,
        rounds=rounds,
        strategy=strategy,
        privacy=privacy,
        normalisation=ENROLLED if shape.enrols else UNKNOWN,
        figures=public_figures.lines(),
    )


def _synthetic(shape: Shape) -> str:
    if shape.corpus != EMBEDDED.corpus:
        return ""
    n_speakers = 4 * shape.n_sites  # 24 by default, four at every site
    made = "{}" + " " * 16 if n_speakers <= 24 else f"{{ n_speakers = {n_speakers} }}"
    return f"\nsynthetic = {made} # the embedded corpus, used when no folder is given"


def _local(privacy: Privacy) -> str:
    spec = privacy_of(privacy)
    return PRIVATE.format(
        noise_multiplier=spec.noise_multiplier,
        n_patients=spec.n_patients_public,
        expected=spec.expected_patients,
        steps=spec.steps_per_round,
        delta=spec.delta,
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
        "delta": _delta(privacy.n_patients),
    }
    spec = build(LocalPrivacy, table, "--patients", problems)
    if spec is None:
        raise StudyError(problems)
    noise = accountant.noise_for(privacy.epsilon, spec.delta, training_event(spec, spec.steps_in(ROUNDS)))
    return replace(spec, noise_multiplier=_rounded_up(noise))


def _distributed(name: str, shape: Shape, privacy: Privacy) -> str:
    """Writes the study with numbers that stand in, asks it for those that follow, and writes it again."""

    def text(n_parameters: int, noise_multiplier: float) -> str:
        return _text(
            name,
            shape,
            learned=LEARNED_TOGETHER,
            rounds=ROUNDS * STEPS,
            strategy=WITH_MOMENTUM,
            privacy=DISTRIBUTED.format(
                noise_multiplier=noise_multiplier,
                n_patients=privacy.n_patients,
                expected=float(privacy.n_patients),
                n_parameters=n_parameters,
                n_min=least_sites(shape.n_sites),
                n_colluding=colluding_sites(shape.n_sites),
                delta=_delta(privacy.n_patients * shape.n_sites),
                epsilon=privacy.epsilon,
            ),
            folds="by_patient_hash",
        )

    n_parameters = n_parameters_of(loads(text(1, 1.0)))
    return text(n_parameters, _noise_for(privacy.epsilon, loads(text(n_parameters, 1.0))))


def _noise_for(epsilon: float, study: Study) -> float:
    if not isinstance(study.privacy, DistributedPrivacy):
        raise StudyError([f"privacy.mode: expected 'distributed'; came {study.privacy.mode!r}."])
    noise = distributed_plan.noise_for(
        study.privacy,
        epsilon,
        rounds=study.federation.rounds,
        n_sites=study.federation.n_sites,
        n_counts=study.n_evaluations,
        tables=study.tables,
    )
    return _rounded_up(noise)


def least_sites(n_sites: int) -> int:
    """Returns how many sites a sum needs: two thirds, which a secure sum needs anyway.

    >>> [least_sites(n) for n in (3, 4, 6, 10, 50)]
    [3, 3, 4, 7, 34]
    """
    return max(3, n_sites - n_sites // 3)


def colluding_sites(n_sites: int) -> int:
    """Returns against how many sites the figure is: one in ten. More take more noise, and all of them is printed too.

    >>> [colluding_sites(n) for n in (3, 6, 10, 50)]
    [1, 1, 1, 5]
    """
    return max(1, n_sites // 10)


def _delta(n_patients: int) -> float:
    """1e-5, or the largest power of ten that so many patients allow."""
    allowed = largest_delta(n_patients)
    return USUAL_DELTA if allowed > USUAL_DELTA else float(f"1e{math.ceil(math.log10(allowed)) - 1}")


def _rounded_up(noise: float) -> float:
    return math.ceil(noise * 1000) / 1000


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
kind = "fusion"                 # linear, mlp, cnn, rnn, lstm, attention, cnn_lstm_attention, whisper_lora, fusion
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

LEARNED_TOGETHER = """\
[model]
kind = "linear"                 # small: noise goes to every number of it. mlp, cnn, lstm, attention, ... work too
stream = "statistics"

[training]                      # a round is one step; the last two are those of the twins without privacy
optimiser = "sgd"
learning_rate = 0.1
schedule = "cosine"
batch_size = 32
local_epochs = 1

"""

AVERAGE = '{ kind = "fedavg" }  # fedavg, fedprox, fedavgm, fedadam, fedyogi'
WITH_MOMENTUM = '{ kind = "fedavgm", momentum = 0.9 }  # fedavg, fedavgm, fedadam, fedyogi'

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
delta = {delta:g}
seeded_noise = true             # for simulation: NOT PRIVATE. Take this line out where patients are real
"""

DISTRIBUTED = """\
mode = "distributed"            # each hospital adds a share of the noise, and only the sum of all is ever seen
clip_norm = 1.0                 # no patient moves a step further than this
noise_multiplier = {noise_multiplier}        # epsilon {epsilon:g}; after a change ask `sottovoce privacy plan`
sampling_prob = 1.0             # everybody is in every step: the least noise for an epsilon
n_patients_public = {n_patients}        # of every hospital at most: a public bound, never a count
expected_patients = {expected}      # of each hospital, a public guess; the noisy sum is divided by it
n_parameters = {n_parameters}             # of the model; `sottovoce study check` says the number when it changes
n_min = {n_min}                       # fewer hospitals are never added up, and nobody's patients are seen
n_colluding = {n_colluding}                 # hospitals that may work against a patient, with the coordinator
delta = {delta:g}
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
{normalisation}
{learned}[federation]
n_sites = {n_sites}
rounds = {rounds}
partition = {{ kind = "{partition}" }}
strategy = {strategy}

[privacy]
{privacy}
[evaluation]
folds = {folds}
seeds = [0]
baselines = ["svm"]
baseline_stream = "statistics"

# What is usual, over the voices of the embedded corpus: nobody's patient. A speaker counts against it.
{figures}
"""

ENROLLED = """\
scheme = "enrolment"            # each speaker by a few recordings that are never trained on or scored
enrolment = {{ emotions = ["calm", "neutral"], clips = 4 }}
""".format()

UNKNOWN = """\
scheme = "constants"            # by the figures below: too few speakers have calm recordings to be enrolled by
"""
