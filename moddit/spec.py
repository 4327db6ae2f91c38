"""What a model is: the dimensions and scale factors of its components, read from the configurations of its libraries.

Absent keys have the library's default. Keys that change the computation must have a value that is implemented here;
anything else is an error that names the file, the key and the value. The records `_PixArtConfig`, `_T5Config` and
`_VAEConfig` are such configurations: their defaults are those of the constructors of diffusers 0.42 and transformers
5.24.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Annotated, Any, Final, Self

from msgspec import Meta

from moddit.bounds import (
    LEVELS,
    SIDE,
    TEXT_TOKENS,
    Buckets,
    Channels,
    Distance,
    Epsilon,
    Heads,
    HeadWidth,
    Layers,
    Name,
    Patch,
    Scale,
    Shift,
    Side,
    TextTokens,
    Vocabulary,
    Width,
)
from moddit.errors import MissingError, ShapeError, UnsupportedError, ValueRangeError
from moddit.record import Keys, Origin, decode, quote
from moddit.samplers import NoiseSchedule

Config = Mapping[str, Any]
Widths = Annotated[tuple[Width, ...], Meta(min_length=1, max_length=LEVELS)]  # of the levels of a VAE
Blocks = Annotated[tuple[Name, ...], Meta(min_length=1, max_length=LEVELS)]

EXPORT_AGAIN: Final = "export the model again with a current diffusers"

# Keys whose other values change the computation; keys that no model here reads are ignored, as in diffusers.
PIXART_IMPLEMENTED: Final[dict[str, tuple[Any, ...]]] = {
    "_class_name": ("PixArtTransformer2DModel",),
    "activation_fn": ("gelu-approximate",),
    "norm_elementwise_affine": (False,),
    "norm_type": ("ada_norm_single",),
    "attention_type": ("default", None),
}
T5_IMPLEMENTED: Final[dict[str, tuple[Any, ...]]] = {
    "model_type": ("t5",),
    "is_decoder": (False,),
    "transformers_weights": (None,),  # a file instead of the one with the usual name
}
VAE_IMPLEMENTED: Final[dict[str, tuple[Any, ...]]] = {"_class_name": ("AutoencoderKL",), "act_fn": ("silu", "swish")}
# Activations of T5's feed-forward layers, by all names that transformers has for them.
T5_ACTIVATIONS: Final[dict[str, str]] = {
    "relu": "relu",
    "gelu": "gelu",
    "gelu_python": "gelu",
    **dict.fromkeys(("gelu_new", "gelu_fast", "gelu_accurate", "gelu_pytorch_tanh", "gelu_python_tanh"), "gelu_new"),
    "silu": "silu",
    "swish": "silu",
}
# Other names of T5's dimensions, which transformers accepts.
_T5_ALIASES: Final[dict[str, str]] = {
    "d_model": "hidden_size",
    "num_heads": "num_attention_heads",
    "num_layers": "num_hidden_layers",
    "d_kv": "head_dim",
}


class _Record:
    """JSON round trip of a frozen dataclass, with unknown and missing keys refused."""

    def to_json(self) -> dict[str, Any]:
        """Write every field; tuples become lists."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}  # type: ignore[call-overload]

    @classmethod
    def from_json(cls, value: object, where: str) -> Self:
        """Read every field; raises as `moddit.record.decode`."""
        return decode(value, cls, Origin("spec", where))


