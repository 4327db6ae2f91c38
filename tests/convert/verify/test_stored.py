"""A reference.npz that is not whole, or made to do harm, is refused before an array of it is in memory."""

from __future__ import annotations

import os
import tracemalloc
import zipfile
from collections.abc import Callable
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest

from convert.verify.device_report import DeviceReport, Placement, Prediction
from convert.verify.device_task import Trouble
from convert.verify.functions import Outcome
from convert.verify.report import Report
from convert.verify.stored import DESCRIPTION, read_stored, reference_file
from moddit.errors import FormatError, MissingError, ParityError
from moddit.manifest import Manifest
from tests.convert.verify.fake_bundle import make_manifest
from tests.convert.verify.fake_coreml import PREDICTION, STATES

OUTPUT: Final = "text_encoder/encode/output"
Members = dict[str, bytes]  # of an archive, by name


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    return make_manifest(tmp_path)


def read_members(folder: Path) -> Members:
    with zipfile.ZipFile(reference_file(folder)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def write_members(folder: Path, members: Members, compression: int = zipfile.ZIP_DEFLATED) -> None:
    with zipfile.ZipFile(reference_file(folder), "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def npy(array: Any, **options: Any) -> bytes:
    content = BytesIO()
    np.save(content, array, **options)
    return content.getvalue()


def header(shape: str, dtype: str = "<f4") -> bytes:
    """An array whose header promises something, without its numbers."""
    text = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode()


def put(content: bytes) -> Callable[[Members], object]:
    return lambda members: members.update({f"{OUTPUT}.npy": content})


def only_description(members: Members) -> None:
    for name in [name for name in members if not name.startswith(DESCRIPTION)]:
        del members[name]


DAMAGED: Final[dict[str, tuple[Callable[[Members], object], str]]] = {
    "nothing but the digest": (only_description, r"not whole: .* it lacks 6 \("),
    "no digest": (lambda members: members.pop(f"{DESCRIPTION}.npy"), "lacks 'description_sha256'"),
    "no output": (lambda members: members.pop(f"{OUTPUT}.npy"), rf"lacks 1 \('{OUTPUT}'\)"),
    "no input": (lambda members: members.pop("text_encoder/encode/input/text_mask.npy"), "lacks 1"),
    "a case of no function": (lambda members: members.update({"x/y/output.npy": npy(STATES)}), "of others it has 1"),
    "an input of no function": (
        lambda members: members.update({"text_encoder/encode/input/x.npy": npy(STATES)}),
        r"of others it has 1 \('text_encoder/encode/input/x'\)",
    ),
    "a file that is no array": (lambda members: members.update({"x.txt": b""}), r"has 1 \('x.txt'\)"),
    "another shape": (put(npy(STATES[:, :2])), r"is float32 \(1, 2, 2\), want float32 \(1, 4, 2\)"),
    "the shape turned": (put(npy(STATES.reshape(4, 1, 2))), "want float32"),
    "another precision": (put(npy(STATES.astype(np.float16))), "is float16"),
    "whole numbers": (put(npy(STATES.astype(np.int32))), "is int32"),
    "the other byte order": (put(npy(STATES.astype(">f4"))), "want float32"),
    "objects": (put(npy(np.array([print], object), allow_pickle=True)), "is object"),
    "an array of terabytes": (put(header("(1099511627776,)")), r"is float32 \(1099511627776,\)"),
    "an array of too few numbers": (put(header("(1, 4, 2)") + bytes(31)), "has another size than its shape says"),
    "an array of too many numbers": (put(header("(1, 4, 2)") + bytes(33)), "has another size than its shape says"),
    "no array": (put(b"PK"), ""),
    "an empty array file": (put(b""), ""),
    "a header that is a program": (put(header("(print(1),)")), ""),
    "a bomb": (put(npy(STATES) + bytes(20_000_000)), "unpacks to 20000160 bytes, want at most 4128"),
    "a bomb for a digest": (
        lambda members: members.update({f"{DESCRIPTION}.npy": header("(5000000,)", "<U1") + bytes(20_000_000)}),
        "is <U1",
    ),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_what_is_not_whole_is_refused(tmp_path: Path, manifest: Manifest, name: str) -> None:
    change, message = DAMAGED[name]
    members = read_members(tmp_path)
    change(members)
    write_members(tmp_path, members)
    tracemalloc.start()
    with pytest.raises(FormatError, match=rf"reference\.npz: cannot be read \(.*{message}"):
        read_stored(tmp_path, manifest)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 5_000_000


def test_what_is_whole_is_read(tmp_path: Path, manifest: Manifest) -> None:
    found = read_stored(tmp_path, manifest)
    assert DESCRIPTION not in found
    np.testing.assert_array_equal(found[OUTPUT], STATES)
    members = read_members(tmp_path)
    members["transformer/px8x8/t999/output.npy"] = npy(np.asfortranarray(PREDICTION))
    write_members(tmp_path, members, zipfile.ZIP_STORED)
    np.testing.assert_array_equal(read_stored(tmp_path, manifest)["transformer/px8x8/t999/output"], PREDICTION)


def test_a_bundle_of_another_description(tmp_path: Path, manifest: Manifest) -> None:
    assert manifest.graphs is not None
    other = replace(manifest, graphs=replace(manifest.graphs, compute_units="all"))
    with pytest.raises(ParityError, match="are not those that were converted"):
        read_stored(tmp_path, other)


def test_an_array_twice(tmp_path: Path, manifest: Manifest) -> None:
    members = read_members(tmp_path)
    with pytest.warns(UserWarning, match="Duplicate name"), zipfile.ZipFile(reference_file(tmp_path), "a") as archive:
        archive.writestr(f"{OUTPUT}.npy", members[f"{OUTPUT}.npy"])
    with pytest.raises(FormatError, match="has an array twice"):
        read_stored(tmp_path, manifest)


def test_sizes_that_lie(tmp_path: Path, manifest: Manifest) -> None:
    """The archive's directory says few bytes, and the member unpacks to many."""
    members = read_members(tmp_path)
    members[f"{OUTPUT}.npy"] = npy(STATES) + bytes(20_000_000)
    write_members(tmp_path, members)
    data = reference_file(tmp_path).read_bytes()
    size = (len(npy(STATES)) + 20_000_000).to_bytes(4, "little")
    assert data.count(size) == 2
    reference_file(tmp_path).write_bytes(data.replace(size, len(npy(STATES)).to_bytes(4, "little")))
    with pytest.raises(FormatError, match="cannot be read"):
        read_stored(tmp_path, manifest)


def test_a_huge_file(tmp_path: Path, manifest: Manifest) -> None:
    with reference_file(tmp_path).open("ab") as file:
        file.truncate(10**12)  # takes no room on disk
    with pytest.raises(FormatError, match="has 1000000000000 bytes, want a file of at most"):
        read_stored(tmp_path, manifest)


def test_what_is_no_file(tmp_path: Path, manifest: Manifest) -> None:
    reference_file(tmp_path).unlink()
    with pytest.raises(MissingError, match="no such file"):
        read_stored(tmp_path, manifest)
    os.mkfifo(reference_file(tmp_path))
    with pytest.raises(FormatError, match="cannot be read"):
        read_stored(tmp_path, manifest)


NAME: Final = "f\x1b[2J\npassed"  # of a function, which a manifest gives it


def test_reports_show_names_and_do_not_obey_them() -> None:
    exact = Report((Outcome(NAME, 1.0, 0, 0.0),), None, {}, knows_weights=True)
    trouble = Trouble("crashed", "\x1b[31m\nred")
    on_device = DeviceReport(
        {"chip": NAME}, "all", {NAME: 1.0}, (Prediction(NAME, trouble),), (Placement(NAME, NAME, trouble),)
    )
    for report, lines in ((exact, 4), (on_device, 8)):
        text = report.to_text()
        assert "\x1b" not in text
        assert len(text.split("\n")) == lines
        assert r"f\x1b[2J\npassed" in text
        assert "FAILED" in text.split("\n")[-1]
