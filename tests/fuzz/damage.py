"""Ways to damage a file, drawn by chance: its JSON, its bytes, its tensors, or what the file system says of it."""

from __future__ import annotations

import io
import json
import math
import os
import random
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from PIL import Image, PngImagePlugin

ABSENT: Final = "absent"  # what `damage` returns if the file is gone
TEXTS: Final = (
    *("", " ", "x", "x" * 300, "x" * 200_000, "null", "../out", "a/../../b", "/etc/passwd", "./a", "a//b", "a\\b"),
    *("..\u0338/a", "a\u0000b", "\u001b[31mred\u001b[0m", "a\nb", "a\rerror: none", "\u202eabc", "e\u0301", "é"),
    *("\U0001f600", "nan", "inf", "-1", "0", "1e400", "${HOME}", "%s%s%n", "{0.__class__}", "<extra_id_0>", "gelu"),
)
NUMBERS: Final = (
    *(0, -1, 1, 2, 3, 7, 10, 255, 1000, 65_537, 10**6, 2**31 - 1, 2**31, 2**32, 2**53 + 1, 2**63, 2**64, 10**30),
    *(-(10**12), 0.0, -0.0, 0.5, 1.0, 1.5, 1e-300, 1e-30, 1e30, 1e308, -1e308),
)
LITERALS: Final = ("NaN", "Infinity", "-Infinity", "1e999", "0x10", "01", "1.", "'a'", "undefined", "9" * 5000, "tru")


def damage(path: Path, chance: random.Random) -> str:
    """Damage a file; return in words how."""
    kinds = list(_KINDS.get(path.suffix, ())) * 3 + [damage_bytes] + ([damage_entry] if chance.random() < 0.6 else [])
    return chance.choice(kinds)(path, chance)


# ---- JSON


def edit(value: Any, chance: random.Random) -> str:
    """Change a list or object at one place, in place."""
    places = list(_places(value))
    if not places:
        return "nothing to change"
    holder, key, path = chance.choice(places)
    where = "/".join(map(str, path))
    old = holder[key]
    what = chance.choice(("value", "value", "value", "near", "near", "remove", "more", "other"))
    if what == "remove":
        del holder[key]
        return f"without {where}"
    if what == "more":
        if isinstance(holder, dict):
            holder[chance.choice(TEXTS)] = old
        else:
            holder.extend([old] * chance.choice((1, 3, 100_000)))
        return f"more of {where}"
    if what == "other":
        other_holder, other_key, other = chance.choice(places)
        holder[key] = json.loads(json.dumps(other_holder[other_key]))
        return f"{where} as {'/'.join(map(str, other))}"
    holder[key] = _near(old, chance) if what == "near" else _value(chance)
    return f"{where} = {json.dumps(holder[key])[:60]}"


def _places(value: Any, path: tuple[Any, ...] = ()) -> Any:
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in pairs:
        yield value, key, (*path, key)
        yield from _places(item, (*path, key))


def _value(chance: random.Random) -> Any:
    nested: Any = chance.choice(NUMBERS)
    for _ in range(chance.choice((1, 2, 50))):
        nested = [nested] if chance.random() < 0.5 else {chance.choice(TEXTS[:12]): nested}
    return chance.choice(
        (None, True, False, [], {}, nested, chance.choice(TEXTS), chance.choice(TEXTS), chance.choice(NUMBERS),
         chance.choice(NUMBERS), [chance.choice(NUMBERS)] * chance.choice((1, 2, 5, 50_000)))
    )  # fmt: skip


def _near(old: Any, chance: random.Random) -> Any:
    """Make a value of the same type that may still be wrong."""
    if isinstance(old, bool):
        return not old
    if isinstance(old, int):
        return chance.choice((old + 1, old - 1, -old, old * 2, old * 1000, old * 10**9, float(old)))
    if isinstance(old, float):
        whole = round(old) if math.isfinite(old) else 0
        return chance.choice((-old, old * 10, old / 10, old * 1e200, old * 1e-200, whole))
    if isinstance(old, str):
        changed = (old + "x", old[:-1], old.upper(), old * 2, f" {old}", f"../{old}", old + "\u0338")
        return chance.choice((*changed, chance.choice(TEXTS)))
    if isinstance(old, list):
        return chance.choice((old[:-1], old[::-1], old * 2, [*old, None], [old], old[:1] * 100_000))
    if isinstance(old, dict):
        return chance.choice(({}, dict(list(old.items())[:-1]), {**old, "more": 1}, list(old.items())))
    return _value(chance)


