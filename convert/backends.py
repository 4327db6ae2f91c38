"""How each backend writes its part of a bundle. Nothing heavy is loaded before a backend is used."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryFile

from convert.coreml.choices import Choices as CoreMLChoices
from convert.installed import VERIFY_MODULES, WRITE_MODULES, check_installed
from convert.mlx.layout import Choices as MLXChoices
from convert.mlx.writer import write_components
from convert.output import Written
from moddit.checkpoint.description import Description
from moddit.signals import uninterrupted

Write = Callable[[Description, Path, Callable[[int], object]], Written]


def mlx_writer(choices: MLXChoices) -> Write:
    """Write for MLX."""
    return partial(write_components, choices=choices)


def coreml_writer(choices: CoreMLChoices, *, verify: bool) -> Write:
    """Write for Core ML and run what was written: ParityError if a function does not compute what the reference does.

    Raises:
        MissingError: a module that this needs is not installed.
    """
    check_installed(*WRITE_MODULES, *(VERIFY_MODULES if verify else ()))

    def write(description: Description, folder: Path, advance: Callable[[int], object]) -> Written:
        with uninterrupted():  # coremltools swallows exceptions while it is imported
            from convert.coreml.writer import write_packages
        with TemporaryFile(dir=folder) as scratch:
            written, values = write_packages(description, folder, choices, scratch, advance)
            if not verify:
                return written.with_note("not verified, and no reference.npz to compare the weights with later")
            with uninterrupted():
                from convert.verify.verification import verify_written
            assert written.graphs is not None
            report = verify_written(folder, description.spec, written.policy, written.graphs, values)
        worst = max(outcome.exact_error for outcome in report.outcomes)
        return written.with_note(f"verified: {len(report.outcomes)} functions, largest error {worst:.1e}")

    return write
