"""LoRA files: which are read, how strongly they act, and which are refused. Values: tests/parity/test_lora.py."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import save_file

from moddit.checkpoint.lora import Lora, read_lora
from moddit.checkpoint.lora_names import Layers, Piece, split_name
from moddit.checkpoint.safetensors import FileTensor, read_tensors
from moddit.errors import FormatError, MissingError, ModditError, ShapeError, UnsupportedError, ValueRangeError
from moddit.models.pixart import PixArtSpec

SPEC: Final = PixArtSpec(
    num_layers=2,
    num_attention_heads=2,
    attention_head_dim=4,
    in_channels=4,
    out_channels=8,
    patch_size=2,
    sample_size=16,
    cross_attention_dim=8,
    caption_channels=6,
    interpolation_scale=1.0,
    attention_bias=True,
    norm_eps=1e-6,
    use_additional_conditions=False,
)
WANTED: Final = SPEC.tensors(has_routers=True)
QUERY: Final = "transformer_blocks.0.attn1.to_q"
MLP_END: Final = "transformer_blocks.1.ff.net.2"
PIXART_BLOCK: Final = (
    *("attn.qkv", "attn.proj", "cross_attn.q_linear", "cross_attn.kv_linear", "cross_attn.proj"),
    *("mlp.fc1", "mlp.fc2"),
)
PIXART: Final = (
    *("x_embedder.proj", "y_embedder.y_proj.fc1", "y_embedder.y_proj.fc2"),
    *("t_embedder.mlp.0", "t_embedder.mlp.2", "t_block.1", "final_layer.linear"),
)
ADVICE: Final = re.compile(r"\[lora\] [^\n]+[;,:] [^\n]+")  # one line, with what to do
Arrays = dict[str, NDArray[Any]]


def pair(layer: str = QUERY, rank: int = 2, *, a: str = "lora_A.weight", b: str = "lora_B.weight") -> Arrays:
    """Make an adapter of a layer of width 8."""
    rng = np.random.default_rng(0)
    down, up = rng.standard_normal((rank, 8)), rng.standard_normal((8, rank))
    return {f"{layer}.{a}": down.astype(np.float32), f"{layer}.{b}": up.astype(np.float32)}


def kohya(layer: str = "lora_unet_transformer_blocks_0_attn1_to_q", rank: int = 2) -> Arrays:
    return pair(layer, rank, a="lora_down.weight", b="lora_up.weight")


def ones(*shape: int) -> NDArray[np.float32]:
    return np.ones(shape, np.float32)


def write(path: Path, tensors: Arrays, metadata: Mapping[str, str] | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path, metadata=dict(metadata) if metadata else None)
    return path


def read(tmp_path: Path, tensors: Arrays, metadata: Mapping[str, str] | None = None, scale: float = 1.0) -> Lora:
    return read_lora(write(tmp_path / "x.safetensors", tensors, metadata), scale, WANTED)


def peft(**fields: Any) -> dict[str, str]:
    return {"lora_adapter_metadata": json.dumps({"r": 2, **fields})}


def checkpoint(path: Path, dtype: Any = np.float32) -> dict[str, FileTensor]:
    rng = np.random.default_rng(1)
    write(path, {name: rng.standard_normal(info.shape).astype(dtype) for name, info in WANTED.items()})
    return read_tensors(path)


class TestNames:
    @pytest.mark.parametrize(
        ("name", "layer", "piece"),
        [
            (f"transformer.{QUERY}.lora_A.weight", f"transformer.{QUERY}", Piece.DOWN),
            (f"base_model.model.{QUERY}.lora_B.my-style.weight", f"base_model.model.{QUERY}", Piece.UP),
            (f"{QUERY}.lora_B.default.bias", QUERY, Piece.BIAS),
            ("lora_unet_proj_out.lora_down.weight", "lora_unet_proj_out", Piece.DOWN),
            ("lora_unet_proj_out.alpha", "lora_unet_proj_out", Piece.ALPHA),
            (f"{QUERY}.lora.up.weight", QUERY, Piece.UP),
            (f"{QUERY}.lora_linear_layer.down.weight", QUERY, Piece.DOWN),
            ("a.processor.to_out_lora.up.weight", "a.processor.to_out", Piece.UP),
        ],
    )
    def test_endings(self, name: str, layer: str, piece: Piece) -> None:
        assert split_name(name) == (layer, piece)

    @pytest.mark.parametrize("name", [f"{QUERY}.weight", "lora_A.weight", "scale_shift_table", f"{QUERY}.lora_A"])
    def test_what_is_no_piece(self, name: str) -> None:
        assert split_name(name) is None

    @pytest.mark.parametrize("prefix", ["", "transformer.", "unet.", "unet.base_model.model.", "diffusion_model."])
    def test_prefixes(self, prefix: str) -> None:
        for name in ("proj_out", QUERY, "blocks.1.attn.qkv"):
            layer = Layers(WANTED).find(prefix + name)
            assert layer is not None
            assert layer.name == name

    def test_every_layer_has_one_flat_name(self) -> None:
        layers = Layers(WANTED)
        modules = [name.removesuffix(".weight") for name in WANTED if name.endswith(".weight")]
        found = [layers.find("lora_transformer_" + module.replace(".", "_")) for module in modules]
        assert [layer.targets if layer else () for layer in found] == [(module,) for module in modules]

    def test_pixarts_own_names_reach_every_layer_but_routers(self) -> None:
        layers = Layers(WANTED)
        names = [f"blocks.{block}.{name}" for block in range(2) for name in PIXART_BLOCK] + list(PIXART)
        found = [target for name in names for target in getattr(layers.find(name), "targets", ())]
        modules = [name.removesuffix(".weight") for name in WANTED if name.endswith(".weight") and "router" not in name]
        assert sorted(found) == sorted(modules)

    @pytest.mark.parametrize("name", ["blocks.2.attn.qkv", "proj_in", "transformer_blocks_0_attn1_to_q", "lora_unet_x"])
    def test_unknown_layers(self, name: str) -> None:
        assert Layers(WANTED).find(name) is None


class TestFiles:
    @pytest.mark.parametrize("name", ["pytorch_lora_weights.safetensors", "adapter_model.safetensors"])
    def test_folder(self, tmp_path: Path, name: str) -> None:
        file = write(tmp_path / name, pair())
        config = tmp_path / "adapter_config.json"
        config.write_text(json.dumps({"r": 2, "lora_alpha": 6}))
        files = (file, config) if name.startswith("adapter") else (file,)
        for path in (tmp_path, file):
            lora = read_lora(path, 1.0, WANTED)
            assert lora.files == files
            assert lora.additions[f"{QUERY}.weight"].strength == (3.0 if len(files) == 2 else 1.0)

    def test_adapter_without_configuration(self, tmp_path: Path) -> None:
        write(tmp_path / "adapter_model.safetensors", pair())
        refuse(tmp_path, MissingError, "adapter_config.json: no such file")

    def test_two_files(self, tmp_path: Path) -> None:
        write(tmp_path / "adapter_model.safetensors", pair())
        write(tmp_path / "pytorch_lora_weights.safetensors", pair())
        refuse(tmp_path, UnsupportedError, "name the one that you mean")

    def test_other_files(self, tmp_path: Path) -> None:
        for index in range(5):
            write(tmp_path / f"{index}.safetensors", pair())
        refuse(tmp_path, MissingError, "got '0.safetensors', '1.safetensors', '2.safetensors', ... (5 entries), want ")

    def test_nothing_there(self, tmp_path: Path) -> None:
        with pytest.raises(MissingError, match="no such file"):
            read_lora(tmp_path / "x.safetensors", 1.0, WANTED)
        with pytest.raises(MissingError, match="no such file"):
            read_lora(tmp_path / "adapter_model.safetensors", 1.0, WANTED)

    @pytest.mark.parametrize("name", ["pytorch_lora_weights.bin", "x.pt", "x.pth", "x.ckpt", "adapter_model.bin"])
    @pytest.mark.parametrize("in_folder", [True, False])
    def test_pickles(self, tmp_path: Path, name: str, in_folder: bool) -> None:
        (tmp_path / name).write_bytes(b"\x80\x02}q\x00.")
        refuse(tmp_path if in_folder else tmp_path / name, UnsupportedError, f"{name}: is a pickle")

    def test_empty_file(self, tmp_path: Path) -> None:
        (tmp_path / "x.safetensors").write_bytes(b"")
        with pytest.raises(FormatError, match="got 0 bytes"):
            read_lora(tmp_path / "x.safetensors", 1.0, WANTED)

    def test_only_alphas_are_read(self, tmp_path: Path) -> None:
        """NaN in A shows when it is read, and not before."""
        tensors = pair()
        tensors[f"{QUERY}.lora_A.weight"][1, 3] = math.nan
        merged = read(tmp_path, tensors).merge(checkpoint(tmp_path / "base.safetensors"))
        with pytest.raises(ValueRangeError, match=rf"x.safetensors: tensor '{QUERY}.lora_A.weight' is not finite"):
            merged[f"{QUERY}.weight"].read()


def refuse(path: Path, kind: type[ModditError], message: str, scale: float = 1.0) -> None:
    with pytest.raises(kind, match=re.escape(message)) as caught:
        read_lora(path, scale, WANTED)
    assert ADVICE.fullmatch(str(caught.value))


class TestStrength:
    def strength(self, tmp_path: Path, tensors: Arrays, metadata: Mapping[str, str] | None = None) -> float:
        (addition,) = read(tmp_path, tensors, metadata, scale=0.5).additions.values()
        return addition.strength / 0.5

    def test_nothing_said(self, tmp_path: Path) -> None:
        assert self.strength(tmp_path, pair()) == 1.0

    @pytest.mark.parametrize("dtype", ["f2", "f4", "f8", "i4", "i8"])
    @pytest.mark.parametrize("shape", [(), (1,)])
    def test_tensor(self, tmp_path: Path, dtype: str, shape: tuple[int, ...]) -> None:
        tensors = kohya() | {"lora_unet_transformer_blocks_0_attn1_to_q.alpha": np.full(shape, 7, dtype)}
        assert self.strength(tmp_path, tensors) == 3.5
        assert self.strength(tmp_path, tensors, {"ss_network_alpha": "1", "ss_network_dim": "2"}) == 3.5
        assert self.strength(tmp_path, tensors, peft(lora_alpha=9)) == 3.5

    @pytest.mark.parametrize(
        ("fields", "strength"),
        [
            ({}, 4.0),  # peft's default is 8
            ({"lora_alpha": 3}, 1.5),
            ({"lora_alpha": 3, "use_rslora": True}, 3 / math.sqrt(2)),
            ({"r": 4, "rank_pattern": {"to_q": 2}, "lora_alpha": 3}, 1.5),
            ({"alpha_pattern": {"attn1.to_q": 1, "to_q": 5}}, 0.5),  # the first that matches
            ({"alpha_pattern": {"o_q": 1, "attn1": 2, "to_k": 3}}, 4.0),  # neither part of a name nor its middle
            ({"alpha_pattern": {r"^transformer_blocks\.0\..*": 1}}, 0.5),
            ({"alpha_pattern": None, "rank_pattern": {}}, 4.0),
        ],
    )
    def test_configuration(self, tmp_path: Path, fields: dict[str, Any], strength: float) -> None:
        assert self.strength(tmp_path, pair(), peft(**fields)) == strength
        named = {f"transformer.{key}": value for key, value in {"r": 2, **fields}.items()}
        others = {"text_encoder.r": 64, "text_encoder.lora_alpha": 1}
        metadata = {"lora_adapter_metadata": json.dumps(named | others)}
        assert self.strength(tmp_path, pair(f"transformer.{QUERY}"), metadata) == strength

    @pytest.mark.parametrize(("alpha", "strength"), [("1.0", 0.5), ("16", 8.0), ("None", 1.0)])
    def test_metadata_of_kohya(self, tmp_path: Path, alpha: str, strength: float) -> None:
        metadata = {"ss_network_alpha": alpha, "ss_network_dim": "2"}
        assert self.strength(tmp_path, kohya(), metadata) == strength

    def test_layer_without_alpha_among_others(self, tmp_path: Path) -> None:
        tensors = pair() | {f"{QUERY}.alpha": ones()} | pair("transformer_blocks.0.attn1.to_k")
        additions = read(tmp_path, tensors, {"ss_network_alpha": "1", "ss_network_dim": "2"}).additions
        assert [addition.strength for addition in additions.values()] == [1.0, 0.5]

    @pytest.mark.parametrize(
        ("metadata", "kind", "message"),
        [
            ({"lora_adapter_metadata": "{"}, FormatError, "is not a JSON object"),
            ({"lora_adapter_metadata": "[1]"}, FormatError, "is not a JSON object"),
            ({"lora_adapter_metadata": "[" * 100_000}, FormatError, "is not a JSON object"),
            (peft(lora_alpha="8"), FormatError, "lora_alpha is not a number, got '8'"),
            (peft(lora_alpha=None), FormatError, "lora_alpha is not a number"),
            (peft(lora_alpha=True), FormatError, "lora_alpha is not a number"),
            (peft(lora_alpha=math.nan), ValueRangeError, "lora_alpha is not finite"),
            (peft(lora_alpha=10**400), ValueRangeError, "lora_alpha is not finite"),
            (peft(alpha_pattern=[1]), FormatError, "alpha_pattern is not an object"),
            (peft(alpha_pattern={"(": 1}), FormatError, "no regular expressions"),
            (peft(alpha_pattern={"x": "1"}), FormatError, "alpha_pattern, 'x' is not a number"),
            (peft(r=4), ShapeError, "has rank 2 in the file, want 4 as the configuration says"),
            (peft(peft_type="LOHA"), UnsupportedError, "peft_type is not implemented, got 'LOHA', want 'LORA'"),
            (peft(use_dora=True), UnsupportedError, "use_dora is not implemented"),
            (peft(init_lora_weights="pissa_niter_4"), UnsupportedError, "init_lora_weights is not implemented"),
            (peft(modules_to_save=["proj_out"]), UnsupportedError, "modules_to_save is not implemented"),
            (peft(bias="all"), UnsupportedError, "bias is not implemented"),
            ({"ss_network_alpha": "1", "ss_network_dim": "Dynamic"}, ShapeError, "ss_network_dim in the metadata"),
            ({"ss_network_alpha": "x", "ss_network_dim": "2"}, FormatError, "ss_network_alpha is not a number"),
            ({"ss_network_alpha": "NaN", "ss_network_dim": "2"}, ValueRangeError, "ss_network_alpha is not finite"),
        ],
    )
    def test_damage(self, tmp_path: Path, metadata: dict[str, str], kind: type[ModditError], message: str) -> None:
        refuse(write(tmp_path / "x.safetensors", pair(), metadata), kind, message)

    @pytest.mark.parametrize(
        ("alpha", "kind", "message"),
        [
            (np.array(math.inf, np.float32), ValueRangeError, "is not finite, got inf"),
            (np.array([1, 2], np.float32), ShapeError, "is not one number, got shape [2], want []"),
            (np.array(1, np.uint8), UnsupportedError, "has dtype U8, want F16, BF16, F32, F64, I64, I32"),
        ],
    )
    def test_damaged_alpha(self, tmp_path: Path, alpha: Any, kind: type[ModditError], message: str) -> None:
        refuse(write(tmp_path / "x.safetensors", pair() | {f"{QUERY}.alpha": alpha}), kind, message)

    @pytest.mark.parametrize("scale", [math.nan, math.inf, -math.inf])
    def test_scale(self, tmp_path: Path, scale: float) -> None:
        refuse(write(tmp_path / "x.safetensors", pair()), ValueRangeError, f"not finite, got {scale}", scale)

    def test_too_strong(self, tmp_path: Path) -> None:
        merged = read(tmp_path, pair(), scale=1e300).merge(checkpoint(tmp_path / "base.safetensors"))
        with pytest.raises(ValueRangeError, match="at strength 1e\\+300 is too large for float32; use a smaller scale"):
            merged[f"{QUERY}.weight"].read()


KEY: Final = "transformer_blocks.0.attn1.to_k"
REFUSED: Final[list[tuple[str, Arrays, type[ModditError], str]]] = [
    ("no tensors", {}, FormatError, "has no tensors at all"),
    ("no B", {f"{QUERY}.lora_A.weight": ones(2, 8)} | pair(KEY), FormatError, f"A or B is missing of '{QUERY}'"),
    ("no A", {f"{QUERY}.lora_B.weight": ones(8, 2)} | pair(KEY), FormatError, f"A or B is missing of '{QUERY}'"),
    ("alpha alone", {f"{QUERY}.alpha": ones()} | pair(KEY), FormatError, f"A or B is missing of '{QUERY}'"),
    ("bias alone", {f"{QUERY}.lora_B.bias": ones(8)}, FormatError, f"A or B is missing of '{QUERY}'"),
    ("ranks", pair() | {f"{QUERY}.lora_B.weight": ones(8, 3)}, ShapeError, "got A [2, 8], B [8, 3], want A [rank, 8]"),
    ("rank 0", pair(rank=0), ShapeError, "got A [0, 8], B [8, 0]"),
    ("width of A", pair() | {f"{QUERY}.lora_A.weight": ones(2, 9)}, ShapeError, f"adapter of '{QUERY}' does not fit"),
    ("rows of B", pair() | {f"{QUERY}.lora_B.weight": ones(9, 2)}, ShapeError, "want A [rank, 8] and B [8, rank]"),
    ("number A", pair() | {f"{QUERY}.lora_A.weight": ones()}, ShapeError, "got A []"),
    ("bias", pair() | {f"{QUERY}.lora_B.bias": ones(7)}, ShapeError, "bias of B [7]"),
    ("linear for a convolution", pair("pos_embed.proj"), ShapeError, "A [rank, 4, 2, 2] and B [8, rank, 1, 1]"),
    (
        "bias of a router",
        {
            "transformer_blocks.0.router.lora_A.weight": ones(1, 8),
            "transformer_blocks.0.router.lora_B.weight": ones(1, 1),
            "transformer_blocks.0.router.lora_B.bias": ones(1),
        },
        UnsupportedError,
        "router has none",
    ),
    (
        "other layers",
        {key: value for layer in range(9) for key, value in pair(f"down_blocks.{layer}.to_q").items()},
        UnsupportedError,
        "'down_blocks.0.to_q', 'down_blocks.1.to_q', 'down_blocks.2.to_q', ... (9 layers), want names",
    ),
    ("deeper model", pair("transformer_blocks.2.attn1.to_q"), UnsupportedError, "has no such layers"),
    (
        "text encoder",
        pair() | pair("text_encoder.encoder.block.0.layer.0.SelfAttention.q"),
        UnsupportedError,
        "adapts a text encoder, got 'text_encoder.encoder.block.0",
    ),
    (
        "text encoder by peft",
        pair("base_model.model.encoder.block.0.layer.0.SelfAttention.q"),
        UnsupportedError,
        "only the transformer's adapters are merged",
    ),
    ("text encoder by kohya", kohya() | kohya("lora_te_encoder_block_0"), UnsupportedError, "adapts a text encoder"),
    ("text encoder 3", kohya("lora_te3_encoder_block_0"), UnsupportedError, "adapts a text encoder"),
    ("DoRA by peft", pair() | {f"{QUERY}.lora_magnitude_vector": ones(8)}, UnsupportedError, "holds DoRA"),
    ("DoRA in training", pair() | {f"{QUERY}.lora_magnitude_vector.default.weight": ones(8)}, UnsupportedError, "DoRA"),
    ("DoRA by kohya", pair() | {f"{QUERY}.dora_scale": ones(8)}, UnsupportedError, "holds DoRA"),
    ("LoHa", {f"{QUERY}.hada_w1_a": ones(8, 2)}, UnsupportedError, "holds LoHa"),
    ("LoKr", {f"{QUERY}.lokr_w1": ones(8, 2)}, UnsupportedError, "holds LoKr"),
    ("LoCon", pair() | {f"{QUERY}.lora_mid.weight": ones(2, 2)}, UnsupportedError, "Tucker"),
    ("OFT", {f"{QUERY}.oft_blocks": ones(2, 2)}, UnsupportedError, "holds OFT"),
    ("difference", pair() | {f"{KEY}.diff": ones(8, 8)}, UnsupportedError, "holds full differences"),
    ("difference of a bias", pair() | {f"{KEY}.diff_b": ones(8)}, UnsupportedError, "holds full differences"),
    ("whole layer", pair() | {"proj_out.weight": ones(8, 8)}, UnsupportedError, "whole weights (modules_to_save)"),
    (
        "whole model",
        {name: ones(*info.shape) for name, info in WANTED.items()},
        FormatError,
        "perhaps it is a whole model",
    ),
    ("two names", pair() | pair(f"transformer.{QUERY}"), FormatError, f"two adapters of '{QUERY}.weight'"),
    (
        "stacked and alone",
        pair() | {"blocks.0.attn.qkv.lora_A.weight": ones(2, 8), "blocks.0.attn.qkv.lora_B.weight": ones(24, 2)},
        FormatError,
        "two adapters of",
    ),
    ("two adapters", pair() | pair(a="lora_A.one.weight", b="lora_B.one.weight"), FormatError, "are both A"),
    ("integers", pair() | {f"{QUERY}.lora_A.weight": np.ones((2, 8), np.int8)}, UnsupportedError, "has dtype I8"),
    ("float64", pair() | {f"{QUERY}.lora_B.weight": np.ones((8, 2))}, UnsupportedError, "has dtype F64"),
]


@pytest.mark.parametrize(("tensors", "kind", "message"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED])
def test_refused(tmp_path: Path, tensors: Arrays, kind: type[ModditError], message: str) -> None:
    refuse(write(tmp_path / "x.safetensors", tensors), kind, message)


class TestMerge:
    def test_only_what_it_names_changes(self, tmp_path: Path) -> None:
        tensors = checkpoint(tmp_path / "base.safetensors")
        merged = read(tmp_path, pair() | {f"{QUERY}.lora_B.bias": ones(8)}, scale=2.0).merge(tensors)
        assert merged.keys() == tensors.keys()
        assert {name for name in tensors if merged[name] is not tensors[name]} == {f"{QUERY}.weight", f"{QUERY}.bias"}
        np.testing.assert_allclose(merged[f"{QUERY}.bias"].read(), tensors[f"{QUERY}.bias"].read() + 2, rtol=1e-6)

    @pytest.mark.parametrize("dtype", [np.float32, np.float16])
    def test_gain_of_the_mlps_last_layer(self, tmp_path: Path, dtype: Any) -> None:
        tensors = checkpoint(tmp_path / "base.safetensors", dtype)
        down, up, bias = ones(1, 32), ones(8, 1), ones(8)
        adapter = {f"{MLP_END}.lora_A.weight": down, f"{MLP_END}.lora_B.weight": up, f"{MLP_END}.lora_B.bias": bias}
        lora = read(tmp_path, pair() | adapter, scale=0.5)
        merged, plain = lora.merge(tensors, mlp_gain=2), lora.merge(tensors)
        for name in (f"{MLP_END}.weight", f"{MLP_END}.bias"):
            base = tensors[name].read().astype(np.float32)
            np.testing.assert_allclose(merged[name].read(), base + 1, rtol=1e-6)
            np.testing.assert_allclose(plain[name].read(), base + 0.5, rtol=1e-6)
        assert np.array_equal(merged[f"{QUERY}.weight"].read(), plain[f"{QUERY}.weight"].read())

    def test_checkpoint_that_lacks_a_tensor(self, tmp_path: Path) -> None:
        tensors = checkpoint(tmp_path / "base.safetensors")
        del tensors[f"{QUERY}.weight"]
        with pytest.raises(MissingError, match=f"changes {QUERY}.weight, which the checkpoint does not have"):
            read(tmp_path, pair()).merge(tensors)

    def test_checkpoint_of_integers(self, tmp_path: Path) -> None:
        tensors = checkpoint(tmp_path / "base.safetensors", np.int8)
        with pytest.raises(UnsupportedError, match="has dtype I8"):
            read(tmp_path, pair()).merge(tensors)
