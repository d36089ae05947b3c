"""Explanations: exact where the model is linear, the planted feature and not the other, attention as computed."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

from sottovoce.common import explanation, feature_words, models
from sottovoce.common.dataset import Batch
from sottovoce.common.errors import RunError, SottovoceError
from sottovoce.common.explanation import Curve, Evidence, Explanation, Importance
from sottovoce.common.feature_specs import (
    Energy,
    FeatureStream,
    Formants,
    Frames,
    Ge2e,
    Mfcc,
    Pitch,
    Whisper,
    ZeroCrossings,
)
from sottovoce.common.features import width
from sottovoce.common.model_specs import Attention, Linear, Lstm
from sottovoce.common.streams import stream
from sottovoce.common.study import Normalisation
from sottovoce.common.summarise import summarise
from sottovoce.server.report import explanation as shown
from sottovoce.server.report.page import Run, render
from sottovoce.simulations import attributions, explain
from sottovoce.simulations.attention import attention_of, curve
from sottovoce.simulations.attributions import integrated_gradients
from sottovoce.simulations.importance import Heard, alone, counts_of, lost, shuffled, shuffled_counts
from tests.fakes.runs import FakeRun, predictions_of, study_of, study_text

EXPLANATION = Explanation(
    format=1,
    study_digest="ab" * 32,
    arm="federated",
    seed=0,
    n_speakers=24,
    n_utterances=768,
    uar=0.6,
    repeats=5,
    importance=(
        Importance(
            family="loudness", words="how loud", n_columns=4, alone=0.3, lost=0.121, low=0.08, high=0.16
        ),
    ),
    evidence=(
        Evidence(emotion="<b>sad", n_utterances=9, families={"loudness": 0.6, "pitch": -0.2, "rate": 0.01}),
    ),
    statistics={"mean": 0.75, "deviation": 0.25},
    moments=(Curve(emotion="sad", values=(3.5, 1.0, 0.0)),),
)


def sequences(seed: int, n_classes: int = 3) -> Batch:
    random = torch.Generator().manual_seed(seed)
    lengths = torch.tensor([12, 7, 3, 1])
    return Batch(
        inputs={"frames": torch.randn(4, 12, 5, generator=random)},
        lengths={"frames": lengths},
        labels=torch.tensor([0, 1, 2, 0]) % n_classes,
    )


# ---- integrated gradients


def test_attributions_of_a_linear_model_of_two_classes_agree_with_its_weights() -> None:
    """One class's log odds are linear there; their gradient along the path is known by hand."""
    model = models.build(Linear(kind="linear", stream="pooled"), {"pooled": 6}, 2, seed=1).eval()
    rows, start = torch.randn(5, 6, generator=torch.Generator().manual_seed(2)), torch.zeros(6)
    batch = Batch(inputs={"pooled": rows}, lengths={}, labels=torch.tensor([0, 1, 0, 1, 1]))
    found = integrated_gradients(model, batch, {"pooled": start}, steps=64)["pooled"]
    weight = model.get_parameter("head.weight").detach()
    slope = torch.where(batch.labels[:, None] == 0, weight[0] - weight[1], weight[1] - weight[0])
    exact = rows * slope  # times one number for each row: the slope of log sigmoid, averaged along the path
    ratio = found / exact
    assert torch.allclose(ratio, ratio[:, :1].expand_as(ratio), atol=1e-3)
    log_probs = [model({"pooled": at}, {}).log_softmax(1) for at in (rows, start.expand_as(rows))]
    gained = (log_probs[0] - log_probs[1]).gather(1, batch.labels[:, None])[:, 0]
    assert torch.allclose(found.sum(dim=1), gained, atol=1e-4)


NETWORKS: dict[str, Lstm | Attention] = {
    "lstm": Lstm(kind="lstm", stream="frames", hidden=4),
    "attention": Attention(kind="attention", stream="frames", width=8, heads=2, layers=1),
}


