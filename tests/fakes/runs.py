"""Run folders as a real study leaves them, from a random but plausible model of speakers and answers."""

import itertools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sottovoce.common import predictions, run_files, study, summarise, summary
from sottovoce.common.folds import fold_of, leaking_random_fold
from sottovoce.common.predictions import LEAKS, Prediction
from sottovoce.common.run_files import (
    CellFacts,
    CorpusFacts,
    Machine,
    Refused,
    RoundFacts,
    RunFacts,
    SiteFacts,
    Skipped,
)
from sottovoce.common.streams import stream

CLASSES = ("neutral", "calm", "happy", "sad", "angry", "fearful", "disgust", "surprised")
# How often an answer is right, per class, and the class it is mistaken for most.
_EASE = (0.0, 0.5, -0.4, -0.6, 0.7, -0.2, 0.1, 0.3)
_LIKE = (1, 0, 7, 1, 6, 3, 4, 2)

STUDY = """
format = 1
name = {name}
purpose = "research"
corpora = [{{ name = "ravdess", adapter = "ravdess" }}]
[labels]
classes = ["neutral", "calm", "happy", "sad", "angry", "fearful", "disgust", "surprised"]
[[streams]]
name = "pooled"
pooling = "statistics"
parts = [{{ kind = "mfcc" }}]
[normalisation]
scheme = "speaker"
[model]
kind = "mlp"
stream = "pooled"
[training]
learning_rate = 0.01
[federation]
n_sites = {n_sites}
rounds = 40
partition = {{ kind = "speaker_blocks" }}
[privacy]
mode = "none"
[evaluation]
folds = {{ kind = "by_speaker", k = {k} }}
seeds = {seeds}
bootstrap_samples = 500
"""


@dataclass(frozen=True, kw_only=True)
class FakeRun:
    """What kind of run to make up. `skill` is the logit by which the right class stands out, per arm."""

    name: str = "RAVDESS, six hospitals"
    n_speakers: int = 24
    n_sites: int = 6
    k: int = 5
    seeds: tuple[int, ...] = (0, 1)
    repetitions: int = 4
    skill: tuple[tuple[str, float], ...] = (
        ("federated", 2.0),
        ("central", 2.05),
        ("local", 1.1),
        ("svm", 1.85),
        ("federated" + LEAKS, 3.2),
    )


def study_of(run: FakeRun) -> study.Study:
    """Returns the study that the run pretends to be of."""
    return study.loads(study_text(run))


def study_text(run: FakeRun) -> str:
    """Returns the study as TOML."""
    name = json.dumps(run.name)
    return STUDY.format(name=name, n_sites=run.n_sites, k=run.k, seeds=list(run.seeds))


def predictions_of(run: FakeRun) -> list[Prediction]:
    """Returns one answer per recording, seed and arm; speakers differ in how well they are understood."""
    return [row for seed in run.seeds for arm, skill in run.skill for row in _answers(run, seed, arm, skill)]


def write_run(folder: Path, run: FakeRun) -> Path:
    """Writes all files of a finished run, except for checkpoints."""
    folder.mkdir(parents=True, exist_ok=True)
    spec, rows = study_of(run), predictions_of(run)
    (folder / "study.toml").write_text(study_text(run), encoding="utf-8")
    predictions.write(folder / "predictions.jsonl", rows)
    summary.write(folder / "metrics.json", summarise.summarise(rows, spec))
    (folder / "rounds.jsonl").write_text("".join(map(run_files.round_line, rounds_of(run))), encoding="utf-8")
    run_files.write_run(folder / "run.json", run_facts(run))
    return folder


def rounds_of(run: FakeRun, rounds: int = 40) -> list[RoundFacts]:
    """Returns rounds.jsonl: loss falls, recall on withheld speakers rises and levels off."""
    lines: list[RoundFacts] = []
    for seed, fold in itertools.product(run.seeds, range(run.k)):
        for arm, skill in run.skill:
            if arm in ("federated", "central", "local"):
                random = stream(seed, "fake rounds", fold, arm)
                for at in range(1, rounds + 1):
                    where = {"seed": seed, "fold": fold, "arm": arm, "round": at}
                    lines.append(_round(run, random, skill, at / rounds, where))
    return lines


