"""A small corpus of three hospitals, the folder that each of them has of it, and hospitals to prepare it.

whole = write_corpus(tmp_path / "whole")             # manifest.csv with a column `site`
part = own_part(whole, "north", tmp_path / "north")  # the same relative paths, this site's rows alone
hospital = open_hospital(tmp_path / "h", "north", data=part)
offer(hospital, study_text())
"""

import csv
import shutil
from pathlib import Path

import numpy as np
import soundfile

from sottovoce.client.home import Hospital
from sottovoce.common.files import write_whole
from sottovoce.common.study import Study, loads

SITES = ("east", "north", "west")
LABELS = ("happy", "sad", "angry")
RATE = 8000
STUDY = """
format = 1
name = "wards"
purpose = "medical"
corpora = [{{ name = "wards"{corpus} }}]
labels = {{ classes = ["happy", "sad", "angry"] }}
normalisation = {{ scheme = "speaker" }}
model = {{ kind = "mlp", stream = "statistics", hidden = 4 }}
federation = {{ n_sites = {n_sites}, rounds = 2, partition = {partition} }}
privacy = {privacy}
evaluation = {{ folds = {{ kind = "by_patient_hash", k = 2 }}, every_rounds = 1 }}
audio = {{ clip_seconds = 0.3, sample_rate_hz = 8000, on_bad_recording = "{bad}" }}
streams = [
  {{ name = "frames", parts = [{{ kind = "log_mel", n_mels = 8 }}] }},
  {{ name = "statistics", parts = [{{ kind = "mfcc" }}], pooling = "statistics" }},
]

[training]
learning_rate = 0.1
augmentation = {{ noise_prob = {noise}, copies = {copies} }}
"""
NONE = '{ mode = "none" }'


def study_text(
    *,
    partition: str = '{ kind = "corpus_sites" }',
    n_sites: int = 3,
    privacy: str = NONE,
    bad: str = "stop",
    corpus: str = "",
    copies: int = 0,
) -> str:
    """Returns a study for the three hospitals."""
    return STUDY.format(
        partition=partition,
        n_sites=n_sites,
        privacy=privacy,
        bad=bad,
        corpus=corpus,
        copies=copies,
        noise=1.0 if copies else 0.0,
    )


def write_corpus(root: Path) -> Path:
    """Writes two speakers a hospital, each with two takes of each label, and the manifest."""
    rows = []
    for number, (site, speaker) in enumerate((site, n) for site in SITES for n in (1, 2)):
        for take, label in enumerate((*LABELS, *LABELS)):
            file = f"ward-{number % 2}/{site}-{speaker}-{take}.wav"
            _record(root / file, seed=10 * number + take)
            rows.append({"path": file, "label": label, "speaker": f"{site}-{speaker}", "site": site})
    _write_manifest(root, rows)
    return root


def own_part(whole: Path, site: str, out: Path, *, column: bool = True) -> Path:
    """Copies one site's recordings, under the same relative paths, with a manifest of its own."""
    rows = [row for row in rows_of(whole) if row["site"] == site]
    for row in rows:
        (out / row["path"]).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(whole / row["path"], out / row["path"])
    _write_manifest(
        out, [{key: value for key, value in row.items() if column or key != "site"} for row in rows]
    )
    return out


def rows_of(folder: Path) -> list[dict[str, str]]:
    """Reads a manifest."""
    with (folder / "manifest.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def open_hospital(folder: Path, site: str, *, data: Path | None, more: str = "") -> Hospital:
    """Makes a hospital's folder."""
    data_table = f'data = {{ wards = "{data}" }}' if data else ""
    return Hospital.create(folder, f'format = 1\nsite = "{site}"\n{data_table}\n{more}\n')


def offer(hospital: Hospital, text: str) -> Study:
    """Puts a study where an offer lies."""
    study = loads(text)
    folder = hospital.study_folder(study.digest())
    folder.mkdir(parents=True)
    write_whole(folder / "study.toml", text.encode())
    return study


def _record(path: Path, *, seed: int) -> None:
    draw = np.random.default_rng(seed)
    seconds = 0.25 + 0.2 * draw.random()  # some shorter than a clip, some longer
    time = np.arange(round(seconds * RATE)) / RATE
    tone = np.sin(2 * np.pi * (120 + 200 * draw.random()) * time) + 0.1 * draw.normal(size=len(time))
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, 0.3 * tone, RATE)


def _write_manifest(folder: Path, rows: list[dict[str, str]]) -> None:
    with (folder / "manifest.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
