from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mlx_moddit.images import check_outputs, read_metadata, save_image, save_picture
from moddit.errors import FormatError, InputError, MissingError, ModditError, OutputExistsError, StorageError
from moddit.metadata import Metadata, ModelReference
from moddit.request import Request

REQUEST = Request("Ein großer Kreis, rot!", "blau", 7, 20, 4.5, 32, 48, "dpmpp-2m")
METADATA = Metadata(REQUEST, ModelReference("some/bundle", "ab" * 32, "folder"), "stored", {"moddit": "1", "mlx": "2"})
IMAGE = Image.fromarray(np.arange(32 * 48 * 3, dtype=np.uint8).reshape(32, 48, 3))


def test_metadata_round_trip_and_text_for_people(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    save_picture(path, IMAGE, METADATA, overwrite=False)
    assert read_metadata(path) == METADATA
    with Image.open(path) as image:
        assert np.array_equal(np.array(image), np.array(IMAGE))
        assert image.info["parameters"] == (
            "Ein großer Kreis, rot!\n"
            "Negative prompt: blau\n"
            "Steps: 20, Sampler: dpmpp-2m, CFG scale: 4.5, Seed: 7, Size: 48x32, Model hash: ababababab, "
            "Version: moddit 1"
        )


def test_people_are_told_what_was_saved() -> None:
    for settings, told in (({"reuse": 3}, "Reuse: 3"), ({"cache": 0.1, "keep": 0.7}, "Cache: 0.1, Keep: 0.7")):
        metadata = replace(METADATA, settings=replace(REQUEST, **settings))
        assert f"Size: 48x32, {told}, Model hash" in metadata.describe()


def test_metadata_of_before_there_were_later_settings_is_read() -> None:
    text = (
        '{"version": 1, "settings": {"prompt": "a", "negative_prompt": "", "seed": 7, "steps": 20,'
        ' "guidance_scale": 4.5, "height": 32, "width": 48, "sampler": "dpmpp-2m"},'
        ' "model": {"path": null, "fingerprint": "ab", "source": "x"}, "dtype": null,'
        ' "versions": {"moddit": "0.1.0", "mlx": "0.32.4"}}'
    )
    metadata = Metadata.from_text(text, "a picture")
    assert metadata.settings == Request("a", "", 7, 20, 4.5, 32, 48, "dpmpp-2m")
    assert metadata.to_json() == json.loads(text)


def test_a_file_depends_on_nothing_but_picture_and_metadata(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        save_picture(tmp_path / name, IMAGE, METADATA, overwrite=False)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 2}, "version is unknown, got 2"),
        ({"extra": 1}, "extra"),
        ({"model": {"path": None}}, "model"),
        ({"settings": {}}, "settings"),
        ({"version": True}, "version is unknown"),
        ({"version": []}, "version is unknown"),
        ({"dtype": 5}, "dtype is 5, want a text or null"),
        ({"versions": {"moddit": 5}}, "versions.moddit is 5, want a text"),
        ({"model": None}, "model is null, want an object"),
        ({"settings": METADATA.to_json()["settings"] | {"height": 10**7}}, "settings.height is 10000000, want at most"),
    ],
    ids=str,
)
def test_metadata_of_another_shape_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Metadata.from_text(json.dumps(METADATA.to_json() | change), "a picture")


@pytest.mark.parametrize(
    "text", ["", "[]", "5", "{", "NaN", '{"version": 1, "version": 1}', "[" * 10**5, " " * (8 << 20) + "{"]
)
def test_text_that_is_no_metadata_is_refused(text: str) -> None:
    with pytest.raises(FormatError, match="a picture"):
        Metadata.from_text(text, "a picture")


def test_a_fifo_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.png")
    with pytest.raises(FormatError, match="not a regular file"):
        read_metadata(tmp_path / "a.png")


def test_files_without_metadata_are_refused(tmp_path: Path) -> None:
    IMAGE.save(tmp_path / "plain.png")
    IMAGE.save(tmp_path / "photo.jpg")
    (tmp_path / "text.png").write_text("no picture")
    save_picture(tmp_path / "whole.png", IMAGE, METADATA, overwrite=False)
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:60])
    cases: dict[str, tuple[type[ModditError], str]] = {
        "absent.png": (MissingError, "no such file"),
        "plain.png": (MissingError, "a PNG without"),
        "photo.jpg": (MissingError, "a JPEG without"),
        "text.png": (FormatError, "cannot read"),
        "cut.png": (FormatError, "cannot read"),
        ".": (FormatError, "cannot read"),
    }
    for name, (error, message) in cases.items():
        with pytest.raises(error, match=message):
            read_metadata(tmp_path / name)


def test_existing_files_are_refused_before_any_work(tmp_path: Path) -> None:
    old = tmp_path / "old.png"
    old.write_text("old")
    with pytest.raises(OutputExistsError, match=r"old\.png exists"):
        check_outputs([tmp_path / "new.png", old], overwrite=False)
    check_outputs([old], overwrite=True)
    with pytest.raises(OutputExistsError, match="is a folder"):
        check_outputs([tmp_path], overwrite=True)


def test_folders_are_made(tmp_path: Path) -> None:
    check_outputs([tmp_path / "a" / "b" / "new.png"], overwrite=False)
    assert (tmp_path / "a" / "b").is_dir()
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"new\.png: .* is a file, want a folder; choose another place"):
        check_outputs([tmp_path / "file" / "b" / "new.png"], overwrite=False)
    with pytest.raises(StorageError, match=r"cannot be written \(File name too long\)"):
        check_outputs([tmp_path / ("b" * 300) / "new.png"], overwrite=False)


def test_a_file_that_appears_meanwhile_is_left(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_text("theirs")
    with pytest.raises(OutputExistsError, match="exists; choose another name"):
        save_image(path, IMAGE, overwrite=False)
    assert path.read_text() == "theirs"
    assert list(tmp_path.iterdir()) == [path]
    save_image(path, IMAGE, overwrite=True)
    with Image.open(path) as image:
        assert image.size == (48, 32)


@pytest.mark.parametrize(
    ("interruption", "raised"), [(OSError(28, "No space left on device"), StorageError), (KeyboardInterrupt(), None)]
)
def test_interrupted_writing_leaves_the_old_file_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, interruption: BaseException, raised: type[ModditError] | None
) -> None:
    path = tmp_path / "a.png"
    path.write_text("old")

    def save(_image: Image.Image, file: Any, **_: Any) -> None:
        file.write(b"half of a pict")
        raise interruption

    monkeypatch.setattr(Image.Image, "save", save)
    with pytest.raises(raised or KeyboardInterrupt):
        save_image(path, IMAGE, overwrite=True)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
