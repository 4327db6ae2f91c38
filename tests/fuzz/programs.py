"""What is run with damaged inputs: programs, the options that their help lists, and the cases drawn from both."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import click

from convert.cli import coreml_command, mlx_command
from convert.verify.command import command as verify_command
from mlx_moddit.cli import generate, info
from tests.fuzz.inputs import CONVERT, COREML, FINETUNE, GENERATE, PREPARE
from torch_moddit.cli import command as finetune_command
from torch_moddit.prepare import command as prepare_command

DRAW: Final = (*GENERATE, "-p", "a red circle", "--model")
DRAW_CLASS: Final = (*GENERATE, "--label", "1", "--model")
TRAIN: Final = (*FINETUNE, "--data", "in/data", "--out", "out")
TRAIN_ON_PICTURES: Final = (*FINETUNE, "--images", "in/data", "--height", "16", "--width", "16", "--out", "out")
ENCODE: Final = (*PREPARE, "--images", "in/data")
DRAW_ALL: Final = (*GENERATE, "-o", "a{index}.png", "--prompt-file", "in/prompts.txt", "--model", "in/model")
VERIFY: Final = ("convert", "verify", "in/model", "--steps", "1")


@dataclass(frozen=True)
class Program:
    """A command line and what it reads."""

    reads: str  # name of an input
    arguments: tuple[str, ...]
    weight: int  # how often it is drawn
    files: str = "**/*"  # of the input, that are damaged
    then: tuple[str, ...] = ()  # what has to succeed if this does
    help: click.Command | None = None  # damage an option of this command instead of a file


PROGRAMS: Final[Mapping[str, Program]] = {
    "convert": Program("routed", CONVERT, 100, then=(*DRAW, "out")),
    "convert shards": Program("sharded", CONVERT, 40, then=(*DRAW, "out")),
    "convert quantized": Program("routed", (*CONVERT, "-q"), 10, "model/t*/*", then=(*DRAW, "out")),
    "convert a SentencePiece model": Program("sentencepiece", CONVERT, 20, "model/tokenizer/*", then=(*DRAW, "out")),
    "convert a model of classes": Program("labels", CONVERT, 20, then=(*DRAW_CLASS, "out")),
    "convert PixArt's own names": Program(
        "original",
        (*CONVERT, "--hf-path", "in/PixArt-XL.pth", "--base", "in/model"),
        30,
        "*.pth",
        then=(*DRAW, "out"),
    ),
    "convert an adapter": Program("adapter", (*CONVERT, "--lora", "in/style"), 30, "style/*", then=(*DRAW, "out")),
    "convert to Core ML": Program("routed", (*CONVERT, *COREML), 12, then=("convert", "verify", "out")),
    "generate": Program("mlx", (*DRAW, "in/model"), 70),
    "generate a class": Program("labels_mlx", (*GENERATE, "--label", "goldfish", "--model", "in/model"), 20),
    "info": Program("mlx", ("mlx_moddit", "info", "--model", "in/model"), 15),
    "generate again": Program("picture", (*GENERATE, "--config-from", "in/a.png", "--model", "in/model"), 40, "a.png"),
    "generate from a file": Program("prompts", DRAW_ALL, 10, "*.txt"),
    "verify": Program("coreml", VERIFY, 60),
    "finetune": Program("shards", TRAIN, 30),
    "finetune on shards": Program("shards", TRAIN, 30, "data/*"),
    "prepare": Program("pictures", ENCODE, 20, then=(*FINETUNE, "--data", "out", "--out", "b")),
    "prepare captions": Program("captions", ENCODE, 10, "data/*"),
    "prepare a tar file": Program("archive", (*PREPARE, "--images", "in/a.tar"), 30, "a.tar"),
    "finetune on pictures": Program("pictures", TRAIN_ON_PICTURES, 20, "data/*"),
    "finetune on captions": Program("captions", TRAIN_ON_PICTURES, 10, "data/*"),
    "finetune on": Program("run", (*FINETUNE, "--data", "in/data", "--out", "in/run"), 40, "run/**/*"),
    "options of convert": Program("routed", CONVERT, 20, help=mlx_command),
    "options of convert to Core ML": Program("routed", (*CONVERT, *COREML), 8, help=coreml_command),
    "options of generate": Program("mlx", (*DRAW, "in/model"), 30, help=generate),
    "options of info": Program("mlx", ("mlx_moddit", "info", "--model", "in/model"), 8, help=info),
    "options of verify": Program("coreml", VERIFY, 8, help=verify_command),
    "options of finetune": Program("shards", TRAIN, 20, help=finetune_command),
    "options of prepare": Program("pictures", ENCODE, 15, help=prepare_command),
}
WORDS: Final = (
    *("", " ", "-1", "0", "1", "2", "3", "1.5", "-0.0", "nan", "inf", "-inf", "1e400", "1e-400", "0x10"),
    *("１", "100001", "10000000", "2147483648", "9223372036854775808", "18446744073709551616", "9" * 5000, "abc"),
    *("x" * 300, "x" * 110_000, "\u001b[31mred", "a\nb", "\u202eabc", "\udcff", "e\u0301", "%s", "{prompt}"),
    *("{seed", "{seed.__class__}", "{0}", "{index:>999999999}", "..", ".", "in", "in/nothing", "in/nothing/x.png"),
    *("/dev/null", "/dev/zero", "/proc/self/mem", "in/..", "~not a user/x", "~", "$HOME", "--json", "-", "@", "a/b"),
    *("32x32", "0x0", "64x", "99999999x99999999", "33x32", "16x16", "in/model:1e9", ":0.5", "x:nan"),
)


@dataclass(frozen=True)
class Case:
    """A program with one thing wrong."""

    program: str
    seed: str  # of what is drawn

    @property
    def chance(self) -> random.Random:
        return random.Random(f"{self.program} {self.seed}")


def draw_cases(count: int, seed: int) -> list[Case]:
    """Draw cases, of each program in its share."""
    total = sum(program.weight for program in PROGRAMS.values())
    cases = []
    for index in range(count):
        place = (index * 0.6180339887498949 + seed * 0.41421356) % 1 * total  # evenly, whatever the count
        for name, program in PROGRAMS.items():
            place -= program.weight
            if place < 0:
                cases.append(Case(name, f"{seed}-{index}"))
                break
    return cases


def list_files(program: Program, folder: Path) -> list[Path]:
    """List the files of an input that may be damaged."""
    return sorted(path for path in folder.glob(program.files) if path.is_file())


def change_option(program: Program, chance: random.Random) -> tuple[list[str], list[str]]:
    """Give an option a word that was drawn.

    Returns:
        the command line, and what a message about it has to name: the option, or what it was given.
    """
    assert program.help is not None
    parameter = chance.choice([item for item in program.help.params if item.name != "help"])
    names, word = [parameter.name or "", *parameter.opts, *parameter.secondary_opts], chance.choice(WORDS)
    if isinstance(parameter, click.Argument):
        return [f"./{word}" if item == "in/model" else item for item in program.arguments], [parameter.name or "", word]
    if isinstance(parameter, click.Option) and parameter.is_flag:
        return [*program.arguments, chance.choice(names[1:])], names
    return [*program.arguments, f"{max(parameter.opts, key=len)}={word}"], [*names, word]
