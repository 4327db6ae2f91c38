"""The text side: a tokenizer of the names' words, and a T5 encoder that is taught what the glyphs look like.

The encoder is frozen before the diffusion model is trained. So that its states tell where in the picture which colour
is, it learns to draw a thumbnail of the scene, by attention from places to words as in the diffusion model's blocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss
from transformers import T5Tokenizer

from recipes.emoji64.glyphs import Glyph
from recipes.emoji64.scenes import BACKGROUNDS, caption, list_scenes, render, to_floats
from recipes.runs import Journal, cosine_rate, set_rate, shuffled, write_folder
from recipes.text import WIDTH, build_text_encoder, build_tokenizer, tokenize
from recipes.vae import to_tensor

MAX_TOKENS: Final = 20  # the longest caption has 15
THUMBNAIL: Final = 16  # pixels
CELLS: Final = 8  # places in a row, each of 2 x 2 pixels of the thumbnail
RATE: Final = 2e-3
BATCH: Final = 96


def build_words(names: Sequence[str]) -> T5Tokenizer:
    """Make the tokenizer of the words in names and captions."""
    words = dict.fromkeys(word for name in names for word in name.split())
    return build_tokenizer(dict.fromkeys(["a", "an", "on", "background", *BACKGROUNDS, *words]), length=MAX_TOKENS)


class Probe(nn.Module):
    """Ask the encoder's output what the scene looks like, and of what it is.

    Shapes: states (B, S, C), mask (B, S) -> thumbnail (B, 3, 16, 16), glyph (B, G), background (B, 6)
    """

    def __init__(self, glyphs: int) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.randn(CELLS**2 + 1, WIDTH))
        self.attention = nn.MultiheadAttention(WIDTH, 4, batch_first=True)
        self.hidden = nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 4 * WIDTH), nn.GELU())
        self.pixels = nn.Linear(4 * WIDTH, 3 * (THUMBNAIL // CELLS) ** 2)
        self.names = nn.Linear(4 * WIDTH, glyphs + len(BACKGROUNDS))

    def forward(self, states: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        queries = self.queries.expand(states.shape[0], -1, -1)
        seen, _ = self.attention(queries, states, states, key_padding_mask=mask == 0, need_weights=False)
        hidden = self.hidden(seen + queries)
        cells = self.pixels(hidden[:, :-1]).transpose(1, 2).unflatten(2, (CELLS, CELLS))
        glyph, background = self.names(hidden[:, -1]).split(
            (self.names.out_features - len(BACKGROUNDS), len(BACKGROUNDS)), dim=1
        )
        return nn.functional.pixel_shuffle(cells, THUMBNAIL // CELLS), glyph, background


def pretrain_text(folder: Path, glyphs: Sequence[Glyph], journal: Journal, *, steps: int, seed: int = 2) -> None:
    """Pretrain the encoder through the probe; save `folder`/tokenizer and `folder`/text_encoder."""
    torch.manual_seed(seed)
    names = [glyph.name for glyph in glyphs]
    write_folder(folder / "tokenizer", build_words(names).save_pretrained)
    tokenizer = T5Tokenizer.from_pretrained(folder / "tokenizer")  # reloading drops parts; train with what users get
    encoder, probe = build_text_encoder(tokenizer), Probe(len(names))
    scenes = list_scenes(names, held_out=False)
    ids, mask = tokenize(tokenizer, [caption(scene, article=article) for article in (True, False) for scene in scenes])
    longest = int(mask.sum(1).max())
    ids, mask = ids[:, :longest], mask[:, :longest]
    rows = torch.tensor([names.index(scene.glyph) for scene in scenes]).repeat(2)
    columns = torch.tensor([list(BACKGROUNDS).index(scene.background) for scene in scenes]).repeat(2)
    thumbnails = _draw_thumbnails(glyphs)
    parameters = [*encoder.parameters(), *probe.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=RATE, betas=(0.9, 0.99))
    batches = shuffled(len(rows), min(BATCH, len(rows)), seed)
    for step in range(steps):
        set_rate([optimizer], cosine_rate(step, steps, warmup=20, flat=0.3))
        chosen = next(batches)
        drawn, glyph, background = probe(
            encoder(ids[chosen], attention_mask=mask[chosen]).last_hidden_state, mask[chosen]
        )
        distance = mse_loss(drawn, thumbnails[rows[chosen], columns[chosen]])
        loss = (
            4 * distance + 0.2 * cross_entropy(glyph, rows[chosen]) + 0.2 * cross_entropy(background, columns[chosen])
        )
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        if (step + 1) % 50 == 0 or step + 1 == steps:
            right = (glyph.argmax(1) == rows[chosen]) & (background.argmax(1) == columns[chosen])
            journal.write(step=step + 1, loss=loss.item(), distance=distance.item(), right=right.float().mean().item())
    write_folder(folder / "text_encoder", encoder.save_pretrained)


def _draw_thumbnails(glyphs: Sequence[Glyph]) -> Tensor:
    """Draw every glyph on every background. Shapes: -> (G, 6, 3, 16, 16), -1..1."""
    size = (THUMBNAIL, THUMBNAIL)
    pictures = [
        to_floats(render(glyph, background).resize(size, Image.Resampling.BOX))
        for glyph in glyphs
        for background in BACKGROUNDS
    ]
    return to_tensor(np.stack(pictures)).unflatten(0, (len(glyphs), len(BACKGROUNDS)))
