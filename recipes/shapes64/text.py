"""The text side: a tokenizer of the grammar's words, and a T5 encoder that is taught to bind them to objects."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import T5Tokenizer

from recipes.runs import Journal, cosine_rate, set_rate, write_folder
from recipes.shapes64.scenes import BACKGROUNDS, COLOURS, FORMS, PLACES, RADII, Scene, caption, draw_caption, draw_scene
from recipes.text import WIDTH, build_text_encoder, build_tokenizer, tokenize

MAX_TOKENS: Final = 24  # the longest caption has 20
VARIANTS: Final = 4  # wordings of one scene: two tails, two orders
RATE: Final = 1.5e-3
BATCH: Final = 48

_WORDS: Final = ["a", "on", "the", "in", "at", "and", "left", "right", "top", "bottom", "center", "background"]


def build_words() -> T5Tokenizer:
    """Make the tokenizer of the grammar's words."""
    return build_tokenizer([*_WORDS, *RADII, *COLOURS, *FORMS, *BACKGROUNDS], length=MAX_TOKENS)


def word_variants(scene: Scene) -> list[str]:
    """Every wording of a scene: the plain ones first, then those that name the second object first."""
    return [caption(scene, wording=wording, reverse=reverse) for reverse in (False, True) for wording in (0, 1)]


class Probe(nn.Module):
    """Ask the encoder's output what is at each place: the task that teaches it to bind attributes to objects.

    Shapes: states (B, S, C), mask (B, S) -> colour (B, 5, 9), form (B, 5, 5), size (B, 5, 3), background (B, 5);
    the last class of the first three means "nothing there".
    """

    def __init__(self) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.randn(len(PLACES) + 1, WIDTH))
        self.attention = nn.MultiheadAttention(WIDTH, 4, batch_first=True)
        self.heads = nn.ModuleList(nn.Linear(WIDTH, len(names) + 1) for names in (COLOURS, FORMS, RADII))
        self.background = nn.Linear(WIDTH, len(BACKGROUNDS))

    def forward(self, states: Tensor, mask: Tensor) -> tuple[list[Tensor], Tensor]:
        queries = self.queries.expand(states.shape[0], -1, -1)
        seen, _ = self.attention(queries, states, states, key_padding_mask=mask == 0, need_weights=False)
        return [head(seen[:, :-1]) for head in self.heads], self.background(seen[:, -1])


def pretrain_text(folder: Path, journal: Journal, *, steps: int, seed: int = 2) -> None:
    """Pretrain the encoder through the probe; save `folder`/tokenizer and `folder`/text_encoder."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    write_folder(folder / "tokenizer", build_words().save_pretrained)
    tokenizer = T5Tokenizer.from_pretrained(folder / "tokenizer")  # reloading drops parts; train with what users get
    encoder, probe = build_text_encoder(tokenizer), Probe()
    optimizer = torch.optim.AdamW([*encoder.parameters(), *probe.parameters()], lr=RATE, betas=(0.9, 0.99))
    for step in range(steps):
        set_rate([optimizer], cosine_rate(step, steps, warmup=20, flat=0.5))
        scenes = [draw_scene(rng, held_out=False) for _ in range(BATCH)]
        ids, mask = tokenize(tokenizer, [draw_caption(rng, scene) for scene in scenes])
        loss, right = _probe_loss(probe, encoder(ids, attention_mask=mask).last_hidden_state, mask, scenes)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_([*encoder.parameters(), *probe.parameters()], 1.0)
        optimizer.step()
        if (step + 1) % 25 == 0:
            journal.write(step=step + 1, loss=loss.item(), right=right)
    write_folder(folder / "text_encoder", encoder.save_pretrained)


def _probe_loss(probe: Probe, states: Tensor, mask: Tensor, scenes: list[Scene]) -> tuple[Tensor, float]:
    """Mean cross-entropy of the probe, and the share of scenes whose every answer is right."""
    logits, background = probe(states, mask)
    vocabularies = [list(COLOURS), list(FORMS), list(RADII)]
    targets = [torch.full((len(scenes), len(PLACES)), len(names)) for names in vocabularies]
    for row, scene in enumerate(scenes):
        for thing in scene.things:
            place = list(PLACES).index(thing.place)
            for target, names, value in zip(targets, vocabularies, (thing.colour, thing.form, thing.size), strict=True):
                target[row, place] = names.index(value)
    wanted = torch.tensor([list(BACKGROUNDS).index(scene.background) for scene in scenes])
    loss = cross_entropy(background, wanted)
    right = background.argmax(-1) == wanted
    for answer, target in zip(logits, targets, strict=True):
        loss = loss + cross_entropy(answer.flatten(0, 1), target.flatten())
        right &= (answer.argmax(-1) == target).all(-1)
    return loss / 4, float(right.float().mean())
