"""Does it help a few hospitals with few speakers to start from a public corpus? Three ways of transfer, and none.

    python -m sottovoce.simulations.transfers --data DIR [--seeds 10] [--out transfers.json]

Public: synthetic voices of the embedded corpus. Target: RAVDESS, of which two hospitals have two speakers each, or six;
all other speakers are only tested. Each seed draws other speakers, other initial weights and another pretraining, the
same for all ways, so that differences are paired. Intervals are Student's, over seeds.

Guarantees:
  - Weights come to the sites as in a real study: through a signed file that the study names by its SHA-256.
  - No setting was chosen by what this prints; tested speakers touch nothing but their own normalisation (transductive).
  - A way that does not help is printed as one that does not.
"""

import argparse
import json
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from sottovoce.client.evaluate import log_probabilities
from sottovoce.common.dataset import SiteData, pool
from sottovoce.common.initial import Initial
from sottovoce.common.keys import SigningKey
from sottovoce.common.models import build
from sottovoce.common.preparation import cache_folder
from sottovoce.common.pretrained import looking_in
from sottovoce.common.progress import OnEvent, show_progress, silent
from sottovoce.common.streams import stream
from sottovoce.common.study import Execution, Study, Synthetic, loads
from sottovoce.common.transfer import start
from sottovoce.server.pretrain import Method, Plan, pretrain
from sottovoce.server.rounds import ALL_SPEAKERS, Cell, run
from sottovoce.simulations.cells import POOLED
from sottovoce.simulations.engines import open_exchange
from sottovoce.simulations.prepare import lay_out, prepare, synthesize_into
from sottovoce.simulations.without_pooling import STUDENT

SCENARIO = Path(__file__).parent / "scenarios" / "transfers.toml"
VOICES = Synthetic(n_speakers=48, utterances_per_emotion=2, seed=11, label_skew=0.0, sex_skew=0.0)
EPOCHS = 15  # on the public corpus
SPEAKERS = (2, 6)  # of each of the two hospitals
MLP = 'kind = "mlp"\nstream = "statistics"\nhidden = 128\ndropout = 0.5'
CNN = 'kind = "cnn"\nstream = "frames"\nchannels = [32, 48]\nstride = 3\ndropout = 0.3'
TESTS: tuple[tuple[str, str, Method], ...] = (
    ("statistics, MLP", MLP, "supervised"),
    ("frames, CNN", CNN, "supervised"),
    ("frames, CNN", CNN, "masked_frames"),
)
WAYS = ("scratch", "model", "feature", "parameter")


@dataclass(frozen=True, kw_only=True)
class Line:
    """One way in one setting: its UAR for each seed, in points."""

    network: str
    pretraining: Method
    n_speakers: int
    way: str
    uar: tuple[float, ...]


def study_text(network: str, way: str, made: Initial | None) -> str:
    """Returns the scenario with another network, and with a transfer."""
    text = SCENARIO.read_text(encoding="utf-8").replace(MLP, network)
    if made is None or way == "scratch":
        return text
    text = text.replace(
        'purpose = "research"', f'purpose = "research"\ninitial_signed_by = "{made.public_key}"'
    )
    return f'{text}\n[transfer]\nkind = "{way}"\ninitial_sha256 = "{made.sha256}"\n'


def lines(
    data: SiteData, voices: Path, seeds: Sequence[int], work: Path, on_event: OnEvent
) -> Iterator[Line]:
    """Yields every way in every setting; `data` are the target's recordings, standardised."""
    for number, (name, network, method) in enumerate(TESTS):
        found: dict[tuple[int, str], list[float]] = {}
        for seed in seeds:
            folder = work / f"{number}-{seed}"
            folder.mkdir()
            plain = loads(study_text(network, "scratch", None))
            made = pretrain(
                plain,
                {"voices": voices},
                key=SigningKey.generate(),
                out=folder / "voices.initial.safetensors",
                signed_by="this script",
                plan=Plan(method=method, n_epochs=EPOCHS, seed=seed),
                on_event=on_event if seed == seeds[0] else silent,
            )
            with looking_in(folder):
                for n_speakers in SPEAKERS:
                    for way, uar in _ways(data, network, made, n_speakers, seed, folder / f"{n_speakers}"):
                        found.setdefault((n_speakers, way), []).append(uar)
        for (n_speakers, way), uars in found.items():
            yield Line(network=name, pretraining=method, n_speakers=2 * n_speakers, way=way, uar=tuple(uars))


