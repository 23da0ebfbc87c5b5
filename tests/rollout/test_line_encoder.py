"""Prompts encoded line by line have the ids of the whole text, or the tokenizer is seen not to allow it."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from rollout.line_encoder import LINE, LineEncoder
from rollout.prompt import encode_chat
from tools.make_tiny_model import train_tokenizer
from tools.rollout_worker_measurement import CHAT_TEMPLATE, END, START, load_tokenizer

CORPUS = [
    "You are in the middle of a room.\n\nActions possible now:\n- go to cabinet 1\n- go to desk 2\n",
    "  On the desk 2, you see a mug 1.\n...\n\nIt's <think> closed </think>; don't open 'it'.\n[1] {2}: x_y\n" * 2,
]
PIECES_ACROSS_LINES = r"\w+|[^\w]+"


def make_tokenizer(pieces: str) -> PreTrainedTokenizerFast:
    """A byte-level BPE whose pieces the expression cuts."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(pieces), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=600, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(CORPUS * 20, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


QWEN = load_tokenizer("", CORPUS * 20)
DEMO = train_tokenizer(CORPUS * 20, 600)
ACROSS = make_tokenizer(PIECES_ACROSS_LINES)
ENCODERS = {id(tokenizer): LineEncoder(tokenizer) for tokenizer in (QWEN, DEMO)}
TEXTS = st.lists(
    st.one_of(
        st.sampled_from(
            ["\n", "\n\n", " ", "  ", "\t", "\r\n", "- go to", "mug 1", "...", "</a>", START, "'s", "é", "。"]
        ),
        st.text(max_size=4),
    ),
    max_size=12,
).map("".join)


@pytest.mark.parametrize("tokenizer", [QWEN, DEMO], ids=["qwen", "demo"])
@given(text=TEXTS)
@settings(max_examples=40, deadline=None)
def test_ids_are_those_of_the_whole_text(tokenizer, text):
    encoder = ENCODERS[id(tokenizer)]
    assert encoder.by_line
    assert encoder.encode(text) == tuple(tokenizer(text, add_special_tokens=False)["input_ids"])


@pytest.mark.parametrize("text", [" \n mug 1", "\n \n mug 1", "a \n\n - go to", "x\t\n mug 1"])
def test_blanks_on_both_sides_of_a_lines_end(text):
    for tokenizer in (QWEN, DEMO):
        assert ENCODERS[id(tokenizer)].encode(text) == tuple(tokenizer(text, add_special_tokens=False)["input_ids"])


def test_pieces_across_lines_are_found_out():
    encoder = LineEncoder(ACROSS)
    assert not encoder.by_line
    for text in CORPUS:
        assert encoder.encode(text) == tuple(ACROSS(text, add_special_tokens=False)["input_ids"])


@given(text=TEXTS)
@settings(max_examples=40, deadline=None)
def test_lines_joined_are_the_text(text):
    assert "".join(LINE.findall(text)) == text


def test_chat_ids_are_those_of_the_chat_template():
    messages = [{"role": "user", "content": CORPUS[0]}]
    expected = QWEN.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=False, enable_thinking=False
    )
    assert QWEN.chat_template == CHAT_TEMPLATE
    assert encode_chat(QWEN, messages, 10_000) == tuple(expected)
    assert QWEN.convert_tokens_to_ids(END) in expected
