"""The tokenizer of a checkpoint, made as transformers makes it and written in the format of the `tokenizers` library.

transformers' T5Tokenizer takes the vocabulary and the map of characters from a folder, and the tokens that it adds; all
else is its own, whatever tokenizer.json says.
"""

from __future__ import annotations

import base64
import binascii
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from moddit.bounds import TOKENIZER_BYTES
from moddit.checkpoint.added_tokens import T5_NAMED, AddedToken, Declarations, list_added_tokens
from moddit.checkpoint.sentencepiece import Vocabulary, read_vocabulary
from moddit.checkpoint.sources import INDEX
from moddit.checkpoint.tokenizer_shape import is_piece
from moddit.checkpoint.weights import read_optional_json
from moddit.errors import FormatError, MissingError, UnsupportedError
from moddit.record import quote

if TYPE_CHECKING:
    from tokenizers import Tokenizer

T5_CLASSES: Final = ("T5Tokenizer", "T5TokenizerFast")
PLAIN_CLASSES: Final = ("PreTrainedTokenizerFast", "TokenizersBackend")  # tokenizer.json as it is
_BESIDE: Final = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
_UNKNOWN: Final = 2  # number of T5's <unk>
_SPACE: Final = "▁"


@dataclass(frozen=True)
class TokenizerFile:
    """A tokenizer in the format of the `tokenizers` library."""

    text: bytes  # tokenizer.json
    size: int  # tokens, numbered from 0
    files: tuple[Path, ...]  # that it was read from, in one folder

    @property
    def place(self) -> str:
        """The files, for messages about what they make together."""
        return f"{self.files[0].parent} ({', '.join(path.name for path in self.files)})"


def read_tokenizer(folder: Path, kind: str | None = None) -> TokenizerFile:
    """Read `tokenizer.json`, or `spiece.model` where there is none, and the files beside them.

    Its class in transformers is what the pipeline's index names; None for the usual one.

    Raises:
        MissingError: neither file is there.
        FormatError: a file is damaged, or does not end every text with one token.
        UnsupportedError: a class or model of another kind than T5's.
    """
    path, spiece = folder / "tokenizer.json", folder / "spiece.model"
    value = read_optional_json(path, TOKENIZER_BYTES)
    if value is None and not os.path.lexists(spiece):
        found = sorted(entry.name for entry in folder.iterdir())
        raise MissingError(
            f"[tokenizer] {path}: no such file, nor {spiece.name}, got {', '.join(found) or 'no files'}; "
            "save the tokenizer again with save_pretrained"
        )
    read = ((name, read_optional_json(folder / name, TOKENIZER_BYTES)) for name in _BESIDE)
    beside = {name: found for name, found in read if found is not None}
    serialized = [] if value is None else value.get("added_tokens", [])
    if not isinstance(serialized, list):
        raise FormatError(f"[tokenizer] {path}: added_tokens is no list; save the tokenizer again")
    config, special_map, added = (beside.get(name, {}) for name in _BESIDE)
    names = (*([path.name] if value is not None else []), *beside)
    declarations = Declarations(config, special_map, added, tuple(serialized), folder, names)
    _check_side(config, {} if value is None else value, folder)
    if kind is None or kind in T5_CLASSES:
        vocabulary = read_vocabulary(spiece) if value is None else _read_vocabulary(path, value)
        tokenizer = _make_t5(vocabulary, declarations, has_sentinels=value is not None)
    elif kind in PLAIN_CLASSES and value is not None:
        tokenizer = _load_plain(path, declarations)
    else:
        raise UnsupportedError(
            f"[tokenizer] {folder}: class {quote(kind)}, as {INDEX} says, is not implemented, want "
            f"{', '.join(T5_CLASSES)}; save it as one"
        )
    source = spiece if value is None else path
    _check(tokenizer, source)
    text = tokenizer.to_str(pretty=True).encode()
    files = (source, *(folder / name for name in beside))
    return TokenizerFile(text, tokenizer.get_vocab_size(with_added_tokens=True), files)


def _check_side(config: Mapping[str, Any], value: Mapping[str, Any], folder: Path) -> None:
    """Raise UnsupportedError if a text is cut at its beginning, or its special tokens are not kept whole."""
    path, truncation = folder / "tokenizer_config.json", value.get("truncation")
    side = config.get("truncation_side", truncation.get("direction") if isinstance(truncation, Mapping) else None)
    if side not in ("right", "Right", None):
        raise UnsupportedError(
            f"[tokenizer] {path}: truncation_side is {side!r} (here or by tokenizer.json), want 'right'; set it here"
        )
    if config.get("split_special_tokens"):
        raise UnsupportedError(f"[tokenizer] {path}: split_special_tokens is not implemented, want false; set it so")


