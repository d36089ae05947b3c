"""Claims about generators: what they promise, by hand, and twins that must fail."""

from pathlib import Path

import numpy as np
import pytest
import torch

from sottovoce.client.private import matrix
from sottovoce.client.private.bookkeeping import BookKeeping
from sottovoce.common import models
from sottovoce.common.errors import PrivacyError, WeightsError
from sottovoce.common.generative import quality
from sottovoce.common.generative.gan import GanSpec, OnRows, discriminator_loss, train_gan
from sottovoce.common.generative.gaussians import FLOOR, fit_gaussians, from_sums
from sottovoce.common.generative.mixing import mix_within_class
from sottovoce.common.generative.networks import GeneratorSpec, each_class, sample
from sottovoce.common.generative.synthetic import SyntheticRows, load, write
from sottovoce.common.model_specs import Discriminator, ModelSpec, Moments
from sottovoce.common.models.losses import Loss, per_example
from sottovoce.common.privacy_specs import LocalPrivacy, NoPrivacy
from tests.common.test_models import N_CLASSES, WIDTHS, patient
from tests.fakes.patients import batch_of, one_by_one, worst_tensor

DISCRIMINATOR = Discriminator(kind="discriminator", stream="stats", hidden=7)
MOMENTS = Moments(kind="moments", stream="stats", bound=2.0)
TOY = GanSpec(
    generator=GeneratorSpec(noise=4, hidden=16),
    hidden=16,
    steps=120,
    batch_size=32,
    learning_rate=8e-3,
    average=0.97,
)
CENTRES = np.array([[2.0, 0.0], [-2.0, 1.0]])


