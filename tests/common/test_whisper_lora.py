"""Claims about a frozen Whisper with adapters: what is trained and travels, and where it starts."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch

from sottovoce.client.train import train
from sottovoce.common import models
from sottovoce.common.audio import Waveform
from sottovoce.common.dataset import Example, SiteData, stream_shapes
from sottovoce.common.encoders import whisper
from sottovoce.common.encoders.whisper_network import load
from sottovoce.common.errors import WeightsError
from sottovoce.common.feature_specs import WHISPER_TINY_EN
from sottovoce.common.model_size import shapes_of
from sottovoce.common.model_specs import WhisperLora
from sottovoce.common.models.layers import masked_mean_deviation
from sottovoce.common.study import loads
from tests.common.test_study import GOOD, problems_of
from tests.fakes.whispers import small_whisper

WIDTH, LAST = 6, 4
SMALL = WhisperLora(kind="whisper_lora", stream="mel", sha256=small_whisper()[1], layer=1, blocks=2, rank=2)
STUDY = (
    GOOD.replace('kind = "log_mel"', 'kind = "whisper", layers = [2]')
    .replace('kind = "cnn"', 'kind = "whisper_lora"')
    .replace('"speaker" }', '"constants" }')
)


def frames(seconds: float, seed: int) -> dict[int, torch.Tensor]:
    """A recording's layer 1, which the stream has, and the last one, each (1, frames, columns)."""
    samples = np.random.default_rng(seed).normal(size=round(16_000 * seconds)).astype(np.float32)
    waveform = Waveform(samples=samples, sample_rate_hz=16_000)
    with torch.inference_mode():
        (chunk,) = whisper.encode(load(SMALL.sha256, WIDTH, 3), waveform, (1, LAST))
    return {number: torch.from_numpy(values)[None] for number, values in chunk.items()}


def test_what_travels_is_the_adapters_and_the_head_of_eight_million_weights() -> None:
    study = loads(
        STUDY.replace(
            '["neutral", "happy"]',
            str(["neutral", "happy", "sad", "angry", "fearful", "calm", "disgust", "surprised"]).replace(
                "'", '"'
            ),
        )
    )
    shapes = shapes_of(study)
    assert sum(int(np.prod(shape)) for shape in shapes.values()) == 18_440
    assert all(name.startswith(("encoder.adapted.adapters.", "head.")) for name in shapes)
    assert study.model == WhisperLora(kind="whisper_lora", stream="mel", sha256=WHISPER_TINY_EN)


def test_at_first_a_recording_has_the_frozen_encoders_vector() -> None:
    model = models.build(SMALL, {"mel": WIDTH}, 2, seed=0).eval()
    found = frames(0.5, 0)
    assert isinstance(model, models.Classifier)
    length = torch.tensor([found[1].shape[1]])
    with torch.inference_mode():
        ours = model.encoder({"mel": found[1]}, {"mel": length})
    pooled = masked_mean_deviation(found[LAST], length).view(-1, 2, WIDTH)
    wanted = (pooled - pooled.mean(2, keepdim=True)) / pooled.std(2, correction=0, keepdim=True)
    torch.testing.assert_close(ours, wanted.flatten(1), rtol=1e-3, atol=1e-4)


def test_training_moves_every_adapter_and_no_frozen_weight(tmp_path: Path) -> None:
    study = loads(GOOD)
    examples = [
        Example(
            key=str(n),
            label=n % 2,
            speaker=str(n),
            patient=str(n),
            groups={},
            features={"mel": frames(0.3 + n / 5, n)[1][0].numpy()},
        )
        for n in range(4)
    ]
    shapes = stream_shapes(study.streams, {"mel": WIDTH}, study.audio, study.frames)
    data = SiteData.write(tmp_path, site="a", shapes=shapes, examples=examples)
    model = models.build(SMALL, {"mel": WIDTH}, 2, seed=0)
    before = copy.deepcopy(model.state_dict())
    frozen = copy.deepcopy(load(SMALL.sha256, WIDTH, 3).state_dict())
    for round in (1, 2):  # the first moves what adds, the second what it adds from
        train(model, data, study.training, seed=0, site="a", round=round, rounds=2)
    assert all(not torch.equal(before[name], after) for name, after in model.state_dict().items())
    after = load(SMALL.sha256, WIDTH, 3).state_dict()
    assert all(torch.equal(frozen[name], after[name]) for name in frozen)


def test_a_coordinator_builds_the_model_without_the_weights() -> None:
    spec = WhisperLora(kind="whisper_lora", stream="mel", sha256="0" * 64)
    model = models.build(spec, {"mel": 384}, 2, seed=0)
    with pytest.raises(WeightsError, match="0000000000000000"):
        model({"mel": torch.zeros(1, 3, 384)}, {"mel": torch.tensor([3])})


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        (
            "layers = [2]",
            "layers = [3]",
            "model: whisper_lora expects a stream of whisper alone, with its sha256",
        ),
        (
            "layers = [2]",
            f'layers = [2], sha256 = "{"0" * 64}"',
            "model: whisper_lora expects a stream of whisper alone",
        ),
        (
            'kind = "whisper", layers = [2]',
            'kind = "log_mel"',
            "model: whisper_lora expects a stream of whisper alone",
        ),
        ('"whisper_lora"', '"whisper_lora", blocks = 1', "model: whisper_lora expects layer + blocks = 4"),
        ('"constants" }', '"speaker" }', "normalisation: whisper_lora expects 'mel' as it is"),
        (
            '"constants" }',
            '"constants", mean = { mel = [0.0] } }',
            "normalisation: whisper_lora expects 'mel' as it is",
        ),
    ],
)
def test_a_stream_that_frozen_blocks_cannot_read_is_refused(old: str, new: str, expected: str) -> None:
    assert old in STUDY
    problems = problems_of(STUDY.replace(old, new))
    assert [problem for problem in problems if problem.startswith(expected)], problems
