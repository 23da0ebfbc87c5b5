"""The stand-in for spaCy's nouns."""

import pytest

from envs.webshop.nouns import APPROXIMATE, SPACY, approximate_nouns, has_spacy, make_tagger


@pytest.mark.parametrize(
    ("title", "nouns"),
    [
        # Capitals make proper nouns, as in spaCy's eyes, but for function words and adverbs.
        ("Acme Long Cotton Shirt for Men, 2 Pack", ("acme", "long", "cotton", "shirt", "men", "pack")),
        ("The Fully Washable USB-C Cable With Charger Included", ("washable", "usb", "cable", "charger")),
        ("a long cotton shirt, easily washable, and a cable", ("cotton", "shirt", "cable")),
        ("Women's 3X Shirt SHIRT", ("women's", "shirt", "shirt")),
        ("12 34", ()),
        ("", ()),
    ],
)
def test_approximate_nouns(title: str, nouns: tuple[str, ...]):
    assert approximate_nouns(title) == nouns
    assert make_tagger(APPROXIMATE)([title]) == [nouns]


@pytest.mark.skipif(not has_spacy(), reason="spaCy's model en_core_web_sm is not installed")
def test_spacy_tags_nouns():
    assert make_tagger(SPACY)(["a red cotton shirt with a pocket"]) == [("cotton", "shirt", "pocket")]
