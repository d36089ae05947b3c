"""A GAN for patches of a log-mel spectrogram, for public recordings at the coordinator: small transposed convolutions.

    patches, labels = cut(data, "mel", seed=0)
    generator = train_patches(patches, labels, GanSpec(), n_classes=8, seed=0)

A patch is 64 frames of all bands, standardised as the study does it. A made patch stands for a short recording.
"""

from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn

from sottovoce.common.dataset import SiteData
from sottovoce.common.generative.gan import GanSpec, fit
from sottovoce.common.generative.networks import Conditional, GeneratorSpec, Labels, Rows
from sottovoce.common.models.generative import SLOPE, Projection
from sottovoce.common.streams import stream, torch_seed

FRAMES = 64
HALVINGS = 3  # by which a patch shrinks in the discriminator, and grows in the generator
CHANNELS = 32


class PatchGenerator(Conditional):
    """From noise and a label to (FRAMES, bands), by three transposed convolutions."""

    def __init__(self, bands: int, n_classes: int, spec: GeneratorSpec) -> None:
        super().__init__()
        self.noise, self.bands = spec.noise, bands
        self.small = (
            FRAMES >> HALVINGS,
            -(-bands // (1 << HALVINGS)),
        )  # rounded up; what is too much is cut off
        self.label = nn.Embedding(n_classes, spec.noise)
        self.entry = nn.Linear(2 * spec.noise, CHANNELS * self.small[0] * self.small[1])
        widths = (CHANNELS, CHANNELS, CHANNELS // 2, 1)
        self.grow = nn.ModuleList(
            nn.ConvTranspose2d(wide, narrow, 4, stride=2, padding=1) for wide, narrow in pairwise(widths)
        )

    def forward(self, noise: Tensor, labels: Tensor) -> Tensor:
        values = self.entry(torch.cat([noise, self.label(labels)], dim=1)).view(-1, CHANNELS, *self.small)
        for layer in self.grow:
            values = layer(nn.functional.leaky_relu(values, SLOPE))
        return values[:, 0, :, : self.bands]  # type: ignore[no-any-return]


class PatchDiscriminator(nn.Module):
    """From a patch to a score for each class: three strided convolutions, the sum over the patch, a projection."""

    def __init__(self, n_classes: int) -> None:
        super().__init__()
        widths = (1, CHANNELS // 2, CHANNELS, CHANNELS)
        self.shrink = nn.ModuleList(
            nn.Conv2d(narrow, wide, 4, stride=2, padding=1) for narrow, wide in pairwise(widths)
        )
        self.head = Projection(CHANNELS, n_classes)

    def forward(self, patches: Tensor) -> Tensor:
        values = patches[:, None]
        for layer in self.shrink:
            values = nn.functional.leaky_relu(layer(values), SLOPE)
        scores: Tensor = self.head(values.mean(dim=(2, 3)))
        return scores


def train_patches(
    patches: Rows, labels: Labels, spec: GanSpec, *, n_classes: int, seed: int
) -> PatchGenerator:
    """Trains a generator of patches (n, FRAMES, bands); at least 8 bands."""
    if patches.ndim != 3 or patches.shape[1] != FRAMES or patches.shape[2] < 1 << HALVINGS:
        raise ValueError(
            f"Expected patches of {FRAMES} frames and 8 bands or more; came {patches.shape[1:]}."
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(torch_seed(seed, "patch networks"))
        generator = PatchGenerator(patches.shape[2], n_classes, spec.generator)
        discriminator = PatchDiscriminator(n_classes)
    return fit(generator, discriminator, patches, labels, spec, seed=seed)


def cut(data: SiteData, name: str, *, seed: int) -> tuple[Rows, Labels]:
    """Returns one patch of each recording that is long enough, from a place drawn in public, with its label."""
    random, found, labels = stream(seed, "patches"), [], []
    for index, label in enumerate(data.labels.tolist()):
        frames = data.valid(name, index)
        if len(frames) >= FRAMES:
            first = int(random.integers(0, len(frames) - FRAMES + 1))
            found.append(frames[first : first + FRAMES])
            labels.append(label)
    shape = (0, FRAMES, data.shapes[name].width)
    return (np.stack(found) if found else np.empty(shape, np.float32)), np.array(labels, np.int64)
