from __future__ import annotations

import pytest

from megatron_opid.skills.prompting import TeacherPrompts, teacher_prompts
from megatron_opid.skills.routing import StepRoute
from rollout.prompt import encode_chat, encode_prompt
from tests.skills.episodes import make_trajectory
from tests.skills.tokenizers import make_tokenizer

OPTIONS = {"style": "full", "history_length": 1, "max_prompt_tokens": 500}


def test_encode_prompt():
    tokenizer = make_tokenizer()
    ids = encode_prompt(tokenizer, "héllo", 100)
    assert tokenizer.decode(ids) == "<|im_start|>user\nhéllo<|im_end|>\n<|im_start|>assistant\n<think></think>"
    assert encode_prompt(tokenizer, "héllo", 7) == ids[-7:]
    plain = make_tokenizer("{% for m in messages %}{{ m.role[0] }}:{{ m.content }};{% endfor %}")
    messages = [{"role": "system", "content": "a"}, {"role": "user", "content": "b"}]
    assert plain.decode(encode_chat(plain, messages, 100)) == "s:a;u:b;"


def test_encode_prompt_refuses():
    with pytest.raises(ValueError, match="no chat template"):
        encode_prompt(make_tokenizer(None), "x", 10)
    with pytest.raises(ValueError, match="max_prompt_tokens=0"):
        encode_prompt(make_tokenizer(), "x", 0)


def test_each_level_has_its_own_prompt():
    tokenizer = make_tokenizer()
    routes = (StepRoute(), StepRoute("E"), StepRoute("E", "S"))
    none, episode, both = teacher_prompts(make_trajectory(), routes, tokenizer, **OPTIONS)
    assert none == TeacherPrompts(None, None)
    assert episode.step is None
    texts = [tokenizer.decode(ids, skip_special_tokens=True) for ids in (episode.episode, both.episode, both.step)]
    assert "full | open the door | E | room 0 walk 0 | room 1 |  | act" in texts[0]
    assert "full | open the door | E | room 1 walk 1 | room 2 |  | act" in texts[1]
    assert "full | open the door |  | room 1 walk 1 | room 2 | S | act" in texts[2]


def test_the_skill_is_the_only_difference_and_the_left_is_cut():
    tokenizer = make_tokenizer()
    short = OPTIONS | {"max_prompt_tokens": 60}
    (whole,) = teacher_prompts(make_trajectory(1), (StepRoute("E"),), tokenizer, **OPTIONS)
    (cut,) = teacher_prompts(make_trajectory(1), (StepRoute("E"),), tokenizer, **short)
    assert cut.episode == whole.episode[-60:]
    assert (whole.num_cut, cut.num_cut) == (0, 1)
    exact = OPTIONS | {"max_prompt_tokens": len(whole.episode)}
    assert teacher_prompts(make_trajectory(1), (StepRoute("E"),), tokenizer, **exact) == (whole,)


def test_one_route_per_step():
    with pytest.raises(ValueError):
        teacher_prompts(make_trajectory(2), (StepRoute(),), make_tokenizer(), **OPTIONS)
