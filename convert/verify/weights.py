"""The weights of a bundle, read back from its packages under canonical names and in PyTorch's layout."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convert.verify.bundle import Packages
from convert.verify.interpreter import Interpreter
from moddit.conditioning import Text
from moddit.contract import BY_DISTANCE, constant_name
from moddit.embeddings import relative_buckets
from moddit.errors import MissingError
from moddit.spec import ModelSpec
from moddit.tensors import Tensors

Values = Callable[[str], NDArray[np.float32]]
_BIAS_TABLE = "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"


def read_values(packages: Packages) -> dict[str, Values]:
    """Give for each component a function from canonical names to weights."""
    spec = packages.spec
    return {
        name: _Component(spec, wanted, packages.of(name)).read
        for name, wanted in spec.tensors(has_routers=packages.policy.has_routers).items()
    }


class _Component:
    """The constants of all packages that one component was divided into."""

    def __init__(self, spec: ModelSpec, wanted: Tensors, packages: Sequence[Interpreter]) -> None:
        self.spec = spec
        self.wanted = wanted
        self.constants = [package.constants(package.default_function) for package in packages]

    def read(self, name: str) -> NDArray[np.float32]:
        """Read a canonical tensor; raise MissingError if no package has it."""
        label = constant_name(name)
        if name == _BIAS_TABLE:
            return self._collect_buckets(self._find(label + BY_DISTANCE))
        array = self._find(label)
        if name.rpartition(".")[0] == self.spec.transformer.OUTPUT:
            return self._rearrange_output(array)
        return array.astype(np.float32).reshape(self.wanted[name].shape)

    def _find(self, label: str) -> NDArray[Any]:
        for constants in self.constants:
            if label in constants:
                return constants[label]
        raise MissingError(f"[verify] no package has the constant {label!r}; convert the checkpoint again")

    def _collect_buckets(self, biases: NDArray[Any]) -> NDArray[np.float32]:
        """Undo the gathering of T5's position bias: (1, H, L, L) -> (buckets, H), zeros where no distance leads."""
        assert isinstance(self.spec.conditioning, Text)
        text = self.spec.conditioning.encoder
        buckets = relative_buckets(
            biases.shape[-1], text.relative_attention_num_buckets, text.relative_attention_max_distance
        )
        table = np.zeros((text.relative_attention_num_buckets, text.num_heads), np.float32)
        table[buckets.reshape(-1)] = biases[0].reshape(text.num_heads, -1).T
        return table

    def _rearrange_output(self, array: NDArray[Any]) -> NDArray[np.float32]:
        """Undo the order of the final projection: (channel, P, P) rows -> (P, P, channel), zeros for the variance."""
        spec = self.spec.transformer
        patch, rest = spec.patch_size, array.shape[1:]
        rows = np.zeros((spec.out_channels, patch, patch, *rest), np.float32)
        rows[: spec.latent_channels] = array.reshape(spec.latent_channels, patch, patch, *rest)
        return np.ascontiguousarray(np.moveaxis(rows, 0, 2)).reshape(-1, *rest)
