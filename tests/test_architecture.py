"""The house: who may import whom, which file is the door to which library, what a wheel contains."""

import ast
import functools
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

MAY_IMPORT = {
    "common": {"common"},
    "client": {"client", "common"},
    "server": {"server", "common"},
    "simulations": {"simulations", "server", "client", "common"},
}

# A library's next breaking release costs the files named here, and no others.
DOORS = {
    "flwr": {
        "client/app.py",
        "server/app.py",
        "common/flower.py",
        "simulations/engines/ray.py",
        # a real federation: Flower's fleet protocol at a site, its SuperLink at the coordinator
        "client/fleet.py",
        "client/line.py",
        "common/inflating.py",
        "server/superlink.py",
        # the yardsticks that a grid and a secure sum are measured against are Flower's own
        "simulations/bench/flower_on_ray.py",
        "simulations/bench/flower_secagg.py",
    },
    "opacus": {"client/private/opacus_engine.py", "common/privacy/prv.py"},
    "dp_accounting": {
        "common/privacy/accountant.py",
        # the proofs ask the library itself, to hold our use of it against it
        "simulations/bench/privacy.py",
        "simulations/bench/remembered.py",
    },
    "cryptography": {"common/keys.py", "common/pki.py"},
    "grpc": {
        "common/consortium/channel.py",
        "server/consortium/gate.py",
        "server/consortium/members.py",
        "server/consortium/service.py",
        "server/consortium/studies.py",
        "server/consortium/witnessing.py",
    },
    "httpx": {"client/line.py", "client/doctor.py", "server/coordinator.py", "server/superlink.py"},
    "prometheus_client": {"common/monitoring.py"},
    "librosa": {"common/features.py"},
    "sklearn": {"common/metrics.py", "simulations/baselines.py"},
    "audformat": {"common/corpus/audformat.py"},
    "captum": {"simulations/attributions.py"},
    "numba": {"common/features_loops.py"},
    "espeakng_loader": {"simulations/voices/espeak.py"},
}


@functools.cache
def imports(path: Path) -> tuple[str, ...]:
    return tuple(_found(path))


def _found(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                yield f"relative import in {path.name}"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def modules(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


@pytest.mark.parametrize("folder", MAY_IMPORT)
def test_folders_import_only_downwards(folder: str) -> None:
    assert modules(folder), f"{folder} is empty: this test would prove nothing"
    for path in modules(folder):
        ours = {name.split(".")[1] for name in imports(path) if name.startswith("sottovoce.")}
        assert ours <= MAY_IMPORT[folder], f"{path.relative_to(ROOT)} imports {ours - MAY_IMPORT[folder]}"


@pytest.mark.parametrize("library", DOORS)
def test_a_library_has_one_door(library: str) -> None:
    for folder in MAY_IMPORT:
        for path in modules(folder):
            if library in {name.split(".")[0] for name in imports(path)}:
                assert str(path.relative_to(ROOT)) in DOORS[library], (
                    f"{path} opens a second door to {library}"
                )


def test_parts_of_privacy_meet_in_the_plan_alone() -> None:
    parts = {"clip", "noise", "sampling", "accountant"}
    for path in modules("common/privacy"):
        found = {name for name in imports(path) if name.startswith("sottovoce.common.privacy.")}
        if path.stem in parts:
            assert not {name.split(".")[3] for name in found} & ((parts | {"plan"}) - {path.stem}), path
        assert not {name.split(".")[0] for name in imports(path)} & {"torch", "flwr"}, path


def test_parts_are_never_imported_by_their_bare_names() -> None:
    for path in [*(ROOT / "src").rglob("*.py"), *(p for f in [*MAY_IMPORT, "tests"] for p in modules(f))]:
        roots = {name.split(".")[0] for name in imports(path)}
        assert not roots & set(MAY_IMPORT), f"{path} imports {roots & set(MAY_IMPORT)}: write sottovoce.…"
        assert not any(root.startswith("relative import") for root in roots), path


def test_deploy_holds_no_python_that_imports_us() -> None:
    for path in modules("deploy"):
        assert not any(name.startswith("sottovoce") for name in imports(path)), path


def test_src_holds_the_name_root_and_the_command_line_only() -> None:
    found = {path.name for path in (ROOT / "src" / "sottovoce").iterdir() if path.name != "__pycache__"}
    assert found == {"__init__.py", "__main__.py", "cli.py", "py.typed"}


def test_wheel_holds_the_four_parts_and_nothing_private(tmp_path: Path) -> None:
    stray = ROOT / "common" / "stray.wav"  # a recording left in the source tree must not ship
    stray.write_bytes(b"RIFF")
    try:
        # Through the sdist, as pip does from a checkout: it honours .gitignore.
        subprocess.run(
            [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)],
            check=True,
            capture_output=True,
        )
    finally:
        stray.unlink()
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"sottovoce"}
    parts = {name.split("/")[1] for name in names if name.startswith("sottovoce/") and name.count("/") > 1}
    assert parts == set(MAY_IMPORT)
    assert not [name for name in names if name.endswith((".wav", ".flac"))]
    assert "sottovoce/simulations/scenarios/demo.toml" in names
    assert "sottovoce/py.typed" in names
    for template in ("report/report.html.j2", "report/report.css", "audit/audit.html.j2", "audit/audit.css"):
        assert f"sottovoce/server/{template}" in names
