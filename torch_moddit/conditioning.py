"""What a transformer is conditioned on, as samples of a dataset say it, and as the transformer takes it.

`torch_moddit.data` lists the keys of a sample. A condition is a text, or the number of a class (`moddit.conditioning`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Final

import torch
from torch import Tensor

from moddit.conditioning import Label, Text
from moddit.contract import TEXT_ENCODER
from moddit.errors import MissingError
from moddit.spec import ModelSpec
from torch_moddit.data import Item
from torch_moddit.model import CONTEXT, Context

Components = Mapping[str, Any]  # of a pipeline, by name


def make_context(items: Mapping[str, Tensor], components: Components) -> Context:
    """Make the context of a batch of samples; token numbers go through the text encoder.

    Raises:
        MissingError: there is no text encoder for them.
    """
    context = {name: items[key] for key, name in CONTEXT.items() if key in items}
    if "input_ids" in items:
        if TEXT_ENCODER not in components:
            raise MissingError(f"[finetune] the dataset gives input_ids: pass `components` with a {TEXT_ENCODER!r}")
        encoder = components[TEXT_ENCODER]
        context["text"] = encoder(items["input_ids"], attention_mask=context["text_mask"])[0]
    return context


def tokenize(tokenizer: Any, caption: str, max_tokens: int) -> Item:
    """Tokenize as diffusers' pipelines of PixArt do: lower case, stripped, padded and cut to `max_tokens`."""
    encoded = tokenizer(
        caption.lower().strip(), padding="max_length", max_length=max_tokens, truncation=True, return_tensors="pt"
    )
    return {"input_ids": encoded.input_ids[0], "mask": encoded.attention_mask[0]}


def teller(spec: ModelSpec, components: Components) -> Callable[[Any], Item]:
    """Find what writes a condition of a model as a sample has it."""
    return _TELLERS[spec.conditioning.KIND](spec, components)


def encode_rows(spec: ModelSpec, components: Components, rows: Sequence[Any], device: torch.device) -> Context:
    """Make the context of conditions (`Request.rows`), one row for each."""
    items = list(map(teller(spec, components), rows))
    batch = {key: torch.stack([item[key] for item in items]).to(device) for key in items[0]}
    with torch.no_grad():
        return make_context(batch, components)


_TELLERS: Final[Mapping[str, Callable[[ModelSpec, Components], Callable[[Any], Item]]]] = {
    Text.KIND: lambda spec, components: partial(tokenize, components["tokenizer"], max_tokens=spec.text_tokens),
    Label.KIND: lambda _, __: lambda number: {"labels": torch.tensor(number)},
}
