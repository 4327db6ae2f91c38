"""The processes that share a run, as Accelerate knows them; each holds the whole model."""

from __future__ import annotations

from typing import Final

from accelerate import Accelerator, DistributedType
from accelerate.utils import ProjectConfiguration, parse_flag_from_env

from moddit.errors import UnsupportedError
from torch_moddit.settings import FinetuneConfig
from torch_moddit.tracking import LOGS, check_trackers

SPLITTING: Final = (DistributedType.FSDP, DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM)


def make_accelerator(config: FinetuneConfig) -> Accelerator:
    """Make what connects this process with the others.

    Raises:
        UnsupportedError: the model is to be split, or Accelerate has not this precision here.
        MissingError: a tracker is not installed.
    """
    if parse_flag_from_env("ACCELERATE_USE_FSDP"):  # of which Accelerate makes a traceback where there is no GPU
        _check_is_whole(DistributedType.FSDP)
    check_trackers(config.trackers)
    try:
        accelerator = Accelerator(
            mixed_precision=config.mixed_precision,
            gradient_accumulation_steps=config.accumulation,
            log_with=list(config.trackers) or None,
            project_config=ProjectConfiguration(str(config.output), logging_dir=str(config.output / LOGS)),
        )
    except ValueError as error:  # another precision than this process has trained in before
        raise _refuse_precision(config, str(error)) from None
    if config.mixed_precision != "no" and not accelerator.native_amp:
        raise _refuse_precision(config, f"which a {accelerator.device.type} has not")
    _check_is_whole(accelerator.distributed_type)
    return accelerator


def _refuse_precision(config: FinetuneConfig, reason: str) -> UnsupportedError:
    return UnsupportedError(
        f"[finetune] Accelerate refuses mixed_precision {config.mixed_precision!r} ({reason}); choose what this device "
        "has, and the same for all runs of one process"
    )


def _check_is_whole(kind: DistributedType) -> None:
    if kind in SPLITTING:
        raise UnsupportedError(
            f"[finetune] {kind.value} splits the model between processes, which is not implemented; want each process "
            "to hold all of it"
        )
