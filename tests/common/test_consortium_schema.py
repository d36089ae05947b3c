"""The committed code of consortium.proto is what the schema says today."""

from pathlib import Path

from sottovoce.common.consortium import consortium_pb2
from sottovoce.common.consortium.generate import GENERATED, generate

COMMITTED = Path(__file__).resolve().parents[2] / "common" / "consortium"


def test_generated_code_is_that_of_the_schema(tmp_path: Path) -> None:
    generate(tmp_path)
    for name in GENERATED:
        assert (tmp_path / name).read_text() == (COMMITTED / name).read_text(), f"{name}: generate it anew"
    assert {path.name for path in tmp_path.iterdir()} == set(GENERATED)


def test_the_schema_is_known_by_its_import_path() -> None:
    assert consortium_pb2.DESCRIPTOR.name == "sottovoce/common/consortium/consortium.proto"
    assert consortium_pb2.DESCRIPTOR.package == "sottovoce.v1"
