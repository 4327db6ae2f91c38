"""Captions that try a tokenizer: plain ones, many languages, and texts that nobody would write.

The same list on every machine: seeded, and only characters that Unicode had in 2002, whose properties are settled.
"""

from __future__ import annotations

import random
import unicodedata
from collections.abc import Callable
from typing import Final

COUNT: Final = 2000

COLORS: Final = [
    "red",
    "green",
    "blue",
    "yellow",
    "purple",
    "orange",
    "white",
    "black",
    "golden",
    "crimson",
    "turquoise",
]
SIZES: Final = ["small", "large", "tiny", "huge", "medium", "enormous"]
THINGS: Final = ["circle", "square", "triangle", "cat", "dog", "lighthouse", "teapot", "astronaut", "violin", "dragon"]
PLACES: Final = ["on the left", "on the right", "at the top", "in a forest", "under the sea", "on Mars", "by night"]
STYLES: Final = ["oil painting", "35mm photo", "8k, highly detailed", "line art", "in the style of Ukiyo-e", "f/1.8"]

SENTENCES: Final = (
    "Ein großer roter Kreis über dem Haus; daneben läuft ein müder Fuchs.",
    "Une théière bleue posée sur l'étagère, près d'un cœur brisé.",
    "Un pequeño cuadrado azul a la derecha del niño, ¿verdad?",
    "Um farol antigo à beira-mar, com nuvens e gaivotas.",
    "Un gatto nero sul tetto, perché piove più forte.",
    "Een grote vuurtoren op het strand bij zonsondergang.",
    "Mały zielony trójkąt, żółta łódź i źródło w górach.",
    "Příliš žluťoučký kůň úpěl ďábelské ódy.",
    "Egy árvíztűrő tükörfúrógép a zöld réten.",
    "O pisică mică și țânțari în grădina înflorită.",
    "Küçük bir kedi İstanbul'da, ışıklı bir gecede.",
    "En liten röd båt på sjön, målad i akvarell på en ö.",
    "Stór rauður hringur, þéttur skógur og ævintýri.",
    "Маленький красный квадрат рядом с большим синим кругом.",
    "Великий жовтий місяць над її рікою, їжак і ґанок.",
    "Μια μικρή κόκκινη βάρκα. ΟΔΥΣΣΕΥΣ ΚΑΙ ΣΕΙΡΗΝΕΣ.",
    "دائرة حمراء كبيرة على اليسار، ومربع أزرق صغير.",
    "עיגול אדום גדול מעל הים הכחול.",
    "एक छोटा लाल वृत्त और नीला वर्ग।",
    "ஒரு சிறிய சிவப்பு வட்டம்",
    "วงกลมสีแดงขนาดใหญ่ทางซ้าย",
    "一只红色的小猫坐在蓝色的桌子上。",
    "左に大きな赤い円、右に小さな青い四角形。ガラスのカップ",
    "왼쪽에 큰 빨간 원, 오른쪽에 작은 파란 사각형",
    "Một con mèo nhỏ màu đỏ đứng dưới gốc cây phượng.",
    "პატარა წითელი წრე ლურჯ ზღვაზე",
    "Մեծ կարմիր շրջան՝ կապույտ ֆոնի վրա",
)
ODDITIES: Final = (
    *("", " ", "\t\n", "  two  spaces ", "tab\there", "new\nline\r\nend", "nbsp\u00a0thin\u2009ideographic\u3000space"),
    *("</s>", "a </s> b", "<pad><pad>", "<unk>", "x<extra_id_0>y", "<extra_id_99> z", "<extra_id_100>", "< pad >"),
    *("ﬁne ﬂow ﬃ ﬀ", "ＡＢＣ　１２３", "①②③ ½ ¾ x² H₂O", "ｶﾞｷﾞｸﾞ ﾊﾟ", "㍿ ㌔ ㍉ ㎏", "…‥ ‼ ⁉ ™ ℠ № ℡", "Ⅷ ⅳ Å Ω K"),
    *(
        "cafe\u0301 e\u0301\u0323 o\u0308\u0304",
        "q\u0307\u0323",
        "\u0301start",
        "a" + "\u0300" * 9,
        "\u1112\u1161\u11ab",
    ),
    *(
        "zero\u200bwidth\u200djoiner\u200c",
        "soft\u00adhyphen",
        "\ufeffbom",
        "bell\u0007nul\u0001",
        "\u0085next\u2028line",
    ),
    *("👍🏽 👩‍👩‍👧‍👦 🇩🇪🇫🇷 🏳️‍🌈 ❤️ ☺", "🙂🙃", "𝒜𝓑𝔠 𝟘𝟙", "𐍈𐌰", "\U000e0041\U0010fffd\ue000", "ß ẞ ſ ŉ ǰ ΐ"),
    *("ΑΣ ΑΣΑ Σ ΣΣ Α.Σ ΑΣ. Α\u0301Σ", "İI ıi", "ǅ Ǆ ǆ ᾈ", "▁already▁marked ▁", "▁▁▁", "“quotes” ‘single’ «g» – — ―"),
    *("a" * 300, "ab " * 200, "!?!?!?", "1234567890 3.14159 -2e10", "user@example.com", "C:\\path\\to", '"quoted" \\n'),
    *(
        "नमस्ते क्षत्रिय ज्ञ",
        "ก็เกี๊ยวน้ำ",
        "لا إله ﻻ ﷺ",
        "각각 가\u11a8 \u1112\u1161\u11ab",
        "が か\u3099",
        "\ud7a3\uac00",
        "ᄀ ᅡ ㄱ ㅏ",
    ),
)


