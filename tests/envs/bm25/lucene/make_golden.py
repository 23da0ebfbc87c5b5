"""Makes tests/data/lucene.json: what Lucene itself answers, for test_lucene.py.

    python -m tests.envs.bm25.lucene.make_golden anserini-0.22.1-fatjar.jar

The jar lies in the wheel of pyserini 0.22.1 (pip download --no-deps pyserini==0.22.1); it needs Java 11 or newer with
javac. Texts are random ASCII, random Unicode of many scripts, and words; documents are generated WebShop products.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from random import Random

from tools.make_webshop_catalogue import generate, read_kinds

GOLDEN = Path(__file__).parents[3] / "data" / "lucene.json"
BLOCKS = (
    *((0x20, 0x7F), (0xA0, 0x250), (0x300, 0x370), (0x370, 0x400), (0x400, 0x500), (0x5D0, 0x5F5), (0x620, 0x670)),
    *((0x900, 0x970), (0xE00, 0xE5C), (0x1100, 0x1200), (0x2000, 0x2070), (0x20A0, 0x2200), (0x2600, 0x27C0)),
    *((0x3040, 0x3100), (0x4E00, 0x4F00), (0xAC00, 0xAD00), (0xFE00, 0xFE10), (0xFF00, 0xFFA0), (0x1F1E6, 0x1F200)),
    *((0x1F300, 0x1F650), (0x20000, 0x20100)),
)
WORDS = """
possibly biology generally rational operators hopefulness formalize triplicate electricity adjustable replacement
dependent activate probate rates ceasing controlling rolling caresses ponies ties cats feed agreed plastered
motoring sing conflated troubled sized hopping tanned falling hissing fizzed failing filing happy sky relational
conditional valenci hesitanci digitizer conformabli radicalli differentli vileli analogousli vietnamization
predication operator feudalism decisiveness hopefulli callousness formaliti sensitiviti sensibiliti apologi
geology theology ably nobly terribly as's O'Neil's dog’s it's can't 3.14 1,000 a.b U.S.A. x_y _z_ wi-fi e-mail
""".split()  # noqa: SIM905

# What product texts have beyond words: signs, fractions, emoji and their sequences.
SIGNS = (
    "Brand® name™ ©2020 №5 30°C ±2 ½ cup ¼ x² 10µm 5Ω Å ﬁne ①② ⅓ € £5 5¢",
    "§ ¶ • – — … “so” ‘it’ ″ ′ × ÷ → ★ ☆ ✓ ✔ ✅ ♥ ❤ ☕ ☂",
    "❤️‍🔥 👨‍👩‍👧 1️⃣ #️⃣ *⃣ 🇩🇪🇫🇷 🇩 👍🏽 🏽 ☕️ ☕︎ ™️ ©️ 5️ x️ 🏴󠁧󠁢󠁥󠁮󠁧󠁿 🧑🏻‍🚀 ⚕️ ❗❗ 👍👍 a👍b 👍a 3👍 ✌️✌️ ⭐⭐⭐⭐⭐ ⌚ ⌨️ ⏰ ▶️ ◀ ☎ ♻️ ⚡️",
    "日本語 テスト ひらがな 한국어 中文产品 ไทย naïve café résumé ÜBER straße İstanbul ΣΑΣ ǅ ﷺ",
)


def random_text(rng: Random) -> str:
    kind, length = rng.random(), rng.randrange(1, 20)
    if kind < 0.3:
        return "".join(rng.choice("abcXYZ019__..,;:''--  \"/s") for _ in range(length))
    if kind < 0.5:
        return " ".join(rng.choices(WORDS, k=length))
    blocks, marks = rng.sample(BLOCKS, rng.randrange(1, 4)), " .,:'’_-\u200d\ufe0f1aA"
    return "".join(
        chr(rng.randrange(*rng.choice(blocks))) if rng.random() < 0.8 else rng.choice(marks) for _ in range(length)
    )


def document(entry) -> str:
    item = entry.item
    return " ".join([item["name"], item["full_description"], *item["small_description"]])


def main(jar: str) -> None:
    rng = Random(0)
    documents = [document(entry) for entry in generate(600, 0, read_kinds())]
    words = [text.split() for text in documents]
    given = {
        "texts": [
            *(random_text(rng) for _ in range(800)),
            *SIGNS,
            *(word for text in SIGNS for word in text.split()),
            "x" * 300 + " yy",
            "a1" * 200,
        ],
        "documents": documents,
        "queries": [" ".join(rng.choices(rng.choice(words), k=rng.randrange(1, 9))) for _ in range(60)],
    }
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "in.json").write_text(json.dumps(given))
        subprocess.run(["javac", "-cp", jar, "-d", folder, Path(__file__).with_name("Oracle.java")], check=True)
        classes = f"{Path(jar).resolve()}:{folder}"
        subprocess.run(["java", "-cp", classes, "Oracle", f"{folder}/in.json", f"{folder}/out.json"], check=True)
        answers = json.loads((Path(folder) / "out.json").read_text(encoding="utf-8", errors="surrogatepass"))
    lines = [f"{json.dumps(name)}: {json.dumps(value)}" for name, value in (given | answers).items()]
    GOLDEN.write_text("{" + ",\n".join(lines) + "}\n")


if __name__ == "__main__":
    main(sys.argv[1])
