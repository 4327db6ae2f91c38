"""Which glyphs of Noto Color Emoji there are: those that people would ask for, by their names in Unicode.

Letters, signs, arrows, clocks, flags, hands and geometric shapes are left out, and so are glyphs that differ from
another in a detail.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from PIL import Image, ImageDraw, ImageFont

STRIKE: Final = 109  # size at which the font has its bitmaps, of 136 x 128 pixels
WIDTH: Final = 136
HEIGHT: Final = 128

# Code points, and ranges of them with both ends.
THEMES: Final[dict[str, str]] = {
    "weather": "2603 26C8 2744 1F300 1F302 1F304 1F305 1F308-1F30B 1F30D 1F315 1F319 1F31E-1F320 1F324 1F327-1F32A",
    "plants": "2618 1F331-1F335 1F337-1F33B 1F340-1F342 1F344 1F38D 1F490 1F940 1FAB4 1FAB7",
    "food": "2615 1F32D-1F330 1F336 1F33D 1F345-1F357 1F359-1F35C 1F35E-1F363 1F366-1F36F 1F370-1F375 1F377-1F379 "
    "1F37B 1F37C 1F37E 1F37F 1F382 1F950-1F952 1F954-1F958 1F95A 1F95B 1F95D-1F960 1F962 1F965-1F96D 1F96F 1F9C0-1F9C5 "
    "1F9C7 1F9C8 1F9CA 1F9CB 1FAD0-1FAD2 1FAD6 1FAD8",
    "animals": "1F400 1F402-1F404 1F406 1F407 1F409-1F41E 1F420-1F424 1F426-1F42B 1F42D-1F431 1F433-1F43A 1F43B-1F43F "
    "1F54A 1F577 1F578 1F980-1F999 1F99A-1F99F 1F9A1-1F9A3 1F9A5-1F9A9 1F9AB-1F9AE 1FAB1-1FAB3 1FAB8",
    "faces": "1F600-1F602 1F607-1F60B 1F60D 1F60E 1F611 1F618 1F61C 1F621 1F622 1F62D 1F631 1F632 1F634 1F635 1F637 "
    "1F643 1F648-1F64A 1F910 1F911 1F913-1F916 1F920-1F924 1F927 1F929 1F92A 1F92E 1F92F 1F970 1F973 1F975 1F976 1F978 "
    "1F9D0 1FAE0",
    "people": "1F385 1F3C2-1F3C4 1F3C7 1F3CA-1F3CC 1F466-1F469 1F46E 1F470 1F473-1F479 1F47B 1F47D 1F47E 1F480 1F482 "
    "1F483 1F575 1F6B4 1F935 1F939 1F977 1F9B8 1F9D5 1F9D8-1F9DC 1F9DE 1F9DF",
    "clothes": "1F392 1F393 1F3A9 1F451-1F45C 1F45E-1F462 1F484 1F48D 1F576 1F97C 1F97E 1F9E2-1F9E6 1FA70 1FA71 1FA73",
    "sports and games": "26BD 26BE 26F3 26F8 1F3A3 1F3AE-1F3B3 1F3B7-1F3BB 1F3BE-1F3C1 1F3C5 1F3C6 1F3C8 1F3C9 1F3CF "
    "1F3D0 1F3D2 1F3D3 1F3F8 1F3F9 1F93F 1F941 1F94A 1F94B 1F94D-1F94F 1F9E9 1FA80 1FA81 1FA95 1FA97 1FA98",
    "celebrations": "1F380 1F381 1F383 1F384 1F386 1F388-1F38A 1F38E 1F390 1F3EE 1F9E8 1FA85 1FA86 1FAA9",
    "places": "26EA 26F0-26F2 26FA 1F3A0-1F3A2 1F3AA 1F3D5 1F3D7 1F3D9-1F3DF 1F3E1 1F3ED 1F3EF 1F3F0 1F5FB-1F5FD "
    "1F5FF 1F6D6 1F6DD",
    "vehicles": "26F4 26F5 2708 1F680-1F683 1F685 1F68C 1F691-1F693 1F695 1F697 1F699-1F69C 1F6A1 1F6A2 1F6A4 1F6B2 "
    "1F6F0 1F6F4-1F6F6 1F6F8 1F6F9 1F6FB 1F6FC 1F3CD 1F3CE",
    "things": "231A 231B 2328 2693 2694 2696 2699 23F0 1F3A4 1F3A5 1F3A7 1F3A8 1F3AC 1F3AD 1F3FA 1F488-1F48A 1F48C "
    "1F48E 1F494 1F498 1F4A1 1F4A3 1F4A7 1F4B0 1F4B8 1F4BA-1F4BD 1F4D5 1F4D6 1F4DA 1F4DC-1F4DE 1F4E1 1F4E3 1F4E6 1F4EE "
    "1F4EF 1F4F1 1F4F7 1F4FA 1F4FB 1F50B 1F50D 1F511 1F512 1F514 1F525-1F528 1F52A-1F52E 1F531 1F56F 1F5A5 1F5A8 1F5D1 "
    "1F5DD 1F5E1 1F5FA 1F6AA 1F6C1 1F6CB 1F6CE 1F6CF 1F6D2 1F6DF 1F6E1 1F6E2 1F9B4 1F9B7 1F9E0 1F9EA 1F9ED-1F9F2 "
    "1F9F4-1F9F6 1F9F8-1F9FA 1F9FC 1F9FD 1FA7A 1FA82 1FA90-1FA94 1FA96 1FA99-1FA9C 1FA9E-1FAA1 1FAA3 1FAA5 1FAA8",
}


@dataclass(frozen=True)
class Glyph:
    """One glyph."""

    name: str  # in Unicode, in small letters
    theme: str
    picture: Image.Image  # RGBA, 136 x 128


def list_names() -> dict[str, str]:
    """Map the name of each glyph to its character, theme by theme."""
    return {unicodedata.name(character).lower(): character for _, character in _list_characters()}


def load_glyphs(font: Path) -> list[Glyph]:
    """Draw every glyph of `list_names`."""
    face = ImageFont.truetype(str(font), STRIKE)
    glyphs = []
    for theme, character in _list_characters():
        picture = Image.new("RGBA", (WIDTH, HEIGHT))
        ImageDraw.Draw(picture).text((0, 0), character, font=face, embedded_color=True)
        glyphs.append(Glyph(unicodedata.name(character).lower(), theme, picture))
    return glyphs


def _list_characters() -> Iterator[tuple[str, str]]:
    for theme, text in THEMES.items():
        for item in text.split():
            first, _, last = item.partition("-")
            for code in range(int(first, 16), int(last or first, 16) + 1):
                yield theme, chr(code)
