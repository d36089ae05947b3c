"""Where and with what a result was made: time, versions, machine. Same bits depend on the last two."""

import hashlib
import importlib
import os
import platform
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

from sottovoce.common.run_files import Machine

LIBRARIES = ("sottovoce", "flwr", "torch", "numpy", "librosa", "scikit-learn", "soundfile", "opacus")
PARTS = ("client", "common", "server", "simulations")


def now() -> str:
    """Returns the time in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def versions() -> dict[str, str]:
    """Returns the versions that a result rests on."""
    found = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def code_sha256() -> str:
    """Returns a digest of the installed program: every Python file of its four parts, by name and bytes.

    Two installations of one wheel have one digest; an edited line is another. It tells what is on the disk, and a
    process that was started before knows nothing of it.
    """
    digest = hashlib.sha256(b"sottovoce/code/1\n")
    for part in PARTS:
        (root,) = importlib.import_module(f"sottovoce.{part}").__path__
        for path in sorted(Path(root).rglob("*.py")):
            name = f"{part}/{path.relative_to(root).as_posix()}"
            digest.update(f"{name}\n{hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest()


def machine() -> Machine:
    """Returns what same bits depend on: processor, its vector capability, system."""
    import torch

    return Machine(
        system=f"{platform.system()} {platform.machine()}",
        cores=len(os.sched_getaffinity(0)),
        cpu_capability=torch.backends.cpu.get_cpu_capability(),
        processor=_processor(),
        memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        accelerator=torch.cuda.get_device_name(0) if torch.cuda.is_available() else None,
    )


def _processor() -> str | None:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or None
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), None)
