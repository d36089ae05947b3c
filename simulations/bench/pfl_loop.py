"""A round of Apple's pfl 0.6: the same network, data, batches and learning rate, by its own loop.

python -m sottovoce.simulations.bench.pfl_loop STUDY SITES          (in an environment with pfl[pytorch])
"""

import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pfl.aggregate.simulate import SimulatedBackend
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.callback.base import TrainingProcessCallback
from pfl.data.federated_dataset import FederatedDataset
from pfl.data.pytorch import PyTorchTensorDataset
from pfl.data.sampling import get_user_sampler
from pfl.hyperparam import NNEvalHyperParams, NNTrainHyperParams
from pfl.metrics import Metrics
from pfl.model.pytorch import PyTorchModel
from torch import Tensor, nn

from sottovoce.common import models
from sottovoce.common.dataset import SiteData
from sottovoce.common.models.losses import per_example
from sottovoce.common.study import Study, load
from sottovoce.simulations.bench.fixtures import N_CLASSES


class Network(nn.Module):
    """The study's network, as pfl asks for one."""

    def __init__(self, study: Study, data: SiteData) -> None:
        super().__init__()
        self._own = models.build(study.model, data.widths, N_CLASSES, 0)
        (self._stream,) = data.shapes
        self._is_sequence = self._stream in data.stored_lengths

    def loss(self, features: Tensor, labels: Tensor, lengths: Tensor) -> Tensor:
        """Returns the mean loss of a batch."""
        lengths_of = {self._stream: lengths} if self._is_sequence else {}
        losses: Tensor = per_example(self._own({self._stream: features}, lengths_of), labels)
        return losses.mean()

    @torch.no_grad()
    def metrics(self, *batch: Tensor) -> dict[str, float]:
        """Returns nothing: rounds are timed without evaluation."""
        return {}


class _Turns(TrainingProcessCallback):  # type: ignore[misc]  # pfl ships no types
    """Makes pfl do an iteration for each line of input.

    Not a new training of one iteration for each: pfl evaluates all users at iteration 0.
    """

    def __init__(self) -> None:
        self._began = 0.0

    def on_train_begin(self, *, model: PyTorchModel) -> Metrics:
        self._wait()
        return Metrics()

    def after_central_iteration(self, *_: Any, **__: Any) -> tuple[bool, Metrics]:
        print("seconds", time.perf_counter() - self._began, flush=True)
        return not self._wait(), Metrics()

    def _wait(self) -> bool:
        line = sys.stdin.readline()
        self._began = time.perf_counter()
        return bool(line)


def user(folder: Path) -> PyTorchTensorDataset:
    """Returns one client's recordings, in memory."""
    data = SiteData.open(folder)
    (stream,) = data.shapes
    lengths = data.stored_lengths.get(stream, np.zeros(len(data), np.int64))
    arrays = (np.array(data.arrays[stream]), data.labels, lengths)
    return PyTorchTensorDataset([torch.from_numpy(array) for array in arrays])


def main(study_file: str, sites: str) -> None:
    """Does rounds until the input ends."""
    torch.set_num_threads(1)
    study, folders = load(Path(study_file)), sorted(Path(sites).iterdir())
    users = {folder.name: user(folder) for folder in folders}
    dataset = FederatedDataset(users.__getitem__, get_user_sampler("minimize_reuse", list(users)))
    network = Network(study, SiteData.open(folders[0]))
    model = PyTorchModel(
        network,
        local_optimizer_create=torch.optim.SGD,
        central_optimizer=torch.optim.SGD(network.parameters(), 1.0),
    )
    settings = NNAlgorithmParams(
        central_num_iterations=10**9,
        evaluation_frequency=10**9,
        train_cohort_size=len(users),
        val_cohort_size=0,
    )
    training = NNTrainHyperParams(
        local_num_epochs=study.training.local_epochs,
        local_learning_rate=study.training.learning_rate,
        local_batch_size=study.training.batch_size,
    )
    backend = SimulatedBackend(training_data=dataset, val_data=None)
    no_evaluation = NNEvalHyperParams(local_batch_size=None)
    FederatedAveraging().run(settings, backend, model, training, no_evaluation, callbacks=[_Turns()])


if __name__ == "__main__":
    main(*sys.argv[1:3])
