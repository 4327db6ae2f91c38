"""The checkpoint in the package, stage by stage: trained weights reach values that random ones do not."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any, Final

import mlx.core as mx
import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from numpy.typing import NDArray
from transformers import AutoTokenizer, T5EncoderModel

from mlx_moddit.layers import has_bfloat16
from mlx_moddit.load import Bundle, load_bundle
from moddit.errors import UnsupportedError
from moddit.request import Request
from moddit.routing import select_tokens
from moddit.samplers import build_table
from tests.parity.bridge import PICTURE_PSNRS, STAGE_TOLERANCES, psnr, relative_error, share_alike, to_nchw
from tests.parity.roads import Road, run_mlx, run_reference, to_bundle

CHECKPOINT: Final = Path(str(files("moddit"))) / "checkpoints" / "shapes64"
pytestmark = pytest.mark.skipif(not (CHECKPOINT / "model_index.json").exists(), reason="the checkpoint is not made yet")

PROMPTS: Final = [
    "a large red circle on the left and a small blue star on the right, gray background",
    "A small Green triangle at the top, navy background",
    "",
    "a photo of an astronaut: unknown words, 3 digits",
]
STEPS: Final = 12
# Relative to the largest latent. A trained model answers a small difference with a larger one, and one token kept
# differently moves a latent by 1e-2; 5e-3 and 3e-2 were measured in half precision.
TRAJECTORY_TOLERANCES: Final = {"float32": 1e-3, "float16": 3e-2, "bfloat16": 1e-1}
# Of the reference's tokens, each block from the reference's own input: only ties fall apart (0.997 alike in bfloat16).
KEPT_ALIKE: Final = {"float32": 1.0, "float16": 0.995, "bfloat16": 0.99}
# Of bfloat16 in place of float32 activations, relative to the largest value: 8 bits. 9.5e-3 and 1.4e-2 were measured.
BFLOAT16_TOLERANCES: Final = {"text_encoder": 2e-2, "vae": 3e-2}
M3: Final = {"architecture": "applegpu_g15s"}
SETTINGS: Final[dict[str, Any]] = {"seed": 7, "steps": STEPS, "guidance_scale": 4.5}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory, stored_dtype: str) -> Bundle:
    return load_bundle(to_bundle(CHECKPOINT, tmp_path_factory.mktemp("parity") / "bundle", stored_dtype))


@pytest.fixture(scope="module")
def wanted() -> Road:
    return run_reference(CHECKPOINT, PROMPTS[0], **SETTINGS)


@pytest.fixture(scope="module")
def wide_dtype(stored_dtype: str) -> str:
    """Name the dtype that says how far text encoder and VAE may be off, and what follows from them."""
    return "bfloat16" if stored_dtype == "float16" and has_bfloat16() else stored_dtype


@pytest.mark.parametrize("prompt", [*PROMPTS, "a large red circle " * 20])
def test_tokenizer(bundle: Bundle, prompt: str) -> None:
    reference = AutoTokenizer.from_pretrained(CHECKPOINT / "tokenizer")
    ids = reference(prompt.lower().strip(), truncation=True, max_length=bundle.spec.text_tokens).input_ids
    assert bundle.tokenizer().encode(prompt) == ids


@pytest.mark.parametrize("prompt", PROMPTS)
def test_text_encoder(bundle: Bundle, wide_dtype: str, prompt: str) -> None:
    ids = bundle.tokenizer().encode(prompt)
    reference: Any = T5EncoderModel.from_pretrained(CHECKPOINT / "text_encoder").float()
    with torch.no_grad():
        states = reference(torch.tensor([ids])).last_hidden_state
    assert relative_error(bundle.text_encoder()(mx.array([ids])), states) < STAGE_TOLERANCES[wide_dtype]


def test_vae(bundle: Bundle, wide_dtype: str, wanted: Road) -> None:
    reference: Any = AutoencoderKL.from_pretrained(CHECKPOINT / "vae").float()
    vae, latents = bundle.vae(), torch.from_numpy(wanted.latents[-1])
    with torch.no_grad():
        picture = reference.decode(latents / reference.config.scaling_factor).sample
        mean = reference.encode(picture).latent_dist.mean * reference.config.scaling_factor
    assert relative_error(to_nchw(vae.decode(_nhwc(latents.numpy()))), picture) < STAGE_TOLERANCES[wide_dtype]
    assert relative_error(to_nchw(vae.encode(_nhwc(picture.numpy()))[0]), mean) < STAGE_TOLERANCES[wide_dtype]


def test_bfloat16_is_near_float32(bundle: Bundle, wanted: Road, monkeypatch: pytest.MonkeyPatch) -> None:
    half, exact = replace(bundle, dtype=mx.float16), replace(bundle, dtype=mx.float32)
    monkeypatch.setattr(mx, "device_info", lambda: M3)
    ids = mx.array([bundle.tokenizer().encode(PROMPTS[0])])
    states = half.text_encoder()(ids)
    assert states.dtype == mx.bfloat16
    assert relative_error(states, exact.text_encoder()(ids)) < BFLOAT16_TOLERANCES["text_encoder"]
    found, picture = (each.vae().decode(_nhwc(wanted.latents[-1])) for each in (half, exact))
    assert relative_error(found, picture) < BFLOAT16_TOLERANCES["vae"]


def test_every_block_of_every_step(bundle: Bundle, stored_dtype: str, wanted: Road) -> None:
    """Every block from the reference's own input, so that the errors of one do not hide in those of the next."""
    model, table = bundle.transformer(), build_table(bundle.spec.scheduler, bundle.spec.scheduler.sampler, STEPS)
    encoder, tokenizer = bundle.text_encoder(), bundle.tokenizer()
    texts = [encoder(mx.array([tokenizer.encode(text)]))[0] for text in ("", PROMPTS[0])]
    side = model.spec.sample_size
    conditions = model.prepare(texts, table.timesteps, side, side)
    tolerance = STAGE_TOLERANCES[stored_dtype]
    kept_here: list[list[NDArray[np.uint32]]] = []
    for step in range(1, STEPS):
        kept_here.append([])
        latents = _nhwc(wanted.latents[step - 1]) * table.steps[step].input_scale
        x = model.embed(mx.concatenate([latents, latents]), conditions)
        forced = [mx.array(kept.astype(np.uint32)) for kept in wanted.kept[step]]
        for layer, output in enumerate(wanted.outputs[step]):
            seen: list[mx.array] = []
            watched = conditions.start(on_block=lambda _, *values, seen=seen: seen.extend(values))
            model.run_block(x, layer, step, conditions, watched)
            x = model.run_block(x, layer, step, conditions, conditions.start(forced=forced))
            assert relative_error(x, output) < tolerance, (step, layer)
            if bundle.policy.has_routers:
                scores, kept = seen
                assert relative_error(scores, wanted.scores[step][layer]) < tolerance, (step, layer)
                np.testing.assert_array_equal(np.array(kept), select_tokens(np.array(scores), kept.shape[1]))
                kept_here[-1].append(np.array(kept))
            x = mx.array(output).astype(model.dtype)
    if bundle.policy.has_routers:
        assert share_alike(kept_here, wanted.kept[1:]) >= KEPT_ALIKE[stored_dtype]


