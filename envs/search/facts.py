"""The language of the generated questions and documents: how a fact, a question and a chain of facts are worded.

Both directions are here: `fact_sentence` and `question_text` write, `read_facts` and `parse_question` read back what
they wrote, and nothing else.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

NAME = r"([A-Z][a-z]+)"


@dataclass(frozen=True)
class Relation:
    """A property that every thing of a kind has. `phrase` names its value inside a longer question ("" if the value is
    no thing that has properties itself)."""

    name: str
    subject: str
    object: str
    sentence: str
    question: str
    phrase: str = ""


RELATIONS = {
    relation.name: relation
    for relation in (
        Relation("founder", "company", "person", "{s} was founded by {o}.", "Who founded {s}?", "the founder of {s}"),
        Relation("seat", "company", "town", "{s} has its seat in {o}.", "Where is the seat of {s}?", "the seat of {s}"),
        Relation("product", "company", "good", "{s} makes {o}.", "What does {s} make?"),
        Relation("home", "person", "town", "{s} lives in {o}.", "Where does {s} live?", "the home of {s}"),
        Relation("teacher", "person", "person", "{s} was taught by {o}.", "Who taught {s}?", "the teacher of {s}"),
        Relation("craft", "person", "craft", "{s} worked as a {o}.", "What did {s} work as?"),
        Relation("mayor", "town", "person", "{s} has the mayor {o}.", "Who is the mayor of {s}?", "the mayor of {s}"),
        Relation("river", "town", "river", "{s} lies on the {o}.", "Which river does {s} lie on?"),
        Relation("fame", "town", "good", "{s} is known for its {o}.", "What is {s} known for?"),
    )
}


@dataclass(frozen=True)
class Chain:
    """What a question asks for: start at `subject` and follow the relations in turn."""

    subject: str
    relations: tuple[str, ...]


@dataclass(frozen=True)
class Fact:
    subject: str
    relation: str
    object: str


def fact_sentence(fact: Fact) -> str:
    return RELATIONS[fact.relation].sentence.format(s=fact.subject, o=fact.object)


def question_text(chain: Chain) -> str:
    """The chain as a question: `Where does the founder of Ostrel live?`"""
    inner = chain.subject
    for name in chain.relations[:-1]:
        inner = RELATIONS[name].phrase.format(s=inner)
    return RELATIONS[chain.relations[-1]].question.format(s=inner)


def _pattern(template: str, **places: str) -> re.Pattern[str]:
    text = re.escape(template)
    for place, pattern in places.items():
        text = text.replace(re.escape("{" + place + "}"), pattern)
    return re.compile(text)


_QUESTIONS = {name: _pattern(relation.question, s="(.+)") for name, relation in RELATIONS.items()}
_PHRASES = {name: _pattern(relation.phrase, s="(.+)") for name, relation in RELATIONS.items() if relation.phrase}
_SENTENCES = {name: _pattern(relation.sentence, s=NAME, o="([A-Za-z]+)") for name, relation in RELATIONS.items()}


def parse_question(text: str) -> Chain | None:
    """The chain that a question was written from, None if it is not of this language."""
    for name, pattern in _QUESTIONS.items():
        if match := pattern.fullmatch(text):
            inner, relations = match[1], [name]
            while not re.fullmatch(NAME, inner):
                outer = next(((n, found) for n, p in _PHRASES.items() if (found := p.fullmatch(inner))), None)
                if outer is None:
                    return None
                inner = outer[1][1]
                relations.insert(0, outer[0])
            return Chain(inner, tuple(relations))
    return None


def read_facts(text: str) -> list[Fact]:
    """The facts that a text states, in the order of RELATIONS."""
    return [Fact(match[1], name, match[2]) for name, pattern in _SENTENCES.items() for match in pattern.finditer(text)]
