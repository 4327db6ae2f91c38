"""What is not there: the manifest that `convert` would write of a specification, models that keep tokens otherwise."""

from __future__ import annotations

import math
from typing import Final

from mlx_moddit.estimate import tensor_bytes
from moddit.manifest import Component, FileInfo, Manifest, Provenance
from moddit.quantization import AFFINE, Packing, group
from moddit.routing import DENOMINATOR, RoutingPlan, snap
from moddit.spec import ModelSpec
from moddit.tensors import UNCOMPRESSED, Tensors
from moddit.tokens import TokenPolicy

GROUP_SIZE: Final = 64  # weights that share a scale, as `convert` writes them where nothing else is asked for
_NOTHING: Final = "0" * 64


def imagine_manifest(spec: ModelSpec, tokens: TokenPolicy, dtype: str, bits: int | None) -> Manifest:
    """Describe the bundle for MLX of a model whose checkpoint is in float32.

    Args:
        spec: of the model.
        tokens: policy, which says whether there are routers.
        dtype: of the weights, "float16", "bfloat16" or "float32"; those that are always precise stay float32.
        bits: of the linear layers of transformer and text encoder, in affine mode; None leaves them as they are.
    """
    tensors = spec.tensors(has_routers=tokens.has_routers)
    packing = None if bits is None else Packing(bits, GROUP_SIZE, AFFINE)
    components = {
        name: _component(name, tensors.get(name), dtype, None if name in UNCOMPRESSED else packing)
        for name in spec.components
    }
    made = Provenance("random weights", _NOTHING, {}, "2026-01-01T00:00:00Z")
    return Manifest(_NOTHING, "mlx", spec, tokens, components, None, made)


def imagine_tokens(tokens: TokenPolicy, keep: float) -> TokenPolicy:
    """Have a model keep this share of the tokens.

    A routed model keeps more than it was trained to as where it draws (`TokenPolicy.keeping`). Where it keeps less,
    which no runtime draws with, or has no routers yet, every layer keeps the same.
    """
    plan = tokens.plan
    if tokens.has_routers and keep >= plan.mean_keep_ratio:
        return tokens.keeping(keep)
    if not tokens.has_routers and snap(keep) == DENOMINATOR:
        return TokenPolicy.dense(plan.layers, plan.num_train_timesteps)
    return TokenPolicy.topk(RoutingPlan.uniform(plan.layers, 1, snap(keep), plan.num_train_timesteps))


def _component(name: str, tensors: Tensors | None, dtype: str, packing: Packing | None) -> Component:
    if tensors is None:
        return Component((FileInfo(name, 0, _NOTHING),))
    packed = {key: packing for key, info in tensors.items() if packing is not None and packing.fits(info)}
    parameters = sum(math.prod(info.shape) for info in tensors.values())
    size = tensor_bytes(tensors, dtype, packed)
    return Component((FileInfo(f"{name}.safetensors", size, _NOTHING),), dtype, parameters, group(packed))