def toy(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    labels = each_class(2, n)
    rows = CENTRES[labels] + 0.3 * np.random.default_rng(seed).normal(size=(len(labels), 2))
    return rows.astype(np.float32), labels


@pytest.mark.parametrize(("spec", "loss"), [(DISCRIMINATOR, "hinge"), (MOMENTS, "label_score")])
def test_a_patients_gradient_is_that_of_a_loop_whoever_else_is_there(spec: ModelSpec, loss: Loss) -> None:
    model = models.build(spec, WIDTHS, N_CLASSES, seed=0)
    batch, patients = batch_of(*(patient(seed, (1,) * (1 + seed)) for seed in range(3)), shuffle=3)
    of = lambda logits, labels: per_example(logits, labels, loss=loss)  # noqa: E731
    found = matrix(BookKeeping(model, of), batch, patients, 3)
    assert worst_tensor(found, one_by_one(model, of, batch, patients, 3), list(model.parameters())) < 1e-5


def test_a_projection_has_one_score_for_all_and_one_for_each_class() -> None:
    model = models.build(DISCRIMINATOR, WIDTHS, N_CLASSES, seed=0)
    rows = torch.randn(5, WIDTHS["stats"], generator=torch.Generator().manual_seed(0))
    hidden = model.encoder({"stats": rows}, {})  # type: ignore[operator]
    head = model.head
    by_hand = hidden @ head.shared.weight[0] + head.shared.bias + hidden @ head.classes.weight[2]  # type: ignore[union-attr,index]
    scores = model({"stats": rows}, {})
    assert scores.shape == (5, N_CLASSES)
    torch.testing.assert_close(scores[:, 2], by_hand)


def test_the_penalty_is_half_the_squared_slope_at_real_rows() -> None:
    discriminator = OnRows(2, 2, 4, seed=0)
    draw, labels = torch.Generator().manual_seed(1), torch.tensor([0, 1, 0, 1, 0, 1])
    real, fake = torch.randn(6, 2, generator=draw), torch.randn(6, 2, generator=draw)
    plain = discriminator_loss(discriminator, real, fake, labels, 0.0)
    with_penalty = discriminator_loss(discriminator, real, fake, labels, 3.0)
    step = 1e-3  # by differences

    def score(rows: torch.Tensor) -> torch.Tensor:
        return discriminator(rows).gather(1, labels[:, None])[:, 0].detach()  # type: ignore[no-any-return]

    start = real.detach()
    slopes = torch.stack(
        [(score(start + way) - score(start - way)) / (2 * step) for way in (step * torch.eye(2)).unbind()]
    )
    expected = 1.5 * slopes.square().sum(0).mean()
    assert float((with_penalty - plain).detach()) == pytest.approx(float(expected), rel=1e-2)


def test_a_gan_learns_two_classes_and_its_twin_with_mixed_labels_does_not() -> None:
    rows, labels = toy(60, 0)
    real, truth = toy(200, 1)
    mixed = np.random.default_rng(0).permutation(labels)
    wanted = each_class(2, 200)

    def distance(of_labels: np.ndarray) -> float:
        made = sample(train_gan(rows, of_labels, TOY, n_classes=2, seed=0), wanted, seed=1)
        return float(quality.frechet_by_class(made, wanted, real, truth, 2).max())

    assert distance(labels) < 0.5
    assert distance(mixed) > 2.0


def test_equal_seeds_give_equal_rows_and_leave_the_global_state() -> None:
    rows, labels = toy(10, 0)
    short = GanSpec(generator=TOY.generator, hidden=8, steps=5)
    before = torch.random.get_rng_state()
    first, again, other = (
        sample(train_gan(rows, labels, short, n_classes=2, seed=seed), labels, seed=0) for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
    assert torch.equal(before, torch.random.get_rng_state())


def test_mixing_stays_between_two_rows_of_the_class() -> None:
    rows = np.array([[0.0, 0.0], [1.0, 2.0], [10.0, 10.0]], np.float32)
    labels, wanted = np.array([0, 0, 1]), np.array([0, 0, 1, 2])
    made, kept = mix_within_class(
        rows, labels, wanted, privacy=NoPrivacy(mode="none"), random=np.random.default_rng(0)
    )
    assert kept.tolist() == [0, 0, 1]  # of class 2 there is no row to mix
    np.testing.assert_allclose(made[:2, 1], 2.0 * made[:2, 0], rtol=1e-6)
    assert made[:2, 0].min() >= 0
    assert made[:2, 0].max() <= 1
    np.testing.assert_array_equal(made[2], rows[2])


def test_mixing_is_refused_in_a_private_mode() -> None:
    rows, labels = toy(2, 0)
    with pytest.raises(PrivacyError, match="mode none"):
        mix_within_class(rows, labels, labels, privacy=_local(), random=np.random.default_rng(0))


def test_plain_gaussians_have_the_rows_moments() -> None:
    rows, labels = toy(400, 0)
    fitted = fit_gaussians(rows, labels, n_classes=3)
    np.testing.assert_allclose(fitted.means[:2], CENTRES, atol=0.06)
    np.testing.assert_allclose(fitted.deviations[:2], 0.3, atol=0.05)
    np.testing.assert_allclose(
        fitted.means[2], rows.mean(axis=0), atol=1e-5
    )  # a class without rows is as all
    made = fitted.sample(each_class(2, 2000), seed=0)
    np.testing.assert_allclose(made[2000:].mean(axis=0), CENTRES[1], atol=0.08)


def test_sums_by_class_are_one_gradient_step_and_give_the_moments_back() -> None:
    rng = np.random.default_rng(0)
    labels = each_class(N_CLASSES, 300)
    centres = 0.5 * rng.normal(size=(N_CLASSES, WIDTHS["stats"]))
    rows = (centres[labels] + 0.5 * rng.normal(size=(len(labels), WIDTHS["stats"]))).astype(np.float32)
    model = models.build(Moments(kind="moments", stream="stats", bound=50.0), WIDTHS, N_CLASSES, seed=0)
    scores = model({"stats": torch.from_numpy(rows)}, {})
    per_example(scores, torch.from_numpy(labels), loss="label_score").mean().backward()  # type: ignore[no-untyped-call]
    head = model.head
    weights = {f"head.{name}": -0.1 * getattr(head, name).grad.numpy() for name in ("weight", "bias")}
    found = from_sums(weights, columns=WIDTHS["stats"], noise=0.0)
    plain = fit_gaussians(rows, labels, n_classes=N_CLASSES)
    np.testing.assert_allclose(found.means, plain.means, atol=1e-4)
    np.testing.assert_allclose(found.deviations, plain.deviations, atol=0.02)


def test_sums_that_are_all_noise_give_standardised_columns() -> None:
    rng, width = np.random.default_rng(0), 200
    weights = {
        "head.weight": rng.normal(size=(2, 2 * width)).astype(np.float32),
        "head.bias": rng.normal(size=2).astype(np.float32),
    }
    found = from_sums(weights, columns=width, noise=1.0)
    assert np.abs(found.means).max() < 3.0
    assert found.deviations.min() >= FLOOR
    assert found.deviations.max() <= 2.0


def test_frechet_distance_of_known_gaussians() -> None:
    wide = np.diag([4.0, 9.0])
    assert quality.frechet(np.zeros(2), wide, np.zeros(2), np.eye(2)) == pytest.approx(1.0 + 4.0)
    turn = np.array([[0.0, -1.0], [1.0, 0.0]])  # the same ellipse turned: (2 - 3)^2 twice
    assert quality.frechet(np.zeros(2), wide, np.zeros(2), turn @ wide @ turn.T) == pytest.approx(2.0)


def test_copies_are_noticed_and_fresh_rows_are_not() -> None:
    rng = np.random.default_rng(0)
    training, held_out, fresh = (rng.normal(size=(150, 5)).astype(np.float32) for _ in range(3))
    copied = training + 1e-3
    assert quality.copies(copied, training, held_out, random=rng) > 0.99
    assert 0.35 < quality.copies(fresh, training, held_out, random=rng) < 0.65
    assert quality.membership_auc(copied, training, held_out) > 0.99
    assert 0.35 < quality.membership_auc(fresh, training, held_out) < 0.65


def test_a_file_of_rows_is_named_by_its_bytes_and_read_back(tmp_path: Path) -> None:
    rows, labels = toy(3, 0)
    made = SyntheticRows(
        streams={"pooled": rows}, labels=labels, classes=("sad", "happy"), facts={"seed": "0"}
    )
    path, digest = write(tmp_path, made)
    assert write(tmp_path / "again", made)[1] == digest
    assert path.name.startswith(digest)
    back = load(path, classes=("sad", "happy"))
    np.testing.assert_array_equal(back.streams["pooled"], rows)
    assert (back.labels.tolist(), back.facts) == (labels.tolist(), {"seed": "0"})
    assert back.of_class(1, 2).tolist() == [3, 4]


@pytest.mark.parametrize("damage", ["classes", "label", "nan", "bytes", "missing"])
def test_a_file_of_rows_that_is_not_for_here_is_refused(damage: str, tmp_path: Path) -> None:
    rows, labels = toy(3, 0)
    if damage == "nan":
        rows[0, 0] = np.nan
    if damage == "label":
        labels[0] = 7
    path, _ = write(
        tmp_path, SyntheticRows(streams={"pooled": rows}, labels=labels, classes=("sad", "happy"))
    )
    if damage == "bytes":
        path.write_bytes(path.read_bytes()[:-40])
    if damage == "missing":
        path.unlink()
    with pytest.raises(WeightsError, match=r"expected|cannot be read"):
        load(path, classes=("sad", "angry") if damage == "classes" else ("sad", "happy"))


def _local() -> LocalPrivacy:
    return LocalPrivacy(
        mode="local", clip_norm=1.0, noise_multiplier=1.0, sampling_prob=1.0, n_patients_public=10,
        expected_patients=10.0, steps_per_round=1, delta=0.01, small_population=True,
    )  # fmt: skip
