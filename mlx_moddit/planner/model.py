"""What is planned for: a bundle, a checkpoint here or on the Hub, of which only configuration is read, or a name."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from mlx_moddit.estimate import ITEM_BYTES
from mlx_moddit.imagined import imagine_manifest
from mlx_moddit.load import read_own_manifest
from moddit.checkpoint.description import describe_configuration
from moddit.checkpoint.hub import Survey, has_weights, survey_checkpoint
from moddit.checkpoint.sources import TRANSFORMER, Sources
from moddit.checkpoint.weights import read_json
from moddit.configurations import find_configuration
from moddit.contract import TEXT_ENCODER
from moddit.errors import UnsupportedError
from moddit.manifest import MANIFEST_NAME, Manifest
from moddit.paths import expand
from moddit.tensors import Tensors
from moddit.tokens import TokenPolicy

DTYPE: Final = "float16"  # that `convert` writes
_PLACES: Final = ("base", "revision", "variant")  # what else says which checkpoint is meant


@dataclass(frozen=True)
class Download:
    """What has to be downloaded before a conversion."""

    size: int = 0  # bytes
    present: int = 0  # bytes of it, that are in the cache
    is_listed: bool = True  # by the Hub; or computed from shapes, as if all weights had the configuration's dtype


@dataclass(frozen=True)
class Model:
    """A model, as its configuration says it."""

    name: str  # for people
    manifest: Manifest  # of the bundle, or of what `convert` would write unless told otherwise
    download: Download = Download()


def find_model(path: str | None, config: str | None, **places: str | None) -> Model:
    """Find what is to be planned for.

    Args:
        path: a bundle, or what `survey_checkpoint` takes; None where `config` is the name of a published model.
        config: likewise.
        places: base, revision and variant of a checkpoint, as `survey_checkpoint` takes them.

    Raises:
        UnsupportedError: none or both of them, or an option that says more about a checkpoint where there is none.
        InputError: there is no such model, or one that is not implemented.
    """
    if (path is None) == (config is None):
        raise UnsupportedError("[plan] want one of --model and --config")
    if config is not None:
        _refuse(places, f"--config {config}", "name the checkpoint with --model")
        return _published(config)
    assert path is not None
    folder = expand(path)
    if (folder / MANIFEST_NAME).is_file():
        _refuse(places, f"{path} is a bundle", "leave it out")
        manifest = read_own_manifest(folder)
        return Model(manifest.provenance.source, manifest)
    survey = survey_checkpoint(path, **{name: places.get(name) for name in _PLACES})
    spec, tokens = describe_configuration(survey.sources)
    download = _download(survey, spec.tensors(has_routers=tokens.has_routers))
    return Model(survey.name, imagine_manifest(spec, tokens, DTYPE, None), download)


def _refuse(places: dict[str, str | None], what: str, advice: str) -> None:
    given = next((name for name, value in places.items() if value is not None), None)
    if given is not None:
        raise UnsupportedError(f"[plan] --{given} is of a checkpoint, got {what}; {advice}")


def _published(name: str) -> Model:
    spec = find_configuration(name)
    tokens = TokenPolicy.dense(spec.transformer.num_layers, spec.scheduler.num_train_timesteps)
    size = sum(_bytes(tensors, "float32") for tensors in spec.tensors(has_routers=False).values())
    return Model(name, imagine_manifest(spec, tokens, DTYPE, None), Download(size, is_listed=False))


def _download(survey: Survey, components: dict[str, Tensors]) -> Download:
    """Add up what the Hub lists, and what the components of other folders take whose weights are not there."""
    listed = [(folder / name, size) for folder, names in survey.listings.items() for name, size in names.items()]
    computed = [
        _bytes(components[name], _dtype(folder))
        for name, folder in _folders(survey.sources, components)
        if not {folder, folder.parent} & survey.listings.keys() and not has_weights(folder)
    ]
    size = sum(size for _, size in listed) + sum(computed)
    return Download(size, sum(size for path, size in listed if path.exists()), is_listed=not computed)


def _folders(sources: Sources, components: dict[str, Tensors]) -> Iterator[tuple[str, Path]]:
    for name in components:
        yield name, sources.transformer if name == TRANSFORMER else sources.component(name)


def _bytes(tensors: Tensors, dtype: str) -> int:
    return sum(math.prod(info.shape) for info in tensors.values()) * ITEM_BYTES[dtype]


def _dtype(folder: Path) -> str:
    """Find the dtype that a component was saved in; only transformers' configurations say it."""
    config = read_json(folder / "config.json")
    found = config.get("dtype", config.get("torch_dtype"))
    return found if folder.name == TEXT_ENCODER and found in ITEM_BYTES else "float32"
