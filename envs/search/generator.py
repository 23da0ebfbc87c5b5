"""A small world of fictional companies, people and towns: a corpus about them, and questions that it answers.

A question follows one fact or two. The splits are disjoint in questions and in the facts that hold the answers.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from envs.search.facts import RELATIONS, Chain, Fact, fact_sentence, question_text

ONE_HOP, TWO_HOP = "one_hop", "two_hop"
_ONSETS = ("B", "D", "F", "G", "H", "K", "L", "M", "N", "P", "R", "S", "T", "V", "Br", "Dr", "Gr", "Kl", "St", "Tr")
_VOWELS = ("a", "e", "i", "o", "u")
_MIDDLES = ("l", "r", "n", "m", "v", "d", "st", "rn", "nd", "lk", "s", "z")
_ENDINGS = {
    "company": ("ex", "or", "on"),
    "person": ("a", "in", "ek"),
    "town": ("by", "ham", "ow"),
    "river": ("u", "ei"),
}
_VALUES = {
    "good": ("kettles", "ropes", "lamps", "clocks", "bells", "boots", "gloves", "barrels", "sails", "candles"),
    "craft": ("baker", "smith", "painter", "mason", "weaver", "pilot", "doctor", "judge", "singer", "miller"),
}


@dataclass(frozen=True)
class Question:
    """A question, the answers that count as right, and the data set (here: the kind) that success is reported by."""

    text: str
    answers: tuple[str, ...]
    data_source: str


@dataclass(frozen=True)
class World:
    """`documents` maps each title to its text."""

    facts: tuple[Fact, ...]
    documents: dict[str, str]


def make_world(seed: int, num_companies: int = 40, num_people: int = 80, num_towns: int = 40) -> World:
    """The facts about every company, person and town, and one document for each of them."""
    rng = Random(seed)
    counts = {"company": num_companies, "person": num_people, "town": num_towns, "river": max(2, num_towns // 4)}
    names: dict[str, tuple[str, ...]] = dict(_VALUES)
    taken: set[str] = set()
    for kind, count in counts.items():
        names[kind] = tuple(_new_name(rng, kind, taken) for _ in range(count))
    facts = [
        Fact(subject, relation.name, rng.choice([value for value in names[relation.object] if value != subject]))
        for kind in ("company", "person", "town")
        for subject in names[kind]
        for relation in RELATIONS.values()
        if relation.subject == kind
    ]
    documents: dict[str, list[str]] = {}
    for fact in facts:
        documents.setdefault(fact.subject, []).append(fact_sentence(fact))
    return World(tuple(facts), {title: " ".join(sentences) for title, sentences in documents.items()})


def _new_name(rng: Random, kind: str, taken: set[str]) -> str:
    while True:
        name = rng.choice(_ONSETS) + rng.choice(_VOWELS) + rng.choice(_MIDDLES) + rng.choice(_ENDINGS[kind])
        if name not in taken:
            taken.add(name)
            return name


def make_questions(world: World) -> dict[Chain, Question]:
    """Every question of one hop and of two whose parts differ."""
    objects = {(fact.subject, fact.relation): fact.object for fact in world.facts}
    questions = {}
    for first in world.facts:
        chains = [Chain(first.subject, (first.relation,))]
        if RELATIONS[first.relation].phrase:
            chains += [Chain(first.subject, (first.relation, name)) for name in _relations_of(first)]
        for chain in chains:
            value = chain.subject
            for relation in chain.relations:
                value = objects[value, relation]
            if value != chain.subject:
                source = ONE_HOP if len(chain.relations) == 1 else TWO_HOP
                questions[chain] = Question(question_text(chain), (value,), source)
    return questions


def _relations_of(fact: Fact) -> list[str]:
    return [name for name, relation in RELATIONS.items() if relation.subject == RELATIONS[fact.relation].object]


def split_questions(world: World, seed: int, validation_share: float) -> tuple[list[Question], list[Question]]:
    """(train, validation), disjoint in questions and in the facts that answer them, shuffled by `seed`."""
    objects = {(fact.subject, fact.relation): fact.object for fact in world.facts}

    def last_fact(chain: Chain) -> tuple[str, str]:
        subject = chain.subject
        for relation in chain.relations[:-1]:
            subject = objects[subject, relation]
        return subject, chain.relations[-1]

    questions = make_questions(world)
    rng = Random(seed)
    last_facts = sorted({last_fact(chain) for chain in questions})
    rng.shuffle(last_facts)
    held_out = set(last_facts[: round(len(last_facts) * validation_share)])
    train = [question for chain, question in questions.items() if last_fact(chain) not in held_out]
    validation = [question for chain, question in questions.items() if last_fact(chain) in held_out]
    rng.shuffle(train)
    rng.shuffle(validation)
    return train, validation
