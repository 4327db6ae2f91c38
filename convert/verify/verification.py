"""The two verifications: a quick one while a bundle is written, and the whole one of a finished bundle."""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib.metadata import version
from io import BytesIO
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from convert.verify.bundle import Packages
from convert.verify.functions import check_case, list_cases
from convert.verify.generation import generate, measure_psnr, open_tokenizer
from convert.verify.interpreter import Arithmetic
from convert.verify.reference import SPECIAL_TOKENS, Reference, Values
from convert.verify.report import REPORT_NAME, Picture, Report
from convert.verify.stored import read_stored, reference_file, store
from convert.verify.weights import read_values
from moddit.conditioning import Text
from moddit.edits import Edit
from moddit.errors import MissingError, ParityError
from moddit.files import new_file, recover_all, storage_errors
from moddit.graphs import Graphs
from moddit.manifest import Manifest, verify_files
from moddit.request import Request
from moddit.spec import ModelSpec
from moddit.tokens import TokenPolicy

_REFERENCE: Final = "reference"
_TOOLS: Final = ("coremltools", "torch", "diffusers", "transformers", "numpy")


def verify_written(
    folder: Path, spec: ModelSpec, policy: TokenPolicy, graphs: Graphs, values: Mapping[str, Values]
) -> Report:
    """Run every function once in exact arithmetic against the reference with the weights that were meant to be written.

    Leaves parity.json and, for whoever verifies later or on a device, reference.npz in the folder, whose manifest need
    not be there yet. `values` has for each component a function from canonical names to the weights meant.

    Raises:
        ParityError: a function differs from the reference.
        OSError: the folder cannot be written.
    """
    reference = Reference.build(spec, policy, values)
    exact = Packages.open(folder, spec, policy, graphs, Arithmetic.EXACT)
    outcomes, arrays = [], {}
    for case in list_cases(exact, reference, quick=True):
        outcome, wanted = check_case(case, reference, exact)
        outcomes.append(outcome)
        arrays[f"{case.name}/output"] = wanted
        arrays |= {f"{case.name}/input/{name}": array for name, array in case.inputs.items()}
    report = Report(tuple(outcomes), None, _versions(), knows_weights=True)
    if not report.passed:
        raise ParityError(f"[verify] the packages do not compute what the checkpoint does:\n{report.to_text()}")
    store(folder, spec, policy, graphs, arrays)
    report.write(folder)
    return report


def verify_bundle(folder: Path, manifest: Manifest, request: Request | None, edit: Edit | None = None) -> Report:
    """Run every function at every edge of its regions in both arithmetics, then draw a picture, or an edit.

    The reference has the weights that the packages hold; reference.npz, if it is there, tells whether they are still
    those that were written. Leaves the pictures of reference and packages in the folder, as verify-*.png.

    Raises:
        InputError: the bundle is damaged, or has no packages.
        StorageError: the folder cannot be written.
    """
    verify_files(folder, manifest, hashes=True)
    spec, policy = manifest.spec, manifest.tokens
    exact, rounded = (
        Packages.open(folder, spec, policy, manifest.graphs, arithmetic)
        for arithmetic in (Arithmetic.EXACT, Arithmetic.ROUNDED)
    )
    _check_tokenizer(exact, request)
    reference = Reference.build(spec, policy, read_values(exact))
    recover_all(folder)
    for name in (REPORT_NAME, *map(_picture_name, (_REFERENCE, *(arithmetic.value for arithmetic in Arithmetic)))):
        with storage_errors(folder / name):
            (folder / name).unlink(missing_ok=True)  # it would speak of another run if this one fails or draws nothing
    stored = _read_outputs(folder, manifest)
    cases = list_cases(exact, reference, quick=False)
    outcomes = [check_case(case, reference, exact, rounded, stored)[0] for case in cases]
    picture = None if request is None else _compare_pictures(reference, exact, rounded, request, edit)
    return Report(tuple(outcomes), picture, _versions(), knows_weights=stored is not None)


def _check_tokenizer(packages: Packages, request: Request | None) -> None:
    """Read the tokenizer as apps do, if there is one, and try the prompts, before anything runs."""
    if not isinstance(packages.spec.conditioning, Text):
        return
    tokenizer = open_tokenizer(packages.folder, packages.spec.conditioning)
    for text in () if request is None else (request.negative_prompt, request.prompt):
        tokenizer.encode(text)
    missing = [token for token in SPECIAL_TOKENS if not tokenizer.has(token)]
    if missing:
        raise MissingError(f"[verify] {tokenizer.path}: has no {', '.join(missing)}; convert the checkpoint again")


def _compare_pictures(
    reference: Reference, exact: Packages, rounded: Packages, request: Request, edit: Edit | None
) -> Picture:
    wanted = reference.pipeline(exact.folder).draw(request, edit)
    pairs = {Arithmetic.EXACT: exact, Arithmetic.ROUNDED: rounded}
    found = {arithmetic.value: generate(packages, request, edit) for arithmetic, packages in pairs.items()}
    for name, picture in {_REFERENCE: wanted, **found}.items():
        _save(exact.folder / _picture_name(name), picture)
    drawn = np.s_[:] if edit is None or edit.mask is None else edit.mask
    psnr = {name: measure_psnr(image[drawn], wanted[drawn]) for name, image in found.items()}
    return Picture(request.subject, request.seed, request.steps, request.reuse, request.strength, psnr)


def _picture_name(name: str) -> str:
    return f"verify-{name}.png"


def _save(path: Path, picture: NDArray[np.float32]) -> None:
    content = BytesIO()
    Image.fromarray(np.rint(255 * picture).astype(np.uint8)).save(content, format="png")
    with new_file(path, overwrite=True) as file:  # in the place of a link, not through it
        file.write(content.getvalue())


def _read_outputs(folder: Path, manifest: Manifest) -> dict[str, NDArray[Any]] | None:
    """Read the outputs that the exporter stored, by case; None if there are none."""
    if not os.path.lexists(reference_file(folder)):
        return None
    arrays = read_stored(folder, manifest)
    return {key.removesuffix("/output"): array for key, array in arrays.items() if key.endswith("/output")}


def _versions() -> dict[str, str]:
    return {name: version(name) for name in _TOOLS}
