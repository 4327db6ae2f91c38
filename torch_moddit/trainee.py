"""What a fine-tuning run changes: a routed transformer with its keep ratios, and the optimizers that move it."""

from __future__ import annotations

import copy
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import torch
from torch import Tensor, nn

from moddit.errors import MissingError, UnsupportedError, ValueRangeError
from moddit.routing import DENOMINATOR, RoutingPlan
from moddit.tokens import TokenPolicy
from torch_moddit.architectures import dense, routed_class
from torch_moddit.lora import add_lora, without_lora
from torch_moddit.model import Context, RoutedTransformer
from torch_moddit.ratios import KeepRatios
from torch_moddit.settings import FinetuneConfig, Mode, Task, Train
from torch_moddit.tokens import BinUse, Scored

HALF: Final[Mapping[str, torch.dtype]] = {"fp16": torch.float16, "bf16": torch.bfloat16}
MakeOptimizers = Callable[[FinetuneConfig, "Trainee"], Sequence[torch.optim.Optimizer]]


class Trainee(nn.Module):
    """What training changes, as one module for Accelerate: the transformer and its keep ratios."""

    def __init__(self, model: RoutedTransformer, ratios: KeepRatios | None) -> None:
        super().__init__()
        self.model = model
        self.ratios = ratios

    def forward(self, latents: Tensor, timestep: Tensor, context: Context) -> Tensor:
        if self.ratios is None:
            return self.model(latents, timestep, context)
        output = self.model(latents, timestep, context, routing=self.ratios.read().bins)
        # frozen ratios stay part of the graph, because distributed training waits for every gradient
        return output + 0.0 * self.ratios.values.sum()

    def predict_untrained(self, latents: Tensor, timestep: Tensor, context: Context) -> Tensor:
        """Predict what the dense model did before training, whose weights are not trained: exactly, without a copy."""
        with without_lora(self.model):
            return self.model(latents, timestep, context, routing=_keep_all, score=self._score_untrained)

    def _score_untrained(self, _: Any, tokens: Tensor, __: torch.Generator | None) -> Scored:
        """Gate as routers of zeros do, against which `RoutedTransformer.from_dense` has doubled the MLP."""
        return None, tokens.new_full(tokens.shape[:2], 0.5) if self.model.policy.has_routers else None

    def trained(self) -> list[nn.Parameter]:
        """List the weights that are trained: not the keep ratios."""
        return [parameter for parameter in self.model.parameters() if parameter.requires_grad]

    @property
    def keep_ratio(self) -> float:
        """Mean over layers and regions."""
        return self.model.policy.plan.mean_keep_ratio if self.ratios is None else self.ratios.mean

    def keep_ratio_by_region(self, regions: int) -> list[float]:
        """Give the mean of each region over the layers."""
        plan = self.model.policy.plan
        if self.ratios is not None:
            return self.ratios.region_means()
        if self.model.policy.is_dense:
            return [plan.mean_keep_ratio] * regions
        return [sum(row[region] for row in plan.keep_tenths) / (10 * plan.layers) for region in range(plan.regions)]


class TrainedState:
    """What of a trainee a checkpoint stores: all but the weights that are not trained."""

    def __init__(self, trainee: Trainee) -> None:
        self.trainee = trainee
        self.untrained = {name for name, parameter in trainee.named_parameters() if not parameter.requires_grad}

    def state_dict(self) -> dict[str, Tensor]:
        return {name: value for name, value in self.trainee.state_dict().items() if name not in self.untrained}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over a state; raises RuntimeError if it is another trainee's."""
        found = self.trainee.load_state_dict(state, strict=False)
        wrong = {*found.missing_keys} - self.untrained | {*found.unexpected_keys}
        if wrong:
            raise RuntimeError(f"missing or unknown: {', '.join(sorted(wrong)[:3])}")

    def checksum(self) -> int | None:
        """Tell the weights that are not trained from others; None where all are trained."""
        total = 0
        for name, parameter in self.trainee.named_parameters():
            if name in self.untrained:
                values = parameter.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
                total = zlib.crc32(values.data, total)
        return total if self.untrained else None


def take_task(config: FinetuneConfig, model: nn.Module, num_train_timesteps: int) -> tuple[nn.Module, bool]:
    """Give the model that a task trains, and whether its input was widened for it.

    To inpaint, one that draws whole pictures gets channels for the mask and the masked image (`TransformerSpec`), whose
    weights begin at zero: it predicts the same. Raises UnsupportedError if it inpaints, and the task is another.
    """
    transformer: Any = model.transformer if isinstance(model, RoutedTransformer) else model
    spec = dense(transformer, num_train_timesteps).spec
    if spec.inpaints and config.task is not Task.INPAINT:
        raise UnsupportedError(f"[finetune] task {config.task.value} got a model that inpaints; want task inpaint")
    if spec.inpaints or config.task is not Task.INPAINT:
        return model, False
    widened = 2 * spec.latent_channels + 1
    old = transformer.pos_embed.proj
    new = nn.Conv2d(widened, spec.hidden_size, old.kernel_size, old.stride).to(old.weight)
    behind = (0, 0, 0, 0, 0, widened - spec.latent_channels)
    new.load_state_dict({"weight": nn.functional.pad(old.weight, behind), "bias": old.bias})
    transformer.pos_embed.proj = new
    transformer.register_to_config(in_channels=widened, out_channels=spec.out_channels)
    return type(model)(transformer, model.policy) if isinstance(model, RoutedTransformer) else transformer, True