def _spoil(text: bytes, chance: random.Random) -> tuple[bytes, str]:
    """Change JSON so that it is no JSON any more, or only just."""
    content = text.decode("utf-8")
    digits = [index for index, letter in enumerate(content) if letter.isdigit() and not content[index - 1].isalnum()]
    literal = chance.choice(LITERALS)
    start = chance.choice(digits) if digits else 0
    end = start
    while end < len(content) and content[end] in "0123456789.eE+-":
        end += 1
    cut = chance.randrange(max(1, len(content)))
    name = next((line.strip().split(":")[0] for line in content.splitlines() if '":' in line), '"a"')
    ways: dict[str, bytes] = {
        f"a number {literal[:12]}": (content[:start] + literal + content[end:]).encode(),
        "a byte order mark": b"\xef\xbb\xbf" + text,
        "UTF-16": content.encode("utf-16"),
        "Latin-1": content.replace("a", "é").encode("latin-1", "replace"),
        "nested deeply": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
        "nested lists": b"[" * 5_000_000,
        "a surrogate": content.replace('"', '"\\ud800', 3).encode(),
        "a key twice": content.replace("{", f"{{{name}: 1,", 1).encode(),
        "a comma at the end": content.rstrip().removesuffix("}").encode() + b",}",
        "a comment": b"// a comment\n" + text,
        "spaces": text + b" " * (9 << 20),
        "a list": b"[" + text + b"]",
        "a text": json.dumps(content).encode(),
        "null": b"null",
        "twice": text + text,
        "cut": content[:cut].encode(),
    }
    how = chance.choice(list(ways))
    return ways[how], how


def damage_json(path: Path, chance: random.Random) -> str:
    """Damage a JSON file."""
    text = path.read_bytes()
    if chance.random() < 0.2:
        text, how = _spoil(text, chance)
        path.write_bytes(text)
        return how
    value = json.loads(text)
    words = [edit(value, chance) for _ in range(chance.choice((1, 1, 1, 2)))]
    path.write_text(json.dumps(value))
    return ", ".join(words)


def damage_lines(path: Path, chance: random.Random) -> str:
    """Damage a line of JSON."""
    lines = path.read_bytes().splitlines()
    index = chance.randrange(len(lines))
    if chance.random() < 0.3:
        lines[index], how = _spoil(lines[index], chance)
    else:
        value = json.loads(lines[index])
        how = edit(value, chance)
        lines[index] = json.dumps(value).encode()
    path.write_bytes(b"\n".join(lines) + b"\n")
    return f"line {index}: {how}"


# ---- Tensors


def damage_header(path: Path, chance: random.Random) -> str:
    """Damage the header of a safetensors file."""
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header, data = content[8 : 8 + length], content[8 + length :]
    if chance.random() < 0.15:
        header, how = _spoil(header, chance)
    elif chance.random() < 0.2:
        length = chance.choice((0, 1, length - 1, length + 1, len(content), 2**31, 2**40, 2**63, 2**64 - 1))
        path.write_bytes(struct.pack("<Q", length) + header + data)
        return f"a header of {length} bytes"
    else:
        value = json.loads(header)
        how = edit(value, chance)
        header = json.dumps(value).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + data)
    return how


def damage_numbers(path: Path, chance: random.Random) -> str:
    """Put numbers that no model has into a tensor of a safetensors file."""
    content = bytearray(path.read_bytes())
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    tensors = [name for name in header if name != "__metadata__"]
    name = chance.choice(tensors)
    begin, end = (8 + length + offset for offset in header[name]["data_offsets"])
    pattern = chance.choice((b"\xff\xff\xff\x7f", b"\x00\x00\x80\x7f", b"\x00\x00\x80\xff", b"\x00\x00\x00\x00"))
    count = (end - begin) // 4 if chance.random() < 0.5 else 1
    content[begin : begin + 4 * count] = pattern * count
    path.write_bytes(bytes(content))
    return f"{count} x {pattern.hex()} in {name}"


