"""Every operation, in packages that coremltools wrote, against formulas in numpy or torch written here."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import coremltools as ct
import numpy as np
import pytest
import torch
from coremltools.converters.mil import Builder as mb
from coremltools.converters.mil.mil import types
from numpy.typing import NDArray
from torch.nn import functional

from moddit.errors import FormatError, UnsupportedError, ValueRangeError
from tests.convert.verify.packages import save, trace

TOLERANCE = 2e-6  # relative to the largest value: float32 sums in another order
Array = NDArray[Any]
Expected = Mapping[str, Any]  # by operation: an array, or a list of one for each output


def draw(*shape: int, seed: int = 0, dtype: Any = np.float32) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def check(path: Path, build: Callable[..., Any], inputs: Mapping[str, Array], expected: Expected) -> None:
    seen = trace(save(path, {"main": (build, inputs)}), inputs)
    missing = expected.keys() - seen.keys()
    assert not missing
    for name, wanted in expected.items():
        outputs = wanted if isinstance(wanted, list) else [wanted]
        assert len(seen[name]) == len(outputs), name
        for found, value in zip(seen[name], outputs, strict=True):
            assert found.dtype.kind == np.asarray(value).dtype.kind, name
            scale = np.abs(np.asarray(value, np.float64)).max()
            np.testing.assert_allclose(found, value, rtol=0, atol=TOLERANCE * scale, err_msg=name)


def test_one_argument(tmp_path: Path) -> None:
    x = draw(3, 7)
    positive = np.abs(x) + 0.1
    sigmoid = 1 / (1 + np.exp(-x))
    erf = np.vectorize(math.erf)
    expected = {
        "identity": x,
        "square": x**2,
        "sin": np.sin(x),
        "cos": np.cos(x),
        "sigmoid": sigmoid,
        "silu": x * sigmoid,
        "relu": np.maximum(x, 0),
        "rsqrt": 1 / np.sqrt(positive + 0.25),
        "EXACT": 0.5 * x * (1 + erf(x / math.sqrt(2))),
        "TANH_APPROXIMATION": 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
        "SIGMOID_APPROXIMATION": x / (1 + np.exp(-1.702 * x)),
        "truncated": np.trunc(100 * x).astype(np.int32),
        "nonzero": np.trunc(100 * x) != 0,
        "number": (np.trunc(100 * x) != 0).astype(np.float32),
    }

    def build(x: Any, positive: Any) -> Any:
        for name in ("identity", "square", "sin", "cos", "sigmoid", "silu", "relu"):
            getattr(mb, name)(x=x, name=name)
        mb.rsqrt(x=positive, epsilon=0.25, name="rsqrt")
        for mode in ("EXACT", "TANH_APPROXIMATION", "SIGMOID_APPROXIMATION"):
            mb.gelu(x=x, mode=mode, name=mode)
        whole = mb.cast(x=mb.mul(x=x, y=np.float32(100)), dtype="int32", name="truncated")
        return mb.cast(x=mb.cast(x=whole, dtype="bool", name="nonzero"), dtype="fp32", name="number")

    check(tmp_path, build, {"x": x, "positive": positive}, expected)


def test_two_arguments(tmp_path: Path) -> None:
    x, y = np.round(draw(3, 1, 7), 1), np.round(draw(4, 7, seed=1), 1)
    y[0] = x[0, 0]
    i, j = np.array([-7, 7, 2**30], np.int32), np.array([2, -2, 5], np.int32)
    expected = {
        "add": x + y,
        "sub": x - y,
        "mul": x * y,
        "greater": x > y,
        "less": x < y,
        "equal": x == y,
        "integers": i - j,
    }

    def build(x: Any, y: Any, i: Any, j: Any) -> Any:
        for name in ("sub", "mul", "greater", "less", "equal"):
            getattr(mb, name)(x=x, y=y, name=name)
        mb.sub(x=i, y=j, name="integers")
        return mb.add(x=x, y=y, name="add")

    check(tmp_path, build, {"x": x, "y": y, "i": i, "j": j}, expected)


def test_shapes(tmp_path: Path) -> None:
    x, image = draw(2, 3, 4), draw(2, 8, 3, 5)
    shuffled = image.reshape(2, 2, 2, 2, 3, 5).transpose(0, 1, 4, 2, 5, 3).reshape(2, 2, 6, 10)
    expected = {
        "reshape": x.reshape(2, 12),
        "reshape_zero": x.reshape(2, 2, 6),
        "transpose": x.transpose(2, 0, 1),
        "expand_dims": x[:, None, :, :, None],
        "squeeze": x.sum((0, 2)),
        "squeeze_one": x.sum((0, 2)).reshape(1, 3),
        "split_even": [x[..., :2], x[..., 2:]],
        "split": [x[:, :1], x[:, 1:]],
        "slice": x[:, 1:3, 2:],
        "concat": np.concatenate([x, -x], 1),
        "interleave": np.stack([x, -x], 2).reshape(2, 6, 4),
        "tile": np.tile(x, (1, 2, 3)),
        "pixel_shuffle": shuffled,
        "upsample": image.repeat(2, 2).repeat(3, 3),
    }

    def build(x: Any, image: Any, negative: Any) -> Any:
        mb.reshape(x=x, shape=[2, -1], name="reshape")
        mb.reshape(x=x, shape=[0, 2, -1], name="reshape_zero")
        mb.transpose(x=x, perm=[2, 0, 1], name="transpose")
        mb.expand_dims(x=x, axes=[1, -1], name="expand_dims")
        thin = mb.reduce_sum(x=x, axes=[0, 2], keep_dims=True)
        mb.squeeze(x=thin, name="squeeze")
        mb.squeeze(x=thin, axes=[2], name="squeeze_one")
        mb.split(x=x, num_splits=2, axis=-1, name="split_even")
        mb.split(x=x, split_sizes=[1, 2], axis=1, name="split")
        mb.slice_by_index(x=x, begin=[0, 1, 2], end=[2, 3, 4], name="slice")
        mb.concat(values=[x, negative], axis=1, name="concat")
        mb.concat(values=[x, negative], axis=-2, interleave=True, name="interleave")
        mb.tile(x=x, reps=[1, 2, 3], name="tile")
        mb.pixel_shuffle(x=image, upscale_factor=2, name="pixel_shuffle")
        mb.upsample_nearest_neighbor(x=image, scale_factor_height=2, scale_factor_width=3, name="upsample")
        return mb.identity(x=x)

    check(tmp_path, build, {"x": x, "image": image, "negative": -x}, expected)


def test_products_and_norms(tmp_path: Path) -> None:
    x, y, weight, bias = draw(2, 3, 4), draw(2, 5, 4, seed=1), draw(6, 4, seed=2), draw(6, seed=3)
    gamma, beta = draw(4, seed=4), draw(4, seed=5)
    wide = draw(3, 4, seed=6)

    def norm(array: Array, axes: tuple[int, ...], epsilon: float) -> Array:
        mean, variance = array.mean(axes, keepdims=True), array.var(axes, keepdims=True)
        return (array - mean) / np.sqrt(variance + epsilon)

    expected = {
        "linear": x @ weight.T + bias,
        "linear_plain": x @ weight.T,
        "matmul": x @ y.transpose(0, 2, 1),
        "matmul_left": x.transpose(0, 2, 1) @ x,
        "layer_norm": norm(x, (2,), 1e-2) * gamma + beta,
        "layer_norm_plain": norm(x, (2,), 1e-6),
        "layer_norm_two": norm(x, (1, 2), 1e-5) * wide,
        "reduce_mean": x.mean((0, 2)),
        "reduce_sum": x.sum(1, keepdims=True),
        "reduce_sum_int": np.array([6, 15]),
        "reduce_all": x.sum(),
    }

    def build(x: Any, y: Any, whole: Any) -> Any:
        mb.linear(x=x, weight=weight, bias=bias, name="linear")
        mb.linear(x=x, weight=weight, name="linear_plain")
        mb.matmul(x=x, y=y, transpose_y=True, name="matmul")
        mb.matmul(x=x, y=x, transpose_x=True, name="matmul_left")
        mb.layer_norm(x=x, axes=[-1], gamma=gamma, beta=beta, epsilon=1e-2, name="layer_norm")
        mb.layer_norm(x=x, axes=[2], epsilon=1e-6, name="layer_norm_plain")
        mb.layer_norm(x=x, axes=[1, 2], gamma=wide, name="layer_norm_two")
        mb.reduce_mean(x=x, axes=[0, -1], name="reduce_mean")
        mb.reduce_sum(x=x, axes=[1], keep_dims=True, name="reduce_sum")
        mb.reduce_sum(x=whole, axes=[1], name="reduce_sum_int")
        return mb.identity(x=mb.expand_dims(x=mb.reduce_sum(x=x, name="reduce_all"), axes=[0]))

    whole = np.array([[1, 2, 3], [4, 5, 6]], np.int32)
    check(tmp_path, build, {"x": x, "y": y, "whole": whole}, expected)


def test_convolutions(tmp_path: Path) -> None:
    x, bias = draw(2, 4, 7, 8), draw(6, seed=4)
    weight, grouped = draw(6, 4, 3, 2, seed=1), draw(6, 2, 3, 3, seed=2)
    torch_x, torch_weight = torch.from_numpy(x), torch.from_numpy(weight)
    uneven = functional.pad(torch_x, (3, 4, 1, 2))
    expected = {
        "valid": functional.conv2d(torch_x, torch_weight).numpy(),
        "custom": functional.conv2d(uneven, torch_weight, torch.from_numpy(bias), stride=2).numpy(),
        "groups": functional.conv2d(torch_x, torch.from_numpy(grouped), dilation=(2, 1), groups=2).numpy(),
    }

    def build(x: Any) -> Any:
        mb.conv(x=x, weight=weight, pad_type="valid", name="valid")
        mb.conv(x=x, weight=weight, bias=bias, pad_type="custom", pad=[1, 2, 3, 4], strides=[2, 2], name="custom")
        return mb.conv(x=x, weight=grouped, pad_type="valid", dilations=[2, 1], groups=2, name="groups")

    check(tmp_path, build, {"x": x}, expected)


def test_attention(tmp_path: Path) -> None:
    query, key, value = draw(2, 3, 5, 8), draw(2, 3, 7, 8, seed=1), draw(2, 3, 7, 4, seed=2)
    additive, kept = draw(2, 1, 1, 7, seed=3), draw(5, 7, seed=4) < 0.5
    kept[:, 0] = True

    def attend(mask: Array) -> Array:
        scores = query @ key.transpose(0, 1, 3, 2) / math.sqrt(8) + mask
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        return (weights / weights.sum(-1, keepdims=True)) @ value

    expected = {
        "plain": attend(np.zeros(1, np.float32)),
        "biased": attend(additive),
        "kept": attend(np.where(kept, 0, -np.inf).astype(np.float32)),
        "hidden": np.full((2, 3, 5, 4), np.nan, np.float32),
    }

    def build(query: Any, key: Any, value: Any, additive: Any) -> Any:
        arguments = {"query": query, "key": key, "value": value}
        mb.scaled_dot_product_attention(**arguments, attn_mask=additive, name="biased")
        mb.scaled_dot_product_attention(**arguments, attn_mask=kept, name="kept")
        mb.scaled_dot_product_attention(**arguments, attn_mask=np.zeros((5, 7), bool), name="hidden")
        return mb.scaled_dot_product_attention(**arguments, name="plain")

    check(tmp_path, build, {"query": query, "key": key, "value": value, "additive": additive}, expected)


def test_ranking(tmp_path: Path) -> None:
    x = np.array([[3, 1, 3, 2, 3, 0], [0, 0, 5, 0, 5, 0]], np.float32)
    expected = {
        "largest": [np.array([[3, 3], [5, 5]], np.float32), np.array([[0, 2], [2, 4]])],
        "smallest": [np.array([[0, 1, 2], [0, 0, 0]], np.float32), np.array([[5, 1, 3], [0, 1, 3]])],
        "values": np.array([[3, 3], [5, 5]], np.float32),
        "narrow": [np.array([[3], [5]], np.float32), np.array([[0], [2]])],
        "columns": [
            np.array([[3, 1, 5, 2, 5, 0], [0, 0, 3, 0, 3, 0]], np.float32),
            np.array([[0, 0, 1, 0, 1, 0], [1, 1, 0, 1, 0, 1]]),
        ],
        "unsorted": [np.array([[3, 3], [5, 5]], np.float32), np.array([[2, 0], [4, 2]])],
    }

    def build(x: Any) -> Any:
        mb.topk(x=x, k=2, name="largest")
        mb.topk(x=x, k=3, ascending=True, name="smallest")
        mb.topk(x=x, k=2, return_indices=False, name="values")
        mb.topk(x=x, k=1, output_indices_dtype="uint16", name="narrow")
        mb.topk(x=x, k=2, axis=0, name="columns")
        return mb.topk(x=x, k=2, sort=False, name="unsorted")[0]

    check(tmp_path, build, {"x": x}, expected)


def test_half(tmp_path: Path) -> None:
    """Parameters that are written out with their defaults agree with fp16 tensors."""
    x = draw(1, 2, 3, 4, dtype=np.float16)

    def build(x: Any) -> Any:
        mb.layer_norm(x=x, axes=[-1])
        mb.rsqrt(x=mb.square(x=x))
        mb.upsample_nearest_neighbor(x=x, scale_factor_height=2.0, scale_factor_width=2.0, name="upsample")
        mb.conv(x=x, weight=np.ones((1, 2, 1, 1), np.float16), pad_type="valid", name="conv")
        return mb.topk(x=x, k=1, name="topk")[0]

    wide = x.astype(np.float32)
    expected = {
        "upsample": wide.repeat(2, 2).repeat(2, 3),
        "conv": wide.sum(1, keepdims=True),
        "topk": [wide.max(-1, keepdims=True), wide.argmax(-1)[..., None]],
    }
    check(tmp_path, build, {"x": x}, expected)


def test_gather_and_scatter(tmp_path: Path) -> None:
    x, rows = draw(2, 5, 3), np.array([4, 0, 2], np.int32)
    updates, batched = draw(2, 3, 3, seed=1), np.array([[1, 1], [4, 0]], np.int32)
    update = x.copy()
    update[:, rows] = updates
    expected = {
        "gather": x[:, rows],
        "gather_matrix": x[:, batched],
        "gather_single": x[:, 3],
        "gather_batch": np.stack([x[0][[1, 1]], x[1][[4, 0]]]),
        "update": update,
    }

    def build(x: Any, rows: Any, updates: Any) -> Any:
        mb.gather(x=x, indices=rows, axis=1, name="gather")
        mb.gather(x=x, indices=batched, axis=-2, name="gather_matrix")
        mb.gather(x=x, indices=np.int32(3), axis=1, name="gather_single")
        mb.gather(x=x, indices=batched, axis=1, batch_dims=1, name="gather_batch")
        return mb.scatter(data=x, indices=rows, updates=updates, axis=-2, mode="update", name="update")

    check(tmp_path, build, {"x": x, "rows": rows, "updates": updates}, expected)


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda x, i: mb.gather(x=x, indices=i, axis=0), ValueRangeError, r"indices are in -1..4, want them in 0..4"),
        (
            lambda x, i: mb.scatter(data=x, indices=mb.mul(x=i, y=0), updates=x, axis=0, mode="update"),
            ValueRangeError,
            "indices repeat",
        ),
        (
            lambda x, i: mb.scatter(data=x, indices=i, updates=x, axis=0, mode="update"),
            ValueRangeError,
            "indices are in",
        ),
        (
            lambda x, i: mb.scatter(data=x, indices=mb.mul(x=i, y=0), updates=x, axis=0, mode="add"),
            UnsupportedError,
            "mode 'add', want 'update'",
        ),
        (
            lambda x, i: mb.conv(x=mb.reshape(x=x, shape=[1, 1, 5, 2]), weight=draw(1, 1, 2, 2), pad_type="same"),
            UnsupportedError,
            "pad_type 'same', want 'valid' or 'custom'",
        ),
        (
            lambda x, i: mb.upsample_nearest_neighbor(x=mb.reshape(x=x, shape=[1, 5, 2]), scale_factor_width=1.5),
            UnsupportedError,
            "scale factor 1.5",
        ),
        (lambda x, i: mb.reduce_mean(x=i, axes=[0], keep_dims=True), UnsupportedError, "mean of integers"),
    ],
)
def test_what_core_ml_leaves_open_or_we_leave_out(
    build: Callable[..., Any], error: type[Exception], message: str, tmp_path: Path
) -> None:
    inputs = {"x": draw(5, 2), "i": np.array([0, -1, 2, 3, 4], np.int32)}
    package = save(tmp_path, {"main": (build, inputs)})
    with pytest.raises(error, match=rf"function 'main': operation .*{message}"):
        trace(package, inputs)


class TestCompressed:
    @pytest.mark.parametrize("dtype", [np.float16, np.float32])
    def test_scales_and_offsets(self, dtype: Any, tmp_path: Path) -> None:
        rng = np.random.default_rng(0)
        scale = rng.uniform(0.1, 1, (6, 4)).astype(dtype)
        column = rng.uniform(0.1, 1, (6, 1)).astype(dtype)
        int8 = rng.integers(-128, 128, (6, 32)).astype(np.int8)
        int4, uint4 = rng.integers(-8, 8, (6, 32)), rng.integers(0, 16, (6, 32))
        offset = rng.integers(0, 16, (6, 4))
        wide_scale, wide_offset = scale.astype(np.float32).repeat(8, 1), offset.repeat(8, 1)
        expected = {
            "bytes": int8 * column.astype(np.float32),
            "signed": int4 * wide_scale,
            "unsigned": (uint4 - wide_offset) * wide_scale,
        }

        def build(x: Any) -> Any:
            quantised = {
                "bytes": (int8, column, None),
                "signed": (int4.astype(types.np_int4_dtype), scale, None),
                "unsigned": (uint4.astype(types.np_uint4_dtype), scale, offset.astype(types.np_uint4_dtype)),
            }
            return [
                mb.identity(x=mb.constexpr_blockwise_shift_scale(data=q, scale=s, offset=o), name=name)
                for name, (q, s, o) in quantised.items()
            ]

        check(tmp_path, build, {"x": draw(1)}, expected)

    @pytest.mark.parametrize("wrong", [-0.5, 0.0, np.nan])
    def test_a_scale_that_is_not_positive(self, wrong: float, tmp_path: Path) -> None:
        scale = np.array([[0.5], [wrong], [1], [wrong]], np.float16)

        def build(x: Any) -> Any:
            weight = mb.constexpr_blockwise_shift_scale(data=np.ones((4, 2), np.int8), scale=scale, name="weight")
            return mb.linear(x=x, weight=weight, name="y")

        package = save(tmp_path, {"main": (build, {"x": draw(1, 2)})})
        wanted = rf"'weight' of type constexpr_\S+ scale: 2 of 4 are not positive, the first is {wrong:.3g}, want"
        with pytest.raises(ValueRangeError, match=wanted):
            trace(package, {"x": draw(1, 2)})

    def test_tables(self, tmp_path: Path) -> None:
        rng = np.random.default_rng(0)
        indices = {bits: rng.integers(0, 1 << bits, (6, 10)) for bits in (1, 2, 3, 4, 6, 8)}
        tables = {bits: draw(2, 1, 1 << bits, 1, seed=bits, dtype=np.float16) for bits in indices}
        expected: dict[str, Array] = {}
        for bits, places in indices.items():
            halves = [tables[bits][half, 0, places[3 * half : 3 * half + 3], 0] for half in range(2)]
            expected[f"bits_{bits}"] = np.concatenate(halves).astype(np.float32)

        def build(x: Any) -> Any:
            packed = {
                bits: places.astype(getattr(types, f"np_uint{bits}_dtype") if bits < 8 else np.uint8)
                for bits, places in indices.items()
            }
            return [
                mb.identity(x=mb.constexpr_lut_to_dense(indices=places, lut=tables[bits]), name=f"bits_{bits}")
                for bits, places in packed.items()
            ]

        check(tmp_path, build, {"x": draw(1)}, expected)

    def test_scaled_tables(self, tmp_path: Path) -> None:
        places, table = np.array([[0, 1], [3, 2]]), np.array([-4, -1, 2, 7], np.int8).reshape(1, 1, 4, 1)
        scale = np.array([[0.5], [2]], np.float16)

        def build(x: Any) -> Any:
            dense = mb.constexpr_lut_to_dense(indices=places.astype(types.np_uint2_dtype), lut=table)
            return mb.identity(x=mb.constexpr_blockwise_shift_scale(data=dense, scale=scale), name="weight")

        wanted = np.array([[-2, -0.5], [14, 4]], np.float32)
        check(tmp_path, build, {"x": draw(1)}, {"weight": wanted})

    def test_vectors_are_not_implemented(self, tmp_path: Path) -> None:
        def build(x: Any) -> Any:
            places, vectors = np.zeros((6, 10), types.np_uint2_dtype), draw(1, 1, 4, 3)
            return mb.identity(x=mb.constexpr_lut_to_dense(indices=places, lut=vectors, vector_axis=0))

        with pytest.raises(UnsupportedError, match="parameters vector_axis are not implemented"):
            trace(save(tmp_path, {"main": (build, {"x": draw(1)})}), {"x": draw(1)})

    def test_as_before_ios_18(self, tmp_path: Path) -> None:
        def build(x: Any) -> Any:
            half = mb.constexpr_cast(source_val=draw(3, dtype=np.float16), output_dtype="fp32")
            return mb.add(x=x, y=half)

        package = save(tmp_path, {"main": (build, {"x": draw(3)})}, ct.target.iOS16)
        with pytest.raises(UnsupportedError, match="attributes output_dtype, source_val are not implemented"):
            trace(package, {"x": draw(3)})


def test_arguments_of_the_wrong_kind(tmp_path: Path) -> None:
    from convert.verify.operations import OPERATIONS

    x = torch.ones(2)
    for arguments, message in (
        ({"x": (x, x), "axis": (torch.tensor(0, dtype=torch.int32),)}, "argument x: got 2 values"),
        ({"x": ("text",)}, "argument x: got 'text', want a tensor"),
        ({"x": (x,), "axis": (x,)}, "argument axis: got torch.float32"),
        ({"x": (x,), "axis": (torch.zeros(2, dtype=torch.int32),)}, "argument axis: got 2 numbers, want one"),
    ):
        with pytest.raises(FormatError, match=message):
            OPERATIONS["topk"].evaluate(arguments)
