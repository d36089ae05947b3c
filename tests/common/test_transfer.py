"""Claims about what a study takes from its initial file: all of it as it is, or nothing."""

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from sottovoce.common.errors import StudyError, WeightsError
from sottovoce.common.initial import Initial
from sottovoce.common.keys import SigningKey
from sottovoce.common.models import build
from sottovoce.common.pretrained import VARIABLE
from sottovoce.common.study import Study, load, loads
from sottovoce.common.transfer import facts_of, feature_digests, in_words, initial_of, public_figures, start
from sottovoce.common.weights import from_state_dict
from tests.fakes.initials import KEY, initial_for
from tests.fakes.sites import LINEAR, N_CLASSES, write_study
from tests.fakes.transfers import FEATURE, PARAMETER, bound

WIDTHS = {"pooled": 80}
CLASSES = ("happy", "sad", "angry")
BODY = ("encoder.hidden.weight", "encoder.hidden.bias")
HEAD = ("head.weight", "head.bias")


@pytest.fixture
def made(tmp_path: Path) -> Iterator[Initial]:
    study = load(write_study(tmp_path / "plain.toml", n_sites=2))
    with initial_for(study, tmp_path / "weights", widths=WIDTHS) as file:
        yield file


@pytest.fixture
def reducing(tmp_path: Path) -> Iterator[Initial]:
    study = load(write_study(tmp_path / "plain.toml", n_sites=2))
    with initial_for(study, tmp_path / "weights", widths=WIDTHS, columns=5) as file:
        yield file


def seeds(study: Study, widths: dict[str, int], seed: int) -> dict[str, np.ndarray]:
    return from_state_dict(build(study.model, widths, N_CLASSES, seed).state_dict())


def test_a_warm_start_has_the_files_weights_to_the_bit(made: Initial, tmp_path: Path) -> None:
    study = load(bound(tmp_path / "study.toml", made))
    begun = start(study, WIDTHS, seed=0)
    assert begun.taken == (*BODY, *HEAD)
    assert begun.fresh == ()
    assert all(begun.weights[name].tobytes() == made.weights[name].tobytes() for name in begun.weights)
    assert list(begun.weights) == list(seeds(study, WIDTHS, 0))
    begun.weights["head.bias"][0] = 9.0  # nobody's change reaches the file
    assert made.weights["head.bias"][0] != 9.0


def test_a_study_without_a_file_starts_from_its_seed_to_the_bit(tmp_path: Path) -> None:
    study = load(write_study(tmp_path / "study.toml", n_sites=2))
    begun, wanted = start(study, WIDTHS, seed=3), seeds(study, WIDTHS, 3)
    assert all(begun.weights[name].tobytes() == wanted[name].tobytes() for name in wanted)
    assert (begun.taken, begun.fresh, facts_of(study)) == ((), (), None)
    assert public_figures(study) == (study.normalisation, {})


def test_what_does_not_fit_starts_from_the_seed_and_is_said(made: Initial, tmp_path: Path) -> None:
    wider = load(
        bound(
            tmp_path / "study.toml",
            made,
            model='{ kind = "fusion", level = "feature", width = 4, branches = [\n'
            '{ kind = "mlp", stream = "pooled", hidden = 5 }, { kind = "mlp", stream = "pooled", hidden = 6 } ] }',
        )
    )
    with pytest.raises(WeightsError, match="none of the 4 tensors fits"):
        start(wider, WIDTHS, seed=0)


def test_a_head_that_tells_other_classes_is_never_taken(tmp_path: Path) -> None:
    study = load(write_study(tmp_path / "plain.toml", n_sites=2))
    with initial_for(
        study, tmp_path / "weights", widths=WIDTHS, classes=("sad", "happy", "angry")
    ) as made:  # as many, in another order
        other = load(bound(tmp_path / "study.toml", made))
        begun = start(other, WIDTHS, seed=1)
        facts = facts_of(other)
    wanted = seeds(other, WIDTHS, 1)
    assert (begun.taken, begun.fresh) == (BODY, HEAD)
    assert all(begun.weights[name].tobytes() == wanted[name].tobytes() for name in HEAD)
    assert facts is not None
    assert (facts.taken, facts.fresh) == (BODY, HEAD)
    said = " ".join(in_words(facts))
    assert "Public Voices Ltd" in said
    assert "voices (manifest abababab" in said
    assert "2 from the seed: head.weight, head.bias" in said


def test_a_feature_transfer_may_want_its_head_fresh(made: Initial, tmp_path: Path) -> None:
    begun = start(load(bound(tmp_path / "study.toml", made, f'{FEATURE}, head = "fresh"')), WIDTHS, seed=1)
    assert (begun.taken, begun.fresh) == (BODY, HEAD)


def test_figures_and_reductions_are_the_files_to_the_bit(reducing: Initial, tmp_path: Path) -> None:
    text = bound(tmp_path / "study.toml", reducing, model=LINEAR).read_text()
    text = text.replace(
        '{ scheme = "constants" }', f'{{ scheme = "constants", from_initial = "{reducing.sha256}" }}'
    ).replace('"mfcc" }]', f'"mfcc" }}], reduction = {{ sha256 = "{reducing.sha256}", columns = 3 }}')
    study = replace(loads(text), transfer=None)
    figures, maps = public_figures(study)
    assert figures.from_initial is None
    assert figures.mean["pooled"] == tuple(reducing.mean["pooled"].tolist())
    assert figures.deviation["pooled"] == tuple(reducing.deviation["pooled"].tolist())
    assert maps["pooled"].tobytes() == np.ascontiguousarray(reducing.reduction["pooled"][:, :3]).tobytes()
    too_many = loads(text.replace("columns = 3", "columns = 6"))
    with pytest.raises(WeightsError, match="expected at most 5; came 6"):
        public_figures(too_many)


