"""How large what is read may be: one bound for every number, text and list, generous for real models.

They are checked before anything is allocated for a value, so that a damaged or hostile file costs no memory. A test
holds the table in docs/format.md to this module.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Final

from msgspec import Meta

# Files
JSON_BYTES: Final = 8 << 20  # of a configuration, an index, a manifest, a line of settings
TOKENIZER_BYTES: Final = 32 << 20  # of tokenizer.json and what is beside it
LOG_BYTES: Final = 1 << 30  # of a file with a caption or a step in each line
JSON_DEPTH: Final = 64  # lists and objects within each other
FILES: Final = 10_000  # of one component
FILE_BYTES: Final = 1 << 46
PARAMETERS: Final = 1 << 46
TENSORS: Final = 100_000  # listed by name
QUANTIZATIONS: Final = 64  # of one component

# Texts, in characters
NAME: Final = 256
PATH: Final = 1024
PROMPT: Final = 20_000  # that is encoded; a text of 300 tokens has about 1,500
TEXT: Final = 100_000  # of a setting, or where a bundle came from

# Tokenizers
STEPS: Final = 8  # of a normalizer or a pre-tokenizer; T5's have at most three
REPLACEMENT: Final = 96  # bytes that a map of characters puts for one; T5's own puts 33 at most

# Networks
LAYERS: Final = 1000
HEADS: Final = 1024
HEAD_WIDTH: Final = 4096
WIDTH: Final = 1 << 18  # of a hidden state
CHANNELS: Final = 4096  # of a latent
LEVELS: Final = 8  # of a VAE, each of which halves the picture's sides
PATCH: Final = 64  # latent pixels
VOCABULARY: Final = 1 << 20
CLASSES: Final = 100_000  # that a model draws by number
TEXT_TOKENS: Final = 4096  # of a prompt
BUCKETS: Final = 4096  # of distances in a text, which is DISTANCE tokens long at most
DISTANCE: Final = 1 << 20

# Sampling
TIMESTEPS: Final = 100_000  # of training; a run takes no more steps
REGIONS: Final = 100  # of timesteps
GUIDANCE: Final = 1000
PICTURES: Final = 10_000  # of one run

# Pictures
SIDE: Final = 16_384  # pixels
PIXELS: Final = 1 << 26  # 8192 x 8192
TOKENS: Final = 1 << 16
TRAINED_TOKENS: Final = 16  # times as many tokens as in the square picture that the model was trained on
BATCH: Final = 64

# Packages
PACKAGES: Final = 100  # that run one after the other
FUNCTIONS: Final = 1000  # of a package
FEATURES: Final = 64  # of a function
DIMENSIONS: Final = 8
FEATURE_SIZE: Final = 1 << 30  # numbers of a feature


def choice(*values: str) -> Meta:
    """Bound a text to the listed values."""
    alternatives = "|".join(values)
    return Meta(pattern=rf"^(?:{alternatives})(?![\s\S])", extra_json_schema={"enum": list(values)})


Name = Annotated[str, Meta(min_length=1, max_length=NAME)]
Text = Annotated[str, Meta(max_length=TEXT)]
Identifier = Annotated[  # a name in a program of Core ML, which has no others
    str,
    Meta(
        pattern=r"^[A-Za-z_][A-Za-z0-9_]*(?![\s\S])",
        max_length=NAME,
        description="a name of letters, digits and underscores that does not begin with a digit",
    ),
]
Version = Annotated[
    str, Meta(pattern=r"^[0-9]{1,4}(?:\.[0-9]{1,4}){0,2}(?![\s\S])", description="a version such as 18.0")
]
Sha256 = Annotated[
    str, Meta(pattern="^[0-9a-f]{64}$", min_length=64, max_length=64, description="64 hexadecimal digits")
]
# Parts between slashes are not empty, "." or ".."; no backslash and no control character.
RelativePath = Annotated[
    str,
    Meta(
        pattern=r"^(?!(?:.*/)?\.{0,2}(?:/|(?![\s\S])))[^\\\u0000-\u001f\u007f-\u009f]+(?![\s\S])",
        min_length=1,
        max_length=PATH,
        description="a path inside the bundle, relative, with forward slashes and without . and ..",
    ),
]

Layers = Annotated[int, Meta(ge=1, le=LAYERS)]
Heads = Annotated[int, Meta(ge=1, le=HEADS)]
HeadWidth = Annotated[int, Meta(ge=1, le=HEAD_WIDTH)]
Width = Annotated[int, Meta(ge=1, le=WIDTH)]
Channels = Annotated[int, Meta(ge=1, le=CHANNELS)]
Patch = Annotated[int, Meta(ge=1, le=PATCH)]
Vocabulary = Annotated[int, Meta(ge=1, le=VOCABULARY)]
Classes = Annotated[int, Meta(ge=1, le=CLASSES)]
ClassNumber = Annotated[int, Meta(ge=0, lt=CLASSES)]
TextTokens = Annotated[int, Meta(ge=1, le=TEXT_TOKENS)]
Buckets = Annotated[int, Meta(ge=4, le=BUCKETS)]  # below, T5 divides by zero
Distance = Annotated[int, Meta(ge=1, le=DISTANCE)]
Timesteps = Annotated[int, Meta(ge=1, le=TIMESTEPS)]
Regions = Annotated[int, Meta(ge=1, le=REGIONS)]
Side = Annotated[int, Meta(ge=1, le=SIDE)]
Batch = Annotated[int, Meta(ge=1, le=BATCH)]

Epsilon = Annotated[float, Meta(ge=0, le=1)]
Scale = Annotated[float, Meta(ge=1e-6, le=1e6)]
Shift = Annotated[float, Meta(ge=-1e6, le=1e6)]

Versions = Annotated[Mapping[Name, Name], Meta(max_length=FILES)]
