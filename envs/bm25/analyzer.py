"""Lucene's EnglishAnalyzer: UAX#29 words, 's taken off, lower case, 33 stop words taken out, Porter stems.

Unicode Standard Annex 29, word boundaries; rule numbers below are the annex's. As Lucene does, ideographs and hiragana
are single-character tokens, a run of Thai, Lao, Khmer or Burmese text is one token, and so is an emoji sequence.
"""

from __future__ import annotations

import re

import regex

from envs.bm25.pictographs import pictograph_class
from envs.bm25.porter import stem

STOP_WORDS = frozenset(
    (
        *("a", "an", "and", "are", "as", "at", "be", "but", "by", "for", "if", "in", "into", "is", "it", "no", "not"),
        *("of", "on", "or", "such", "that", "the", "their", "then", "there", "these", "they", "this", "to", "was"),
        *("will", "with"),
    )
)
MAX_TOKEN_LENGTH = 255  # Lucene's; what is longer is cut into pieces
_POSSESSIVE = ("'s", "'S", "\u2019s", "\u2019S", "\uff07s", "\uff07S")

# A word of plain ASCII: letters, digits and underscores, joined inside by a mark between two letters or two digits.
_ASCII_WORD = re.compile(
    r"_*[A-Za-z0-9][A-Za-z0-9_]*"
    r"(?:(?:(?<=[A-Za-z])[:.'](?=[A-Za-z])|(?<=[0-9])[.,;'](?=[0-9]))[A-Za-z0-9_]+)*"
)

_UNICODE_WORD = regex.compile(
    r"""
    (?(DEFINE)
      (?P<x>        [\p{WB=Extend}\p{WB=Format}\p{WB=ZWJ}]* )                                            # WB4
      (?P<letter>   [\p{WB=ALetter}\p{WB=Hebrew_Letter}] (?&x) )
      (?P<digit>    [\p{WB=Numeric}\uff10-\uff19] (?&x) )
      (?P<kana>     \p{WB=Katakana} (?&x) )
      (?P<joiner>   \p{WB=ExtendNumLet} (?&x) )
      (?P<hebrew>   \p{WB=Hebrew_Letter} (?&x) (?: ' (?&x) | (?: " (?&x) \p{WB=Hebrew_Letter} (?&x) )+ ) )  # WB7a-c
      (?P<letters>  (?&letter) (?: [\p{WB=MidLetter}\p{WB=MidNumLet}'] (?&x) (?&letter) )* )            # WB5-7
      (?P<digits>   (?&digit) (?: [\p{WB=MidNum}\p{WB=MidNumLet}'] (?&x) (?&digit) )* )                 # WB8, 11, 12
      (?P<emoji>    (?: PICTOGRAPH | \p{Emoji_Modifier} ) \ufe0f? (?: (?![\ufe0e\ufe0f]) (?&x) )? )
      (?P<unit>     (?&kana)+ | (?: (?&letters) | (?&digits) )+ )                                       # WB9, 10, 13
    )
    (?&joiner)* (?&unit) (?: (?&joiner)+ (?&unit) )* (?&joiner)*                                        # WB13a, b
    | \p{Regional_Indicator} (?&x) \p{Regional_Indicator} (?&x)                                          # a flag
    | [\d\#*] \ufe0f? \u20e3 (?&x)                                                                       # a key
    | (?&emoji) (?: (?<=\u200d) (?&emoji) )*
    | \p{Script=Han} (?&x)
    | \p{Script=Hiragana} (?&x)
    | (?: \p{Line_Break=Complex_Context} (?&x) )+
    """.replace("PICTOGRAPH", pictograph_class()),
    regex.VERBOSE,
)


def analyze(text: str) -> list[str]:
    """The index terms of `text`, in order, repeated as often as they occur."""
    return [term for term in map(term_of, words(text)) if term]


def words(text: str) -> list[str]:
    """The words of `text` as they stand there, before any filter."""
    if text.isascii():
        found = _ASCII_WORD.findall(text)
    else:
        found = [match.group() for match in _UNICODE_WORD.finditer(text)]
    if any(len(word) > MAX_TOKEN_LENGTH for word in found):
        starts = ((word, start) for word in found for start in range(0, len(word), MAX_TOKEN_LENGTH))
        return [word[start : start + MAX_TOKEN_LENGTH] for word, start in starts]
    return found


def term_of(word: str) -> str:
    """The index term of one word, or "" for a stop word."""
    if word.endswith(_POSSESSIVE):
        word = word[:-2]
    # Java's lower case is by character: no final sigma, and one character for each.
    word = word.lower() if word.isascii() else "".join(character.lower()[:1] for character in word)
    return "" if word in STOP_WORDS else stem(word)
