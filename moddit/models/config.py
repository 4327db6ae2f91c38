"""Specifications of components: records that survive JSON, read from the configurations of diffusers and transformers.

Absent keys have the library's default. Keys that change the computation must have a value that is implemented here;
anything else is an error that names the file, the key and the value. Defaults are those of the constructors of
diffusers 0.42 and transformers 5.24.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, Final

from moddit.errors import MissingError, UnsupportedError
from moddit.record import quote

Config = Mapping[str, Any]

EXPORT_AGAIN: Final = "export the model again with a current diffusers"


class ComponentSpec:
    """What one component is: a frozen dataclass that survives JSON (`moddit.record.decode` reads it)."""

    def to_json(self) -> dict[str, Any]:
        """Write every field; tuples become lists."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}  # type: ignore[call-overload]


def check_implemented(
    config: Config,
    implemented: Mapping[str, tuple[Any, ...]],
    where: str,
    required: tuple[str, ...] = (),
    component: str = "spec",
) -> None:
    """Compare the keys that change the computation with the values that are implemented.

    Raises:
        MissingError: a required key is absent.
        UnsupportedError: another value.
    """
    for key in required:
        if config.get(key) is None:
            raise MissingError(f"[{component}] {where}: field {key!r} is missing; {EXPORT_AGAIN}")
    for key, allowed in implemented.items():
        if key in config and config[key] not in allowed:
            found, wanted = quote(config[key]), " or ".join(map(repr, allowed))
            raise UnsupportedError(f"[{component}] {where}: {key} = {found} is not implemented, want {wanted}")
