"""Write the golden files that the Swift package is tested against (`make golden`).

    python -m scripts.golden [--folder FOLDER]

This is repeatable: tests/swift/test_golden.py does it and compares. One file is an input that stays as it is,
tokenizer.json: the character map of T5's tokenizer (nmt_nfkc) with a small vocabulary, which SentencePiece trained:

    python -m scripts.golden_captions > lines.txt
    spm_train --input=lines.txt --model_prefix=t5 --vocab_size=1500 --character_coverage=0.999 \
        --hard_vocab_limit=false --normalization_rule_name=nmt_nfkc --pad_id=0 --eos_id=1 --unk_id=2 --bos_id=-1
    python -m scripts.golden --tokenizer t5.model
"""

from __future__ import annotations

import argparse
import copy
import json
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

from tokenizers import Tokenizer

import moddit
from moddit.checkpoint.tokenizer import read_tokenizer
from moddit.golden import format_golden, write_goldens
from scripts.golden_captions import ODDITIES, SENTENCES, make_captions
from scripts.golden_manifests import describe, make_bundles
from scripts.golden_pictures import make_covered, make_edits, make_on_white, make_resized, make_upright
from scripts.golden_pipeline import make_edits as make_edit_runs
from scripts.golden_pipeline import make_runs, make_schedules

ROOT: Final = Path(__file__).resolve().parent.parent
FOLDER: Final = ROOT / "swift_bridge/Tests/ModditCoreTests/Golden"
EMBEDDED: Final = ROOT / "moddit/checkpoints/shapes64/tokenizer/tokenizer.json"
TOKENIZER: Final = "tokenizer.json"
MAX_LENGTH: Final = 16  # tokens of a caption
MASKS: Final = tuple(f"{left}<mask>{right}" for left in ("", "a", "a ") for right in ("", "b", " b", "<mask>"))
VARIANT_TEXTS: Final = (*(text for text in ODDITIES if len(text) < 60), *MASKS, *SENTENCES[:2], " aaaa  aab", "Éa ÄÖ")


def write(folder: Path) -> None:
    """Write every golden file; the trained tokenizer is read from the repository."""
    write_goldens(folder)
    trained = (FOLDER / TOKENIZER).read_text(encoding="utf-8")
    _save(folder / "captions.json", {"max_length": MAX_LENGTH, "captions": _encode_captions(trained)})
    variants = [_encode_variant(*item) for item in _variants().items()]
    _save(folder / "tokenizers.json", {"texts": list(VARIANT_TEXTS), "tokenizers": variants})
    (folder / "embedded-tokenizer.json").write_bytes(EMBEDDED.read_bytes())
    bundles = make_bundles(EMBEDDED)
    manifests = [describe(*item) for item in bundles.items()]
    _save(folder / "manifests.json", {"manifests": manifests, "schedules": make_schedules(bundles)})
    tokenizer = Tokenizer.from_file(str(EMBEDDED))
    runs = make_runs(bundles, tokenizer) + make_edit_runs(bundles, tokenizer)
    _save(folder / "pipelines.json", {"version": moddit.__version__, "runs": runs})
    pictures = {
        "resized": make_resized(),
        "covered": make_covered(),
        "on_white": make_on_white(),
        "upright": make_upright(),
        "edits": make_edits(),
    }
    _save(folder / "pictures.json", pictures)


def shrink(model: Path, folder: Path) -> None:
    """Write the tokenizer that the converter makes of a SentencePiece model, in as few bytes as it takes."""
    with TemporaryDirectory() as temporary:
        shutil.copy(model, Path(temporary, "spiece.model"))
        value = json.loads(read_tokenizer(Path(temporary)).text)
    value["model"]["vocab"] = [[piece, round(score, 4)] for piece, score in value["model"]["vocab"]]
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    (folder / TOKENIZER).write_text(text + "\n", encoding="utf-8")


def _save(path: Path, value: object) -> None:
    path.write_text(format_golden(value), encoding="utf-8")


