"""Where the parts of a checkpoint are: one pipeline folder, or a transformer and, elsewhere, the rest."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from moddit.checkpoint.foreign import ADAPTER_FILES, check_suffix, explain_folder
from moddit.checkpoint.pipelines import PIPELINES, Pipeline
from moddit.checkpoint.weights import DIFFUSERS, PICKLE_SUFFIXES, read_config, read_json, read_optional_json
from moddit.contract import TEXT_ENCODER
from moddit.errors import FormatError, InputError, MissingError, UnsupportedError
from moddit.manifest import MANIFEST_NAME
from moddit.record import quote

TRANSFORMER: Final = "transformer"
WEIGHTED: Final = (TRANSFORMER, TEXT_ENCODER, "vae")
COMPONENTS: Final = (*WEIGHTED, "tokenizer", "scheduler")  # that some pipeline has
INDEX: Final = "model_index.json"


@dataclass(frozen=True)
class LoraSource:
    """An adapter to merge into the transformer."""

    path: Path
    scale: float = 1.0

    def __str__(self) -> str:
        return f"{self.path}:{self.scale:g}"


@dataclass(frozen=True)
class Sources:
    """The places that a checkpoint is read from, all of them local."""

    main: Path  # a pipeline's folder, a transformer's folder, or a file with a transformer
    base: Path | None = None  # a pipeline's folder, for the components that `main` has not
    variant: str | None = None  # of the weight files, such as "fp16"
    loras: tuple[LoraSource, ...] = ()
    image_size: int | None = None  # pixels a transformer in the original layout was trained at, if it does not say
    max_sequence_length: int | None = None  # text tokens, instead of the pipeline's own limit

    @property
    def is_file(self) -> bool:
        """Whether the transformer is one file without a configuration."""
        return self.main.is_file()

    @property
    def transformer(self) -> Path:
        """The transformer's folder or file; raises as `component`."""
        if self.is_file:
            check_suffix(self.main)
            if self.main.suffix not in (".safetensors", *PICKLE_SUFFIXES):
                raise UnsupportedError(
                    f"[source] {self.main}: not weights, want .safetensors or {', '.join(PICKLE_SUFFIXES)}"
                )
            return self.main
        if _is_transformer(self.main):
            return self.main
        if not any(_has(self.main, name) for name in COMPONENTS):  # else all would be the base's
            raise self._explain(TRANSFORMER)
        return self.component(TRANSFORMER)

    @property
    def roots(self) -> Iterator[Path]:
        """The pipeline folders, the one that counts first."""
        if not self.is_file and not _is_transformer(self.main):
            yield self.main
        if self.base is not None:
            yield self.base

    def has(self, name: str) -> bool:
        """Say whether there is a component of this name."""
        return any(_has(root, name) for root in self.roots)

    def component(self, name: str) -> Path:
        """Find the folder of a component: of `main`, or else of `base`.

        Raises:
            MissingError: neither has it.
            InputError: `main` is something else than a checkpoint.
        """
        for root in self.roots:
            if _has(root, name):
                return root / name
        raise self._explain(name)

    def class_of(self, name: str) -> str | None:
        """Read the class of a component in the index of its pipeline; None if there is no index. Raises as `entry`."""
        entry = self.entry(name)
        return None if entry is None else entry[1]

    def entry(self, name: str) -> tuple[str, str] | None:
        """Read library and class of a component in the index of its pipeline; None if there is no index.

        Raises:
            FormatError: the index has something else.
            MissingError, InputError: as `component`.
        """
        index = self.component(name).parent / INDEX
        found = read_optional_json(index)
        if found is None:
            return None
        entry = found.get(name)
        if not isinstance(entry, list) or len(entry) != 2 or not all(isinstance(part, str) for part in entry):
            raise FormatError(f"[source] {index}: component {name!r} is {quote(entry)}, want a library and a class")
        return str(entry[0]), str(entry[1])

    def whole_index(self) -> dict[str, Any]:
        """Join the indices of the pipeline folders, of which the first counts; without what they leave out."""
        whole: dict[str, Any] = {}
        for root in reversed(list(self.roots)):
            found = read_optional_json(root / INDEX) or {}
            whole |= {key: value for key, value in found.items() if not isinstance(value, list) or any(value)}
        return whole

    def name_class(self, name: str, config: dict[str, Any], wanted: Iterable[str]) -> None:
        """Give the configuration of a component the class that the index of its pipeline names, which counts.

        Raises:
            UnsupportedError: it is none of the wanted ones.
            FormatError, MissingError: as `class_of`.
        """
        found = self.class_of(name)
        if found is None:
            return
        if found not in wanted:
            raise UnsupportedError(
                f"[source] {self.component(name).parent / INDEX}: {name} {found!r} is not implemented, want one of "
                f"{', '.join(wanted)}"
            )
        config["_class_name"] = found

    def known_transformer(self) -> dict[str, Any]:
        """Read the configuration of the base's own transformer, for what a single file leaves open; or nothing."""
        for folder in (root / TRANSFORMER for root in self.roots):
            if (folder / "config.json").is_file():
                return read_config(folder / "config.json")
        return {}

    @property
    def known_pipeline(self) -> Pipeline | None:
        """What the pipeline is, if there is an index that names one which is implemented."""
        kind = self.whole_index().get("_class_name")
        return PIPELINES.get(kind) if isinstance(kind, str) else None

    @property
    def wanted(self) -> tuple[str, ...]:
        """The components that the pipeline has, or any may have."""
        return COMPONENTS if self.known_pipeline is None else self.known_pipeline.components

    @property
    def index(self) -> Path:
        """The pipeline's index; raises MissingError if there is no pipeline folder."""
        path = next((root / INDEX for root in self.roots if os.path.lexists(root / INDEX)), None)
        if path is None:
            raise self._explain(INDEX)
        return path

    def pipeline(self) -> Pipeline:
        """Find out what the pipeline is by its class.

        Raises:
            MissingError: there is no pipeline folder.
            UnsupportedError: its class is none of those that are implemented.
        """
        path = self.index
        kind = read_json(path).get("_class_name")
        if not isinstance(kind, str) or kind not in PIPELINES:
            raise UnsupportedError(
                f"[source] {path}: pipeline {quote(kind)} is not implemented, want {' or '.join(PIPELINES)}"
            )
        return PIPELINES[kind]

    def check_places(self) -> None:
        """Raise if a place is not there."""
        for place in filter(None, (self.main, self.base)):
            if not os.path.exists(place):  # which is false too where the system refuses the name
                raise MissingError(f"[source] {place}: no such folder")
            if not place.is_file() and not place.is_dir():
                raise FormatError(f"[source] {place}: neither a file nor a folder, want one of them")
        if self.base is not None and not self.base.is_dir():
            raise FormatError(f"[source] {self.base}: --base is a file, want a pipeline's folder")

    def check(self) -> None:
        """Raise if a place is not there, or a component in none of them."""
        self.check_places()
        components = self.pipeline().components
        _ = (self.transformer, *map(self.component, components[1:]))

    def _explain(self, name: str) -> InputError:
        """Say why something is not there."""
        where = f"[source] {self.main}"
        if self.is_file or _is_transformer(self.main):
            if self.base is None:
                return MissingError(
                    f"{where}: a transformer alone; name a pipeline that has the other components with --base FOLDER"
                )
            return MissingError(f"[source] {self.base}: component {name!r} is missing; want a whole pipeline as --base")
        if (self.main / MANIFEST_NAME).is_file():
            return MissingError(f"{where}: a bundle already; want a folder with {INDEX} and {', '.join(self.wanted)}")
        if any((self.main / adapter).is_file() for adapter in ADAPTER_FILES):
            return explain_folder(self.main, DIFFUSERS.safe)
        if name == INDEX and not any((self.main / component).is_dir() for component in COMPONENTS):
            return MissingError(
                f"{where}: not a diffusers pipeline folder; want a folder with {INDEX} and {', '.join(self.wanted)}, "
                f"as save_pretrained of {' or '.join(PIPELINES)} writes it"
            )
        if self.base is not None and not any(_has(self.main, component) for component in COMPONENTS):
            return MissingError(
                f"{where}: has no part of a pipeline, got {_listing(self.main)}, want a file of weights, or a folder "
                f"with config.json and weights, or with some of {', '.join(self.wanted)}"
            )
        if (self.main / name).is_dir():  # and the index leaves it out
            return MissingError(
                f"[source] {self.main / INDEX}: component {name!r} is missing in it, though the folder is there; save "
                "the pipeline again, or name one that has it with --base"
            )
        found = ", ".join(sorted(path.name for path in self.main.iterdir() if path.is_dir())) or "no folders"
        what = "file" if name == INDEX else "component"
        return MissingError(
            f"{where}: {what} {name!r} is missing, got {found}, want {', '.join(self.wanted)}; save the whole "
            "pipeline, or name one that has it with --base"
        )


