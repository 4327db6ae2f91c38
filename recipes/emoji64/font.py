"""Where Noto Color Emoji comes from: the system, or Debian's package unpacked into a folder of its own."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Final

from moddit.errors import MissingError
from recipes.runs import write_folder

PACKAGE: Final = "fonts-noto-color-emoji"
FILE: Final = Path("usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")
INSTALLED: Final = Path("/") / FILE


def find_font(work: Path) -> Path:
    """Find the font on the system, or fetch Debian's package into `work`/font (10 MB), for which nobody need be root.

    Raises:
        MissingError: it is not installed, and this is no Debian or Ubuntu, or the package cannot be had.
    """
    fetched = work / "font" / FILE
    if fetched.exists():
        return fetched
    if INSTALLED.exists():
        return INSTALLED
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        raise _missing("this is no Debian or Ubuntu", fetched)
    with tempfile.TemporaryDirectory() as folder:
        found = subprocess.run(
            ["apt-get", "download", "-q", PACKAGE], cwd=folder, capture_output=True, text=True, check=False
        )
        packages = list(Path(folder).glob("*.deb"))
        if found.returncode or not packages:
            raise _missing(f"apt-get cannot download it ({found.stderr.strip()[-200:]})", fetched)
        write_folder(work / "font", lambda part: subprocess.run(["dpkg-deb", "-x", packages[0], part], check=True))
    return fetched


def _missing(why: str, fetched: Path) -> MissingError:
    return MissingError(
        f"[emoji64] Noto Color Emoji is not installed, and {why}; install {PACKAGE}, or put NotoColorEmoji.ttf (that "
        f"with bitmaps) at {fetched}"
    )
