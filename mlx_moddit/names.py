"""Names of picture files, from patterns and prompts in any script, that mean one file each on every file system."""

from __future__ import annotations

import os
import string
import unicodedata
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from moddit.errors import ValueRangeError
from moddit.paths import expand
from moddit.record import escape
from moddit.request import Request

DEFAULT_PATTERN: Final = "{prompt}-{seed}.png"
FIELDS: Final = ("prompt", "seed", "index")
FALLBACK: Final = "picture"  # for prompts without a letter or digit
MAX_PROMPT_CHARACTERS: Final = 60
MAX_PROMPT_BYTES: Final = 180  # of UTF-8: 60 characters of most scripts, and room for the rest of a name
# File systems allow 255 bytes; the difference is for the name of a file while it is written.
MAX_NAME_BYTES: Final = 235
_MARKS: Final = ("Mn", "Mc")  # vowel signs and accents: part of the letter before them
_VIRAMA: Final = 9  # combining class of the sign that joins the letter after it to the one before


def default_names(requests: Sequence[Request]) -> tuple[Path, ...]:
    """Name pictures by DEFAULT_PATTERN; a name that an earlier picture has gets a number, from 2 on."""
    taken: dict[str, int] = {}  # how often each name was wanted
    paths = []
    for item in requests:
        stem = f"{shorten(item.subject)}-{item.seed}"
        path = wanted = Path(f"{stem}.png")
        while file_key(path) in taken:
            taken[file_key(wanted)] += 1
            path = Path(f"{stem}-{taken[file_key(wanted)]}.png")
        taken[file_key(path)] = 1
        paths.append(path)
    return tuple(paths)


def name_files(pattern: str, requests: Sequence[Request]) -> tuple[Path, ...]:
    """Fill in the user's own pattern of an output for each picture.

    It is a path in which {seed}, {index} (0, 1, ...) and {prompt} (shortened to letters, digits and hyphens) stand for
    those of the picture; numbers take a width, as in {index:03}. A leading ~ is the home folder.

    Raises:
        ValueRangeError: another field in braces, a name that is not of a PNG or too long, or one name for two pictures.
        MissingError: the home folder of an unknown user.
    """
    paths = _fill(pattern, requests)
    for path in paths:
        if path.suffix.lower() != ".png":
            raise ValueRangeError(f"[output] {escape(str(path))} is not the name of a PNG, want one that ends in .png")
        size = len(os.fsencode(path.name))
        if size > MAX_NAME_BYTES:
            raise ValueRangeError(
                f"[output] the name {escape(path.name)} is too long, got {size} bytes, want at most {MAX_NAME_BYTES}"
            )
    key, count = Counter(map(file_key, paths)).most_common(1)[0]
    if count > 1:
        names = sorted({escape(str(path)) for path in paths if file_key(path) == key})
        raise ValueRangeError(
            f"[output] {count} pictures would be called {' or '.join(names)}; use {{seed}} or {{index}} in the name"
            + (", since names that differ only in case are one file on a Mac" if len(names) > 1 else "")
        )
    return paths


def file_key(path: Path) -> str:
    """Give equal keys to paths that are one file where case and normalisation of names do not count, as on a Mac."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFD", str(path)).casefold())


def shorten(prompt: str) -> str:
    """Write the beginning of a prompt as lower-case letters and digits of any script, joined by hyphens.

    It has 1 to MAX_PROMPT_CHARACTERS characters of NFC and ends with a whole letter, with its accents and vowel signs.
    """
    name, size = "", 0
    for letter in _letters(prompt):
        size += len(letter.encode("utf-8"))
        if size > MAX_PROMPT_BYTES or len(name) + len(letter) > MAX_PROMPT_CHARACTERS:
            break
        name += letter
    return name.strip("-") or FALLBACK


def _fill(pattern: str, requests: Sequence[Request]) -> tuple[Path, ...]:
    try:
        used = [
            (field, conversion) for _, field, _, conversion in string.Formatter().parse(pattern) if field is not None
        ]
        if any(field not in FIELDS or conversion for field, conversion in used):
            raise ValueError("unknown field")
        return tuple(
            expand(pattern.format(prompt=shorten(item.subject), seed=item.seed, index=index))
            for index, item in enumerate(requests)
        )
    except ValueError as error:
        wanted = ", ".join(f"{{{field}}}" for field in FIELDS)
        raise ValueRangeError(f"[output] cannot read pattern {pattern!r} ({error}), want only {wanted}") from None


def _letters(text: str) -> list[str]:
    """Split a text into letters and digits, each with its marks, and a hyphen for whatever lies between words."""
    letters: list[str] = []
    is_joined = False  # whether the next character belongs to the last letter
    for character in unicodedata.normalize("NFC", text.lower()):
        is_mark = unicodedata.category(character) in _MARKS
        if is_mark or character.isalnum():
            if letters and letters[-1] != "-" and (is_mark or is_joined):
                letters[-1] += character
            elif not is_mark:
                letters.append(character)
            is_joined = unicodedata.combining(character) == _VIRAMA
        elif unicodedata.category(character) != "Cf" and letters[-1:] != ["-"]:  # Cf: invisible joiners and directions
            letters.append("-")
            is_joined = False
    return letters
