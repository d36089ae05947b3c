"""The order of stages is in the types: a wrong order does not type-check, and each stage has one maker."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
PLANTED = ROOT / "simulations" / "bench" / "audit.py"  # breaks the rules on purpose, for the audit to find
MADE_IN = {
    "ClippedPatientGradients": {"clip.py"},
    "QuantisedSum": {"clip.py"},
    "NoisySum": {"noise.py"},
    "PrivateUpdate": {"plan.py", "distributed.py"},
    "SiteSum": {"distributed.py"},
    "MaskedUpdate": {"distributed.py"},
}
RIGHT = """
from sottovoce.common.privacy.clip import clip, quantised_sum
from sottovoce.common.privacy.noise import add_noise
from sottovoce.common.privacy.distributed import DistributedMechanism, masked, site_sum
from sottovoce.common.privacy.source import SecretSource
from sottovoce.common.privacy.stages import *

def send(update: PrivateUpdate) -> None: ...

def steps(gradients: PatientGradients) -> NoisySum:
    return add_noise(quantised_sum(clip(gradients, 1.0), 2**-20), 1.0, SecretSource())

def send_masked(update: MaskedUpdate) -> None: ...

def masks(gradients: PatientGradients, mechanism: DistributedMechanism) -> None:
    send_masked(masked(site_sum(gradients, mechanism, SecretSource()), lambda values: values.tobytes()))
"""
WRONG = [
    "def w(g: PatientGradients) -> None: quantised_sum(g, 1.0)",
    "def w(g: PatientGradients) -> None: send(g)",
    "def w(g: ClippedPatientGradients) -> None: add_noise(g, 1.0, SecretSource())",
    "def w(g: QuantisedSum) -> None: send(g)",
    "def w(g: NoisySum) -> None: send(g)",
    "def w(g: PrivateUpdate) -> None: clip(g, 1.0)",
    "def w(g: SiteSum) -> None: send_masked(g)",
    "def w(g: SiteSum) -> None: send(g)",
    "def w(g: NoisySum) -> None: masked(g, lambda values: values.tobytes())",
    "def w(g: QuantisedSum) -> None: masked(g, lambda values: values.tobytes())",
]


@pytest.fixture(scope="module")
def complaints(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What mypy says of the right order, and then of each wrong one, in one run."""
    folder = tmp_path_factory.mktemp("types")
    (folder / "sottovoce").mkdir()
    for part in ("common", "client", "server"):
        (folder / "sottovoce" / part).symlink_to(ROOT / part)
    wrong = [text.replace("def w", f"def w{number}") for number, text in enumerate(WRONG)]
    (folder / "snippet.py").write_text(RIGHT + "\n".join(wrong) + "\n")
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--config-file", "", "--follow-imports=silent", "--ignore-missing-imports",
         "--cache-dir", str(ROOT / ".mypy_cache" / "stages"), "snippet.py"],
        cwd=folder, capture_output=True, text=True, env={"MYPYPATH": str(folder), "PATH": ""}, check=False,
    )  # fmt: skip
    return done.stdout + done.stderr


def test_every_wrong_order_is_refused_by_the_type_checker(complaints: str) -> None:
    first_wrong = RIGHT.count("\n") + 1
    lines = {int(line.split(":")[1]) for line in complaints.splitlines() if "[arg-type]" in line}
    assert lines == set(range(first_wrong, first_wrong + len(WRONG))), complaints


def test_each_stage_is_made_in_one_place() -> None:
    for folder in ("common", "client", "server", "simulations"):
        for path in (ROOT / folder).rglob("*.py"):
            calls = {
                node.func.id
                for node in ast.walk(ast.parse(path.read_text()))
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
            }
            if path == PLANTED:
                continue
            for stage in calls & set(MADE_IN):
                assert path.name in MADE_IN[stage], f"{path} makes a {stage}"