def run_facts(run: FakeRun) -> RunFacts:
    """Returns run.json."""
    names = [f"site-{site + 1}" for site in range(run.n_sites)]
    clips = run.repetitions * len(CLASSES)
    cells = itertools.product(run.seeds, range(run.k))
    return RunFacts(
        format=1,
        name="demo",
        study_digest=study_of(run).digest(),
        started="2026-11-22T09:00:00+00:00",
        ended="2026-11-22T09:41:10+00:00",
        engine="processes",
        workers=2,
        device="cpu",
        n_parameters=46_848,
        versions={"sottovoce": "0.1.0", "python": "3.11.9", "torch": "2.13.0", "flwr": "1.41.0"},
        machine=Machine(system="Linux x86_64", cores=2, memory_bytes=8_000_000_000, cpu_capability="AVX2"),
        corpora=(
            CorpusFacts(
                name="ravdess",
                adapter="ravdess",
                manifest_sha256="5e" * 32,
                n_utterances=run.n_speakers * clips,
                n_speakers=run.n_speakers,
                losses=("intensity (normal, strong) is not kept",),
            ),
        ),
        sites=tuple(
            SiteFacts(
                site=site,
                n_speakers=run.n_speakers // run.n_sites,
                n_utterances=run.n_speakers // run.n_sites * clips,
                labels=dict.fromkeys(CLASSES, run.n_speakers // run.n_sites * run.repetitions),
            )
            for site in names
        ),
        skipped=(
            Skipped(recording="Actor_07/03-01-02-01-01-01-07.flac", reason="the file ends after 1,024 bytes"),
        ),
        cells=tuple(
            CellFacts(
                seed=seed, fold=fold, arm="federated", seconds=61.5, weights_sha256=f"{seed}{fold}" * 32
            )
            for seed, fold in cells
        ),
    )


def _answers(run: FakeRun, seed: int, arm: str, skill: float) -> list[Prediction]:
    speakers = [f"{number + 1:02d}" for number in range(run.n_speakers)]
    truth = [label for label in range(len(CLASSES)) for _ in range(run.repetitions)]
    folds: dict[str, int] = {}
    for site in range(run.n_sites):
        own = [speaker for index, speaker in enumerate(speakers) if _site(run, index) == f"site-{site + 1}"]
        folds |= fold_of(study_of(run).evaluation.folds, seed, f"site-{site + 1}", own)
    rows = []
    for index, speaker in enumerate(speakers):
        habit = stream(0, "fake speaker", speaker).normal(0.0, 0.5)  # the same voice is hard for every arm
        random = stream(seed, "fake answers", arm, speaker)
        logits = random.normal(size=(len(truth), len(CLASSES)))
        for row, label in enumerate(truth):
            logits[row, label] += skill + habit + _EASE[label]
            logits[row, _LIKE[label]] += 0.9
        log_probs = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
        random_folds = leaking_random_fold(seed=seed, site=speaker, labels=truth, k=run.k)
        rows += [
            Prediction(
                seed=seed,
                fold=int(random_folds[clip]) if predictions.leaks(arm) else folds[speaker],
                arm=arm,
                utterance=f"Actor_{speaker}/{clip:03d}.flac",
                speaker=speaker,
                site=_site(run, index),
                groups={"sex": "male" if index % 2 == 0 else "female", "age": str(21 + index % 13)},
                truth=label,
                log_probs=tuple(log_probs[clip].tolist()),
            )
            for clip, label in enumerate(truth)
        ]
    return rows


def _site(run: FakeRun, index: int) -> str:
    return f"site-{index * run.n_sites // run.n_speakers + 1}"


def _round(
    run: FakeRun, random: np.random.Generator, skill: float, progress: float, where: dict[str, Any]
) -> RoundFacts:
    sites = tuple(f"site-{number + 1}" for number in range(run.n_sites))
    learned = 1.0 - float(np.exp(-3.0 * progress))
    refused = Refused(site="site-3", reason="its norm, 1.2e+07, is above max_update_norm = 1e+04")
    refusing = (where["arm"], where["fold"], where["round"]) == ("federated", 2, 17)
    scored = where["round"] % 5 == 0 and where["arm"] != "local"
    return RoundFacts(
        **where,
        loss=2.08 - 0.7 * skill * learned + float(random.normal(0.0, 0.02)),
        sites=sites,
        refused=(refused,) if refusing else (),
        bytes_down=187_392 * len(sites),
        bytes_up=187_392 * len(sites),
        seconds=0.4,
        confusion=_confusion(random, 0.125 + 0.24 * skill * learned) if scored else None,
    )


def _confusion(
    random: np.random.Generator, share: float, n_per_class: int = 20
) -> tuple[tuple[int, ...], ...]:
    n = len(CLASSES)
    spread = (1.0 - share) / (n - 1)
    chances = [[share if column == row else spread for column in range(n)] for row in range(n)]
    return tuple(tuple(random.multinomial(n_per_class, row).tolist()) for row in chances)