@pytest.mark.parametrize("kind", NETWORKS)
def test_attributions_add_up_and_padding_gets_nothing(kind: str) -> None:
    model = models.build(NETWORKS[kind], {"frames": 5}, 3, seed=1).eval()
    batch = sequences(0)
    start = {"frames": torch.zeros(5)}
    found = integrated_gradients(model, batch, start)["frames"]
    empty = {"frames": torch.zeros_like(batch.inputs["frames"])}
    log_probs = [model(at, batch.lengths).log_softmax(1) for at in (batch.inputs, empty)]
    gained = (log_probs[0] - log_probs[1]).gather(1, batch.labels[:, None])[:, 0]
    assert torch.allclose(found.sum(dim=(1, 2)), gained, atol=2e-3)
    assert found[1, 7:].abs().max() == found[3, 1:].abs().max() == 0.0
    assert torch.equal(found, integrated_gradients(model, batch, start)["frames"])


def test_without_captum_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "captum", None)
    with pytest.raises(SottovoceError, match="sottovoce\\[explain\\]"):
        attributions._captum()


# ---- permutation importance


def planted(*, lengths: bool = False) -> Heard:
    """Column 0 is the label; column 1 says nothing; the model reads column 0 alone."""
    random = stream(0, "planted")
    labels = np.tile(np.arange(3), 40).astype(np.int64)
    rows = np.stack([labels.astype(np.float32), random.normal(size=120).astype(np.float32)], axis=1)
    if lengths:
        rows = np.repeat(rows[:, None], 6, axis=1)
        rows[::2, 4:] = 0.0

    def answers(inputs):  # type: ignore[no-untyped-def]
        first = inputs["x"][:, 0, 0] if lengths else inputs["x"][:, 0]
        return np.rint(first).astype(np.int64)

    valid = np.where(np.arange(120) % 2 == 0, 4, 6)
    return Heard(
        fold=0,
        inputs={"x": rows},
        lengths={"x": valid} if lengths else {},
        labels=labels,
        speakers=np.repeat(np.arange(8), 15).astype(np.int64),
        answers=answers,
    )


@pytest.mark.parametrize("lengths", [False, True], ids=["pooled", "sequence"])
def test_the_planted_feature_is_found_and_the_other_is_not(lengths: bool) -> None:
    heard, sizes = [planted(lengths=lengths)], {"n_speakers": 8, "n_classes": 3}
    before = counts_of(heard, **sizes)
    first, second = (
        shuffled_counts(heard, {"x": np.arange(2) == index}, repeats=3, seed=0, **sizes) for index in (0, 1)
    )
    value, low, high = lost(before, first, samples=100, seed=0)
    assert 0.55 < value < 0.75  # of a UAR of 1, a third is chance
    assert low is not None
    assert high is not None
    assert 0.4 < low < value < high
    assert lost(before, second, samples=100, seed=0) == (0.0, 0.0, 0.0)


def test_shuffling_keeps_what_was_not_chosen_and_takes_a_family_from_one_other_recording() -> None:
    heard = planted(lengths=True)
    changed = shuffled(heard, {"x": np.array([True, False])}, stream(1, "shuffle"))["x"]
    assert (changed[:, :, 1] == heard.inputs["x"][:, :, 1]).all()
    assert (changed[::2, 4:] == 0.0).all()  # padding stays padding
    assert all(len(set(row[:n, 0].tolist())) == 1 for row, n in zip(changed, heard.lengths["x"], strict=True))


def test_alone_puts_every_other_column_at_its_average() -> None:
    heard = planted()
    changed = alone(heard, {"x": np.array([False, True])})["x"]
    assert (changed[:, 1] == heard.inputs["x"][:, 1]).all()
    assert changed[:, 0] == pytest.approx(heard.inputs["x"][:, 0].mean())


# ---- attention


def test_attention_maps_are_what_the_network_computed_with_and_change_no_answer() -> None:
    model = models.build(
        Lstm(kind="lstm", stream="frames", hidden=4, stride=2), {"frames": 5}, 3, seed=1
    ).eval()
    batch = sequences(3)
    pooled: list[tuple[torch.Tensor, torch.Tensor]] = []
    layer = model.get_submodule("encoder.pooling")
    layer.register_forward_hook(lambda _, inputs, output: pooled.append((inputs[0], output)))
    before = model(batch.inputs, batch.lengths)
    found = attention_of(model, batch.inputs, batch.lengths)
    assert found is not None
    assert torch.equal(before, model(batch.inputs, batch.lengths))
    values, output = pooled[0]
    with torch.inference_mode():
        assert torch.allclose((found.weights[:, :, None] * values).sum(1), output, atol=1e-6)
        assert torch.allclose(found.weights.sum(1), torch.ones(4))
    assert found.lengths.tolist() == [6, 4, 2, 1]


