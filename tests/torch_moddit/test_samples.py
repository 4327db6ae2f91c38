"""Pictures and captions as people keep them: folders, metadata, tar files, and the kinds of pictures there are."""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from PIL import Image

from moddit.errors import FormatError, InputError, MissingError
from moddit.pictures import read_picture
from torch_moddit.samples import Sample, list_samples


def save_picture(path: Path, size: tuple[int, int] = (20, 16), colour: tuple[int, int, int] = (255, 0, 0)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)


def list_texts(folder: Path, column: str | None = None) -> list[Sample]:
    return list_samples(folder, are_classes=False, column=column)


def captions(folder: Path, column: str | None = None) -> dict[str, str]:
    return {sample.name: sample.caption for sample in list_texts(folder, column)}


def test_reads_side_files_and_metadata(tmp_path: Path) -> None:
    save_picture(tmp_path / "b.png")
    save_picture(tmp_path / "deep" / "a.jpg")
    (tmp_path / "b.txt").write_text("a red square\n")
    (tmp_path / "deep" / "a.txt").write_text("\ufeffa circle")
    (tmp_path / "deep" / "._a.jpg").write_bytes(b"of a Mac")
    assert captions(tmp_path) == {"b.png": "a red square", "deep/a.jpg": "a circle"}
    (tmp_path / "metadata.jsonl").write_text(json.dumps({"file_name": "deep/a.jpg", "text": "from metadata"}) + "\n\n")
    assert captions(tmp_path) == {"deep/a.jpg": "from metadata"}
    (tmp_path / "metadata.csv").write_text("file_name,text,prompt\n")
    with pytest.raises(FormatError, match=r"has both metadata\.jsonl and metadata\.csv"):
        captions(tmp_path)
    (tmp_path / "metadata.jsonl").unlink()
    (tmp_path / "metadata.csv").write_text(
        'file_name,text,prompt\nb.png,"a ""red"", square\n of two lines",\ndeep/a.jpg,,x\n'
    )
    assert captions(tmp_path) == {"b.png": 'a "red", square\n of two lines', "deep/a.jpg": ""}
    assert captions(tmp_path, "prompt") == {"b.png": "", "deep/a.jpg": "x"}


BAD_LINES = (
    '{"file_name": "lost.png", "text": "x"}',
    '{"file_name": "a.png"}',
    '{"file_name": "../a.png", "text": "x"}',
    '{"file_name": "/etc/passwd", "text": "x"}',
    "{",
    "[]",
    '{"file_name": 5, "text": "x"}',
    '{"file_name": "a.png", "text": null}',
    '{"file_name": "a\\u0000", "text": ""}',
)


def test_refuses_incomplete_folders(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="no pictures"):
        list_texts(tmp_path)
    save_picture(tmp_path / "a.png")
    with pytest.raises(MissingError, match=r"a\.txt: no such file; want the caption of a\.png in it"):
        list_texts(tmp_path)
    for line in BAD_LINES:
        (tmp_path / "metadata.jsonl").write_text(line + "\n")
        with pytest.raises(InputError, match="jsonl:1"):
            list_texts(tmp_path)
    (tmp_path / "metadata.jsonl").write_text(2 * '{"file_name": "a.png", "text": "x"}\n')
    with pytest.raises(FormatError, match=r"jsonl:2: a\.png is there twice, see .*jsonl:1"):
        list_texts(tmp_path)
    (tmp_path / "metadata.jsonl").unlink()
    for content, error in (
        (b"file_name,text\na.png\n", MissingError),
        (b'file_name\n"a', FormatError),
        (b"\xff", FormatError),
    ):
        (tmp_path / "metadata.csv").write_bytes(content)
        with pytest.raises(error, match=r"metadata\.csv"):
            list_texts(tmp_path)
    (tmp_path / "metadata.csv").unlink()
    save_picture(tmp_path / "a.jpg")
    (tmp_path / "a.txt").write_text("a circle")
    with pytest.raises(FormatError, match=r"a\.png: has the caption a\.txt as has a\.jpg; rename one"):
        list_texts(tmp_path)


@pytest.mark.parametrize("name", ["a.txt", "metadata.jsonl", "metadata.csv", "a.tar"])
@pytest.mark.parametrize(
    "spoil",
    [
        lambda path: path.write_bytes(b"\xff red square"),
        lambda path: path.write_bytes(b"x" * 200_000),
        lambda path: path.mkdir(),
        lambda path: os.mkfifo(path),
        lambda path: path.symlink_to(path.name),
    ],
)
def test_captions_that_are_no_text_are_refused_at_once(
    name: str, spoil: Callable[[Path], object], tmp_path: Path
) -> None:
    save_picture(tmp_path / "a.png")
    spoil(tmp_path / name)
    with pytest.raises(InputError, match=name.replace(".", r"\.")):
        list_texts(tmp_path)


