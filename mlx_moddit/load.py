"""Read a bundle: check everything that can be checked without reading weights, then build each component lazily.

Weights stay on disk until MLX evaluates them: a component costs memory from its first use until its last reference is
gone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

import mlx.core as mx
import mlx.nn as nn

from mlx_moddit.architectures import TRANSFORMERS
from mlx_moddit.layers import has_bfloat16
from mlx_moddit.t5 import T5Encoder
from mlx_moddit.transformer import Transformer
from mlx_moddit.vae import AutoencoderKL
from moddit.checkpoint.prompt_tokenizer import PromptTokenizer
from moddit.conditioning import Text
from moddit.contract import TEXT_ENCODER
from moddit.errors import FormatError, MissingError, UnsupportedError
from moddit.manifest import MANIFEST_NAME, Component, Manifest, Quantization, read_manifest, verify_files
from moddit.spec import ModelSpec
from moddit.tensors import Role, TensorInfo, check_names, is_precise
from moddit.tokens import TokenPolicy

BACKEND: Final = "mlx"
DTYPES: Final = {"float16": mx.float16, "bfloat16": mx.bfloat16, "float32": mx.float32}

M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True)
class Bundle:
    """A checked bundle. Every call of a component's method builds it anew; drop the result to free its memory."""

    folder: Path
    manifest: Manifest
    dtype: mx.Dtype | None = None  # instead of the stored one
    tokens: TokenPolicy | None = None  # to run instead of the stored one

    @property
    def dtype_name(self) -> str | None:
        """The name of `dtype`, in DTYPES."""
        asked = self.dtype
        # MLX's dtypes cannot be compared with None
        return None if asked is None else next(name for name, dtype in DTYPES.items() if dtype == asked)

    @property
    def spec(self) -> ModelSpec:
        return self.manifest.spec

    @property
    def policy(self) -> TokenPolicy:
        """Which tokens each block processes."""
        return self.manifest.tokens if self.tokens is None else self.tokens

    @property
    def text(self) -> Text:
        """The conditioning of a model that draws a text; raises UnsupportedError for another."""
        found = self.spec.conditioning
        if not isinstance(found, Text):
            raise UnsupportedError(f"[load] {self.folder}: the model draws a {found.KIND}, it has no text encoder")
        return found

    def transformer(self) -> Transformer:
        """Build the transformer; raise FormatError or ShapeError if files do not hold what the manifest describes."""
        spec, stored = self.spec.transformer, self.manifest.tokens
        model: Transformer = TRANSFORMERS[spec.ARCHITECTURE](spec, stored)
        self._build(model, "transformer", spec.tensors(has_routers=stored.has_routers))
        model.policy = self.policy
        for block in model.transformer_blocks:
            block.attn1.join_projections()
        return model

    def text_encoder(self) -> T5Encoder:
        """Build the text encoder; raises as `transformer`."""
        spec = self.text.encoder
        return self._build(T5Encoder(spec), TEXT_ENCODER, spec.tensors(), is_wide=True)

    def vae(self) -> AutoencoderKL:
        """Build the VAE; raises as `transformer`."""
        return self._build(AutoencoderKL(self.spec.vae), "vae", self.spec.vae.tensors(), is_wide=True)

    def tokenizer(self) -> PromptTokenizer:
        """Read the tokenizer, and hold its tokens against the text encoder's vocabulary; raises as `load` of it."""
        text = self.text
        paths = [info.path for info in self.manifest.components["tokenizer"].files]
        for path in paths:
            if path.endswith("tokenizer.json"):
                return PromptTokenizer.load(
                    self.folder / path, vocab_size=text.encoder.vocab_size, max_length=text.max_sequence_length
                )
        raise MissingError(f"[tokenizer] {self.folder}: the manifest lists {paths}, want tokenizer.json; convert again")

    def _build(self, model: M, name: str, wanted: Mapping[str, TensorInfo], *, is_wide: bool = False) -> M:
        """Build a component; `is_wide` says that its activations leave float16's range."""
        component = self.manifest.components[name]
        where = f"{self.folder} ({name})"
        weights = self._weights(name, wanted)
        quantization = component.quantization
        _check(weights, wanted, quantization, where)
        if quantization is not None:
            _quantise(model, quantization)
        if component.dtype not in DTYPES:
            raise FormatError(f"[load] {where}: dtype {component.dtype!r} is unknown, want one of {', '.join(DTYPES)}")
        stored, asked = DTYPES[component.dtype], self.dtype
        if is_wide and (stored if asked is None else asked) == mx.float16 and has_bfloat16():
            asked = mx.bfloat16  # in place of float32 activations, for which every product would widen its weights
        weights = {key: _cast(key, array, wanted, asked, stored) for key, array in weights.items()}
        model.load_weights(list(weights.items()), strict=True)
        return model

    def _weights(self, name: str, _: Mapping[str, TensorInfo]) -> dict[str, mx.array]:
        """Read the tensors of a component, lazily."""
        return _read_files(self.folder, self.manifest.components[name], name)


