from __future__ import annotations

import json

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from megatron_opid.skills.parse import MAX_SKILL_CHARACTERS, ParsedReply, ParseError, parse_reply
from rollout.trajectory import HindsightSkills


def reply(**fields) -> str:
    return json.dumps({"summary": "s", "episode_skill": "go .", "step_skills": []} | fields)


def steps_of(entries: list, *, num_steps: int = 10, max_step_skills: int = 5) -> tuple[dict[int, str], int]:
    parsed = parse_reply(reply(step_skills=entries), num_steps, max_step_skills)
    return dict(parsed.skills.steps), parsed.num_dropped


def test_complete_answer():
    parsed = parse_reply(reply(step_skills=[{"step": 0, "skill": " look ."}]), 1, 1)
    assert parsed == ParsedReply(HindsightSkills("s", "go .", {0: "look ."}), 0)


@pytest.mark.parametrize(
    "text",
    [
        "```json\n" + reply() + "\n```",
        'Let me {think}. The schema is {"step": 0}. So: ' + reply() + " Hope {this} helps!",
        "<think>maybe " + reply(episode_skill="draft .") + "</think>" + reply(),
        "{'summary': 's', 'episode_skill': 'go .', 'step_skills': [],}",
        '{"result": ' + reply() + "}",
        reply()[:-1],
        reply(step_skills=None),
        '{"step_skills": [], \'episode_skill\': "go .", "summary": "s"',
    ],
    ids=["fence", "prose", "thinking", "python", "nested", "unclosed", "null", "mixed quotes"],
)
def test_what_is_put_up_with(text: str):
    assert parse_reply(text, 1, 1).skills == HindsightSkills("s", "go .", {})


@pytest.mark.parametrize(
    "text, reason",
    [
        ("", "no JSON object"),
        ("I am sorry.", "no JSON object"),
        ('{"summary": "s"}', "no JSON object"),
        ('["episode_skill"]', "no JSON object"),
        (reply(episode_skill="  "), "episode_skill"),
        (reply(episode_skill=["go"]), "episode_skill"),
        (reply(episode_skill="x" * (MAX_SKILL_CHARACTERS + 1)), "episode_skill"),
        ('{"summary": "s", "episode_skill": "go to the cabi', "cut off"),
        (reply(step_skills="none"), "step_skills is str"),
        (reply(step_skills={"0": "look"}), "step_skills is dict"),
        ("{" * 60_000, "60000 characters"),
        ("{" * 40_000, "no JSON object"),
        ('{"episode_skill":' * 2500, "nested too deeply"),
    ],
)
def test_what_is_refused(text: str, reason: str):
    with pytest.raises(ParseError, match=reason) as error:
        parse_reply(text, 1, 1)
    assert error.value.cause == "unparseable"


def test_bad_entries_are_dropped_and_counted():
    entries = [
        {"step": 10, "skill": "beyond"},
        {"step": -1, "skill": "before"},
        {"step": 2, "skill": "kept"},
        {"step": 2, "skill": "repeated"},
        {"step": 1.5, "skill": "between"},
        {"step": True, "skill": "truth"},
        {"step": None, "skill": "none"},
        {"step": 3, "skill": " \n"},
        {"step": 3, "skill": 7},
        {"step": 3},
        "step 3",
        {"step": "4", "skill": "text index"},
        {"step": 5.0, "skill": "float index"},
    ]
    assert steps_of(entries) == ({2: "kept", 4: "text index", 5: "float index"}, 10)


@pytest.mark.parametrize("limit", [0, 1, 3])
def test_surplus_entries_are_cut_and_counted(limit: int):
    entries = [{"step": index, "skill": f"skill {index}"} for index in range(3)]
    steps, num_dropped = steps_of(entries, max_step_skills=limit)
    assert list(steps) == list(range(limit)) and num_dropped == 3 - limit


def test_the_sentence_that_was_cut_off_is_dropped():
    whole = reply(step_skills=[{"step": 0, "skill": "first sentence"}, {"step": 1, "skill": "second sentence"}])
    for length in range(whole.index("first"), len(whole)):
        parsed = parse_reply(whole[:length], 2, 5)
        assert parsed.skills.episode == "go ."
        assert set(parsed.skills.steps.values()) <= {"first sentence", "second sentence"}


def test_lone_surrogates_do_not_reach_the_tokenizer():
    skills = parse_reply(reply(episode_skill="go \ud800on"), 1, 1).skills
    assert skills.episode.encode() == b"go on"


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["summary", "episode_skill", "step_skills", "step", "skill"]), inner, max_size=5
        )
    ),
    max_leaves=12,
)
_text = st.text(max_size=8)
_entry = st.fixed_dictionaries({"step": st.integers(-1, 4) | _json, "skill": _text | _json})
_shaped = st.fixed_dictionaries(
    {"episode_skill": _text | _json},
    optional={"summary": _text | _json, "step_skills": st.lists(_entry, max_size=6) | _json},
)


@st.composite
def _answers(draw: st.DrawFn) -> str:
    """JSON of about the right shape: in prose, torn, or with pieces of JSON strewn in."""
    text = json.dumps(draw(_shaped), ensure_ascii=draw(st.booleans()))
    middle, end = draw(st.integers(0, len(text))), draw(st.sampled_from([len(text), len(text) - 1, len(text) // 2]))
    noise = draw(st.just("") | st.text("{}[]\"':,\\/#`\n \ue000\ud800ae1-.", max_size=12))
    return draw(st.sampled_from(["", "Sure: ", "{", "```json\n"])) + text[:middle] + noise + text[middle:end]


@settings(max_examples=500, deadline=None)
@given(_answers() | st.text(), st.integers(0, 4), st.integers(0, 3))
@example('{"episode_skill": ' + "9" * 6000, 1, 1)
@example('{"episode_skill": "a", "step_skills": [{"step": 1e999, "skill": "b"}]}', 2, 1)
@example("{'episode_skill': " + "[" * 5000, 1, 1)
def test_nothing_but_parse_error_is_raised(text: str, num_steps: int, max_step_skills: int):
    try:
        parsed = parse_reply(text, num_steps, max_step_skills)
    except ParseError:
        return
    skills = parsed.skills
    assert skills.episode.strip() == skills.episode != ""
    assert len(skills.steps) <= max_step_skills
    assert all(0 <= index < num_steps and text.strip() for index, text in skills.steps.items())
    json.dumps([skills.episode, *skills.steps.values()], ensure_ascii=False).encode()


@settings(max_examples=300)
@given(st.text(min_size=1), st.dictionaries(st.integers(0, 9), st.text(min_size=1), max_size=5))
def test_a_good_answer_is_read_word_for_word(episode: str, steps: dict[int, str]):
    texts = [text.encode("utf-8", "ignore").decode().strip() for text in (episode, *steps.values())]
    if "" in texts or any("\ue000" in text for text in texts):
        return
    answer = reply(episode_skill=episode, step_skills=[{"step": k, "skill": v} for k, v in steps.items()])
    expected = HindsightSkills("s", texts[0], dict(zip(steps, texts[1:], strict=True)))
    assert parse_reply(f"Sure: {answer}", 10, 5) == ParsedReply(expected, 0)