def _ways(
    data: SiteData, network: str, made: Initial, n_speakers: int, seed: int, folder: Path
) -> Iterator[tuple[str, float]]:
    speakers = sorted(set(data.speakers))
    drawn = stream(seed, "target speakers").permutation(len(speakers))[: 2 * n_speakers]
    homes = {speakers[place]: f"hospital-{turn % 2}" for turn, place in enumerate(drawn.tolist())}
    where = np.array([homes.get(speaker, "") for speaker in data.speakers])
    sites = {}
    for home in ("hospital-0", "hospital-1"):
        pool(folder / home, site=home, parts=[replace(data.select(where == home), site=home)])
        sites[home] = folder / home
    for way in WAYS:
        file = folder / f"{way}.toml"
        file.write_text(study_text(network, way, made), encoding="utf-8")
        yield way, _uar(loads(file.read_text()), file, sites, data.select(where == ""), seed)


def _uar(study: Study, file: Path, sites: dict[str, Path], tested: SiteData, seed: int) -> float:
    begun = start(study, tested.widths, seed=seed)
    with open_exchange(Execution(), sites, study_file=file) as exchange:
        cell = Cell(seed=seed, fold=ALL_SPEAKERS, arm="federated")
        ended = run(exchange, study, cell=cell, weights=begun.weights)
    model = build(study.model, tested.widths, len(study.labels.classes), seed)
    model.load_state_dict({name: torch.tensor(array) for name, array in ended.weights.items()})
    answers = log_probabilities(model, tested).argmax(axis=1)
    return 100 * float(np.mean([(answers[tested.labels == k] == k).mean() for k in np.unique(tested.labels)]))


HEADER = f"{'network':17} {'pretraining':14} {'speakers':>8} {'way':10} {'UAR':>6}   above scratch (95 %)"


def shown(line: Line, scratch: Sequence[float]) -> str:
    """Returns a line as text: its UAR, and what it is above the line from scratch."""
    gain = "" if line.way == "scratch" else _above(line.uar, scratch)
    setting = f"{line.network:17} {line.pretraining:14} {line.n_speakers:8} {line.way:10}"
    return f"{setting} {np.mean(line.uar):6.1f}   {gain}".rstrip()


def _above(uar: Sequence[float], scratch: Sequence[float]) -> str:
    gain = np.subtract(uar, scratch)
    half = STUDENT[len(gain)] * gain.std(ddof=1) / np.sqrt(len(gain))
    return f"{gain.mean():+5.1f}   [{gain.mean() - half:+.1f}, {gain.mean() + half:+.1f}]"


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="RAVDESS")
    parser.add_argument("--seeds", type=int, default=10, choices=sorted(STUDENT))
    parser.add_argument("--out", type=Path, help="Also as JSON.")
    said = parser.parse_args()
    torch.set_num_threads(1)
    with show_progress(quiet=False) as on_event, tempfile.TemporaryDirectory() as folder:
        voices = synthesize_into(
            VOICES, cache_folder() / "voices" / "transfers", workers=1, on_event=on_event
        )
        study = loads(SCENARIO.read_text(encoding="utf-8"))
        prepared = prepare(study, {"": said.data}, workers=1, on_event=on_event).prepared
        lay_out(study, prepared, Path(folder) / "target", on_event)
        data = SiteData.open(Path(folder) / "target" / POOLED)
        found, scratch = list[Line](), tuple[float, ...]()
        print(HEADER)
        for line in lines(data, voices, range(said.seeds), Path(folder), on_event):
            scratch = line.uar if line.way == "scratch" else scratch
            print(shown(line, scratch), flush=True)
            found.append(line)
    if said.out:
        said.out.write_text(json.dumps([line.__dict__ for line in found], indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
