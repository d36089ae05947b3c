"""Writes a first study file, commented, that fits a corpus.

Guarantees:
  - The text is a valid study: it loads, and its classes, sites and folds fit the corpus it was written for.
"""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from sottovoce.common.corpus import Corpus
from sottovoce.common.errors import CorpusError
from sottovoce.common.labels import EMOTIONS

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


def study_text(name: str, shape: Shape) -> str:
    """Returns the TOML of a study of that shape."""
    quoted = ", ".join(f'"{label}"' for label in shape.classes)
    synthetic = "\nsynthetic = {}                 # the embedded corpus, used when no folder is given" * (
        shape is EMBEDDED
    )
    folds = (
        f'{{ kind = "named", name = "{shape.named_folds}" }}'
        if shape.named_folds
        else f'{{ kind = "by_speaker", k = {shape.k_folds} }}'
    )
    return TEMPLATE.format(
        name=name,
        corpus=shape.corpus,
        adapter=shape.adapter,
        synthetic=synthetic,
        classes=quoted,
        n_sites=shape.n_sites,
        folds=folds,
    )


def write_study(path: Path, text: str) -> None:
    """Writes a study file; an existing file is never replaced. Raises: CorpusError where it exists."""
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise CorpusError(f"{path}: exists already. Choose another name, or remove it first.") from None
    except OSError as error:
        raise CorpusError(f"{path}: cannot be written ({error.strerror}).") from None


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

[model]
kind = "fusion"                 # linear, mlp, cnn, rnn, lstm, attention, cnn_lstm_attention, fusion
level = "feature"
branches = [
  {{ kind = "mlp", stream = "statistics", hidden = 64 }},
  {{ kind = "cnn", stream = "frames", channels = [32, 48] }},
]

[training]
optimiser = "adam"
learning_rate = 0.001
batch_size = 32
local_epochs = 1
label_smoothing = 0.1

[federation]
n_sites = {n_sites}
rounds = 30
partition = {{ kind = "speaker_blocks" }}
strategy = {{ kind = "fedavg" }}  # fedavg, fedprox, fedadam, fedyogi

[privacy]
mode = "none"                   # research only: every artefact says NOT PRIVATE

[evaluation]
folds = {folds}
seeds = [0]
baselines = ["svm"]
baseline_stream = "statistics"
"""