def test_figures_of_other_features_are_refused(made: Initial, tmp_path: Path) -> None:
    text = bound(tmp_path / "study.toml", made).read_text()
    assert initial_of(loads(text)) is not None
    for other in (
        text.replace('"mfcc" }]', '"mfcc", n_mels = 40 }]'),
        text + "audio = { pre_emphasis = 0.9 }\n",
        text + "frames = { hop_seconds = 0.02 }\n",
    ):
        with pytest.raises(WeightsError, match="the same parts, frames and audio"):
            initial_of(loads(other))
    longer = text + "audio = { clip_seconds = 9.0 }\n"  # how much a model hears changes no figure's meaning
    assert feature_digests(loads(longer)) == feature_digests(loads(text))


def test_a_file_that_another_key_signed_or_that_is_not_here_is_refused(
    made: Initial, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = load(bound(tmp_path / "study.toml", made))
    with pytest.raises(WeightsError, match="signed by the key"):
        initial_of(replace(study, initial_signed_by=SigningKey.generate().public_hex))
    file = tmp_path / "weights" / "made.initial.safetensors"
    shutil.copyfile(file, tmp_path / "kept")
    file.write_bytes(file.read_bytes()[:-1] + b"\x01")
    with pytest.raises(WeightsError, match="it is in none"):
        initial_of(study)
    monkeypatch.delenv(VARIABLE)
    with pytest.raises(WeightsError, match="weights/ in its home"):
        initial_of(study)


SIGNED = f'initial_signed_by = "{KEY.public_hex}"\n'
SHA, OTHER = "1a" * 32, "2b" * 32
PLAIN = '{ scheme = "constants" }'


@pytest.mark.parametrize(
    ("old", "new", "more", "expected"),
    [
        (PLAIN, f'{{ scheme = "constants", from_initial = "{SHA}" }}', "", "initial_signed_by: missing"),
        ("", "", SIGNED, "the study names none"),
        (
            PLAIN,
            f'{{ scheme = "constants", from_initial = "{SHA}" }}',
            f'{SIGNED}transfer = {{ kind = "model", initial_sha256 = "{OTHER}" }}\n',
            "expected one initial file",
        ),
        (PLAIN, f'{{ scheme = "constants", from_initial = "{"Z" * 64}" }}', SIGNED, "hexadecimal"),
        (PLAIN, f'{{ scheme = "utterance", from_initial = "{SHA}" }}', SIGNED, "no public figures"),
        (
            PLAIN,
            f'{{ scheme = "constants", from_initial = "{SHA}", mean = {{ pooled = [0.0] }} }}',
            SIGNED,
            "no mean and no deviation",
        ),
        ("", "", f'{SIGNED}transfer = {{ {FEATURE}, initial_sha256 = "{SHA}" }}\nLINEAR', "all head"),
        ("", "", f'{SIGNED}transfer = {{ {FEATURE}, initial_sha256 = "{SHA}" }}\nLOCAL', "trained = 'head'"),
        ("", "", f'{SIGNED}transfer = {{ {PARAMETER}, initial_sha256 = "{SHA}" }}\nLINEAR', "Take 'model'"),
        (
            "",
            "",
            f'{SIGNED}transfer = {{ {FEATURE}, initial_sha256 = "{SHA}" }}\nPERSONAL',
            "all of its parts",
        ),
        ("", "", f'{SIGNED}transfer = {{ {PARAMETER}, initial_sha256 = "{SHA}" }}\nPERSONAL', "one rate"),
        ("", "", f'{SIGNED}transfer = {{ {PARAMETER}, initial_sha256 = "{SHA}" }}\nHEAD', "trained = 'all'"),
        (
            "",
            "",
            f'{SIGNED}transfer = {{ {FEATURE}, initial_sha256 = "{SHA}" }}\nSHARES',
            "'distributed' all",
        ),
    ],
    ids=lambda value: value if value.isprintable() and len(value) < 40 else "study",
)
def test_what_cannot_be_together_is_refused(
    tmp_path: Path, old: str, new: str, more: str, expected: str
) -> None:
    from tests.fakes.sites import DISTRIBUTED, LOCAL, SGD

    kind = more.rsplit("\n", 1)[-1]
    changes: dict[str, str] = {"LINEAR": {"model": LINEAR}}.get(kind, {})
    if kind == "PERSONAL":
        changes = {"federation": 'personalisation = { kind = "fine_tuning" }'}
    if kind in ("LOCAL", "HEAD"):
        trained = ', trained = "head" }' if kind == "HEAD" else " }"
        changes = {"privacy": LOCAL.replace(" }", trained), "training": SGD}
    if kind == "SHARES":
        changes = {"privacy": DISTRIBUTED, "training": SGD, "model": LINEAR}
    text = write_study(tmp_path / "s.toml", n_sites=3, **changes).read_text()  # type: ignore[arg-type]
    text = text.replace(old, new) if old else text
    with pytest.raises(StudyError, match=expected):
        loads(text + more.removesuffix(kind))
