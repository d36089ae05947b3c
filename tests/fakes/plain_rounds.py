"""A federation of seeded sites worked out in the plainest way: no messages, masks, ledgers, grids or round loop.

plain = PlainRounds(study, sites, weights)
plain.after([["site-1", "site-3"], ["site-1", "site-2", "site-3"]])     # the survivors of each round
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from sottovoce.client.app import withheld
from sottovoce.client.evaluate import confusion
from sottovoce.client.releases import contributions
from sottovoce.client.train import train
from sottovoce.client.train_private import gradient_sum, train_private
from sottovoce.common import models
from sottovoce.common.dataset import SiteData
from sottovoce.common.privacy.distributed import decoded, site_sum
from sottovoce.common.privacy.distributed_plan import for_survivors
from sottovoce.common.privacy.plan import release_counts
from sottovoce.common.privacy.source import SimulatedNoise_NotPrivate
from sottovoce.common.privacy.stages import PatientGradients
from sottovoce.common.privacy_specs import DistributedPrivacy, LocalPrivacy
from sottovoce.common.schedule import learning_rate_at
from sottovoce.common.streams import derive
from sottovoce.common.study import Study
from sottovoce.common.sums import COUNTS, UPDATE, codec_of, mechanism_of
from sottovoce.common.weights import Layout, ModelWeights, Weights, digest

Vector = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int64]


class PlainRounds:
    """A study of FedAvg with equal weights, its sites' data, and where it starts."""

    def __init__(
        self, study: Study, sites: Mapping[str, Path], weights: Weights, *, seed: int, fold: int
    ) -> None:
        self._study, self._seed, self._fold = study, seed, fold
        self._data = {site: SiteData.open(folder) for site, folder in sites.items()}
        self._layout, self._start = Layout.of(weights), Layout.of(weights).flatten(weights)
        widths = dict(next(iter(self._data.values())).widths)
        self._model = models.build(study.model, widths, len(study.labels.classes), 0)
        self._weights = ModelWeights(self._model)
        self._known: dict[tuple[str, int, bytes], Vector] = {}

    def after(self, survivors: Sequence[Sequence[str]]) -> Vector:
        """Returns the weights after rounds in which these sites were."""
        return self.states(survivors)[-1]

    def states(self, survivors: Sequence[Sequence[str]]) -> list[Vector]:
        """Returns the weights before the first round and after each."""
        states = [self._start]
        for number, sites in enumerate(survivors, start=1):
            states.append(states[-1] + self._mean(states[-1], number, sorted(sites)))
        return states

    def digest(self, flat: Vector) -> str:
        """Returns the digest of weights."""
        return digest(self._layout.unflatten(flat))

    def summed(self, flat: Vector, number: int, sites: Sequence[str], what: str) -> Integers:
        """Returns the whole numbers that these sites' masked vectors must add up to."""
        parts = [self._part(flat, number, site, what) for site in sorted(sites)]
        total: Integers = np.sum(parts, axis=0, dtype=np.int64)
        return total

    def counts(self, flat: Vector, number: int, site: str) -> Integers:
        """Returns what a site counts over those whom it withheld: noised in mode `local`."""
        study, data = self._study, self._scored(site)
        self._weights.write(self._layout.unflatten(flat))
        tables = study.tables
        if not isinstance(study.privacy, LocalPrivacy):
            return confusion(self._model, data, tables, "cpu").reshape(-1).astype(np.int64)
        rows = contributions(self._model, data, tables, n_most=study.privacy.counts_utterances)
        source = self._source(site, number, COUNTS)
        noised = release_counts(
            PatientGradients(values=rows), study.privacy, source, n_tables=tables.per_recording
        )
        return noised.astype(np.int64).reshape(-1)

    def _mean(self, flat: Vector, number: int, sites: Sequence[str]) -> Vector:
        study, spec = self._study, self._study.privacy
        if isinstance(spec, DistributedPrivacy):
            gradients = self.summed(flat, number, sites, UPDATE)
            mechanism = for_survivors(mechanism_of(study, spec, UPDATE), spec, len(sites))
            gradient = decoded(gradients, mechanism, n_summed=len(sites)).values.astype(np.float64)
            rate = learning_rate_at(study.training, number, study.federation.rounds)
            return (-rate * gradient).astype(np.float32)
        if study.sums_are_secure:
            codec = codec_of(study, len(flat), seed=self._seed, round=number)
            total = codec.decode(self.summed(flat, number, sites, UPDATE))
        else:
            total = np.zeros(len(flat))
            for site in sites:
                total = total + self._change(flat, number, site)
        return (total / len(sites)).astype(np.float32)

    def _change(self, flat: Vector, number: int, site: str) -> npt.NDArray[np.float64]:
        return self._trained(flat, number, site).astype(np.float64) - flat

    def _part(self, flat: Vector, number: int, site: str, what: str) -> Integers:
        study, spec = self._study, self._study.privacy
        if isinstance(spec, DistributedPrivacy):
            return self._noisy_part(flat, number, site, what, spec)
        if what == COUNTS:
            return self.counts(flat, number, site)
        codec = codec_of(study, len(flat), seed=self._seed, round=number)
        return codec.encode(self._change(flat, number, site), site=site, weight=1.0).astype(np.int64)

    def _noisy_part(
        self, flat: Vector, number: int, site: str, what: str, spec: DistributedPrivacy
    ) -> Integers:
        study, source = self._study, self._source(site, number, what)
        self._weights.write(self._layout.unflatten(flat))
        mechanism = mechanism_of(study, spec, UPDATE if what == UPDATE else COUNTS)
        if what == UPDATE:
            return gradient_sum(self._model, self._trainable(site), study, mechanism, source=source).values
        rows = contributions(self._model, self._scored(site), study.tables, n_most=spec.counts_utterances)
        return site_sum(PatientGradients(values=rows), mechanism, source).values

    def _trained(self, flat: Vector, number: int, site: str) -> Vector:
        key = site, number, flat.tobytes()
        if key not in self._known:
            self._weights.write(self._layout.unflatten(flat))
            self._known[key] = (
                self._privately(number, site) if self._is_private else self._openly(number, site)
            )
        return self._known[key]

    @property
    def _is_private(self) -> bool:
        return isinstance(self._study.privacy, LocalPrivacy)

    def _privately(self, number: int, site: str) -> Vector:
        source = self._source(site, number, UPDATE)
        data = self._trainable(site)
        return train_private(self._model, data, self._study, site=site, round=number, source=source).values

    def _openly(self, number: int, site: str) -> Vector:
        study = self._study
        train(
            self._model,
            self._trainable(site),
            study.training,
            seed=self._seed,
            site=site,
            round=number,
            rounds=study.federation.rounds,
            frames=study.frames,
        )
        return self._layout.flatten(self._weights.copy())

    def _source(self, site: str, number: int, what: str) -> SimulatedNoise_NotPrivate:
        seed = derive(self._seed, "simulated release", what, self._fold)
        return SimulatedNoise_NotPrivate(seed=seed, site=site, round=number)

    def _trainable(self, site: str) -> SiteData:
        data = self._data[site]
        return data.select(~self._withheld(site))

    def _scored(self, site: str) -> SiteData:
        return self._data[site].select(self._withheld(site)).originals()

    def _withheld(self, site: str) -> npt.NDArray[np.bool_]:
        return withheld(self._data[site], self._study, seed=self._seed, fold=self._fold)