def _encode_captions(text: str) -> list[list[Any]]:
    """Encode captions as the runtimes do: lower case, stripped, cut before the end token."""
    tokenizer = Tokenizer.from_str(text)
    tokenizer.enable_truncation(MAX_LENGTH)
    return [[caption, tokenizer.encode(caption.lower().strip()).ids] for caption in make_captions()]


def _encode_variant(name: str, value: dict[str, Any]) -> dict[str, Any]:
    """Encode texts as they are with another tokenizer.json."""
    tokenizer = Tokenizer.from_str(json.dumps(value))
    return {"name": name, "tokenizer": value, "ids": [tokenizer.encode(text).ids for text in VARIANT_TEXTS]}


def _variants() -> dict[str, dict[str, Any]]:
    """Make small tokenizers that differ in one part each."""
    metaspace = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}
    spaces = {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": "▁"}
    strip = {"type": "Strip", "strip_left": False, "strip_right": True}
    lower = {"type": "Lowercase"}
    variants = {
        "plain": _small(),
        "metaspace-only": _small(pre_tokenizer=metaspace),
        "metaspace-whole": _small(pre_tokenizer={**metaspace, "split": False}),
        "metaspace-first": _small(pre_tokenizer={**metaspace, "prepend_scheme": "first"}),
        "metaspace-never": _small(pre_tokenizer={**metaspace, "prepend_scheme": "never"}),
        "metaspace-old": _small(pre_tokenizer={"type": "Metaspace", "replacement": "▁", "add_prefix_space": True}),
        "no-cut": _small(pre_tokenizer=None),
        "strip-replace": _small(normalizer=_sequence(strip, spaces), pre_tokenizer=metaspace),
        "strip-both": _small(normalizer={**strip, "strip_left": True}),
        "replace-text": _small(normalizer={"type": "Replace", "pattern": {"String": "aa"}, "content": "b"}),
        "lowercase": _small(normalizer=lower),
        "bytes": _small(fallback=True),
    }
    variants |= {form.lower(): _small(normalizer={"type": form}) for form in ("NFC", "NFD", "NFKC", "NFKD")}
    for flag in ("lstrip", "rstrip", "single_word", "normalized"):
        variants[f"mask-{flag}"] = _small(normalizer=lower, pre_tokenizer=metaspace, mask={flag: True})
    return variants


def _sequence(*normalizers: dict[str, Any]) -> dict[str, Any]:
    return {"type": "Sequence", "normalizers": list(normalizers)}


def _small(*, mask: dict[str, bool] | None = None, fallback: bool = False, **parts: Any) -> dict[str, Any]:
    """Make a tokenizer of T5's kind with a few pieces, a <mask> token behind them, and some parts replaced."""
    value = copy.deepcopy(json.loads(EMBEDDED.read_text(encoding="utf-8")))
    pieces = [["▁", -2.5], ["▁ein", -3.25], ["é", -5.0], ["aa", -3.0], ["aaa", -4.5], ["ab", -3.0], ["▁▁", -1.0]]
    pieces += [[letter, -6.0 - index / 8] for index, letter in enumerate("abcdefghijklmnopqrstuvwxyzäö<>/с的か")]
    if fallback:
        pieces += [[f"<0x{byte:02X}>", -9.0] for byte in range(256)]
    vocabulary = [*value["model"]["vocab"][:3], *pieces]
    value["model"] |= {"vocab": vocabulary, "byte_fallback": fallback}
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False) | (mask or {})
    value["added_tokens"].append({"id": len(vocabulary), "content": "<mask>", **flags, "special": True})
    return value | {"truncation": None, "padding": None} | parts


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the golden files of the Swift package.")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where to write (default: where the tests read)")
    parser.add_argument(
        "--tokenizer", type=Path, metavar="MODEL", help="make tokenizer.json of a new SentencePiece model"
    )
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    if options.tokenizer:
        shrink(options.tokenizer, options.folder)
    write(options.folder)


if __name__ == "__main__":
    main()
