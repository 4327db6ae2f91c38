"""Names by which the exporter, the verifier and apps find things in a bundle, above all in one for Core ML.

The exporter writes them; the verifier, which shares no code with it, and the Swift package look for them. What apps
have to know of them is in docs/format.md.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Final

TEXT_ENCODER: Final = "text_encoder"  # component, and what its package is for
PREPARE: Final = "prepare"  # what a package is for that runs once a picture, before the steps
TOKENIZER: Final = "tokenizer.json"  # file of the bundle
_STEMS: Final[Mapping[str, str]] = {  # of packages, by role
    TEXT_ENCODER: "TextEncoder",
    PREPARE: "Prepare",
    "transformer": "Transformer",
    "vae_decoder": "VAEDecoder",
    "vae_encoder": "VAEEncoder",
}

TEXT_FUNCTION: Final = "encode"  # of the text encoder's package

# Inputs and outputs of functions.
LATENTS: Final = "latents"
TIMESTEP: Final = "timestep"
TEXT: Final = "text"
TEXT_MASK: Final = "text_mask"
LABELS: Final = "labels"
RESOLUTION: Final = "resolution"
ASPECT_RATIO: Final = "aspect_ratio"
PREDICTION: Final = "prediction"
TOKENS: Final = "tokens"
MODULATION: Final = "modulation"
EMBEDDED: Final = "embedded"
TEXT_KEYS: Final = "text_keys"
TEXT_VALUES: Final = "text_values"
INPUT_IDS: Final = "input_ids"
IMAGE: Final = "image"
MOMENTS: Final = "moments"
_HANDED: Final = "_out"  # ends an output that is an input of the next package: no output may be named as an input

FEATURES: Final[Mapping[str, str]] = {  # what each of them is, as Xcode shows it; also of one that is handed on
    LATENTS: "Noisy latents to denoise, or clean ones to decode; in the scale of the transformer",
    TIMESTEP: "Timestep, 0 (clean) to 999 (noise) in the usual case; the same for the whole batch",
    TEXT: "States of the text encoder",
    TEXT_MASK: "1 for tokens of the text, 0 for padding",
    LABELS: "Numbers of classes; the number of classes itself stands for none",
    RESOLUTION: "Height and width of the picture in pixels",
    ASPECT_RATIO: "Height of the picture divided by its width",
    PREDICTION: "Predicted noise or velocity",
    TOKENS: "Image tokens between two chunks of the transformer",
    MODULATION: "Modulation of the blocks, from the first chunk",
    EMBEDDED: "Embedded timestep, from the first chunk",
    TEXT_KEYS: "Keys of the text for all blocks, one batch behind the other",
    TEXT_VALUES: "Values of the text for all blocks, one batch behind the other",
    INPUT_IDS: "Token numbers, padded at the end",
    IMAGE: "Picture, red, green and blue planes, -1 to 1",
    MOMENTS: "Mean and logarithm of the variance of the latents, not scaled",
}

INTEGERS: Final = frozenset({INPUT_IDS, LABELS})  # those that are int32

BY_DISTANCE: Final = "_by_distance"  # ends the constant of T5's position bias, which is gathered: (1, H, L, L)
KEPT: Final = "_kept"  # after a block's name, ends the operation that gives the tokens which the block keeps
_KEPT: Final = re.compile(rf"block(\d+){KEPT}")


def package_names(role: str, count: int = 1) -> tuple[str, ...]:
    """Name the packages of a role, of which there are `count`, in the order in which they run."""
    stem = _STEMS[role]
    if count == 1:
        return (f"{stem}.mlpackage",)
    return tuple(f"{stem}{number}of{count}.mlpackage" for number in range(1, count + 1))


def size_name(height: int, width: int) -> str:
    """Name a picture size in pixels, as the VAE's functions are named."""
    return f"px{height}x{width}"


def batch_name(batch: int) -> str:
    """Name the function that prepares the steps of a batch."""
    return f"batch{batch}"


def step_name(height: int, width: int, batch: int, regions: Sequence[int]) -> str:
    """Name the transformer's function for a picture size (pixels), a batch, and regions of timesteps."""
    return f"{size_name(height, width)}_{batch_name(batch)}_region{'_'.join(map(str, regions))}"


def handed_name(name: str) -> str:
    """Name the output of a package that is the input `name` of the next."""
    return name + _HANDED


def taken_name(output: str) -> str:
    """Name the input of the next package that an output is for; other outputs keep their name."""
    return output.removesuffix(_HANDED)


def constant_name(tensor: str) -> str:
    """Name the constant that holds a canonical tensor: names in graphs are identifiers."""
    return re.sub(r"\W", "_", tensor)


def block_name(layer: int) -> str:
    """Begin the names of all operations of a transformer's block."""
    return f"block{layer:02}"


def kept_layer(operation: str) -> int | None:
    """Tell of which layer an operation gives the tokens that are kept; None for other operations.

    The last output of such an operation is either the indices of the tokens, (B, K) integers in any order, or with
    `onehot` routing 1 for each token that is kept, (B, N) floats.
    """
    match = _KEPT.fullmatch(operation)
    return None if match is None else int(match[1])