def encode(picture: Image.Image) -> bytes:
    content = io.BytesIO()
    picture.save(content, "PNG")
    return content.getvalue()


def save_tar(path: Path, members: Mapping[str, bytes], mode: str = "w") -> None:
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


RED = encode(Image.new("RGB", (6, 4), "red"))


def test_reads_tar_files_where_they_lie(tmp_path: Path) -> None:
    save_tar(
        tmp_path / "b.tar",
        {"x/1.png": RED, "x/1.txt": b"one", "x/1.cls": b"3", "2.json": b'{"text": "two"}', "2.png": RED},
    )
    save_tar(tmp_path / "a.tar", {"../../1.seg.png": RED, "../../1.png": RED, "../../1.txt": b"up", "alone.txt": b""})
    assert captions(tmp_path) == {"a.tar/../../1.png": "up", "b.tar/2.png": "two", "b.tar/x/1.png": "one"}
    assert captions(tmp_path / "b.tar") == {"2.png": "two", "x/1.png": "one"}
    for sample in list_texts(tmp_path):
        picture = read_picture(sample.opener, sample.origin)
        assert (picture.size, picture.getpixel((0, 0))) == ((6, 4), (255, 0, 0))
    assert sorted(tmp_path.iterdir()) == [tmp_path / "a.tar", tmp_path / "b.tar"]  # nothing is unpacked
    (tmp_path / "b.tar").write_bytes((tmp_path / "b.tar").read_bytes()[:1000])
    with pytest.raises(FormatError, match=r"b\.tar: x/1\.png: cannot read|b\.tar: not a tar file, or damaged"):
        list_texts(tmp_path)


def test_reads_labels_of_tar_files(tmp_path: Path) -> None:
    save_tar(
        tmp_path / "a.tar", {"1.png": RED, "1.cls": b"7\n", "1.txt": b"a dog", "2.png": RED, "2.json": b'{"label": 3}'}
    )
    samples = list_samples(tmp_path, are_classes=True)
    assert [sample.caption for sample in samples] == ["7", "3"]


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"1.png": RED}, r"a\.tar: 1: has no caption; want one of \.txt, \.json beside it"),
        ({"1.png": RED, "1.txt": b"\xff"}, r"a\.tar: 1\.txt: not UTF-8"),
        ({"1.png": RED, "1.json": b"{}"}, r"a\.tar: 1: field 'text' is missing"),
        ({"1.png": RED, "1.txt": b"x" * 200_000}, r"a\.tar: 1\.txt: has 200000 bytes"),
        ({"1.png": RED, "1.txt": b"x", "1.PNG": RED}, r"1\.PNG is there twice"),
    ],
)
def test_tar_files_that_are_incomplete_are_refused(members: Mapping[str, bytes], message: str, tmp_path: Path) -> None:
    save_tar(tmp_path / "a.tar", members)
    with pytest.raises(InputError, match=message):
        list_texts(tmp_path)


def test_tar_files_that_would_take_all_memory_are_refused(tmp_path: Path) -> None:
    save_tar(tmp_path / "a.tar", {"1.png": bytes(1 << 20), "1.txt": b"x"}, "w:gz")
    with pytest.raises(FormatError, match=r"a\.tar: not a tar file, or damaged"):
        list_texts(tmp_path / "a.tar")
    header = tarfile.TarInfo("././@PaxHeader")
    header.type, header.size = tarfile.XHDTYPE, 1 << 40
    with (tmp_path / "a.tar").open("wb") as file:
        file.write(header.tobuf(tarfile.GNU_FORMAT))
        file.truncate(2 << 40)  # no such bytes are on the disk
    with pytest.raises(FormatError, match=r"a header of \d+ bytes"):
        list_texts(tmp_path / "a.tar")
    picture = tarfile.TarInfo("1.png")
    picture.size = 1 << 33
    with (tmp_path / "a.tar").open("wb") as file:
        file.write(picture.tobuf(tarfile.GNU_FORMAT))
        file.truncate(512 + picture.size)
    with (tmp_path / "a.tar").open("ab") as file:
        text = tarfile.TarInfo("1.txt")
        file.write(text.tobuf() + bytes(1024))
    with pytest.raises(FormatError, match=r"1 has 8589934592 bytes, want at most"):
        list_texts(tmp_path / "a.tar")
