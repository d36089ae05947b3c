"""Writes the generated code of consortium.proto anew: `python -m sottovoce.common.consortium.generate`.

The code is committed, so that nothing is generated where Sottovoce is installed; a test compares. Stubs and servicers
are not generated: channel.py and the coordinator's gate take methods and types from the schema's descriptor.
"""

import sys
from pathlib import Path

PACKAGE = "sottovoce/common/consortium"
GENERATED = ("consortium_pb2.py", "consortium_pb2.pyi")


def generate(out: Path) -> None:
    """Writes the generated files to a folder. Needs grpcio-tools, which only developers have."""
    from grpc_tools import protoc

    here = Path(__file__).parent
    # The schema is known by its import path, so that no other package's `consortium.proto` can be in its way.
    arguments = [f"-I{PACKAGE}={here}", f"--python_out={out}", f"--pyi_out={out}"]
    if protoc.main(["protoc", *arguments, f"{PACKAGE}/consortium.proto"]) != 0:
        sys.exit("consortium.proto: the compiler refused it; its own words stand above.")
    for name in GENERATED:
        (out / PACKAGE / name).replace(out / name)
    for parent in [Path(PACKAGE), *Path(PACKAGE).parents][:-1]:
        (out / parent).rmdir()


if __name__ == "__main__":
    generate(Path(__file__).parent)