@dataclass(frozen=True)
class PixArtSpec(_Record):
    """Dimensions of a PixArtTransformer2DModel (alpha or Sigma)."""

    num_layers: Layers
    num_attention_heads: Heads
    attention_head_dim: HeadWidth
    in_channels: Channels
    out_channels: Channels  # twice in_channels where the variance is learned too
    patch_size: Patch  # latent pixels
    sample_size: Side  # latent pixels
    cross_attention_dim: Width
    caption_channels: Width
    interpolation_scale: Scale  # of the position embedding
    attention_bias: bool
    norm_eps: Epsilon
    use_additional_conditions: bool  # resolution and aspect ratio (alpha at 1024 pixels)

    def __post_init__(self) -> None:
        if self.cross_attention_dim != self.hidden_size:
            raise UnsupportedError(
                f"[spec] cross_attention_dim is not the hidden size, "
                f"got {self.cross_attention_dim}, want {self.hidden_size}"
            )
        if self.sample_size % self.patch_size:
            raise ShapeError(f"[spec] sample_size {self.sample_size} is not a multiple of patch_size {self.patch_size}")
        if self.hidden_size % 4:
            raise ShapeError(f"[spec] the hidden size {self.hidden_size} is not a multiple of 4, as positions need")
        if self.out_channels not in (self.in_channels, 2 * self.in_channels):
            raise UnsupportedError(
                f"[spec] out_channels = {self.out_channels} is not implemented, want in_channels {self.in_channels}, "
                "or twice that with a variance"
            )

    @property
    def hidden_size(self) -> int:
        return self.num_attention_heads * self.attention_head_dim

    @property
    def base_size(self) -> int:
        """Side of the patch grid that the position embedding is normalised by."""
        return self.sample_size // self.patch_size

    @property
    def learns_sigma(self) -> bool:
        """Whether the second half of the output channels is a variance, which samplers drop."""
        return self.out_channels == 2 * self.in_channels

    def tokens(self, height: int, width: int) -> int:
        """Count the tokens of a latent.

        Args:
            height: latent pixels, a multiple of patch_size.
            width: likewise.

        Raises:
            ShapeError: if a side is not a positive multiple of the patch size.
        """
        if height < 1 or width < 1 or height % self.patch_size or width % self.patch_size:
            raise ShapeError(f"[spec] latent size {height}x{width} is not made of whole patches of {self.patch_size}")
        return (height // self.patch_size) * (width // self.patch_size)

    @classmethod
    def from_diffusers(cls, config: Config, where: str) -> PixArtSpec:
        """Read `transformer/config.json`.

        Raises:
            MissingError, UnsupportedError, ShapeError: naming `where` and the key.
        """
        _check_implemented(config, PIXART_IMPLEMENTED, where, required=("_class_name",))
        found = decode(config, _PixArtConfig, Origin("spec", where, EXPORT_AGAIN), Keys.ANY)
        # diffusers' own defaults where the configuration leaves them open
        derived = {
            "out_channels": found.in_channels,
            "interpolation_scale": float(max(found.sample_size // 64, 1)),
            "use_additional_conditions": found.sample_size == 128,
        }
        read = {field.name: getattr(found, field.name) for field in fields(cls)}
        values = {name: derived[name] if value is None else value for name, value in read.items()}
        spec = decode(values, cls, Origin("spec", where))
        if spec.use_additional_conditions and spec.hidden_size % 3:
            raise ShapeError(
                f"[spec] {where}: the hidden size {spec.hidden_size} is not a multiple of 3, as resolution and aspect "
                "ratio (use_additional_conditions) need"
            )
        return spec


@dataclass(frozen=True)
class T5Spec(_Record):
    """Dimensions of a T5 encoder."""

    vocab_size: Vocabulary
    d_model: Width
    d_kv: HeadWidth  # width of a head
    d_ff: Width
    num_layers: Layers
    num_heads: Heads
    relative_attention_num_buckets: Buckets
    relative_attention_max_distance: Distance
    is_gated: bool  # T5 v1.1: act(wi_0 x) * wi_1 x; else act(wi x)
    dense_act_fn: Name  # act: "relu", "gelu", "gelu_new" (by tanh) or "silu"
    layer_norm_epsilon: Epsilon

    def __post_init__(self) -> None:
        if self.dense_act_fn not in T5_ACTIVATIONS.values():
            wanted = ", ".join(sorted(set(T5_ACTIVATIONS.values())))
            raise UnsupportedError(
                f"[spec] dense_act_fn = {quote(self.dense_act_fn)} is not implemented, want {wanted}"
            )
        nearest = self.relative_attention_num_buckets // 4  # distances up to here have buckets of their own
        if self.relative_attention_max_distance <= nearest:
            raise ValueRangeError(
                f"[spec] relative_attention_max_distance is {self.relative_attention_max_distance}, want more than "
                f"{nearest}, a quarter of relative_attention_num_buckets"
            )

    @classmethod
    def from_transformers(cls, config: Config, where: str) -> T5Spec:
        """Read `text_encoder/config.json` (transformers' T5Config).

        Raises:
            MissingError, UnsupportedError: naming `where` and the key.
        """
        _check_implemented(config, T5_IMPLEMENTED, where)
        config = _without_aliases(config, _T5_ALIASES)
        found = decode(config, _T5Config, Origin("spec", where, EXPORT_AGAIN), Keys.ANY)
        # As T5Config: the layer's name says both, and the fields that it is written out to decide.
        *gate, name = found.feed_forward_proj.split("-")
        name = "gelu_new" if found.feed_forward_proj == "gated-gelu" else name
        activation = found.dense_act_fn or name
        if gate not in ([], ["gated"]) or activation not in T5_ACTIVATIONS:
            raise UnsupportedError(
                f"[spec] {where}: dense_act_fn = {quote(activation)} of feed_forward_proj = "
                f"{quote(found.feed_forward_proj)} is not implemented, want one of {', '.join(T5_ACTIVATIONS)}"
            )
        read = {
            "is_gated": bool(gate) if found.is_gated_act is None else found.is_gated_act,
            "dense_act_fn": T5_ACTIVATIONS[activation],
        }
        names = {field.name for field in fields(cls)} - read.keys()
        return decode({name: getattr(found, name) for name in names} | read, cls, Origin("spec", where))


@dataclass(frozen=True)
class VAESpec(_Record):
    """Dimensions of an AutoencoderKL."""

    in_channels: Channels
    out_channels: Channels
    latent_channels: Channels
    block_out_channels: Widths  # from the picture's side to the latent's
    layers_per_block: Layers
    norm_num_groups: Width
    scaling_factor: Scale  # latents of the transformer = (encoded - shift_factor) * scaling_factor
    shift_factor: Shift
    use_quant_conv: bool
    use_post_quant_conv: bool
    mid_block_add_attention: bool

    def __post_init__(self) -> None:
        for name in ("in_channels", "out_channels"):
            if getattr(self, name) != 3:
                raise UnsupportedError(f"[spec] {name} = {getattr(self, name)} of a VAE is not implemented, want 3")
        if any(width % self.norm_num_groups for width in self.block_out_channels):
            raise ShapeError(
                f"[spec] block_out_channels {list(self.block_out_channels)} are not multiples of norm_num_groups "
                f"{self.norm_num_groups}"
            )

    @property
    def downscale(self) -> int:
        """Picture pixels per latent pixel."""
        return int(2 ** (len(self.block_out_channels) - 1))

    @classmethod
    def from_diffusers(cls, config: Config, where: str) -> VAESpec:
        """Read `vae/config.json`.

        Raises:
            MissingError, UnsupportedError: naming `where` and the key.
        """
        _check_implemented(config, VAE_IMPLEMENTED, where, required=("_class_name",))
        found = decode(config, _VAEConfig, Origin("spec", where, EXPORT_AGAIN), Keys.ANY)
        levels = len(found.block_out_channels)
        for key, kind in (("down_block_types", "DownEncoderBlock2D"), ("up_block_types", "UpDecoderBlock2D")):
            blocks = getattr(found, key)
            if blocks != (kind,) * levels:
                raise UnsupportedError(
                    f"[spec] {where}: {key} is not implemented, got {blocks}, want {levels} times {kind!r}"
                )
        values = {field.name: getattr(found, field.name) for field in fields(cls)}
        return decode(values | {"shift_factor": found.shift_factor or 0.0}, cls, Origin("spec", where))


@dataclass(frozen=True)
class ModelSpec:
    """A whole text-to-image pipeline."""

    transformer: PixArtSpec
    text_encoder: T5Spec
    vae: VAESpec
    scheduler: NoiseSchedule
    max_sequence_length: TextTokens  # text tokens, </s> included

    def __post_init__(self) -> None:
        if self.transformer.in_channels != self.vae.latent_channels:
            raise ShapeError(
                f"[spec] transformer in_channels {self.transformer.in_channels} and "
                f"VAE latent_channels {self.vae.latent_channels} differ"
            )
        if self.transformer.caption_channels != self.text_encoder.d_model:
            raise ShapeError(
                f"[spec] transformer caption_channels {self.transformer.caption_channels} and text encoder d_model "
                f"{self.text_encoder.d_model} differ"
            )
        if not 1 <= self.max_sequence_length <= TEXT_TOKENS:  # a command line may give it
            raise ValueRangeError(
                f"[spec] max_sequence_length is {self.max_sequence_length}, want 1..{TEXT_TOKENS} text tokens"
            )
        if self.default_side > SIDE:
            raise ValueRangeError(
                f"[spec] sample_size {self.transformer.sample_size} is {self.default_side} pixels, want at most {SIDE}"
            )

    @property
    def pixels_per_patch(self) -> int:
        """Picture sides must be multiples of this."""
        return self.transformer.patch_size * self.vae.downscale

    @property
    def default_side(self) -> int:
        """Side of the square picture the model was trained on, pixels."""
        return self.transformer.sample_size * self.vae.downscale

    def to_json(self) -> dict[str, Any]:
        """Write every component and the sequence length."""
        return {
            "transformer": self.transformer.to_json(),
            "text_encoder": self.text_encoder.to_json(),
            "vae": self.vae.to_json(),
            "scheduler": self.scheduler.to_json(),
            "max_sequence_length": self.max_sequence_length,
        }

    @classmethod
    def from_json(cls, value: object, where: str) -> ModelSpec:
        """Read what `to_json` wrote; raises as `moddit.record.decode`."""
        return decode(value, cls, Origin("spec", where))


@dataclass(frozen=True)
class _PixArtConfig:
    """`transformer/config.json` of a PixArtTransformer2DModel."""

    caption_channels: Width  # without it diffusers has no text projection
    num_attention_heads: Heads = 16
    attention_head_dim: HeadWidth = 72
    in_channels: Channels = 4
    out_channels: Channels | None = 8
    num_layers: Layers = 28
    cross_attention_dim: Width = 1152
    attention_bias: bool = True
    sample_size: Side = 128
    patch_size: Patch = 2
    norm_eps: Epsilon = 1e-6
    interpolation_scale: Scale | None = None
    use_additional_conditions: bool | None = None


@dataclass(frozen=True)
class _T5Config:
    """`text_encoder/config.json` of a T5EncoderModel."""

    vocab_size: Vocabulary = 32128
    d_model: Width = 512
    d_kv: HeadWidth = 64
    d_ff: Width = 2048
    num_layers: Layers = 6
    num_heads: Heads = 8
    relative_attention_num_buckets: Buckets = 32
    relative_attention_max_distance: Distance = 128
    layer_norm_epsilon: Epsilon = 1e-6
    feed_forward_proj: Name = "relu"
    dense_act_fn: Name | None = None
    is_gated_act: bool | None = None


@dataclass(frozen=True)
class _VAEConfig:
    """`vae/config.json` of an AutoencoderKL."""

    in_channels: Channels = 3
    out_channels: Channels = 3
    down_block_types: Blocks = ("DownEncoderBlock2D",)
    up_block_types: Blocks = ("UpDecoderBlock2D",)
    block_out_channels: Widths = (64,)
    layers_per_block: Layers = 1
    latent_channels: Channels = 4
    norm_num_groups: Width = 32
    scaling_factor: Scale = 0.18215
    shift_factor: Shift | None = None
    use_quant_conv: bool = True
    use_post_quant_conv: bool = True
    mid_block_add_attention: bool = True


def _without_aliases(config: Config, aliases: Mapping[str, str]) -> dict[str, Any]:
    """Rename the keys that stand for another key, unless that one is there too."""
    renamed = {key: config[alias] for key, alias in aliases.items() if alias in config and key not in config}
    return {**config, **renamed}


def _check_implemented(
    config: Config, implemented: Mapping[str, tuple[Any, ...]], where: str, required: tuple[str, ...] = ()
) -> None:
    for key in required:
        if config.get(key) is None:
            raise MissingError(f"[spec] {where}: field {key!r} is missing; {EXPORT_AGAIN}")
    for key, allowed in implemented.items():
        if key in config and config[key] not in allowed:
            wanted = " or ".join(repr(value) for value in allowed)
            raise UnsupportedError(f"[spec] {where}: {key} = {quote(config[key])} is not implemented, want {wanted}")
