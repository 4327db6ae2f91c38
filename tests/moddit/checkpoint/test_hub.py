"""Where checkpoints are found: folders, files, file:// and ~, and the Hub with revisions and variants."""

from __future__ import annotations

import fnmatch
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from moddit.checkpoint.description import describe
from moddit.checkpoint.hub import find_checkpoint
from moddit.checkpoint.sources import LoraSource
from moddit.errors import FormatError, MissingError, UnsupportedError
from tests.parity.published.base import save
from tests.parity.published.weights import save_variant

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Stand in for the Hub: repositories are folders of tmp_path/hub; gives the calls."""
    calls: list[dict[str, Any]] = []

    def download(
        repository: str, *, revision: str | None, allow_patterns: list[str], ignore_patterns: list[str] | None
    ) -> str:
        calls.append({"repository": repository, "revision": revision, "allow": allow_patterns})
        source, target = tmp_path / "hub" / repository, tmp_path / "cache" / repository / (revision or COMMIT)
        if not source.is_dir():
            raise FileNotFoundError(f"404: {repository}")
        for path in source.rglob("*"):
            name = path.relative_to(source).as_posix()
            is_wanted = any(fnmatch.fnmatch(name, pattern) for pattern in allow_patterns)
            if path.is_file() and is_wanted and not any(fnmatch.fnmatch(name, item) for item in ignore_patterns or ()):
                (target / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, target / name)
        return str(target)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    return calls


def publish(tmp_path: Path, repository: str, folder: Path) -> None:
    shutil.copytree(folder, tmp_path / "hub" / repository)


def test_the_embedded_one_is_the_default() -> None:
    found = find_checkpoint(None)
    assert found.name == "moddit/checkpoints/shapes64"
    assert describe(found.sources).policy.has_routers


@pytest.mark.parametrize("form", ["{path}", "file://{path}", "file://localhost{path}"])
def test_forms_of_a_path(tmp_path: Path, form: str) -> None:
    (tmp_path / "my model").mkdir()
    text = form.format(path=(tmp_path / "my model").as_posix())
    found = find_checkpoint(text.replace(" ", "%20") if text.startswith("file:") else text)
    assert found.sources.main == tmp_path / "my model"


def test_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert find_checkpoint("~/model", base="~/base").sources.main == tmp_path / "model"
    with pytest.raises(MissingError, match="cannot find the home folder of ~nobody-of-this-name"):
        find_checkpoint("~nobody-of-this-name/model")


@pytest.mark.parametrize("text", ["https://example.com/owner/name", "s3://bucket/model", "file://server/share"])
def test_other_urls_are_refused(text: str) -> None:
    with pytest.raises(UnsupportedError, match="a URL; want a folder, a file or an id"):
        find_checkpoint(text)


@pytest.mark.parametrize(
    ("text", "option", "revision"),
    [
        ("owner/name", None, None),
        ("owner/name@refs/pr/3", None, "refs/pr/3"),
        ("owner/name@v1.0", None, "v1.0"),
        ("owner/name", "main", "main"),
    ],
)
def test_revisions(
    tmp_path: Path, hub: list[dict[str, Any]], text: str, option: str | None, revision: str | None
) -> None:
    publish(tmp_path, "owner/name", save(tmp_path))
    found = find_checkpoint(text, revision=option)
    assert hub[0]["revision"] == revision
    assert found.name == f"owner/name@{Path(revision or COMMIT).name}"
    assert describe(found.sources).spec.text_tokens == 300


def test_two_revisions_are_one_too_many(hub: list[dict[str, Any]]) -> None:
    with pytest.raises(FormatError, match="got a second revision 'b'"):
        find_checkpoint("owner/name@a", revision="b")
    assert hub == []


def test_a_folder_has_no_revision(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="leave out --revision main"):
        find_checkpoint(str(tmp_path), revision="main")


def test_no_such_repository(hub: list[dict[str, Any]]) -> None:
    with pytest.raises(MissingError, match=r"owner/name: neither a folder here nor .* \(404: owner/name\); check the"):
        find_checkpoint("owner/name")
    assert len(hub) == 1


def test_variants_are_not_downloaded_unless_asked_for(tmp_path: Path, hub: list[dict[str, Any]]) -> None:
    model = save(tmp_path)
    shutil.copy(
        model / "vae/diffusion_pytorch_model.safetensors", model / "vae/diffusion_pytorch_model.fp16.safetensors"
    )
    publish(tmp_path, "owner/name", model)
    folder = find_checkpoint("owner/name").sources.main
    assert [path.name for path in folder.rglob("*.safetensors") if ".fp16" in path.name] == []
    assert len(list(folder.rglob("*.safetensors"))) == 3
    assert len(hub) == 1


def test_a_variant_and_what_has_none(tmp_path: Path, hub: list[dict[str, Any]]) -> None:
    publish(tmp_path, "owner/name", save_variant(tmp_path, "transformer", "text_encoder", sharded=True))
    found = find_checkpoint("owner/name", variant="fp16")
    variants = ["vae/*.fp16.bin", "vae/*.fp16-*.bin"]
    assert [call["allow"] for call in hub[1:]] == [variants, ["vae/*.safetensors"]]
    description = describe(found.sources)
    assert description.notes == ("vae has no variant 'fp16': its plain weights are used",)
    assert {tensor.dtype for tensor in description.parts["transformer"].tensors.values()} == {"F16"}


@pytest.mark.parametrize("variant", [None, "fp16"])
def test_pickles_are_downloaded_where_there_is_nothing_better(
    tmp_path: Path, hub: list[dict[str, Any]], variant: str | None
) -> None:
    model = save(tmp_path) if variant is None else save_variant(tmp_path, "text_encoder")
    stem = "model" if variant is None else f"model.{variant}"
    weights = model / f"text_encoder/{stem}.safetensors"
    torch.save(load_file(weights), weights.with_name(f"pytorch_{stem}.bin"))
    weights.unlink()
    for other in ("vae/diffusion_pytorch_model.bin", "text_encoder/pytorch_model.old.bin"):
        (model / other).write_bytes(b"not wanted")
    publish(tmp_path, "owner/name", model)
    found = find_checkpoint("owner/name", variant=variant)
    assert [path.name for path in found.sources.main.rglob("*.bin")] == [f"pytorch_{stem}.bin"]
    assert describe(found.sources).parts["text_encoder"].parameters > 0


def test_two_places_and_adapters_make_the_name(tmp_path: Path, hub: list[dict[str, Any]]) -> None:
    publish(tmp_path, "owner/base", save(tmp_path))
    (tmp_path / "fine-tune").mkdir()
    lora = LoraSource(tmp_path / "style.safetensors", 0.5)
    found = find_checkpoint(str(tmp_path / "fine-tune"), base="owner/base", loras=(lora,))
    assert (
        found.name == f"{tmp_path / 'fine-tune'}, base owner/base@{COMMIT}, lora {tmp_path / 'style.safetensors'}:0.5"
    )
    assert found.sources.loras == (lora,)
    assert [call["revision"] for call in hub] == [None]
