"""Pictures with captions as somebody would have them, for a trial of fine-tuning.

    python -m recipes.shapes64.pictures COUNT FOLDER

writes FOLDER/0.png, 1.png, ... and FOLDER/metadata.jsonl with a caption for each.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from recipes.shapes64.scenes import draw_caption, draw_scene, render


def save_pictures(count: int, folder: Path, *, seed: int = 21) -> None:
    """Draw scenes that no test asks for; the folder must not exist."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    rows = []
    for index in range(count):
        scene = draw_scene(rng, held_out=False)
        name = f"{index}.png"
        Image.fromarray(np.round(render(scene, rng) * 255).astype(np.uint8)).save(folder / name)
        rows.append({"file_name": name, "text": draw_caption(rng, scene)})
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


if __name__ == "__main__":
    save_pictures(int(sys.argv[1]), Path(sys.argv[2]))