def make_captions() -> list[str]:
    """Make `COUNT` different captions, the odd ones first."""
    rng = random.Random(20250603)
    captions = dict.fromkeys([*ODDITIES, *SENTENCES])
    kinds: list[Callable[[random.Random], str]] = [_plain, _plain, _foreign, _mixed, _damaged, _random]
    while len(captions) < COUNT:
        captions[rng.choice(kinds)(rng)] = None
    return list(captions)


def make_lines() -> list[str]:
    """Make the lines that a vocabulary is trained on: what people write."""
    rng = random.Random(0)
    return [*SENTENCES, *(kind(rng) for kind in (_plain, _foreign, _mixed) for _ in range(400))]


def _plain(rng: random.Random) -> str:
    parts = [f"a {rng.choice(SIZES)} {rng.choice(COLORS)} {rng.choice(THINGS)} {rng.choice(PLACES)}"]
    if rng.random() < 0.5:
        parts.append(rng.choice(STYLES))
    return rng.choice([", ", " and ", "; ", " - "]).join(parts)


def _foreign(rng: random.Random) -> str:
    words = rng.choice(SENTENCES).split()
    start = rng.randrange(len(words))
    return " ".join(words[start : start + 5])


def _mixed(rng: random.Random) -> str:
    words = [rng.choice(rng.choice(SENTENCES).split()) for _ in range(3)]
    words += [rng.choice(COLORS).upper(), rng.choice(THINGS).title()]
    rng.shuffle(words)
    return " ".join(words)


def _damaged(rng: random.Random) -> str:
    """Take a text apart and put characters into it that tokenizers treat differently."""
    signs = ["\u00a0", "\u200b", "\u0301", "\t", "  ", "▁", "</s>", "ﬁ", "Ａ", "½", "\u00ad", "🙂", "\u0007", "\u3000"]
    letters = list(rng.choice([_plain, _foreign])(rng)[:24])
    for _ in range(rng.randint(1, 4)):
        letters.insert(rng.randrange(len(letters) + 1), rng.choice(signs))
    text, forms = "".join(letters), unicodedata.ucd_3_2_0
    return rng.choice([forms.normalize("NFC", text), forms.normalize("NFD", text), forms.normalize("NFKC", text), text])


def _random(rng: random.Random) -> str:
    """Take characters of one or two neighbourhoods of the Basic Multilingual Plane, or of all of it."""
    starts = [rng.randrange(0x20, 0xFFF0) for _ in range(rng.choice([1, 2, 8]))]
    text = ""
    while len(text) < 8:
        character = chr(rng.choice(starts) + rng.randrange(48))
        if unicodedata.ucd_3_2_0.category(character) not in ("Cn", "Cs", "Co"):
            text += character
        elif rng.random() < 0.2:
            starts = [*starts, 0x61]
    return text


if __name__ == "__main__":
    print(*make_lines(), sep="\n")