def load_bundle(folder: Path | str, dtype: mx.Dtype | None = None) -> Bundle:
    """Open a bundle that `python -m convert --to mlx` wrote, to compute in `dtype` instead of the stored one.

    float16 and bfloat16 leave norms, embeddings, modulation, routers and the final projection as they are stored.

    Raises:
        MissingError: no manifest, or a file it lists is absent.
        FormatError: another version, or a file of another size than the manifest says.
        UnsupportedError: another backend.
    """
    folder = Path(folder)
    manifest = read_own_manifest(folder)
    verify_files(folder, manifest)
    return Bundle(folder, manifest, dtype)


def read_own_manifest(folder: Path) -> Manifest:
    """Read the manifest of a bundle for MLX; raises as `load_bundle`."""
    manifest = read_manifest(folder)
    if manifest.backend != BACKEND:
        raise UnsupportedError(
            f"[load] {folder}: bundle is for {manifest.backend!r}, want {BACKEND!r}; convert with --to {BACKEND}"
        )
    return manifest


def _read_files(folder: Path, component: Component, name: str) -> dict[str, mx.array]:
    weights: dict[str, mx.array] = {}
    for info in component.files:
        path = folder / info.path
        if path.suffix != ".safetensors":
            continue
        try:
            shard = mx.load(str(path))
        except (RuntimeError, ValueError) as error:
            raise FormatError(f"[{name}] {path}: not safetensors ({error}); convert the checkpoint again") from None
        assert isinstance(shard, dict)
        repeated = sorted(weights.keys() & shard.keys())
        if repeated:
            raise FormatError(f"[{name}] {path}: tensors are in an earlier file too: {', '.join(repeated)}")
        weights |= shard
    return weights


def _quantise(model: nn.Module, quantization: Quantization) -> None:
    names, shape = frozenset(quantization.tensors), (quantization.group_size, quantization.bits)
    nn.quantize(model, *shape, mode=quantization.mode, class_predicate=lambda path, _: f"{path}.weight" in names)


def _check(
    weights: Mapping[str, mx.array], wanted: Mapping[str, TensorInfo], quantization: Quantization | None, where: str
) -> None:
    """Check names, shapes and dtypes, those of quantised tensors by the quantization of the manifest."""
    shapes = {name: _canonical_shape(array, wanted.get(name)) for name, array in weights.items()}
    if quantization is not None:
        _check_quantised(weights, wanted, quantization, where)
        for name in quantization.tensors:
            del shapes[_part(name, "scales")], shapes[_part(name, "biases")]
            shapes[name] = wanted[name].shape
    check_names(shapes, wanted, where, MANIFEST_NAME)
    packed = frozenset(quantization.tensors) if quantization is not None else frozenset()
    allowed = {True: (mx.uint32,), False: tuple(DTYPES.values())}
    wrong = [name for name, array in weights.items() if array.dtype not in allowed[name in packed]]
    if wrong:
        report = ", ".join(f"{name} {weights[name].dtype}" for name in sorted(wrong))
        raise FormatError(f"[load] {where}: wrong dtypes, want floats (uint32 where quantised), got {report}")


def _check_quantised(
    weights: Mapping[str, mx.array], wanted: Mapping[str, TensorInfo], quantization: Quantization, where: str
) -> None:
    for name in quantization.tensors:
        info = wanted.get(name)
        if info is None or not info.role.is_quantisable or info.shape[1] % quantization.group_size:
            raise FormatError(
                f"[load] {where}: the manifest quantises {name!r}, which cannot be; convert the checkpoint again"
            )
        rows, columns = info.shape
        groups = (rows, columns // quantization.group_size)
        shapes = {
            name: (rows, columns * quantization.bits // 32),
            _part(name, "scales"): groups,
            _part(name, "biases"): groups,
        }
        for key, shape in shapes.items():
            if key not in weights or weights[key].shape != shape:
                found = weights[key].shape if key in weights else "nothing"
                raise FormatError(f"[load] {where}: quantised tensor {key!r} is damaged, got {found}, want {shape}")


def _canonical_shape(array: mx.array, info: TensorInfo | None) -> tuple[int, ...]:
    """Undo the layout of convolutions: the bundle stores (out, height, width, in)."""
    if info is not None and info.role is Role.CONV and array.ndim == 4:
        out, height, width, channels = array.shape
        return (out, channels, height, width)
    return tuple(array.shape)


def _part(name: str, part: str) -> str:
    return f"{name.removesuffix('weight')}{part}"


def _cast(
    name: str, array: mx.array, wanted: Mapping[str, TensorInfo], asked: mx.Dtype | None, stored: mx.Dtype
) -> mx.array:
    if array.dtype == mx.uint32:
        return array
    if name not in wanted:  # scales and biases of a quantised tensor decide what MLX computes in
        return array.astype(stored if asked is None else asked)
    if asked is None or (asked != mx.float32 and is_precise(name, wanted)):
        return array
    return array.astype(asked)