def test_attention_of_a_transformer_adds_up_over_valid_steps_alone() -> None:
    spec = Attention(kind="attention", stream="frames", width=8, heads=2, layers=2, stride=1)
    model = models.build(spec, {"frames": 5}, 3, seed=1).eval()
    batch = sequences(4)
    found = attention_of(model, batch.inputs, batch.lengths)
    assert found is not None
    assert torch.allclose(found.weights.sum(1), torch.ones(4), atol=1e-6)
    assert found.weights[1, 7:].abs().max() == 0.0
    linear = models.build(Linear(kind="linear", stream="x"), {"x": 2}, 3, seed=1)
    assert attention_of(linear, {"x": torch.zeros(1, 2)}, {}) is None


def test_an_even_attention_is_a_flat_curve_whatever_the_length() -> None:
    for n in (1, 3, 20, 57):
        assert curve(np.full(60, 1.0 / n), n) == pytest.approx(np.ones(20))
    late = np.zeros(10)
    late[9] = 1.0
    assert curve(late, 10).round(6).tolist() == [0.0] * 18 + [10.0, 10.0]


# ---- words


@pytest.mark.parametrize("pooling", ["none", "statistics"])
def test_every_column_has_a_family(pooling: str) -> None:
    parts = (
        Energy(kind="energy"),
        Mfcc(kind="mfcc", n_mfcc=5, deltas=2),
        Pitch(kind="pitch"),
        Formants(kind="formants"),
    )
    streams = [FeatureStream(name="x", parts=parts, pooling=pooling)]  # type: ignore[arg-type]
    if pooling == "statistics":
        mixed = (Whisper(kind="whisper"), *parts, Ge2e(kind="ge2e"), ZeroCrossings(kind="zero_crossings"))
        streams.append(FeatureStream(name="y", parts=mixed, pooling="statistics"))
    for one in streams:
        found = feature_words.columns(one, Frames(), 16_000)
        assert len(found) == width(one, Frames(), 16_000)
        assert {column.family for column in found} <= set(feature_words.WORDS)


def test_figures_of_a_pooled_stream_stand_where_extraction_puts_them() -> None:
    """All means, then all deviations, and so on: louder by a factor moves the means of loudness and no deviation."""
    from sottovoce.common.audio import Waveform
    from sottovoce.common.features import extract

    parts = (Energy(kind="energy"), Mfcc(kind="mfcc", n_mfcc=4), ZeroCrossings(kind="zero_crossings"))
    pooled = FeatureStream(name="x", parts=parts, pooling="statistics")
    samples = stream(0, "figures").normal(size=8000).astype(np.float32) * 0.1
    rows = [
        extract([Waveform(samples=samples * np.float32(gain), sample_rate_hz=16_000)], [pooled], Frames())[0][
            "x"
        ]
        for gain in (1.0, 3.0)
    ]
    moved = np.abs(rows[1] - rows[0]) > 1e-3
    columns = feature_words.columns(pooled, Frames(), 16_000)
    expected = [
        column.family in ("loudness", "pauses") and column.statistic != "deviation" for column in columns
    ]
    assert moved.tolist() == expected


# ---- file and words


def test_an_explanation_is_read_back_equal_and_a_damaged_one_is_an_error(tmp_path: Path) -> None:
    assert explanation.read(tmp_path) is None
    path = explanation.write(tmp_path, EXPLANATION)
    assert explanation.read(tmp_path) == EXPLANATION
    path.write_text(path.read_text().replace('"uar": 0.6', '"uar": 60'))
    with pytest.raises(RunError, match=r"explanation\.json: uar: .* `sottovoce explain`"):
        explanation.read(tmp_path)


