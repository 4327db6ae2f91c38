"""One trial: a picture in a process of its own, as `python -m mlx_moddit.benchmark.trial`.

It reads a job from its input and writes what it measured to its output, both as JSON.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from statistics import mean
from typing import Any, Final

import mlx.core as mx

from mlx_moddit.benchmark.random_weights import make_bundle
from mlx_moddit.imagined import imagine_tokens
from mlx_moddit.load import DTYPES, Bundle, load_bundle
from mlx_moddit.memory import StageCost
from mlx_moddit.pipeline import Pipeline, default_dtype
from mlx_moddit.stages import Decoded, Encoded, Loaded, Prepared, Stage, Step
from moddit import cost
from moddit.benchmark.record import Arm
from moddit.benchmark.record import Stage as StageRecord
from moddit.benchmark.summary import DENSE, ORACLE
from moddit.conditioning import Label
from moddit.configurations import find_configuration
from moddit.errors import ModditError, UnsupportedError
from moddit.memory import ProcessPeak, take_peak
from moddit.metadata import STORED
from moddit.quantization import mean_bits
from moddit.request import Request
from moddit.routing import RoutingPlan, snap
from moddit.tokens import TokenPolicy

PROMPT: Final = (
    "a large red circle on the left and a small blue square on the right, painted in oil on a white background, with "
    "soft light from above and fine detail everywhere"
)
_NAMES: Final = {Loaded: "load", Encoded: "encode", Prepared: "prepare", Decoded: "decode"}


@dataclass(frozen=True)
class Job:
    """What to measure."""

    arm: str = DENSE  # "dense", "oracle" or "routed"
    name: str | None = None  # of the arm in the record, instead
    model: str | None = None  # folder of a bundle
    config: str | None = None  # or name of a configuration, with random weights
    layers: int | None = None  # of the configuration, instead of all of them
    keep: float | None = None  # share of the tokens, instead of the model's plan (`imagine_tokens`)
    dtype: str | None = None  # as `Pipeline.load` takes it; of random weights what they have
    bits: int | None = None  # of random weights
    encoder: bool = False  # of a configuration, instead of random states
    prompt: str = PROMPT
    height: int | None = None  # pixels
    width: int | None = None
    steps: int = 6
    guidance_scale: float | None = None
    reuse: int = 1  # as `Request` has it
    cache: float | None = None  # likewise
    low_ram: bool = False
    decodes: bool = True  # or the picture is left out, which takes minutes on a CPU

    @property
    def title(self) -> str:
        """Name the arm in the record, apart from one that asks the model in every step, and for all of its blocks."""
        saving = f" with reuse {self.reuse}" if self.reuse > 1 else f" with cache {self.cache:g}" if self.cache else ""
        return self.name or f"{self.arm}{saving}"


class _Enough(Exception):  # noqa: N818 # nothing is wrong
    """Raised where a trial ends before its picture."""


@dataclass(frozen=True)
class Measured:
    """What a stage took, once."""

    name: str
    lap: StageCost
    peak: ProcessPeak


def open_job(job: Job) -> Bundle:
    """Open the model of a job, with the policy of its arm.

    Raises:
        InputError: there is no such model, or it has no routers to measure.
    """
    if job.config is None:
        assert job.model is not None
        bundle = load_bundle(job.model, DTYPES.get(job.dtype or default_dtype()))
        stored = bundle.policy
        if job.keep is not None and stored.has_routers:
            stored = imagine_tokens(stored, job.keep)
    else:
        spec = find_configuration(job.config, job.layers)
        layers, timesteps = spec.transformer.num_layers, spec.scheduler.num_train_timesteps
        stored = TokenPolicy.dense(layers, timesteps)
        if job.keep is not None:
            stored = TokenPolicy.topk(RoutingPlan.uniform(layers, 1, snap(job.keep), timesteps))
        dtype = job.dtype or default_dtype()
        stored_dtype = "float16" if dtype == STORED else dtype
        bundle = make_bundle(spec, stored, stored_dtype, job.bits, encoder=job.encoder)
    return replace(bundle, tokens=_policy(job, stored))


def _policy(job: Job, stored: TokenPolicy) -> TokenPolicy:
    plan = stored.plan
    if job.arm == DENSE:
        return TokenPolicy.dense(plan.layers, plan.num_train_timesteps)
    if stored.is_dense:
        raise UnsupportedError(
            f"[benchmark] {job.model or job.config}: the model is dense, it has no arm {job.arm!r}; measure a routed "
            "bundle, or a configuration with --keep"
        )
    return TokenPolicy.first(plan) if job.arm == ORACLE else TokenPolicy.topk(plan)


def run(job: Job) -> dict[str, Any]:
    """Draw a picture and measure its stages.

    Returns:
        the fields of an `Arm`, of a `Subject` and the stages of a `Trial`.

    Raises:
        ModditError: the model cannot be opened, or not draw such a picture.
    """
    bundle = open_job(job)
    pipeline = Pipeline(bundle, low_ram=job.low_ram)
    says = {"label": 0} if bundle.spec.conditioning.KIND == Label.KIND else {"prompt": job.prompt}
    request = Request.complete(
        bundle.spec,
        **says,
        steps=job.steps,
        guidance_scale=job.guidance_scale,
        height=job.height,
        width=job.width,
        reuse=job.reuse,
        cache=job.cache,
    )
    stages: list[tuple[Stage, ProcessPeak]] = []

    def on_stage(stage: Stage) -> None:
        stages.append((stage, take_peak()))
        if isinstance(stage, Step) and stage.is_last and not job.decodes:
            raise _Enough

    take_peak()
    drawing = pipeline.run([request], on_stage=on_stage)
    with suppress(_Enough):
        list(drawing)
    taken = zip(stages, drawing.laps, strict=True)
    measured = [Measured(_name(stage), lap, peak) for (stage, peak), lap in taken if not _is_reused(stage)]
    text_tokens = max((max(stage.tokens) for stage, _ in stages if isinstance(stage, Encoded)), default=0)
    is_made = job.config is not None
    return {
        "arm": asdict(_arm(job, bundle, request, text_tokens)),
        "subject": {
            "name": job.config or bundle.manifest.provenance.source,
            "fingerprint": None if is_made else bundle.manifest.fingerprint,
            "architecture": bundle.spec.transformer.ARCHITECTURE,
            "layers": bundle.spec.transformer.num_layers,
        },
        "stages": [asdict(stage) for stage in _collect(measured, without=_idle(job))],
    }


def _is_reused(stage: Stage) -> bool:
    return isinstance(stage, Step) and stage.is_reused


def _name(stage: Stage) -> str:
    if isinstance(stage, Step):
        return "cached_step" if stage.is_cached else "step" if stage.index else "first_step"
    return _NAMES[type(stage)]


def _idle(job: Job) -> frozenset[str]:
    """List the stages of a job that do nothing a model would: random weights are made, not loaded."""
    if job.config is None:
        return frozenset()
    return frozenset({"load"} if job.encoder else {"load", "encode"})


def _collect(measured: list[Measured], *, without: frozenset[str]) -> list[StageRecord]:
    """Put what was measured together by stage; what is loaded one after the other is one load."""
    found: dict[str, list[Measured]] = {}
    for item in measured:
        found.setdefault(item.name, []).append(item)
    return [_stage(name, items) for name, items in found.items() if name not in without]


def _stage(name: str, items: list[Measured]) -> StageRecord:
    seconds = [item.lap.seconds for item in items]
    return StageRecord(
        name,
        (sum(seconds),) if name == "load" else tuple(seconds),
        max(item.lap.peak_bytes for item in items),
        max((item.peak.resident for item in items if item.peak.resident is not None), default=None),
        max((item.peak.footprint for item in items if item.peak.footprint is not None), default=None),
    )


def _arm(job: Job, bundle: Bundle, request: Request, text_tokens: int) -> Arm:
    spec, policy = bundle.spec.transformer, bundle.policy
    downscale = bundle.spec.vae.downscale
    tokens = spec.tokens(request.height // downscale, request.width // downscale)
    timesteps = [step.timestep for step in request.table(bundle.spec).steps if not step.is_reused]
    regions = policy.plan.schedule(timesteps)
    batch = len(request.rows(bundle.spec))
    weights = spec.tensors(has_routers=bundle.manifest.tokens.has_routers)
    return Arm(
        name=job.title,
        runtime="mlx",
        device="cpu" if mx.default_device() == mx.cpu else "gpu",
        dtype=_dtype_name(bundle),
        bits=mean_bits(bundle.manifest.components["transformer"].quantization, weights),
        height=request.height,
        width=request.width,
        batch=batch,
        steps=request.steps,
        tokens=tokens,
        text_tokens=text_tokens,
        keep=None if job.arm == DENSE else job.keep,
        kept_tokens=mean(mean(policy.plan.capacities(region, tokens)) for region in regions),
        step_flops=batch * mean(cost.step_flops(spec, policy, region, tokens, text_tokens) for region in regions),
    )


def _dtype_name(bundle: Bundle) -> str:
    stored = bundle.manifest.components["transformer"].dtype or "float32"
    return stored if bundle.dtype is None else next(name for name, dtype in DTYPES.items() if dtype == bundle.dtype)


def main() -> int:
    """Read a job, write what it measured; return the exit status."""
    values: Mapping[str, Any] = json.loads(sys.stdin.read())
    try:
        print(json.dumps(run(Job(**values))))
    except ModditError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
