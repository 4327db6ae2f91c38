"""What a run of `mlx_moddit generate` is asked for: its pictures, and the files they go to."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Self

from mlx_moddit.names import default_names, file_key, name_files
from mlx_moddit.pipeline import spread_seeds
from moddit.bounds import JSON_BYTES, PICTURES
from moddit.errors import FormatError, ValueRangeError
from moddit.metadata import Metadata
from moddit.paths import expand
from moddit.record import Origin, read_bytes
from moddit.request import Request, choose_tile
from moddit.spec import ModelSpec

STDIN: Final = "-"
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
    paths: tuple[Path, ...]
    route_paths: tuple[Path, ...] | None
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
        complete = [Request.complete(spec, **subject, **given) for subject in subjects]
        requests = tuple(replace(item, seed=seed) for item in complete for seed in seeds)
        output, routes = options["output"], options["save_routes"]
        job = cls(
            requests=requests,
            paths=default_names(requests) if output is None else name_files(output, requests),
            route_paths=None if routes is None else name_files(routes, requests),
            overwrite=options["overwrite"],
        )
        routes_keys = set(map(file_key, job.route_paths or ()))
        for path in job.paths:
            if file_key(path) in routes_keys:
                raise ValueRangeError(f"[output] --save-routes and --output name the same file, {path}")
        return job

    @property
    def files(self) -> tuple[Path, ...]:
        """Every file that the run writes."""
        return (*self.paths, *(self.route_paths or ()))

    @property
    def digest(self) -> str:
        """What tells the pictures of two runs apart, whatever their files are called."""
        asked = json.dumps([item.to_json() for item in self.requests], sort_keys=True)
        return hashlib.sha256(asked.encode()).hexdigest()

    def part(self, span: slice) -> Self:
        """Take some of the pictures, with the names that they have in the whole."""
        routes = None if self.route_paths is None else self.route_paths[span]
        return replace(self, requests=self.requests[span], paths=self.paths[span], route_paths=routes)


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
