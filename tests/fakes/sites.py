"""Tiny sites on disk, and a study for them, so that the real client app has something to train on."""

from pathlib import Path

import numpy as np

from sottovoce.common.dataset import Example, SiteData, StreamShape

N_CLASSES, WIDTH = 3, 6
STUDY = """
format = 1
name = "tiny"
purpose = "research"
corpora = [{{ name = "none" }}]
labels = {{ classes = ["happy", "sad", "angry"] }}
streams = {streams}
normalisation = {{ scheme = "constants" }}
model = {model}
training = {training}
federation = {{ n_sites = {n_sites}, rounds = {rounds}, partition = {{ kind = "speaker_blocks" }}{federation} }}
privacy = {privacy}
evaluation = {{ folds = {{ kind = {folds}, k = 2 }}, every_rounds = 2{evaluation} }}
"""
MLP = '{ kind = "mlp", stream = "pooled", hidden = 5, dropout = 0.3 }'
ADAM = '{ learning_rate = 0.05, optimiser = "adam", batch_size = 5, local_epochs = 2 }'


ONE_STREAM = '[{ name = "pooled", pooling = "statistics", parts = [{ kind = "mfcc" }] }]'
TWO_STREAMS = ONE_STREAM[:-1] + ', { name = "frames", parts = [{ kind = "mfcc" }] }]'
NONE = '{ mode = "none" }'
# Four patients at most; SGD at rate 1, one step a round: the update is the noisy sum itself, over 2.
LOCAL = """{ mode = "local", clip_norm = 1.0, noise_multiplier = 1.0, sampling_prob = 0.75, n_patients_public = 8, \
expected_patients = 2.0, steps_per_round = 1, delta = 0.05, small_population = true, seeded_noise = true, \
counts_noise_multiplier = 1.0, counts_utterances = 2 }"""
# The same patients in one noisy sum of at least three sites; a linear model of the pooled stream has 21 numbers.
DISTRIBUTED = """{ mode = "distributed", clip_norm = 1.0, noise_multiplier = 1.0, sampling_prob = 0.75, \
n_patients_public = 8, expected_patients = 2.0, n_parameters = 21, n_min = 3, n_colluding = 1, delta = 0.01, \
small_population = true, seeded_noise = true, counts_noise_multiplier = 1.0, counts_utterances = 2 }"""
GROUPS = 'groups = { attributes = { sex = ["female", "male"] } }'
LINEAR = '{ kind = "linear", stream = "pooled" }'
SGD = '{ learning_rate = 1.0, optimiser = "sgd" }'


def write_study(
    path: Path,
    *,
    n_sites: int,
    rounds: int = 3,
    model: str = MLP,
    training: str = ADAM,
    privacy: str = NONE,
    streams: str = ONE_STREAM,
    federation: str = "",
    evaluation: str = "",
) -> Path:
    """Writes a study file; `federation` and `evaluation` are more of these tables, such as "secure_sum = true"."""
    folds = '"by_speaker"' if privacy == NONE else '"by_patient_hash"'
    text = STUDY.format(
        n_sites=n_sites,
        rounds=rounds,
        model=model,
        training=training,
        privacy=privacy,
        folds=folds,
        streams=streams,
        federation=f", {federation}" if federation else "",
        evaluation=f", {evaluation}" if evaluation else "",
    )
    path.write_text(text)
    return path


def private_study(
    path: Path, *, rounds: int = 3, model: str = MLP, streams: str = ONE_STREAM, **changes: str
) -> Path:
    """Writes a private study of one site; `changes` replace or add constants of `LOCAL`."""
    constants = dict(item.split(" = ") for item in LOCAL.strip("{} ").replace("\n", "").split(", "))
    text = ", ".join(f"{name} = {value}" for name, value in (constants | changes).items())
    privacy = f"{{ {text} }}"
    return write_study(
        path, n_sites=1, rounds=rounds, model=model, training=SGD, privacy=privacy, streams=streams
    )


def write_sites(folder: Path, n_sites: int, *, n_examples: int = 12, width: int = WIDTH) -> dict[str, Path]:
    """Writes sites of separable examples by four speakers each; returns their folders by name."""
    return {
        f"site-{number}": _write_site(folder / f"site-{number}", number, n_examples, width)
        for number in range(1, n_sites + 1)
    }


def _write_site(folder: Path, number: int, n_examples: int, width: int) -> Path:
    draw = np.random.default_rng(number)
    centres = np.random.default_rng(0).normal(size=(N_CLASSES, width))
    site = f"site-{number}"
    shapes = {"pooled": StreamShape(width=width, n_frames=None)}
    examples = [_example(f"{site}/{i}", i, centres, draw) for i in range(n_examples)]
    SiteData.write(folder, site=site, shapes=shapes, examples=examples)
    return folder


def _example(key: str, index: int, centres: np.ndarray, draw: np.random.Generator) -> Example:
    label = int(draw.integers(N_CLASSES))
    features = (centres[label] + 0.5 * draw.normal(size=centres.shape[1])).astype(np.float32)
    speaker = f"{key.split('/')[0]}-speaker-{index % 4}"
    return Example(
        key=key,
        label=label,
        speaker=speaker,
        patient=speaker,
        groups={"sex": ("female", "male")[index % 4 // 2]},
        features={"pooled": features},
    )
