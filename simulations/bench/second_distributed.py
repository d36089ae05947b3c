"""A second accountant of mode `distributed`: the auditor's own file, from the papers, in decimals of 40 digits.

`deploy/auditor/distributed_bound.py` imports nothing of ours and has its own formulation; the bench and the tests load
it as it is handed to auditors.
"""

import importlib.util
from functools import cache
from pathlib import Path
from typing import Any

from sottovoce.simulations.bench.timing import NotMeasured

PATH = Path(__file__).resolve().parents[2] / "deploy" / "auditor" / "distributed_bound.py"


@cache
def program() -> Any:
    """Returns the auditor's file as a module."""
    spec = importlib.util.spec_from_file_location("distributed_bound", PATH)
    if spec is None or spec.loader is None or not PATH.is_file():
        raise NotMeasured("the auditor's program needs a checkout: deploy/ is not in the wheel")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
