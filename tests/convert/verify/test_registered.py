"""The interpreter knows the operations that the exporter writes, and no others."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from coremltools.proto import Model_pb2

from convert.verify.operations import OPERATIONS
from tests.convert.coreml.bundles import PLAN, WIDE, make_bundle
from tests.convert.verify.packages import MODEL
from tests.tiny import save_pipeline

# Programs that have every operation between them: kind, T5's feed-forward layer, and options. Whoever registers an
# operation for another kind of program adds one of that kind.
PROGRAMS: Final = [
    ("sigma", "relu", ("--compress", "int8", "--chunks", "2")),
    ("alpha-micro", "gated-gelu", ("--compress", "palette4", "--routing", "onehot", "--size", "32x48")),
]
AWAITED: Final = {"tile"}  # of class-conditional models, which repeat one embedding for a batch


def list_types(bundle: Path) -> Iterator[str]:
    for package in bundle.glob("*.mlpackage"):
        model: Any = Model_pb2.Model()
        model.ParseFromString((package / MODEL).read_bytes())
        for function in model.mlProgram.functions.values():
            for block in function.block_specializations.values():
                yield from (operation.type for operation in block.operations)


def test_every_operation_is_one_that_programs_have(tmp_path: Path) -> None:
    written: set[str] = set()
    for number, (kind, feed_forward, options) in enumerate(PROGRAMS):
        source = save_pipeline(
            tmp_path / f"source{number}",
            kind=kind,
            keep_tenths=PLAN,
            transformer=WIDE,
            text_encoder={"feed_forward_proj": feed_forward},
        )
        written.update(list_types(make_bundle(source, tmp_path / f"bundle{number}", *options)))
    assert written - {"const"} == OPERATIONS.keys() - AWAITED
