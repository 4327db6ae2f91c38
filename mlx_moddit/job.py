"""What a run of `mlx_moddit generate` is asked for: its pictures, and the files they go to."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final, Self

from mlx_moddit.names import default_names, file_key, name_files
from mlx_moddit.pipeline import spread_seeds
from moddit.bounds import JSON_BYTES, PICTURES
from moddit.edits import Edit
from moddit.errors import FormatError, MissingError, UnsupportedError, ValueRangeError
from moddit.metadata import Metadata
from moddit.paths import expand
from moddit.pictures import open_edit
from moddit.record import Origin, read_bytes
from moddit.request import Request, choose_tile
from moddit.spec import ModelSpec

STDIN: Final = "-"
SHEETS: Final = ("routes", "edit")
_DIGITS: Final = 9  # of a strength: 1 - 0.9 is 0.1, not a little less
_SETTINGS: Final[tuple[str, ...]] = (  # options that a request has as they are
    "negative_prompt",
    "steps",
    "guidance_scale",
    "height",
    "width",
    "sampler",
    "resolution_binning",
    "reuse",
    "cache",
    "keep",
)


@dataclass(frozen=True)
class Job:
    """The pictures of one run and where they go."""

    requests: tuple[Request, ...]
    edit: Edit | None  # of all of them
    paths: tuple[Path, ...]
    sheet_paths: Mapping[str, tuple[Path, ...]]  # of further files, by what they show, one of SHEETS
    overwrite: bool

    @classmethod
    def plan(cls, options: Mapping[str, Any], spec: ModelSpec, repeated: Metadata | None) -> Self:
        """Work out requests and names of all pictures: from options, then the repeated picture, then defaults.

        Raises:
            InputError: options that cannot be used, or a file of prompts that cannot be read.
        """
        values = {} if repeated is None else repeated.settings.to_json()
        values |= {name: options[name] for name in _SETTINGS if options[name] is not None}
        subjects = _subjects(options, spec) or [{name: values.get(name) for name in ("prompt", "label")}]
        seeds = spread_seeds(options["seeds"] or [values.get("seed", 0)], options["num_images"])
        given = {name: values[name] for name in _SETTINGS if name in values} | {
            "vae_tile_size": _tile(options, repeated)
        }
        if len(subjects) * len(seeds) > PICTURES:
            raise ValueRangeError(
                f"[prompts] got {len(subjects)} for {len(seeds)} seeds, want at most {PICTURES} pictures"
            )
        edit = _edit(options, spec, given, repeated)
        given |= {"edit": edit, "strength": _strength(options, repeated)}
        complete = [Request.complete(spec, **subject, **given) for subject in subjects]
        requests = tuple(replace(item, seed=seed) for item in complete for seed in seeds)
        output, patterns = options["output"], {name: options[f"save_{name}"] for name in SHEETS}
        if edit is None and patterns["edit"] is not None:
            raise UnsupportedError("[output] --save-edit without an image, of which it would show the edit; give one")
        job = cls(
            requests=requests,
            edit=edit,
            paths=default_names(requests) if output is None else name_files(output, requests),
            sheet_paths={name: name_files(text, requests) for name, text in patterns.items() if text is not None},
            overwrite=options["overwrite"],
        )
        options_by_key = {file_key(path): "--output" for path in job.paths}
        for name, paths in job.sheet_paths.items():
            for path in paths:
                other = options_by_key.setdefault(file_key(path), f"--save-{name}")
                if other != f"--save-{name}":
                    raise ValueRangeError(f"[output] --save-{name} and {other} name the same file, {path}")
        return job

    @property
    def files(self) -> tuple[Path, ...]:
        """Every file that the run writes."""
        return (*self.paths, *(path for paths in self.sheet_paths.values() for path in paths))

    def replaced(self, repeated: Metadata) -> list[str]:
        """List what of "image" and "mask" is not what a picture that is repeated was made from."""
        found = {
            name: (getattr(repeated.settings, name), getattr(self.requests[0], name)) for name in ("image", "mask")
        }
        return [name for name, (before, now) in found.items() if before not in (None, now)]

    @property
    def digest(self) -> str:
        """What tells the pictures of two runs apart, whatever their files are called."""
        asked = json.dumps([item.to_json() for item in self.requests], sort_keys=True)
        return hashlib.sha256(asked.encode()).hexdigest()

    def part(self, span: slice) -> Self:
        """Take some of the pictures, with the names that they have in the whole."""
        sheets = {name: paths[span] for name, paths in self.sheet_paths.items()}
        return replace(self, requests=self.requests[span], paths=self.paths[span], sheet_paths=sheets)


def _edit(
    options: Mapping[str, Any], spec: ModelSpec, given: Mapping[str, Any], repeated: Metadata | None
) -> Edit | None:
    """Open the image and mask of an edit, if there are any; those of a picture that is repeated have to be given."""
    for name in ("image", "mask"):
        digest = None if repeated is None else getattr(repeated.settings, name)
        if digest is not None and options[name] is None:
            raise MissingError(
                f"[metadata] {options['config_from']} was made from an {name} whose pixels have the SHA-256 "
                f"{digest[:16]}...; give it again with --{name}"
            )
    padding = options["padding_mask_crop"]
    if padding is None and repeated is not None:
        padding = repeated.settings.padding_mask_crop
    take = partial(open_edit, spec, options["image"], options["mask"], padding_mask_crop=padding)
    edit = take(height=options["height"], width=options["width"])
    # a square has a size of its own, and so has another image than that of the picture that is repeated
    is_same = edit is not None and repeated is not None and edit.image_digest == repeated.settings.image
    return take(height=given["height"], width=given["width"]) if is_same and padding is None else edit


def _strength(options: Mapping[str, Any], repeated: Metadata | None) -> float | None:
    """Choose the strength of an edit, which mflux's users say as its complement."""
    if options["image_strength"] is not None:
        return round(1.0 - options["image_strength"], _DIGITS)
    if options["strength"] is None and repeated is not None:
        return repeated.settings.strength
    strength: float | None = options["strength"]
    return strength


def _tile(options: Mapping[str, Any], repeated: Metadata | None) -> int | None:
    """Choose the VAE's tiles; a picture that was made with tiles is repeated with them."""
    default = None if repeated is None else repeated.settings.vae_tile_size
    return choose_tile(options["vae_tiling"], options["vae_tile_size"], default)


def _subjects(options: Mapping[str, Any], spec: ModelSpec) -> list[dict[str, Any]]:
    """List what to draw, as the arguments of a request."""
    if options["labels"]:
        return [{"label": spec.number(label)} for label in options["labels"]]
    return [{"prompt": prompt} for prompt in _prompts(options)]


def _prompts(options: Mapping[str, Any]) -> list[str]:
    file = options["prompt_file"]
    if file is None:
        return [] if options["prompt"] is None else [options["prompt"]]
    try:
        if file == STDIN:
            text = sys.stdin.read(JSON_BYTES + 1)
        else:
            origin = Origin("prompts", file)
            text = read_bytes(expand(file), origin, absent="want one prompt a line", most=JSON_BYTES).decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise FormatError(f"[prompts] {file}: cannot read it ({error}), want UTF-8 text") from None
    if len(text) > JSON_BYTES:
        raise FormatError(f"[prompts] {file}: too long, want at most {JSON_BYTES} characters")
    prompts = [line.strip() for line in text.splitlines() if line.strip()]
    if not prompts:
        raise FormatError(f"[prompts] {file}: no prompts in it, want one a line")
    return prompts
