"""What strategies are called, and whose they are: for reports and everybody who reads a study.

>>> KINDS["scaffold"], PERSONAL_KINDS["ditto"]
('SCAFFOLD (Karimireddy et al. 2020)', 'Ditto (Li et al. 2021)')
"""

from collections.abc import Mapping

from sottovoce.common.study import Study

KINDS: Mapping[str, str] = {
    "fedavg": "FedAvg (McMahan et al. 2017)",
    "fedprox": "FedProx (Li et al. 2020)",
    "fedavgm": "FedAvgM (Hsu et al. 2019)",
    "fedadam": "FedAdam (Reddi et al. 2021)",
    "fedyogi": "FedYogi (Reddi et al. 2021)",
    "scaffold": "SCAFFOLD (Karimireddy et al. 2020)",
    "qfedavg": "q-FedAvg (Li et al. 2020)",
    "median": "coordinate-wise median (Yin et al. 2018)",
    "trimmed_mean": "trimmed mean (Yin et al. 2018)",
    "krum": "Krum (Blanchard et al. 2017)",
    "norm_bound": "norm bound (Sun et al. 2019)",
    "adversarial": "adversarial (Augenstein et al. 2020)",
}
PERSONAL_KINDS: Mapping[str, str] = {
    "fedper": "FedPer (Arivazhagan et al. 2019)",
    "fedrep": "FedRep (Collins et al. 2021)",
    "ditto": "Ditto (Li et al. 2021)",
    "fine_tuning": "fine-tuning at each site",
}


def strategy_of(study: Study) -> str:
    """Returns how a study's updates become a model, and how sites' models differ from it, in words."""
    federation = study.federation
    kind = federation.strategy.kind
    said = KINDS.get(kind, kind)
    own = federation.personalisation
    return said if own is None else f"{said}, with {PERSONAL_KINDS[own.kind]}"
