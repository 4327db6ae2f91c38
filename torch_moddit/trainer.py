"""One run of fine-tuning: its steps, its log, its checkpoints. `torch_moddit.finetune` tells how to use it."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch
from diffusers.training_utils import EMAModel
from torch import Tensor, nn
from torch.utils.data import Dataset
from tqdm import tqdm

from moddit.contract import TEXT_ENCODER
from moddit.errors import MissingError, ValueRangeError
from moddit.files import discard, exclusive, new_folder, recover_all
from moddit.routing import RoutingPlan
from moddit.samplers import NoiseSchedule
from moddit.signals import raise_if_stopped
from torch_moddit.byproducts import BY_PRODUCTS, drop_by_products, find_by_products, list_by_products
from torch_moddit.conditioning import Components
from torch_moddit.data import Item, count_buckets, hold_out, load_batches
from torch_moddit.doubts import doubts_of_plan, doubts_of_run
from torch_moddit.lora import merged, take_lora
from torch_moddit.model import RoutedTransformer
from torch_moddit.movers import Mover, make_mover
from torch_moddit.noising import DrawTimesteps, Noising, draw_stratified, make_generator, make_generators
from torch_moddit.processes import make_accelerator
from torch_moddit.rates import make_rate_factor
from torch_moddit.result import FinetuneResult
from torch_moddit.runfiles import (
    CHECKPOINTS,
    LOG,
    Log,
    list_checkpoints,
    read_progress,
    read_schedule_steps,
    write_progress,
)
from torch_moddit.runstate import read_state, restore, write_state
from torch_moddit.settings import FinetuneConfig, Mode, Task, Train, describe
from torch_moddit.tracking import track, tracking
from torch_moddit.trainee import MakeOptimizers, TrainedState, copy_teacher, freeze, make_adamw, make_trainee, take_task
from torch_moddit.validation import DrawPictures, Validation, drop_pictures

LOGGER: Final = logging.getLogger("torch_moddit")
RANDOM_SCORES: Final = 1  # which the generators of samples have not in their keys


def finetune(
    config: FinetuneConfig,
    model: nn.Module,
    dataset: Dataset[Item],
    schedule: NoiseSchedule,
    *,
    null: Item | None = None,
    components: Components | None = None,
    draw_timesteps: DrawTimesteps | None = None,
    make_optimizers: MakeOptimizers | None = None,
    draw_pictures: DrawPictures | None = None,
    stop_after: int | None = None,
    on_log: Callable[[dict[str, Any]], None] | None = None,
    on_start: Callable[[], None] | None = None,
) -> FinetuneResult:
    """Train, from the last checkpoint in `config.output` if there is one.

    Args:
        config: how to train.
        model: dense transformer, taken over and trained in place; a RoutedTransformer only for `Mode.FIXED`.
        dataset: see `torch_moddit.finetune`.
        schedule: noise levels and prediction type of the model.
        null: the empty caption or the class that is none, with the dataset's keys; needed for caption dropout.
        components: of the model's pipeline, kept as they are: the text encoder for datasets with "input_ids", the VAE
            for those with "pixels".
        draw_timesteps: how the timesteps of a whole step are drawn; stratified over all of them by default.
        make_optimizers: what moves weights and routers; `make_adamw` by default. Each group's rate follows the
            configuration's schedule, from the rate it was made with.
        draw_pictures: draws what a validation shows (`torch_moddit.validation.Painter`).
        stop_after: steps of this call, after which it writes a checkpoint and returns.
        on_log: called with each row of the log.
        on_start: called by the main process when the first step of this call is taken, before anything is written.

    Raises:
        MissingError: `null`, pixels or a component is needed and absent, or a tracker is not installed or does not
            start.
        ValueRangeError: a checkpoint was made with another configuration, number of samples a step or data; or the loss
            or a weight is not finite any more.
        FormatError: a checkpoint is damaged, or of another version.
        UnsupportedError: the model inpaints, and the task is another; Accelerate splits the model between processes; or
            samples are to be held out of a dataset without a length.
        StorageError: a checkpoint or the log cannot be written, or another run writes into the same folder.
    """
    if null is None and config.caption_dropout > 0:
        raise MissingError(
            "[finetune] caption_dropout needs the null condition `null`; pass it, or set the dropout to 0"
        )
    if config.validate_every and not config.validation_share and draw_pictures is None:
        raise ValueRangeError(
            f"[finetune] validate_every {config.validate_every} has nothing to look at; want a validation_share above "
            "0, or validation prompts"
        )
    trainer = Trainer(
        config,
        model,
        dataset,
        schedule,
        components or {},
        draw_timesteps,
        make_optimizers or make_adamw,
        draw_pictures,
        on_log,
    )
    with trainer.alone():
        trainer.resume()
        with tracking(trainer.accelerator, trainer.config, trainer.step):
            return trainer.train(null, stop_after, on_start)


class Trainer:
    """One run: everything that changes from step to step, and how it is stored."""

    def __init__(
        self,
        config: FinetuneConfig,
        model: nn.Module,
        dataset: Dataset[Item],
        schedule: NoiseSchedule,
        components: Components,
        draw_timesteps: DrawTimesteps | None,
        make_optimizers: MakeOptimizers,
        draw_pictures: DrawPictures | None,
        on_log: Callable[[dict[str, Any]], None] | None,
    ) -> None:
        self.config = config
        self.dataset, held_out = hold_out(dataset, config.validation_share)
        self.buckets = count_buckets(self.dataset)  # samples of each picture size, which decide their order
        self.schedule = schedule
        stratified = partial(draw_stratified, num_train_timesteps=schedule.num_train_timesteps)
        self.draw_timesteps = draw_timesteps or stratified
        self.rate_factor = make_rate_factor(config)
        self.accelerator = make_accelerator(config)
        device = self.accelerator.device
        model, self.is_widened = take_task(config, model, schedule.num_train_timesteps)
        teacher = copy_teacher(config, model, schedule.num_train_timesteps, is_widened=self.is_widened)
        names = components.keys() & {TEXT_ENCODER, "vae"}
        encoders = {name: freeze(components[name]).to(device) for name in names}
        trainee = make_trainee(config, model, schedule.num_train_timesteps, is_widened=self.is_widened)
        self.trainee = trainee.to(device)
        self.state = TrainedState(self.trainee)
        self.checksum = self.state.checksum()
        self.teacher: Callable[..., Tensor] = self.trainee.predict_untrained if teacher is None else teacher.to(device)
        ratios = self.trainee.ratios
        self.mover = None if ratios is None else make_mover(ratios, config.targets, config.ratio_loss)
        self.average = EMAModel(self.trainee.trained(), decay=config.ema_decay, foreach=True)
        self.average.to(device)
        optimizers = make_optimizers(config, self.trainee)
        self.wrapped, *self.optimizers = self.accelerator.prepare(self.trainee, *optimizers)
        for group in self.groups:
            group["base_rate"] = group["lr"]
        patch_size = trainee.model.spec.patch_size if config.task is Task.INPAINT else None
        self.noising = Noising(schedule, config.regions, encoders, device, mask_patch=patch_size)
        self.step = 0
        self.validation = Validation(held_out, config.batch_size, self.noising, config.seed, draw_pictures)
        self.by_products: set[int] = set()  # tenths
        self.on_log = on_log
        self.log = Log(config.output / LOG, self._tell)
        self.totals = torch.zeros(config.regions, 3, device=device)  # of diffusion loss, distillation loss, samples

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keep other runs out of the folder, and put right in it what a run left that was killed.

        Raises:
            StorageError: another run writes into it, or it cannot be written.
        """
        folder = self.config.output / CHECKPOINTS
        with exclusive(folder) if self.accelerator.is_main_process else nullcontext():
            if self.accelerator.is_main_process:
                recover_all(folder)
                recover_all(self.config.output / BY_PRODUCTS)
            self.accelerator.wait_for_everyone()  # before others look for checkpoints
            yield

    @property
    def samples_per_step(self) -> int:
        return self.config.batch_size * self.config.accumulation * self.accelerator.num_processes

    @property
    def groups(self) -> list[dict[str, Any]]:
        """The parameter groups of all optimizers."""
        return [group for optimizer in self.optimizers for group in optimizer.param_groups]

    def train(self, null: Item | None, stop_after: int | None, on_start: Callable[[], None] | None) -> FinetuneResult:
        """Take the steps that are left, or `stop_after` of them."""
        first = self.step + 1
        config, accelerator = self.config, self.accelerator
        last = config.steps if stop_after is None else min(config.steps, self.step + stop_after)
        self._warn(doubts_of_run(config))
        stride = accelerator.num_processes
        batches = load_batches(
            self.dataset,
            self.buckets,
            config.batch_size,
            config.seed,
            first=self.step * config.accumulation * stride + accelerator.process_index,
            stride=stride,
            workers=config.workers,
            pin_memory=accelerator.device.type == "cuda",
        )
        is_silent = not (config.progress and accelerator.is_main_process)
        self.trainee.train()
        # None: unless it is a terminal
        with tqdm(total=config.steps, initial=self.step, disable=is_silent or None) as bar:
            while self.step < last:
                raise_if_stopped()
                self._before_step()
                before = self.trainee.keep_ratio
                for micro in range(config.accumulation):
                    self._micro_step(next(batches), micro, null)
                self.step += 1
                bar.update()
                if on_start is not None and self.step == first and accelerator.is_main_process:
                    on_start()
                self._keep_by_products(before)
                if self.step % config.log_every == 0 or self.step == config.steps:
                    bar.set_postfix(self._write_log())
                if self.step == config.steps or (config.validate_every and self.step % config.validate_every == 0):
                    self._validate()
                if self.step % config.save_every == 0 or self.step == last:
                    self.save()
        return self._result()

    @property
    def parts(self) -> dict[str, Any]:
        """What a checkpoint stores; it is the same in every process."""
        parts: dict[str, Any] = {"trainee": self.state, "average": self.average}
        parts |= {f"optimizer_{index}": optimizer for index, optimizer in enumerate(self.optimizers)}
        parts |= {} if self.mover is None else {"mover": self.mover}
        return parts if self.accelerator.scaler is None else {**parts, "scaler": self.accelerator.scaler}

    @property
    def conditions(self) -> dict[str, Any]:
        """What has to be the same when a run is resumed, as JSON has it."""
        # scores are drawn for a batch at once, and its samples are of one picture size
        divides = self.config.mode is not Mode.RANDOM and len(self.buckets or [0]) == 1
        return {
            "config": describe(self.config),
            "untrained_weights": self.checksum,
            "schedule": asdict(self.schedule),
            "samples_per_step": self.samples_per_step,
            "batch_size": None if divides else self.config.batch_size,
            "samples": None if self.buckets is None else sum(self.buckets),
        }

    def save(self) -> None:
        """Write a checkpoint whole, and drop the oldest.

        Raises:
            ValueRangeError: a weight is not finite.
            StorageError: disk full, or no permission.
        """
        if not all(bool(torch.isfinite(weight).all()) for weight in self.trainee.trained()):
            raise self._diverged("weights are")
        folder = self.config.output / CHECKPOINTS / f"{self.step:08d}"
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            self._write(folder)
        self.accelerator.wait_for_everyone()

    def _diverged(self, what: str) -> ValueRangeError:
        return ValueRangeError(
            f"[finetune] {self.config.output}: {what} not finite at step {self.step}; choose another output folder and "
            "lower learning_rate and router_rate, or see whether the data are what they should be"
        )

    def _write(self, folder: Path) -> None:
        with new_folder(folder, kind="state of a run", may_replace=lambda _: True) as part:
            write_state(part, {name: item.state_dict() for name, item in self.parts.items()})
            write_progress(part, self.step, self.conditions)
        self._drop_oldest()

    def _drop_oldest(self) -> None:
        for old in list_checkpoints(self.config.output)[: -self.config.keep_checkpoints]:
            discard(old)

    def resume(self) -> None:
        """Continue from the newest checkpoint if there is one; drop what the log tells of later steps.

        Raises:
            ValueRangeError: it was made with another configuration, number of samples a step or data.
            FormatError: it is damaged, or of another version.
        """
        found = list_checkpoints(self.config.output)
        if found:
            if self.config.schedule_steps is None:  # a run that is made longer goes on as it was begun
                span = min(self.config.steps, read_schedule_steps(found[-1]))
                self.config = replace(self.config, schedule_steps=span)
                self.rate_factor = make_rate_factor(self.config)
            step = read_progress(found[-1], self.conditions)
            if step > self.config.steps:
                raise ValueRangeError(
                    f"[finetune] {found[-1]}: the run has taken {step} steps, more than steps {self.config.steps}; "
                    "want at least as many, or another output folder"
                )
            restore(found[-1], self.parts, read_state(found[-1]))
            self.average.to(self.accelerator.device)
            self.step = step
        if self.accelerator.is_main_process:
            self._drop_oldest()  # which a run leaves that was killed after its last checkpoint
            drop_by_products(self.config.output, self.step)
            drop_pictures(self.config.output, self.step)
            self.log.trim(self.step)
        self.accelerator.wait_for_everyone()
        self.by_products = {found.tenths for found in list_by_products(self.config.output)}

    def _keep_by_products(self, before: float) -> None:
        """Write a by-product for each tenth that the mean keep ratio has passed in a step, unless it did so before."""
        config, ratios = self.config, self.trainee.ratios
        if ratios is None or ratios.is_frozen or not config.by_products:
            return
        for found in find_by_products(ratios, before, config.targets, self.step):
            if found.tenths in self.by_products:
                continue
            self.by_products.add(found.tenths)
            with self._averaged(found.plan(config.targets, self.schedule.num_train_timesteps)) as model:
                found = replace(found, validation_loss=self.validation.loss(model, self.accelerator))
                if self.accelerator.is_main_process:
                    found.write(config.output, merged(model) if config.train is Train.LORA else model)
            self.accelerator.wait_for_everyone()

    def _validate(self) -> None:
        """Measure averaged weights under the plan that ratios are rounded to now, draw with them, and write a row."""
        if self.validation.is_empty:
            return
        plan = self._plan()
        with self._averaged(plan) as model:
            row = self.validation.run(model, self.accelerator, self.config.output, self.step)
        if self.accelerator.is_main_process:
            self.log.write({"step": self.step, "validated_keep_ratio": plan.mean_keep_ratio, **row})
        self.accelerator.wait_for_everyone()

    def _plan(self) -> RoutingPlan:
        """Find the plan that the model would have if training ended now."""
        if self.mover is None:
            return self.trainee.model.policy.plan
        return self.mover.ratios.plan() if self.mover.ratios.is_frozen else self.mover.plan()

    @contextmanager
    def _averaged(self, plan: RoutingPlan) -> Iterator[RoutedTransformer]:
        """Give the model its averaged weights and a plan for a while, in evaluation mode."""
        model, weights = self.trainee.model, self.trainee.trained()
        policy, model.policy = model.policy, replace(model.policy, plan=plan)
        self.average.store(weights)
        self.average.copy_to(weights)
        model.generator = None  # which cannot be copied
        try:
            yield model.eval()
        finally:
            self.average.restore(weights)
            model.policy = policy
            model.train()

    def _before_step(self) -> None:
        """Set the rates, and freeze the ratios when it is time."""
        config, mover = self.config, self.mover
        if mover is not None and not mover.ratios.is_frozen and self.step >= config.freeze_step:
            self._freeze_ratios(mover)
            # forget weights of other ratios soon: the average starts to warm up again
            self.average.optimization_step = 0
        factor = self.rate_factor(self.step)
        for group in self.groups:
            group["lr"] = group["base_rate"] * factor

    def _freeze_ratios(self, mover: Mover) -> None:
        mover.freeze()
        self._warn(doubts_of_plan(self.config, mover.ratios.plan()))

    def _warn(self, doubts: list[str]) -> None:
        for doubt in doubts if self.accelerator.is_main_process else ():
            LOGGER.warning("warning: [finetune] %s", doubt)

    def _micro_step(self, batch: Item, micro: int, null: Item | None) -> None:
        """Add one batch's gradient; after the last one of the step, move the weights."""
        config, accelerator, mover = self.config, self.accelerator, self.mover
        first = (micro * accelerator.num_processes + accelerator.process_index) * config.batch_size
        self.trainee.model.generator = make_generator(config.seed, self.step, 1 + first, RANDOM_SCORES)
        with accelerator.accumulate(self.wrapped):
            accelerator.backward(self._loss(batch, null, first))
            if not accelerator.sync_gradients:
                return
            loss_scale = 1.0 if accelerator.scaler is None else accelerator.scaler.get_scale()
            trained = self.trainee.trained()
            accelerator.clip_grad_norm_(trained, config.max_grad_norm)
            for optimizer in self.optimizers:
                optimizer.step()
                optimizer.zero_grad()
            if mover is not None:
                if not mover.ratios.is_frozen:
                    mover.move(config.goals(self.step + 1), config.ratio_rate_at(self.step), loss_scale=loss_scale)
                mover.ratios.values.grad = None
            self.average.step(trained)

    def _loss(self, batch: Item, null: Item | None, first: int) -> Tensor:
        """Noise a batch, predict, and compare with the truth and the teacher; it begins at a place in the step."""
        config = self.config
        timesteps = self.draw_timesteps(self.samples_per_step, make_generator(config.seed, self.step))
        generators = make_generators(config.seed, self.step, first, config.batch_size)
        timesteps = timesteps[first : first + config.batch_size]
        noised = self.noising(batch, timesteps, generators, null, config.caption_dropout)
        output = noised.predict(self.wrapped)
        losses = noised.losses(output)
        distances = torch.zeros_like(losses)
        if self.config.distill_weight > 0:
            with torch.no_grad(), self.accelerator.autocast():
                told = noised.predict(self.teacher)
            distances = (output - told).square().mean(dim=(1, 2, 3))
        rows = torch.stack([losses, distances, torch.ones_like(losses)], dim=1).detach()
        self.totals.index_add_(0, noised.regions, rows)
        return (losses + config.distill_weight * distances).mean()

    def _write_log(self) -> dict[str, str]:
        """Write the means since the last row; return what the progress bar shows."""
        totals = self.accelerator.reduce(self.totals).cpu()
        self.totals.zero_()
        sums = totals.sum(dim=0)
        diffusion, distill = (float(sums[i] / sums[2]) for i in (0, 1))
        row = {
            "step": self.step,
            "samples": self.step * self.samples_per_step,
            "loss": diffusion + self.config.distill_weight * distill,
            "diffusion_loss": diffusion,
            "distill_loss": distill,
            "diffusion_loss_by_region": (totals[:, 0] / totals[:, 2].clamp_min(1)).tolist(),
            "keep_ratio": self.trainee.keep_ratio,
            "keep_ratio_by_region": self.trainee.keep_ratio_by_region(self.config.regions),
            "learning_rate": self.groups[0]["lr"],
        }
        if not math.isfinite(diffusion + distill):
            raise self._diverged("the loss is")
        if self.accelerator.is_main_process:
            self.log.write(row)
        return {"loss": f"{row['loss']:.4f}", "keep": f"{row['keep_ratio']:.3f}"}

    def _tell(self, row: dict[str, Any]) -> None:
        track(self.accelerator, self.config.output, row)
        if self.on_log is not None:
            self.on_log(row)

    def _result(self) -> FinetuneResult:
        """Give the model its averaged weights and the final plan; training is over."""
        model, mover = self.trainee.model, self.mover
        is_finished = self.step >= self.config.steps
        if mover is not None and is_finished and not mover.ratios.is_frozen:
            self._freeze_ratios(mover)
        self.average.copy_to(self.trainee.trained())
        self.accelerator.free_memory()
        model.generator = None
        keep_ratio = None
        if mover is not None:
            model.policy = replace(model.policy, plan=mover.ratios.plan())
            keep_ratio = mover.ratios.values.detach().cpu().clone()
        lora = take_lora(model.cpu()) if self.config.train is Train.LORA else None
        lora = None if self.config.mode is Mode.FIXED or self.is_widened else lora  # it would go with no dense model
        return FinetuneResult(model.float().eval(), keep_ratio, self.step, is_finished, self.log.path, lora)