def test_trajectory(bundle: Bundle, stored_dtype: str, wide_dtype: str, wanted: Road) -> None:
    found = run_mlx(bundle.folder, PROMPTS[0], **SETTINGS)
    errors = [relative_error(mine, theirs) for mine, theirs in zip(found.latents, wanted.latents, strict=True)]
    assert max(errors) < TRAJECTORY_TOLERANCES[wide_dtype]
    assert psnr(found.picture, wanted.picture) > PICTURE_PSNRS[stored_dtype]


@pytest.mark.parametrize("prompt", PROMPTS[:3])
@pytest.mark.parametrize(
    "settings", [{"seed": 1, "steps": 20}, {"seed": 2, "sampler": "ddim"}, {"sampler": "euler"}], ids=str
)
def test_picture(bundle: Bundle, stored_dtype: str, prompt: str, settings: dict[str, Any]) -> None:
    wanted = run_reference(CHECKPOINT, prompt, **settings)
    found = run_mlx(bundle.folder, prompt, **settings)
    assert psnr(found.picture, wanted.picture) > PICTURE_PSNRS[stored_dtype]


def test_plan_is_the_checkpoints(bundle: Bundle) -> None:
    config = json.loads((CHECKPOINT / "transformer" / "config.json").read_text())
    assert bundle.policy.has_routers
    assert bundle.policy.plan.to_json() == config["diffcr"]


def _nhwc(array: np.ndarray[Any, np.dtype[np.float32]]) -> mx.array:
    return mx.array(array.transpose(0, 2, 3, 1))


def test_resolution_binning_is_refused(bundle: Bundle) -> None:
    # sample_size is that of models of 256 pixels, whose pictures would be four times as large as all it has seen
    with pytest.raises(UnsupportedError, match="trained on pictures of 64 pixels, want 256"):
        Request.complete(bundle.spec, PROMPTS[0], resolution_binning=True)