# ---- Other files


def damage_picture(path: Path, chance: random.Random) -> str:
    """Damage the settings in a picture."""
    with Image.open(path) as image:
        image.load()
    texts: dict[str, str] = dict(getattr(image, "text", {}))
    if "moddit" not in texts:
        return damage_bytes(path, chance)
    if chance.random() < 0.2:
        spoiled, how = _spoil(texts["moddit"].encode(), chance)
        texts["moddit"] = spoiled.decode("latin-1")
    else:
        value = json.loads(texts["moddit"])
        how = edit(value, chance)
        texts["moddit"] = json.dumps(value)
    info = PngImagePlugin.PngInfo()
    for name, text in texts.items():
        info.add_text(name, text, zip=chance.random() < 0.3)
    image.save(path, pnginfo=info)
    return how


def damage_archive(path: Path, chance: random.Random) -> str:
    """Damage a member of a zip archive: numpy's, or PyTorch's."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    name = chance.choice(list(members))
    how = chance.choice(("absent", "bomb", "flipped", "cut", "more"))
    if how == "absent":
        del members[name]
    elif how == "bomb":
        members[name] = members[name][:128] + bytes(1 << 30)
    elif how == "more":
        members[name + "x"] = members[name]
    else:
        members[name], how = _bytes(members[name], chance)
    buffer = io.BytesIO()
    kind = zipfile.ZIP_DEFLATED if how == "bomb" or chance.random() < 0.2 else zipfile.ZIP_STORED
    with zipfile.ZipFile(buffer, "w", kind) as archive:
        for member, content in members.items():
            archive.writestr(member, content)
    path.write_bytes(buffer.getvalue())
    return f"{name}: {how}"


def damage_bytes(path: Path, chance: random.Random) -> str:
    """Damage a file of any kind."""
    content, how = _bytes(path.read_bytes(), chance)
    path.write_bytes(content)
    return how


def _bytes(content: bytes, chance: random.Random) -> tuple[bytes, str]:
    how = chance.choice(("empty", *["cut"] * 2, *["flipped"] * 3, "random", "longer", "inserted", "zeros"))
    at = chance.randrange(max(1, len(content)))
    if how == "flipped":
        changed = bytearray(content)
        for _ in range(chance.choice((1, 1, 10, 100))):
            if changed:
                # most of what can go wrong stands at the start
                changed[chance.randrange(min(len(changed), chance.choice((100, 1000, len(changed)))))] = (
                    chance.randrange(256)
                )
        return bytes(changed), how
    made = {
        "empty": b"",
        "cut": content[:at],
        "random": chance.randbytes(min(len(content), 100_000)),
        "longer": content + chance.randbytes(chance.choice((1, 8, 1000))),
        "inserted": content[:at] + chance.randbytes(3) + content[at:],
        "zeros": bytes(len(content)),
    }
    return made[how], how


def damage_entry(path: Path, chance: random.Random) -> str:
    """Put something else than a file in its place."""
    path.unlink()
    ways: dict[str, Callable[[], object]] = {
        ABSENT: lambda: None,
        "a FIFO": lambda: os.mkfifo(path),
        "a folder": path.mkdir,
        "a link to itself": lambda: path.symlink_to(path.name),
        "a link to nothing": lambda: path.symlink_to("nothing"),
        "an endless device": lambda: path.symlink_to("/dev/zero"),
        "a device without content": lambda: path.symlink_to(os.devnull),
        "a file that fails when it is read": lambda: path.symlink_to("/proc/self/mem"),
        "a link to a folder": lambda: path.symlink_to("."),
        "a terabyte of holes": lambda: _make_holes(path),
    }
    how = chance.choice(list(ways))
    ways[how]()
    return how


def _make_holes(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(1 << 40)


Damage = Callable[[Path, random.Random], str]
_KINDS: Final[dict[str, tuple[Damage, ...]]] = {
    ".json": (damage_json,) * 3,
    ".jsonl": (damage_lines,) * 2,
    ".safetensors": (damage_header, damage_header, damage_numbers),
    ".png": (damage_picture,),
    ".npz": (damage_archive,),
    ".pth": (damage_archive,),
}