def make_trainee(
    config: FinetuneConfig, model: nn.Module, num_train_timesteps: int, *, is_widened: bool = False
) -> Trainee:
    """Add what a mode trains to a dense transformer, which it takes over; an input that was widened is trained always.

    Raises ValueRangeError if the model is already routed in another mode than FIXED, or not routed in it.
    """
    if isinstance(model, RoutedTransformer) != (config.mode is Mode.FIXED):
        raise ValueRangeError(
            f"[finetune] mode {config.mode.value} got a {type(model).__name__}, want a dense transformer of diffusers, "
            "or in mode fixed a RoutedTransformer"
        )
    routed, ratios = _route(config, model, num_train_timesteps)
    routed.gradient_checkpointing = config.gradient_checkpointing
    if config.train is not Train.ALL:
        routed.requires_grad_(False)
    if config.train is Train.LORA:
        add_lora(routed, config.lora_rank, config.seed)
    if is_widened:
        routed.transformer.pos_embed.requires_grad_(True)
    for router in routed.router_parameters():
        router.requires_grad_(True)
    _store_untrained(config, routed)
    return Trainee(routed, ratios)


def _store_untrained(config: FinetuneConfig, model: nn.Module) -> None:
    """Store in 16 bits what is not trained of the layers that autocast computes in them: no output is another one."""
    dtype = HALF.get(config.mixed_precision)
    if dtype is None:
        return
    for layer in model.modules():
        for parameter in layer.parameters(recurse=False) if isinstance(layer, (nn.Linear, nn.Conv2d)) else ():
            if not parameter.requires_grad:
                parameter.data = parameter.data.to(dtype)


def _keep_all(_: int, __: Sequence[int]) -> list[BinUse]:
    return [BinUse(DENOMINATOR, None, None)]


def _route(
    config: FinetuneConfig, model: nn.Module, num_train_timesteps: int
) -> tuple[RoutedTransformer, KeepRatios | None]:
    if isinstance(model, RoutedTransformer):
        return model, None
    if config.mode is Mode.DENSE:
        return dense(model, num_train_timesteps), None
    layers = len(model.transformer_blocks)  # type: ignore[arg-type]
    tenths = (DENOMINATOR,) if config.mode is Mode.LEARNED else config.tenths
    row = tenths if len(tenths) == config.regions else tenths * config.regions
    plan = RoutingPlan((row,) * layers, num_train_timesteps)
    policy = TokenPolicy.random(plan) if config.mode is Mode.RANDOM else TokenPolicy.topk(plan)
    ratios = KeepRatios(layers, config.regions, num_train_timesteps) if config.mode is Mode.LEARNED else None
    return routed_class(model).from_dense(model, policy), ratios


def copy_teacher(
    config: FinetuneConfig, model: nn.Module, num_train_timesteps: int, *, is_widened: bool = False
) -> RoutedTransformer | None:
    """Copy the model that is trained as it is now, if there is to be a teacher that is not in its weights later."""
    stays = config.train is not Train.ALL and config.mode is not Mode.FIXED and not is_widened
    if not config.distill_weight or stays:
        return None
    copied = copy.deepcopy(model)
    routed = copied if isinstance(copied, RoutedTransformer) else dense(copied, num_train_timesteps)
    teacher: RoutedTransformer = freeze(routed)
    _store_untrained(config, teacher)
    return teacher


def freeze(module: Any) -> Any:
    """Take a module, which nothing trains, into evaluation mode."""
    return module.requires_grad_(False).eval()


def make_adamw(config: FinetuneConfig, trainee: Trainee) -> list[torch.optim.Optimizer]:
    """Make AdamW with rates of their own for transformer and routers; `torch_moddit.movers` moves ratios."""
    routers = trainee.model.router_parameters()
    known = {id(parameter) for parameter in routers}
    weights = [parameter for parameter in trainee.trained() if id(parameter) not in known]
    groups: list[dict[str, Any]] = [
        {"name": "weights", "params": weights, "lr": config.learning_rate, "weight_decay": config.weight_decay},
        {"name": "routers", "params": routers, "lr": config.router_rate, "weight_decay": 0.0},
    ]
    adamw = _find_8bit_adam() if config.use_8bit_adam else torch.optim.AdamW
    return [adamw([group for group in groups if group["params"]], betas=(0.9, config.beta2))]


def _find_8bit_adam() -> Any:
    """Find AdamW with moments of 8 bits; raises MissingError where it is not installed."""
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError as error:
        raise MissingError(
            f"[finetune] 8-bit Adam needs bitsandbytes ({error}): pip install 'bitsandbytes>=0.50'"
        ) from None
    return AdamW8bit
