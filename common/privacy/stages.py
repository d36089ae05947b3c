"""What a patient's gradient is on its way out: one type for each thing that has been done to it.

    PatientGradients -> ClippedPatientGradients -> QuantisedSum -> NoisySum -> PrivateUpdate     (mode `local`)
                                                   QuantisedSum -> SiteSum -> MaskedUpdate       (`distributed`)

A function that wants a later stage does not take an earlier one: the type checker refuses it. Each stage is made
in one place (`clip`, `noise`, `plan`, `distributed`); a test holds that. None of them prints its numbers.

`PatientGradients` are as private as the recordings. The first type that may leave a site is `PrivateUpdate`, or
`MaskedUpdate` in mode `distributed`.
"""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

SIMULATED = "SIMULATED NOISE, NOT PRIVATE"


@dataclass(frozen=True, kw_only=True, eq=False)
class PatientGradients:
    """One row for each drawn unit: the mean gradient over its recordings. float32; no row where none was drawn.

    `scales`, if there are any, are factors of at most 1 that the rows are multiplied with after they were clipped.
    """

    values: NDArray[np.float32] = field(repr=False)
    scales: NDArray[np.float64] | None = field(default=None, repr=False)


@dataclass(frozen=True, kw_only=True, eq=False)
class ClippedPatientGradients:
    """The rows, and for each the factor (at most 1) that brings it inside the ball of radius `clip_norm`."""

    values: NDArray[np.float32] = field(repr=False)
    factors: NDArray[np.float64] = field(repr=False)
    clip_norm: float

    def dense(self) -> NDArray[np.float64]:
        """Returns the clipped rows themselves."""
        dense: NDArray[np.float64] = self.values * self.factors[:, None]
        return dense


@dataclass(frozen=True, kw_only=True, eq=False)
class QuantisedSum:
    """The sum over units in whole grid steps, each unit within `clip_norm` by integer arithmetic. Still private."""

    values: NDArray[np.int64] = field(repr=False)
    clip_norm: float
    grid_step: float


@dataclass(frozen=True, kw_only=True, eq=False)
class NoisySum:
    """The sum with integer noise added exactly."""

    values: NDArray[np.int64] = field(repr=False)
    noise_multiplier: float
    grid_step: float
    simulated: bool


@dataclass(frozen=True, kw_only=True, eq=False)
class SiteSum:
    """A site's sum with its share of the noise, in whole grid steps. Still private: one share protects too little."""

    values: NDArray[np.int64] = field(repr=False)
    simulated: bool


@dataclass(frozen=True, kw_only=True, eq=False)
class MaskedUpdate:
    """A site's sum under its masks, as it is sent: uniform numbers to whoever cannot take all masks off."""

    message: bytes = field(repr=False)
    simulated: bool


@dataclass(frozen=True, kw_only=True, eq=False)
class PrivateUpdate:
    """What may leave a site: noisy sums divided by public constants, and whatever was computed from them alone.

    `steps` says how many steps of the plan's mechanism it has cost. `simulated` says that its noise can be
    drawn again by whoever knows the seed: then nothing was protected. In mode `distributed` no site has one: it is
    what the sum of all sites says once it is decoded.
    """

    values: NDArray[np.float32] = field(repr=False)
    steps: int
    simulated: bool

    @property
    def stamp(self) -> str:
        """Returns what every artefact made from a simulated update has to say; else nothing."""
        return SIMULATED if self.simulated else ""
