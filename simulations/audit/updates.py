"""Updates of small sites, as an attacker sees them: with the study's privacy, without it, and without its noise.

    people = gather(study, data={}, folder=scratch, seed=0)
    people.update(rows, "private", key="s0001/0")

Recordings are those of a corpus that anybody may have: the embedded voices, or a published corpus. All others are
refused; whoever has patients' recordings learns nothing here that `one_run` does not tell.

Guarantees:
  - `private` is `client/train_private`, `none` is `client/train`: the code of sites, at the first round's weights.
  - The halves of attackers and attacked have no speaker in common.
  - The same seed gives the same updates; noise is seeded, and differs from update to update.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
from torch import nn

from sottovoce.client.train import train
from sottovoce.client.train_private import train_private
from sottovoce.common import models
from sottovoce.common.corpus.adapters import BY_FILE_NAMES
from sottovoce.common.dataset import SiteData
from sottovoce.common.errors import CorpusError, PrivacyError
from sottovoce.common.privacy.source import SimulatedNoise_NotPrivate
from sottovoce.common.privacy_specs import LocalPrivacy, NoPrivacy
from sottovoce.common.progress import OnEvent, silent
from sottovoce.common.run_files import CorpusFacts
from sottovoce.common.streams import derive, stream
from sottovoce.common.study import Study
from sottovoce.common.weights import Layout, from_state_dict
from sottovoce.simulations.cells import POOLED
from sottovoce.simulations.prepare import lay_out, prepare

Defence = Literal["none", "private", "noiseless"]
DEFENCES: tuple[Defence, ...] = ("none", "private", "noiseless")
Rows = npt.NDArray[np.int64]
PUBLISHED = tuple(corpus.name for corpus in BY_FILE_NAMES)
LEAST_NOISE = 0.05  # the least that a study may ask for: to an attacker as good as none
FEWEST_SPEAKERS = 20


@dataclass(frozen=True, kw_only=True)
class People:
    """Recordings of speakers who may be attacked, and what the sites of a study would send of them."""

    study: Study
    data: SiteData
    model: nn.Module
    seed: int

    @cached_property
    def speakers(self) -> tuple[str, ...]:
        """Returns who is there."""
        return tuple(sorted(set(self.data.speakers)))

    @cached_property
    def rows(self) -> Mapping[str, Rows]:
        """Returns each speaker's recordings."""
        names = np.array(self.data.speakers)
        return {name: np.flatnonzero(names == name) for name in self.speakers}

    @cached_property
    def half(self) -> npt.NDArray[np.int64]:
        """Returns for each speaker 0 or 1: who is attacked by an attacker that knows the other half."""
        order = stream(self.seed, "audit/halves").permutation(len(self.speakers))
        # Equal shares of each sex: a half with more women would teach a guess that is wrong in the other.
        order = order[np.argsort(np.array(self.group("sex"))[order], kind="stable")]
        halves = np.empty(len(order), np.int64)
        halves[order] = np.arange(len(order)) % 2
        return halves

    def group(self, name: str) -> tuple[str, ...]:
        """Returns each speaker's group, such as the sex; empty where the corpus does not say."""
        return tuple(self.data.groups[self.rows[one][0]].get(name, "") for one in self.speakers)

    def update(self, rows: Rows, defence: Defence, *, key: str) -> npt.NDArray[np.float32]:
        """Returns the change of weights that a site with these recordings sends in the first round."""
        site = self.data.select(rows)
        if defence == "none":
            trained = copy.deepcopy(self.model)
            common = {"seed": self.seed, "site": key, "round": 1, "rounds": self.study.federation.rounds}
            train(trained, site, self.study.training, frames=self.study.frames, **common)  # type: ignore[arg-type]
            return self._layout.flatten(from_state_dict(trained.state_dict())) - self.start
        noise = SimulatedNoise_NotPrivate(seed=derive(self.seed, "audit/noise"), site=key, round=1)
        study = replace(self.study, privacy=self._privacy(defence))
        return train_private(self.model, site, study, site=key, round=1, source=noise).values - self.start

    @cached_property
    def start(self) -> npt.NDArray[np.float32]:
        """Returns the weights that every site is sent."""
        return self._layout.flatten(from_state_dict(self.model.state_dict()))

    @cached_property
    def _layout(self) -> Layout:
        return Layout.of(from_state_dict(self.model.state_dict()))

    def _privacy(self, defence: Defence) -> LocalPrivacy:
        spec = self.study.privacy
        if not isinstance(spec, LocalPrivacy):
            raise PrivacyError(f"Expected a study of mode local; came mode {spec.mode!r}.")
        seeded = replace(spec, seeded_noise=True)
        if defence == "private":
            return seeded
        return replace(seeded, noise_multiplier=LEAST_NOISE, sampling_prob=1.0, cap=None)


def gather(
    study: Study,
    data: Mapping[str, Path],
    *,
    folder: Path,
    seed: int,
    workers: int = 1,
    on_event: OnEvent = silent,
) -> People:
    """Reads a study's public recordings, normalised as its sites would.

    Raises:
        CorpusError: a corpus is neither embedded nor published, or has too few speakers.
    """
    public = replace(study, privacy=NoPrivacy(mode="none"))
    found = prepare(public, data, workers=workers, on_event=on_event)
    for corpus in found.corpora:
        check_public(corpus)
    lay_out(public, found.prepared, folder, on_event)
    pooled = SiteData.open(folder / POOLED).originals()
    if len(set(pooled.speakers)) < FEWEST_SPEAKERS:
        raise CorpusError(
            f"Expected at least {FEWEST_SPEAKERS} speakers to attack; came {len(set(pooled.speakers))}. "
            "Leave the attacks out with --no-attacks."
        )
    model = models.build(study.model, pooled.widths, len(study.labels.classes), seed)
    return People(study=study, data=pooled, model=model, seed=seed)


def check_public(corpus: CorpusFacts) -> None:
    """Raises: CorpusError where nobody can tell that the recordings are public."""
    if not corpus.synthetic and corpus.adapter not in PUBLISHED:
        raise CorpusError(
            f"Expected {corpus.name!r} to be the embedded corpus or a published one ({', '.join(PUBLISHED)}); came a "
            "folder that may hold patients. Attacks are tried on public recordings only: leave out --data, or give "
            "--no-attacks."
        )
