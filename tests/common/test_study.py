"""A study file: every problem at once, one digest for what decides a result."""

from pathlib import Path

import pytest

from sottovoce.common.errors import StudyError
from sottovoce.common.privacy_specs import LocalPrivacy
from sottovoce.common.study import MAX_STUDY_BYTES, Execution, Study, load, loads

SCENARIOS = sorted((Path(__file__).parents[2] / "simulations" / "scenarios").glob("*.toml"))

GOOD = """
format = 1
name = "small"
purpose = "research"
corpora = [{ name = "voices" }]
labels = { classes = ["neutral", "happy"] }
streams = [{ name = "mel", parts = [{ kind = "log_mel" }] }]
normalisation = { scheme = "speaker" }
model = { kind = "cnn", stream = "mel" }
training = { learning_rate = 0.001 }
federation = { n_sites = 3, rounds = 2, partition = { kind = "speaker_blocks" } }
privacy = { mode = "none" }
evaluation = { folds = { kind = "by_speaker" } }
"""


def problems_of(text: str) -> tuple[str, ...]:
    with pytest.raises(StudyError) as caught:
        loads(text)
    return caught.value.problems


def test_digest_ignores_comments_order_and_written_defaults() -> None:
    lines = GOOD.strip().splitlines()
    other = "# a comment\n" + "\n".join(reversed(lines)) + "\naudio = { sample_rate_hz = 16000 }\n"
    assert loads(other).digest() == loads(GOOD).digest()


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("rounds = 2", "rounds = 3"),
        ("0.001", "0.0011"),
        ('"speaker" }', '"constants" }'),
        ('name = "small"', 'name = "smaller"'),
        ('purpose = "research"', 'purpose = "medical"'),
    ],
)
def test_a_changed_constant_changes_the_digest(old: str, new: str) -> None:
    assert old in GOOD
    assert loads(GOOD.replace(old, new)).digest() != loads(GOOD).digest()


def test_what_changes_only_speed_is_not_part_of_a_study() -> None:
    assert not set(Execution.__dataclass_fields__) & set(Study.__dataclass_fields__)
    assert problems_of(GOOD + "workers = 2\n")[0].startswith("workers: unknown key")


def test_privacy_mode_is_required() -> None:
    (problem,) = problems_of(GOOD.replace('privacy = { mode = "none" }', "privacy = {}"))
    assert problem.startswith("privacy.mode: expected one of none, local, distributed; came nothing.")


def test_an_unknown_mode_is_one_clear_error() -> None:
    (problem,) = problems_of(GOOD.replace('"none"', '"gauss"'))
    assert problem == "privacy.mode: expected one of none, local, distributed; came 'gauss'."


LOCAL = """{ mode = "local", clip_norm = 1.0, noise_multiplier = 1.0, sampling_prob = 0.1, n_patients_public = 2000, \
expected_patients = 200.0, steps_per_round = 10, delta = 1e-5 }"""
PRIVATE = GOOD.replace('{ mode = "none" }', LOCAL).replace('"by_speaker"', '"by_patient_hash"')


def test_a_private_study_is_read_with_all_of_its_constants() -> None:
    spec = loads(PRIVATE).privacy
    assert isinstance(spec, LocalPrivacy)
    assert (spec.clip_norm, spec.steps_per_round, spec.spare_rounds) == (1.0, 10, 1)


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ('"by_patient_hash"', '"by_speaker"', "evaluation.folds: expected kind 'by_patient_hash' or 'named'"),
        ("delta = 1e-5", "delta = 1e-3", "privacy.delta: expected less than n_patients_public^-1.1"),
        (
            "clip_norm = 1.0,",
            'clip_norm = 1.0, unit = "utterance",',
            "normalisation.scheme: expected 'constants'",
        ),
        ("0.001 }", "0.001, augmentation = { copies = 1 } }", "training.augmentation: expected none"),
        ('purpose = "research"', 'purpose = "workplace"', "purpose: 'workplace' is prohibited"),
    ],
)
def test_a_private_study_that_lets_one_patient_change_more_is_refused(
    old: str, new: str, expected: str
) -> None:
    assert old in PRIVATE
    assert [p for p in problems_of(PRIVATE.replace(old, new)) if p.startswith(expected)]


def test_a_banned_purpose_with_a_medical_reference_is_read() -> None:
    text = GOOD.replace(
        'purpose = "research"', 'purpose = "workplace"\npurpose_reference = "medical: CE 0123"'
    )
    assert loads(text).purpose_reference == "medical: CE 0123"


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ('"neutral", "happy"', '"neutral", "neutral"', "labels.classes: 'neutral' is there twice"),
        ('"neutral", "happy"', '"neutral", "glad"', "labels.classes: expected one of neutral"),
        ('stream = "mel"', 'stream = "mal"', "model: cnn expects a stream of mel; came 'mal'"),
        ('"cnn"', '"mlp"', "model: mlp expects a stream with pooling = 'statistics'"),
        ("rounds = 2", "rounds = 2, quorum = 4", "federation.quorum: expected at most n_sites=3; came 4"),
        (
            "rounds = 2",
            "rounds = 2, site_weights = [1.0]",
            "federation.site_weights: expected n_sites=3 weights",
        ),
        (
            '[{ name = "voices" }]',
            '[{ name = "voices" }, { name = "voices" }]',
            "corpora: expected different names; twice: voices",
        ),
        ('"cnn"', '"attention", width = 30', "model: expected width to be a multiple of heads=4; came 30"),
        (
            '"by_speaker" }',
            '"by_speaker", k = 2 }, only_folds = [2]',
            "evaluation.only_folds: expected folds below k=2",
        ),
        (
            '"by_speaker" }',
            '"by_speaker" }, baselines = ["svm"]',
            "evaluation.baseline_stream: baselines expect",
        ),
    ],
)
def test_impossible_combinations_are_named(old: str, new: str, expected: str) -> None:
    assert old in GOOD
    assert any(problem.startswith(expected) for problem in problems_of(GOOD.replace(old, new)))


