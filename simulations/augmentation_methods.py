"""What a site that lost most of one emotion can do about it: each method makes rows, or weighs those that are there.

| method                    | from whose rows                | private |
|---------------------------|--------------------------------|---------|
| `none`                    | -                              |         |
| `re-weighting`            | the site's own                 |         |
| `logit adjustment`        | the site's own                 |         |
| `waveform copies`         | the site's own                 |         |
| `mixing`                  | the site's own                 | no      |
| `own Gaussians`           | the site's own                 | no      |
| `own GAN`                 | the site's own                 | no      |
| `federation's Gaussians`  | all sites' (sums by class)     | no      |
| `federation's GAN`        | all sites' (discriminators)    | no      |
| `private Gaussians`       | all sites', noised and charged | yes     |
| `private GAN`             | all sites', noised and charged | yes     |

All that make rows fill each class up to the site's commonest one; `waveform copies` adds a copy of every recording.
Every site of a federation does the same.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from sottovoce.common.generative.gan import GanSpec, train_gan
from sottovoce.common.generative.gaussians import fit_gaussians
from sottovoce.common.generative.mixing import mix_within_class
from sottovoce.common.generative.networks import GeneratorSpec, Labels, Rows, sample
from sottovoce.common.privacy_specs import NoPrivacy
from sottovoce.common.streams import derive, stream
from sottovoce.common.study import Study
from sottovoce.simulations.augmentation_private import Maker, private_gan, private_gaussians

COPIES = "waveform copies"  # of a study that makes some
ADJUSTED = "logit adjustment"  # of the fitted head: it adds no rows and no weights
OWN_GAN = GanSpec(generator=GeneratorSpec(noise=16, hidden=64), hidden=64, steps=300, batch_size=32)
FEDERATIONS_GAN = GanSpec(steps=1000)


@dataclass(frozen=True, kw_only=True, eq=False)
class Part:
    """Some recordings: rows, labels, and of each the patient (by number) and the site."""

    rows: Rows
    labels: Labels
    patients: Labels
    sites: Labels

    def where(self, mask: npt.NDArray[np.bool_]) -> "Part":
        """Returns those that a mask chooses."""
        return Part(
            rows=self.rows[mask],
            labels=self.labels[mask],
            patients=self.patients[mask],
            sites=self.sites[mask],
        )

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, kw_only=True, eq=False)
class Setting:
    """One fold of one seed: what is trained on after the loss, and copies of exactly those recordings."""

    seed: int
    fold: int
    study: Study
    training: Part
    copies: Part
    makers: dict[str, Maker] = field(default_factory=dict)

    @property
    def n_classes(self) -> int:
        """Returns how many classes there are."""
        return len(self.study.labels.classes)

    def key(self, *more: str | int) -> int:
        """Returns a seed for a purpose in this setting."""
        return derive(self.seed, "augmentations", self.fold, *more) >> 65

    def maker(self, name: str) -> Maker:
        """Returns the federation's generator of a method; trained once."""
        if name not in self.makers:
            self.makers[name] = FEDERATIONS[name](self)
        return self.makers[name]


@dataclass(frozen=True, kw_only=True, eq=False)
class Weighed:
    """What a site trains on: rows with labels, and how much each counts."""

    rows: Rows
    labels: Labels
    weights: npt.NDArray[np.float64]


def augmented(method: str, setting: Setting, site: int) -> Weighed:
    """Returns a site's training rows under a method. Each site counts one in all."""
    own = setting.training.where(setting.training.sites == site)
    rows, labels = own.rows, own.labels
    if method == COPIES:
        copies = setting.copies.where(setting.copies.sites == site)
        rows, labels = np.concatenate([rows, copies.rows]), np.concatenate([labels, copies.labels])
    elif method not in ("none", "re-weighting", ADJUSTED):
        made, of = _made(method, setting, own, site)
        rows, labels = np.concatenate([rows, made]), np.concatenate([labels, of])
    weights = np.ones(len(labels))
    if method == "re-weighting":
        weights = 1.0 / np.bincount(labels, minlength=setting.n_classes)[labels]
    return Weighed(rows=rows, labels=labels, weights=weights / weights.sum())


def missing(labels: Labels, n_classes: int) -> Labels:
    """Returns the labels that bring every class up to the commonest one.

    >>> missing(np.array([0, 0, 0, 1]), 3).tolist()
    [1, 1, 2, 2, 2]
    """
    counts = np.bincount(labels, minlength=n_classes)
    return np.repeat(np.arange(n_classes, dtype=np.int64), counts.max() - counts)


def _made(method: str, setting: Setting, own: Part, site: int) -> tuple[Rows, Labels]:
    wanted, seed = missing(own.labels, setting.n_classes), setting.key(method, site)
    if method == "mixing":
        return mix_within_class(
            own.rows, own.labels, wanted, privacy=NoPrivacy(mode="none"), random=stream(seed, "mixing")
        )
    if method == "own Gaussians":
        return fit_gaussians(own.rows, own.labels, n_classes=setting.n_classes).sample(
            wanted, seed=seed
        ), wanted
    if method == "own GAN":
        generator = train_gan(own.rows, own.labels, OWN_GAN, n_classes=setting.n_classes, seed=seed)
        return sample(generator, wanted, seed=seed), wanted
    return setting.maker(method)(wanted, seed), wanted


def _gaussians(setting: Setting) -> Maker:
    part = setting.training
    fitted = fit_gaussians(part.rows, part.labels, n_classes=setting.n_classes)
    return lambda labels, seed: fitted.sample(labels, seed=seed)


def _gan(setting: Setting) -> Maker:
    """The mean of sites' discriminator gradients is that of the pooled rows: one step a round, sites of one size."""
    part = setting.training
    generator = train_gan(
        part.rows, part.labels, FEDERATIONS_GAN, n_classes=setting.n_classes, seed=setting.key("gan")
    )
    return lambda labels, seed: sample(generator, labels, seed=seed)


def _mixed(setting: Setting) -> Maker:
    part = setting.training

    def make(labels: Labels, seed: int) -> Rows:
        random = stream(seed, "mixing")
        return mix_within_class(
            part.rows, part.labels, labels, privacy=NoPrivacy(mode="none"), random=random
        )[0]

    return make


def _private_gaussians(setting: Setting) -> Maker:
    part, seed = setting.training, setting.key("private gaussians")
    return private_gaussians(setting.study, part.rows, part.labels, part.patients, seed=seed)


def _private_gan(setting: Setting) -> Maker:
    part, seed = setting.training, setting.key("private gan")
    return private_gan(setting.study, part.rows, part.labels, part.patients, seed=seed)


POOLED_MIXING = "mixing"
FEDERATIONS: Mapping[str, Callable[[Setting], Maker]] = {
    "federation's Gaussians": _gaussians,
    "federation's GAN": _gan,
    "private Gaussians": _private_gaussians,
    "private GAN": _private_gan,
    POOLED_MIXING: _mixed,  # judged on pooled rows; at a site it mixes the site's own
}
METHODS = (
    "none",
    "re-weighting",
    ADJUSTED,
    COPIES,
    "mixing",
    "own Gaussians",
    "own GAN",
    "federation's Gaussians",
    "federation's GAN",
    "private Gaussians",
    "private GAN",
)