def test_an_explanation_is_told_in_everyday_words() -> None:
    assert shown.sentence(EXPLANATION.importance[0]).startswith(
        "how loud: 12.1 points of UAR lost when shuffled"
    )
    assert shown.strongest(EXPLANATION.evidence[0]) == "how loud the voice is (+0.60)"
    assert shown.strongest(EXPLANATION.evidence[0], against=True) == "how high the voice is (−0.20)"
    assert shown.moments(EXPLANATION.moments) == [("sad", [20, 7, 0])]
    bare = dataclasses.replace(EXPLANATION.importance[0], low=None)
    assert shown.span(bare) == "no interval: one speaker"


def test_an_interval_of_no_width_is_not_printed_as_if_it_were_sure() -> None:
    nothing = dataclasses.replace(EXPLANATION.importance[0], lost=0.0, low=0.0, high=0.0)
    assert shown.span(nothing) == "no interval: no answer changed"
    alike = dataclasses.replace(nothing, lost=0.1, low=0.1, high=0.1)
    assert shown.span(alike) == "no interval: no draw of speakers changes it"
    scale = shown.scale_of(EXPLANATION)
    assert shown.whisker(alike, scale) == shown.whisker(
        dataclasses.replace(alike, low=None, high=None), scale
    )


@pytest.mark.parametrize(
    ("uar", "low", "is_at_chance"),
    [(0.3, 0.2, True), (0.3, 0.26, False), (0.25, None, True), (0.9, None, False)],
)
def test_of_a_model_at_chance_nothing_is_explained(
    uar: float, low: float | None, is_at_chance: bool, tmp_path: Path
) -> None:
    found = dataclasses.replace(EXPLANATION, chance=0.25, uar=uar, uar_low=low, uar_high=low and 0.95)
    console = Console(record=True, width=300)
    console.print(shown.terminal(found, tmp_path / "report.html"))
    said = console.export_text()
    assert ("may be at chance" in said) is is_at_chance
    assert ("points of UAR lost" in said) is not is_at_chance
    run = FakeRun(repetitions=1, seeds=(0,), skill=(("federated", 2.0),))
    page = render(
        Run(
            study=study_of(run),
            study_text=study_text(run),
            summary=summarise(predictions_of(run), study_of(run)),
            facts=None,
            rounds=None,
            explanation=found,
        )
    )
    assert ("may be at chance" in page) is is_at_chance
    assert ("points lost" in page) is not is_at_chance


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ({"scheme": "speaker"}, "all of the same person's recordings: high"),
        (
            {"scheme": "speaker", "mean": {"a": (0.0,)}},
            "recordings, and to public figures where they are few: high",
        ),
        (
            {"scheme": "enrolment", "mean": {"a": (0.0,)}},
            "up to 4 of the same person's recordings in calm or neutral",
        ),
        ({"scheme": "constants", "mean": {"a": (0.0,)}}, "the same for everybody"),
    ],
)
def test_what_features_are_relative_to_is_what_the_study_did(spec: dict[str, Any], said: str) -> None:
    (sentence,) = explain._relative_to(Normalisation(**spec))
    assert said in sentence


def test_features_that_are_relative_to_nothing_are_not_said_to_be() -> None:
    assert list(explain._relative_to(Normalisation(scheme="utterance"))) == []
    assert list(explain._relative_to(Normalisation(scheme="constants"))) == []


def test_the_report_shows_it_and_names_stay_names() -> None:
    run = FakeRun(repetitions=1, seeds=(0,), skill=(("federated", 2.0),))
    figures = dataclasses.replace(EXPLANATION, attention=EXPLANATION.moments)
    bare = Run(
        study=study_of(run),
        study_text=study_text(run),
        summary=summarise(predictions_of(run), study_of(run)),
        facts=None,
        rounds=None,
    )
    page = render(dataclasses.replace(bare, explanation=figures))
    for claim in (
        "how loud the voice is (+0.60)",
        "+8.0 to +16.0",
        "12.1",
        "&lt;b&gt;sad",
        "75.0",
        "attended to",
    ):
        assert claim in page, claim
    assert "<b>sad" not in page
    assert "Nobody has asked" in render(bare)