def test_problems_of_different_kinds_come_together() -> None:
    bad = GOOD.replace("rounds = 2", "rounds = 0").replace('"cnn"', '"cn"') + "colour = 1\n"
    assert len(problems_of(bad)) == 3


def test_a_file_that_is_no_study_is_an_error_not_a_crash(tmp_path: Path) -> None:
    for name, content in {
        "binary": b"\xff\xfe\x00",
        "not toml": b"[[[",
        "deep": b"x = " + b"[" * 5000 + b"]" * 5000,
        "huge": b"#" * (MAX_STUDY_BYTES + 1),
        "empty": b"",
    }.items():
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(StudyError):
            load(path)
    for path in (tmp_path / "absent", tmp_path):
        with pytest.raises(StudyError, match="cannot be read"):
            load(path)


@pytest.mark.parametrize("path", SCENARIOS, ids=lambda path: path.stem)
def test_every_scenario_is_a_study_that_can_run(path: Path) -> None:
    study = load(path)
    assert study.name == path.stem


DISTRIBUTED = """{ mode = "distributed", clip_norm = 1.0, noise_multiplier = 4.0, sampling_prob = 1.0, \
n_patients_public = 200, expected_patients = 160.0, n_parameters = 136, n_min = 4, n_colluding = 1, delta = 1e-5 }"""


def a_distributed_study(**changes: str) -> str:
    text = PRIVATE.replace(LOCAL, DISTRIBUTED).replace("learning_rate", 'optimiser = "sgd", learning_rate')
    text = text.replace("n_sites = 3", "n_sites = 5")
    for old, new in changes.items():
        text = text.replace(old, new)
    return text


def test_a_distributed_study_has_secure_sums_whatever_else_it_says() -> None:
    study = loads(a_distributed_study())
    assert study.sums_are_secure
    (problem,) = problems_of(a_distributed_study().replace("rounds = 2", "rounds = 2, secure_sum = false"))
    assert problem.startswith("federation.secure_sum: expected true in mode 'distributed'")


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ('optimiser = "sgd"', 'optimiser = "adam"', "training.optimiser: expected 'sgd'"),
        ("rounds = 2", "rounds = 2, sites_per_round = 4", "federation: expected no sites_per_round"),
        (
            "rounds = 2",
            "rounds = 2, site_weights = [1.0, 1.0, 2.0, 1.0, 1.0]",
            "federation: expected no sites_per_round and no site_weights",
        ),
        (
            "n_min = 4",
            "n_min = 6",
            "privacy.n_min, n_colluding: expected 1 <= n_colluding < n_min <= n_sites=5",
        ),
        ("n_colluding = 1", "n_colluding = 4", "privacy.n_min, n_colluding: expected"),
        ("n_colluding = 1", "n_colluding = 3", "privacy.n_colluding: expected at most 2, what masks"),
        (
            "delta = 1e-5",
            "delta = 6e-4",
            "privacy.delta: expected less than (all sites' patients)^-1.1 = 0.000501",
        ),
        ("clip_norm = 1.0", "clip_norm = 1.0, grid = 1e-9", "privacy: Expected sums that 32 bits hold"),
        (
            "rounds = 2",
            "rounds = 2, compression = { bits = 16, norm = 1.0 }",
            "federation.compression: expected none in mode 'distributed'",
        ),
    ],
)
def test_constants_that_no_distributed_study_can_have(old: str, new: str, expected: str) -> None:
    assert any(problem.startswith(expected) for problem in problems_of(a_distributed_study(**{old: new})))


def test_secure_sums_are_on_where_something_is_promised_and_sites_are_enough() -> None:
    assert not loads(GOOD).sums_are_secure
    assert loads(GOOD.replace("rounds = 2", "rounds = 2, secure_sum = true")).sums_are_secure
    assert loads(PRIVATE).sums_are_secure
    assert not loads(PRIVATE.replace("n_sites = 3", "n_sites = 2")).sums_are_secure
    (problem,) = problems_of(
        GOOD.replace("n_sites = 3", "n_sites = 2").replace("rounds = 2", "rounds = 2, secure_sum = true")
    )
    assert problem.startswith("federation.secure_sum: expected 3 sites or more in a round, and 50 or fewer")


@pytest.mark.parametrize("sign", ["\\u001b[2J", "\\u0007", "\\r", "\\u202e"])
def test_a_study_holds_no_sign_that_a_terminal_obeys(sign: str) -> None:
    text = GOOD.replace('name = "', f'name = "{sign}', 1)
    assert text != GOOD
    with pytest.raises(StudyError, match="can be printed"):
        loads(text)
