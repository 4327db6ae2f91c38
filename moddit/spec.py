"""What a model is: the dimensions and scale factors of its components, read from the configurations of its libraries.

Absent keys have the library's default. Keys that change the computation must have a value that is implemented here;
anything else is an error that names the file, the key and the value.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Final, Self

from moddit.errors import FormatError, MissingError, ShapeError, UnsupportedError
from moddit.samplers import NoiseSchedule

Config = Mapping[str, Any]

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
        """Read every field.

        Raises:
            FormatError: unknown or missing fields.
        """
        names = {field.name for field in fields(cls)}  # type: ignore[arg-type]
        if not isinstance(value, Mapping) or set(value) != names:
            found = sorted(value) if isinstance(value, Mapping) else type(value).__name__
            raise FormatError(f"[spec] {where}: got {found}, want an object with exactly {sorted(names)}")
        return cls(**{key: tuple(item) if isinstance(item, list) else item for key, item in value.items()})


@dataclass(frozen=True)
class PixArtSpec(_Record):
    """Dimensions of a PixArtTransformer2DModel (alpha or Sigma)."""

    num_layers: int
    num_attention_heads: int
    attention_head_dim: int
    in_channels: int
    out_channels: int  # twice in_channels where the variance is learned too
    patch_size: int  # latent pixels
    sample_size: int  # latent pixels
    cross_attention_dim: int
    caption_channels: int
    interpolation_scale: float  # of the position embedding
    attention_bias: bool
    norm_eps: float
    use_additional_conditions: bool  # resolution and aspect ratio (alpha at 1024 pixels)

    def __post_init__(self) -> None:
        if self.cross_attention_dim != self.hidden_size:
            raise UnsupportedError(
                f"[spec] cross_attention_dim is not the hidden size, "
                f"got {self.cross_attention_dim}, want {self.hidden_size}"
            )
        if self.sample_size % self.patch_size:
            raise ShapeError(f"[spec] sample_size {self.sample_size} is not a multiple of patch_size {self.patch_size}")

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
        config = {**_PIXART_DEFAULTS, **config}
        sample_size = _get(config, "sample_size", where)
        scale, additional = config.get("interpolation_scale"), config.get("use_additional_conditions")
        return cls(
            num_layers=_get(config, "num_layers", where),
            num_attention_heads=_get(config, "num_attention_heads", where),
            attention_head_dim=_get(config, "attention_head_dim", where),
            in_channels=_get(config, "in_channels", where),
            out_channels=config["out_channels"] or _get(config, "in_channels", where),
            patch_size=_get(config, "patch_size", where),
            sample_size=sample_size,
            cross_attention_dim=_get(config, "cross_attention_dim", where),
            caption_channels=_get(config, "caption_channels", where),  # without it diffusers has no text projection
            # diffusers' own defaults where the configuration leaves them open
            interpolation_scale=float(scale if scale is not None else max(sample_size // 64, 1)),
            attention_bias=config["attention_bias"],
            norm_eps=config["norm_eps"],
            use_additional_conditions=additional if additional is not None else sample_size == 128,
        )


@dataclass(frozen=True)
class T5Spec(_Record):
    """Dimensions of a T5 encoder."""

    vocab_size: int
    d_model: int
    d_kv: int  # width of a head
    d_ff: int
    num_layers: int
    num_heads: int
    relative_attention_num_buckets: int
    relative_attention_max_distance: int
    is_gated: bool  # T5 v1.1: act(wi_0 x) * wi_1 x; else act(wi x)
    dense_act_fn: str  # act: "relu", "gelu", "gelu_new" (by tanh) or "silu"
    layer_norm_epsilon: float

    def __post_init__(self) -> None:
        if self.dense_act_fn not in T5_ACTIVATIONS.values():
            wanted = ", ".join(sorted(set(T5_ACTIVATIONS.values())))
            raise UnsupportedError(f"[spec] dense_act_fn = {self.dense_act_fn!r} is not implemented, want {wanted}")

    @classmethod
    def from_transformers(cls, config: Config, where: str) -> T5Spec:
        """Read `text_encoder/config.json` (transformers' T5Config).

        Raises:
            MissingError, UnsupportedError: naming `where` and the key.
        """
        _check_implemented(config, T5_IMPLEMENTED, where)
        config = {**_T5_DEFAULTS, **_without_aliases(config, _T5_ALIASES)}
        # As T5Config: the layer's name says both, and the fields that it is written out to decide.
        *gate, name = str(config["feed_forward_proj"]).split("-")
        name = "gelu_new" if config["feed_forward_proj"] == "gated-gelu" else name
        activation = config.get("dense_act_fn") or name
        if gate not in ([], ["gated"]) or activation not in T5_ACTIVATIONS:
            raise UnsupportedError(
                f"[spec] {where}: dense_act_fn = {activation!r} of feed_forward_proj = {config['feed_forward_proj']!r} "
                f"is not implemented, want one of {', '.join(T5_ACTIVATIONS)}"
            )
        is_gated = config.get("is_gated_act")
        names = {field.name for field in fields(cls)} - {"is_gated", "dense_act_fn"}
        return cls(
            is_gated=bool(gate) if is_gated is None else is_gated,
            dense_act_fn=T5_ACTIVATIONS[activation],
            **{name: _get(config, name, where) for name in names},
        )


@dataclass(frozen=True)
class VAESpec(_Record):
    """Dimensions of an AutoencoderKL."""

    in_channels: int
    out_channels: int
    latent_channels: int
    block_out_channels: tuple[int, ...]  # from the picture's side to the latent's
    layers_per_block: int
    norm_num_groups: int
    scaling_factor: float  # latents of the transformer = (encoded - shift_factor) * scaling_factor
    shift_factor: float
    use_quant_conv: bool
    use_post_quant_conv: bool
    mid_block_add_attention: bool

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
        config = {**_VAE_DEFAULTS, **config}
        channels = tuple(_get(config, "block_out_channels", where))
        for key, kind in (("down_block_types", "DownEncoderBlock2D"), ("up_block_types", "UpDecoderBlock2D")):
            found = tuple(_get(config, key, where))
            if found != (kind,) * len(channels):
                raise UnsupportedError(
                    f"[spec] {where}: {key} is not implemented, got {found}, want {len(channels)} times {kind!r}"
                )
        return cls(
            in_channels=config["in_channels"],
            out_channels=config["out_channels"],
            latent_channels=_get(config, "latent_channels", where),
            block_out_channels=channels,
            layers_per_block=config["layers_per_block"],
            norm_num_groups=config["norm_num_groups"],
            scaling_factor=float(config["scaling_factor"]),
            shift_factor=float(config.get("shift_factor") or 0.0),
            use_quant_conv=config["use_quant_conv"],
            use_post_quant_conv=config["use_post_quant_conv"],
            mid_block_add_attention=config["mid_block_add_attention"],
        )


@dataclass(frozen=True)
class ModelSpec:
    """A whole text-to-image pipeline."""

    transformer: PixArtSpec
    text_encoder: T5Spec
    vae: VAESpec
    scheduler: NoiseSchedule
    max_sequence_length: int  # text tokens, </s> included

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
        """Read what `to_json` wrote.

        Raises:
            FormatError: unknown or missing fields.
        """
        names = {field.name for field in fields(cls)}
        if not isinstance(value, Mapping) or set(value) != names:
            raise FormatError(f"[spec] {where}: not a model specification, want an object with exactly {sorted(names)}")
        return cls(
            transformer=PixArtSpec.from_json(value["transformer"], f"{where}.transformer"),
            text_encoder=T5Spec.from_json(value["text_encoder"], f"{where}.text_encoder"),
            vae=VAESpec.from_json(value["vae"], f"{where}.vae"),
            scheduler=NoiseSchedule.from_json(value["scheduler"], f"{where}.scheduler"),
            max_sequence_length=value["max_sequence_length"],
        )


# What the constructors of diffusers 0.42 and transformers 5.24 take for a key that is absent.
_PIXART_DEFAULTS: Final[dict[str, Any]] = {
    "num_attention_heads": 16,
    "attention_head_dim": 72,
    "in_channels": 4,
    "out_channels": 8,
    "num_layers": 28,
    "cross_attention_dim": 1152,
    "attention_bias": True,
    "sample_size": 128,
    "patch_size": 2,
    "norm_eps": 1e-6,
}
_T5_DEFAULTS: Final[dict[str, Any]] = {
    "vocab_size": 32128,
    "d_model": 512,
    "d_kv": 64,
    "d_ff": 2048,
    "num_layers": 6,
    "num_heads": 8,
    "relative_attention_num_buckets": 32,
    "relative_attention_max_distance": 128,
    "layer_norm_epsilon": 1e-6,
    "feed_forward_proj": "relu",
}
_VAE_DEFAULTS: Final[dict[str, Any]] = {
    "in_channels": 3,
    "out_channels": 3,
    "down_block_types": ("DownEncoderBlock2D",),
    "up_block_types": ("UpDecoderBlock2D",),
    "block_out_channels": (64,),
    "layers_per_block": 1,
    "latent_channels": 4,
    "norm_num_groups": 32,
    "scaling_factor": 0.18215,
    "use_quant_conv": True,
    "use_post_quant_conv": True,
    "mid_block_add_attention": True,
}


def _without_aliases(config: Config, aliases: Mapping[str, str]) -> dict[str, Any]:
    """Rename the keys that stand for another key, unless that one is there too."""
    renamed = {key: config[alias] for key, alias in aliases.items() if alias in config and key not in config}
    return {**config, **renamed}


def _get(config: Config, key: str, where: str) -> Any:
    if config.get(key) is None:
        raise MissingError(f"[spec] {where}: field {key!r} is missing; export the model again with a current diffusers")
    return config[key]


def _check_implemented(
    config: Config, implemented: Mapping[str, tuple[Any, ...]], where: str, required: tuple[str, ...] = ()
) -> None:
    for key in required:
        _get(config, key, where)
    for key, allowed in implemented.items():
        if key in config and config[key] not in allowed:
            wanted = " or ".join(repr(value) for value in allowed)
            raise UnsupportedError(f"[spec] {where}: {key} = {config[key]!r} is not implemented, want {wanted}")
