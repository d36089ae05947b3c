"""One line of a table of attacks."""

from dataclasses import dataclass

from sottovoce.simulations.audit.figures import Estimate

# What an attacker learned from: updates as they arrive, or the same without the noise, where the signal is.
OF_SUCH, OF_NOISELESS = "learned from such updates", "learned without the noise"


@dataclass(frozen=True, kw_only=True)
class Finding:
    """How well one attacker did against one defence, beside what guessing gives; `n` people or trials."""

    attack: str
    defence: str
    attacker: str
    measure: str
    estimate: Estimate
    chance: float
    n: int

    @property
    def beats_chance(self) -> bool:
        """Says whether all of the interval is above what guessing gives."""
        return self.estimate.low > self.chance
