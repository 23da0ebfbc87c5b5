"""Token ids of texts whose lines repeat: prompts of one episode share most of theirs, and so do its neighbours'.

A byte-pair tokenizer cuts a text into pieces before it merges anything, and with the usual rules no piece goes on
behind a line's end. The ids of a text are then those of its lines, one after the other, and a line seen before is a
look-up: of the CPU time of an agent step this was the largest part (tools/bench_rollout_worker.py).
"""

from __future__ import annotations

import re
from functools import lru_cache
from itertools import chain
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MAX_LINES = 2**15  # about 20 MB
# A line with the line ends that follow it, blanks between them included: those may share a piece.
LINE = re.compile(r"[^\n]*\n(?:\s*\n)?|[^\n]+")
# Blanks on both sides of a line's end may be one piece with it: such a text, a rare one, is not cut.
BLANKS_AROUND = re.compile(r"[^\S\n]\n\s*[^\S\n]")
# What may stand around a line's end: words, digits, punctuation, blanks, marks that combine, other scripts, tags.
FRAGMENTS = ("a", "The", "'s", "é", "\u0301", "7", "42", ".", "- go", "...", ":", '{"', "_x", "</a>", "<think>", "中",
             "。", "ا", "🙂", "\u200d", "\u00a0x", "x ", "x\t", "x\r", " a", "  y", "\tz", "#")  # fmt: skip


class LineEncoder:
    """`encode` gives what the tokenizer gives for the whole text, without special tokens of its own around it.

    `by_line` says whether lines may be looked up one by one. That is tried out for every pair of FRAGMENTS and special
    tokens around a line's end, so a tokenizer of another kind is found out and encodes whole texts.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        self._tokenizer = tokenizer
        self._line_ids = lru_cache(MAX_LINES)(self._whole)
        self.by_line = self._lines_are_independent([*FRAGMENTS, *map(str, tokenizer.all_special_tokens)])

    def encode(self, text: str) -> tuple[int, ...]:
        """Token ids of `text`."""
        if not self.by_line:
            return self._whole(text)
        return tuple(chain.from_iterable(map(self._line_ids, _lines(text))))

    def _whole(self, text: str) -> tuple[int, ...]:
        return tuple(self._tokenizer(text, add_special_tokens=False)["input_ids"])

    def _lines_are_independent(self, fragments: list[str]) -> bool:
        texts = [f"{left}{end}{right}" for left in fragments for end in ("\n", "\n\n") for right in fragments]
        split = [_lines(text) for text in texts]
        lines = sorted(set(chain.from_iterable(split)))
        line_ids = dict(zip(lines, self._tokenizer(lines, add_special_tokens=False)["input_ids"], strict=True))
        text_ids = self._tokenizer(texts, add_special_tokens=False)["input_ids"]
        return all(
            list(chain.from_iterable(line_ids[line] for line in parts)) == ids
            for parts, ids in zip(split, text_ids, strict=True)
        )


def _lines(text: str) -> list[str]:
    return [text] if BLANKS_AROUND.search(text) else LINE.findall(text)