def _make_t5(vocabulary: Vocabulary, declarations: Declarations, *, has_sentinels: bool) -> Tokenizer:
    """Build what transformers' T5Tokenizer builds, of tokenizer.json or of a SentencePiece model without sentinels."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    where, count = declarations.where, declarations.extra_ids()
    sentinels = [f"<extra_id_{index}>" for index in range(count)]
    pieces = list(vocabulary.pieces)
    extra = [AddedToken(name) for name in sentinels]
    if not has_sentinels:
        pieces += [(name, 0.0) for name in reversed(sentinels)]
        extra = [*(AddedToken(piece, normalized=False, special=special) for piece, special in vocabulary.added), *extra]
    elif (listed := declarations.legacy_extra()) is not None:
        extra = _with_sentinels(listed, extra, where)
    try:
        tokenizer = Tokenizer(models.Unigram(pieces, unk_id=_UNKNOWN, byte_fallback=False))
        if vocabulary.charsmap:
            tokenizer.normalizer = normalizers.Precompiled(vocabulary.charsmap)
    except Exception as error:  # noqa: BLE001 # the library raises nothing narrower
        raise FormatError(f"[tokenizer] {where}: not a vocabulary of T5 ({error}); save the tokenizer again") from None
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(_SPACE, prepend_scheme="always", split=True)]
    )
    tokenizer.decoder = decoders.Metaspace(_SPACE, prepend_scheme="always", split=True)
    tokens = list_added_tokens(declarations, T5_NAMED, extra)
    _add(tokenizer, tokens)
    end = T5_NAMED["eos_token"]
    name = declarations.name("eos_token", end)
    number = tokenizer.token_to_id(name)
    if number is None:
        raise FormatError(f"[tokenizer] {where}: the end token {name!r} is not in the vocabulary; save it again")
    tokenizer.post_processor = processors.TemplateProcessing(
        single=["$A", end], pair=["$A", end, "$B", end], special_tokens=[(end, number)]
    )
    return tokenizer


def _with_sentinels(listed: list[AddedToken], sentinels: list[AddedToken], where: Path) -> list[AddedToken]:
    """Complete the special tokens that a folder lists with T5's sentinels, unless it lists those itself."""
    count = sum("<extra_id_" in token.content for token in listed)
    if count and sentinels and count != len(sentinels):
        raise FormatError(
            f"[tokenizer] {where / 'special_tokens_map.json'}: lists {count} extra ids, want {len(sentinels)} as "
            "extra_ids says; transformers refuses it too, save the tokenizer again"
        )
    return listed if count else [*listed, *sentinels]


def _load_plain(path: Path, declarations: Declarations) -> Tokenizer:
    """Take tokenizer.json as it is, with the tokens that the folder adds."""
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_str(path.read_text(encoding="utf-8"))
    except Exception as error:  # noqa: BLE001 # the library raises nothing narrower
        raise FormatError(f"[tokenizer] {path}: not a tokenizer ({error}); save it again") from None
    _add(tokenizer, list_added_tokens(declarations, {}, declarations.legacy_extra() or ()))
    return tokenizer


def _add(tokenizer: Tokenizer, tokens: tuple[AddedToken, ...]) -> None:
    from tokenizers import AddedToken as LibraryToken

    tokenizer.add_tokens([LibraryToken(**token.fields()) for token in tokens])
    tokenizer.no_truncation()
    tokenizer.no_padding()


def _check(tokenizer: Tokenizer, path: Path) -> None:
    """Try the tokenizer: every text must end with one token, whose number it has."""
    try:
        end = tokenizer.encode("").ids
    except Exception as error:  # noqa: BLE001 # the library raises nothing narrower
        raise FormatError(f"[tokenizer] {path}: encodes nothing ({error}); save the tokenizer again") from None
    if len(end) != 1 or end[0] >= tokenizer.get_vocab_size(with_added_tokens=True):
        raise FormatError(f"[tokenizer] {path}: the empty text has tokens {end}, want the end token only")


def _read_vocabulary(path: Path, value: dict[str, Any]) -> Vocabulary:
    """Read the pieces and the map of characters of tokenizer.json."""
    model = value.get("model")
    pieces = model.get("vocab") if isinstance(model, dict) else None
    if not isinstance(pieces, list) or not all(map(is_piece, pieces)):
        raise FormatError(
            f"[tokenizer] {path}: not a tokenizer of T5, want model.vocab with pieces and scores; save it again"
        )
    if len(pieces) <= _UNKNOWN:
        raise FormatError(f"[tokenizer] {path}: has {len(pieces)} pieces, want <pad>, </s>, <unk> and more")
    return Vocabulary(tuple((piece, float(score)) for piece, score in pieces), _charsmap(path, value.get("normalizer")))


def _charsmap(path: Path, normalizer: object) -> bytes:
    """Find the map of characters, alone or in a sequence; other normalizers are not T5Tokenizer's."""
    steps: list[Any] = [normalizer]
    if isinstance(normalizer, dict) and normalizer.get("type") == "Sequence":
        steps = normalizer["normalizers"] if isinstance(normalizer.get("normalizers"), list) else []
    for step in steps:
        if isinstance(step, dict) and step.get("type") == "Precompiled" and "precompiled_charsmap" in step:
            try:
                return base64.b64decode(step["precompiled_charsmap"] or "", validate=True)
            except (binascii.Error, TypeError, ValueError):
                raise FormatError(f"[tokenizer] {path}: precompiled_charsmap is damaged; save it again") from None
    return b""
