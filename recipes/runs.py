"""What every recipe needs: a command, a journal that survives, files that appear whole, averages, learning rates."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

State = dict[str, Any]


def make_parser(program: str, description: str | None, stages: Iterable[str]) -> argparse.ArgumentParser:
    """Make the parser of a recipe's command, with the options that all of them have."""
    parser = argparse.ArgumentParser(prog=f"python -m {program}", description=description)
    parser.add_argument("--work", type=Path, required=True, help="folder for everything the stages write")
    parser.add_argument("--smoke", action="store_true", help="a minute's run that checks every stage")
    parser.add_argument("--stage", choices=stages, action="append", help="run only this stage (may be repeated)")
    parser.add_argument("--threads", type=int, help="CPU threads (default: torch's choice)")
    return parser


class Journal:
    """Append rows to a JSON-lines file and print them.

    Args:
        path: file to append to.
        stage: name printed before each row.
    """

    def __init__(self, path: Path, stage: str) -> None:
        self.path = path
        self.stage = stage
        self.start = time.monotonic()
        path.parent.mkdir(parents=True, exist_ok=True)

    def write(self, **row: Any) -> None:
        """Append one row with the seconds since the journal was opened."""
        row = {**row, "seconds": round(time.monotonic() - self.start, 1)}
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        shown = (f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}" for key, value in row.items())
        print(f"[{self.stage}]", *shown, flush=True)

    def trim(self, step: int) -> None:
        """Drop the rows after a step, which a resumed run writes again."""
        if self.path.exists():
            rows = [json.loads(line) for line in self.path.read_text().splitlines()]
            kept = [row for row in rows if row.get("step", 0) <= step]
            self.path.write_text("".join(json.dumps(row) + "\n" for row in kept))


def read_journal(path: Path) -> list[dict[str, Any]]:
    """Read every row of a journal."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def save_whole(state: State, path: Path) -> None:
    """Write a torch file so that readers see the old one or the whole new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    torch.save(state, temporary)
    os.replace(temporary, path)


def write_folder(path: Path, write: Callable[[Path], object]) -> None:
    """Fill a new folder with `write` and put it in the place of an old one."""
    temporary = path.with_name(path.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    write(temporary)
    shutil.rmtree(path, ignore_errors=True)
    os.replace(temporary, path)


class Average:
    """Exponential moving average of a module's parameters, in float32.

    Args:
        module: whose parameters are averaged.
        decay: share of the old average kept at each update, reached gradually: (1 + n) / (10 + n) before.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self.values = {name: value.detach().clone() for name, value in module.named_parameters()}

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        """Move the average towards the module's present parameters."""
        self.updates += 1
        rate = 1 - min(self.decay, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_(list(self.values.values()), [value.detach() for value in module.parameters()], rate)

    @torch.no_grad()
    def copy_to(self, module: nn.Module) -> None:
        """Overwrite the module's parameters with the average."""
        for name, value in module.named_parameters():
            value.copy_(self.values[name])

    def state_dict(self) -> State:
        return {"updates": self.updates, "values": self.values}

    def load_state_dict(self, state: State) -> None:
        self.updates = state["updates"]
        self.values = state["values"]


def cosine_rate(step: int, steps: int, *, warmup: int, flat: float = 0.0, floor: float = 0.03) -> float:
    """Learning rate factor: linear warm-up, flat for a share of the steps, then a cosine down to `floor`."""
    if step < warmup:
        return (step + 1) / warmup
    start = max(warmup, int(flat * steps))
    if step < start:
        return 1.0
    done = min(1.0, (step - start) / max(1, steps - start))
    return floor + (1 - floor) * float(torch.cos(torch.tensor(done * torch.pi)) + 1) / 2


def set_rate(optimizers: list[torch.optim.Optimizer], factor: float) -> None:
    """Set each parameter group's rate to `factor` times the rate it was made with."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group.setdefault("base_lr", group["lr"])
            group["lr"] = group["base_lr"] * factor


def shuffled(count: int, batch: int, seed: int) -> Iterator[torch.Tensor]:
    """Yield index batches for ever, each epoch in a new order that depends on the seed only."""
    epoch = 0
    while True:
        order = torch.randperm(count, generator=torch.Generator().manual_seed(seed + epoch))
        yield from order[: count // batch * batch].view(-1, batch)
        epoch += 1
