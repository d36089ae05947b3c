"""What the benchmarks train on: sites of random recordings, written once to a temporary folder."""

from pathlib import Path

import numpy as np

from sottovoce.common.dataset import Example, SiteData, StreamShape
from sottovoce.common.labels import EMOTIONS

N_CLASSES = 8
CLASSES = EMOTIONS[:N_CLASSES]
# 40 mel bands x 100 frames, 20 recordings a site, and about 57,000 parameters.
SEQUENCE, POOLED = StreamShape(width=40, n_frames=100), StreamShape(width=768, n_frames=None)
CNN = '{ kind = "cnn", stream = "features", channels = [64, 130], kernel = 5, dropout = 0.0 }'
STUDY = """
format = 1
name = "benchmark"
purpose = "research"
corpora = [{{ name = "random numbers" }}]
labels = {{ classes = {classes} }}
streams = [{{ name = "features", pooling = "{pooling}", parts = [{{ kind = "log_mel", n_mels = 40 }}] }}]
normalisation = {{ scheme = "constants" }}
model = {model}
training = {{ learning_rate = 0.01, optimiser = "sgd", batch_size = {batch_size} }}
federation = {{ n_sites = {n_sites}, rounds = {rounds}, partition = {{ kind = "speaker_blocks" }} }}
privacy = {{ mode = "none" }}
evaluation = {{ folds = {{ kind = "by_speaker", k = 2 }}, every_rounds = 100000 }}
"""


def write_study(
    path: Path, *, n_sites: int, model: str = CNN, pooled: bool = False, batch_size: int = 10, rounds: int = 1
) -> Path:
    """Writes a study of as many rounds as are timed at a time."""
    path.write_text(
        STUDY.format(
            classes=list(CLASSES),
            pooling="statistics" if pooled else "none",
            model=model,
            batch_size=batch_size,
            n_sites=n_sites,
            rounds=rounds,
        ).replace("'", '"')
    )
    return path


def write_sites(
    folder: Path, n_sites: int, *, shape: StreamShape = SEQUENCE, n_examples: int = 20
) -> dict[str, Path]:
    """Writes sites and returns their folders by name."""
    sites = {}
    for number in range(n_sites):
        name = f"site-{number:04d}"
        sites[name] = folder / name
        draw = np.random.default_rng(number)
        examples = (_example(f"{name}/{i}", shape, draw) for i in range(n_examples))
        SiteData.write(sites[name], site=name, shapes={"features": shape}, examples=examples)
    return sites


def _example(key: str, shape: StreamShape, draw: np.random.Generator) -> Example:
    features = draw.standard_normal(size=shape.row, dtype=np.float32)
    return Example(
        key=key,
        label=int(draw.integers(N_CLASSES)),
        speaker=f"{key[:9]}-{key[-1]}",
        patient=key[:9],
        groups={},
        features={"features": features},
    )