def as_sources(source: Path | Sources) -> Sources:
    """Take a folder as a checkpoint with nothing else."""
    return source if isinstance(source, Sources) else Sources(Path(source))


@dataclass
class SourceFiles:
    """The files that a checkpoint was read from, by the names under which its hash counts them."""

    sources: Sources
    paths: dict[str, Path] = field(default_factory=dict)
    states: dict[Path, tuple[int, int, int]] = field(default_factory=dict)  # when they were first read

    def add(self, *paths: Path, within: str | None = None) -> None:
        """Name files after where they are: "transformer/config.json", "base/vae/config.json"; or as within a folder."""
        for path in paths:
            self.paths[self._label(path) if within is None else f"{within}/{path.name}"] = path
            self.states.setdefault(path, file_state(path))

    def _label(self, path: Path) -> str:
        main, base = self.sources.main, self.sources.base
        roots = {main.parent if self.sources.is_file else main: "", **({base: "base/"} if base is not None else {})}
        root = max(filter(path.is_relative_to, roots), key=lambda item: len(item.parts))  # one may be in the other
        return f"{roots[root]}{path.relative_to(root).as_posix()}"


def file_state(path: Path) -> tuple[int, int, int]:
    """Tell one state of a file from another: which file it is, its size and when it was written."""
    found = path.stat()
    return found.st_ino, found.st_size, found.st_mtime_ns


def _has(root: Path, name: str) -> bool:
    """Say whether a pipeline's folder has a component, and its index, if it has one, does not leave it out."""
    if not (root / name).is_dir():
        return False
    index = read_optional_json(root / INDEX)
    entry = name if index is None else index.get(name) or ()
    return any(entry) if isinstance(entry, list | tuple) else True


def _listing(folder: Path) -> str:
    """Name a few of the entries of a folder."""
    names = sorted(path.name for path in folder.iterdir())
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "") or "nothing"


def _is_transformer(folder: Path) -> bool:
    """Say whether this is the folder of a transformer, not of a pipeline."""
    return (folder / "config.json").is_file() and not (folder / INDEX).is_file() and not (folder / TRANSFORMER).is_dir()
