"""The training set as any user has one: a folder of pictures with metadata.jsonl, for `torch_moddit.prepare`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from recipes.emoji64.glyphs import Glyph
from recipes.emoji64.scenes import caption, list_scenes, render
from recipes.runs import write_folder


def write_pictures(folder: Path, glyphs: Sequence[Glyph], *, views: int, seed: int = 4) -> int:
    """Draw each scene that is not held out some times, the last time with a caption without article; count them."""
    rng = np.random.default_rng(seed)
    by_name = {glyph.name: glyph for glyph in glyphs}
    lines: list[str] = []

    def write(part: Path) -> None:
        for scene in list_scenes(list(by_name), held_out=False):
            for view in range(views):
                name = f"{len(lines):05d}.png"
                render(by_name[scene.glyph], scene.background, rng).save(part / name)
                text = caption(scene, article=view + 1 < views)
                lines.append(json.dumps({"file_name": name, "text": text}))
        (part / "metadata.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")

    write_folder(folder, write)
    return len(lines)
