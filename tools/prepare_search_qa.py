"""Makes Search-R1 style question files, from the public data sets' own files or from a small generated world.

    python -m tools.prepare_search_qa generated --out data/search [--seed 0]
    python -m tools.prepare_search_qa files --out data/search --split train \
        --source nq=NQ-open.train.jsonl --source hotpotqa=hotpot_train_v1.1.json [--limit 1000]

`generated` writes train.parquet, validation.parquet, corpus.jsonl (wiki-18 format) and index/: all that the search
environment needs, without a download. `files` reads JSON, .jsonl, .csv, .tsv or .parquet with a question and its
answers under the names that NQ-open, TriviaQA, PopQA, HotpotQA, 2WikiMultihopQA, MuSiQue and Bamboogle use; NAME
becomes data_source.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from random import Random
from typing import Any

from tools.extras import imports_of

with imports_of("search", __name__):
    import pyarrow.parquet as pq

    from envs.search.generator import Question, make_world, split_questions
    from envs.search.questions import write_questions
    from tools.build_index import build_bm25


# The names of the public files, the first that a row has: lower case, first letters as published.
QUESTION_KEYS = ("question", "Question")
ANSWER_KEYS = ("golden_answers", "answers", "answer", "Answer", "possible_answers")
POPQA_KEY = "possible_answers"
MORE_ANSWER_KEYS = ("answer_aliases",)


def read_rows(path: Path) -> Iterable[Mapping[str, Any]]:
    """The rows of parquet, CSV, TSV, JSON lines, a JSON array, or TriviaQA's {"Data": [...]}.

    Raises:
        ValueError: the file is of none of these; the message names it.
    """
    if path.suffix == ".parquet":
        return pq.read_table(path).to_pylist()
    text = path.read_text(encoding="utf-8")
    if path.suffix in (".csv", ".tsv"):
        return list(csv.DictReader(io.StringIO(text), delimiter="," if path.suffix == ".csv" else "\t"))
    try:
        if path.suffix == ".jsonl":
            # Not splitlines(): a JSON string may hold U+2028 and other characters that end a line for Python only.
            return [json.loads(line) for line in text.split("\n") if line.strip()]
        document = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{path} is neither JSON, JSON lines, parquet, CSV nor TSV ({error})") from error
    rows = document if isinstance(document, list) else document.get("Data", document.get("data"))
    if not isinstance(rows, list):
        raise ValueError(f"{path} is JSON, but no list of questions")
    return rows


def question_of(row: Mapping[str, Any], data_source: str) -> Question | None:
    """The row's question with all of its answers; None if it has no answer (as in some test files).

    Raises:
        ValueError: the row has no question under a known name, or an answer that is no string.
    """
    if not isinstance(row, Mapping) or not any(key in row for key in QUESTION_KEYS):
        raise ValueError(f"no question under any of {', '.join(QUESTION_KEYS)}")
    text = next(str(row[key]).strip() for key in QUESTION_KEYS if key in row)
    values = [row[key] for key in ANSWER_KEYS if key in row][:1] + [row[key] for key in MORE_ANSWER_KEYS if key in row]
    if POPQA_KEY in row and values == [row[POPQA_KEY]]:
        values = [_popqa_answers(row[POPQA_KEY])]
    answers = list(dict.fromkeys(answer for value in values for answer in _strings(value)))
    if not text.endswith("?"):
        text += "?"
    return Question(text, tuple(answers), data_source) if answers else None


def _popqa_answers(cell: Any) -> Any:
    """A list, written as JSON in a table of strings."""
    try:
        return json.loads(cell)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{POPQA_KEY} is {cell!r}, no JSON") from error


def _strings(value: Any) -> Iterator[str]:
    """Every answer in a string, a list, or TriviaQA's {"Value", "Aliases"}; ValueError for anything else."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        yield from _strings(
            [value.get("Value") or value.get("value") or [], value.get("Aliases") or value.get("aliases") or []]
        )
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item)
    else:
        raise ValueError(f"the answer {value!r} is no string")


def read_source(name: str, path: Path, limit: int | None) -> list[Question]:
    """The first `limit` questions of a file.

    Raises:
        ValueError: a row without a question, an answer that is no string, or no row with an answer.
    """
    questions = []
    for number, row in enumerate(read_rows(path)):
        if limit is not None and len(questions) >= limit:
            break
        try:
            question = question_of(row, name)
        except ValueError as error:
            raise ValueError(f"{path}, row {number}: {error}") from error
        if question is not None:
            questions.append(question)
    if not questions:
        raise ValueError(f"{path} has no question with an answer under any of {', '.join(ANSWER_KEYS)}")
    return questions


def write_generated(out: Path, seed: int, validation_share: float, num_companies: int = 40) -> tuple[int, int, int]:
    """Questions, corpus and index of a generated world, with as many towns as companies and twice as many people; the
    numbers of documents and of questions in either split."""
    world = make_world(seed, num_companies, 2 * num_companies, num_companies)
    train, validation = split_questions(world, seed, validation_share)
    write_corpus(out / "corpus.jsonl", world.documents.items())
    shutil.rmtree(out / "index", ignore_errors=True)  # of an earlier corpus, or of a run that was killed
    build_bm25(out / "corpus.jsonl", out / "index", show_progress=False)
    write_questions(out / "train.parquet", train, "train")
    write_questions(out / "validation.parquet", validation, "validation")
    return len(world.documents), len(train), len(validation)


def write_corpus(path: Path, documents: Iterable[tuple[str, str]]) -> None:
    """(title, text) pairs in the wiki-18 format."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    with partial.open("w", encoding="utf-8") as file:
        for number, (title, text) in enumerate(documents):
            file.write(json.dumps({"id": str(number), "contents": f'"{title}"\n{text}'}, ensure_ascii=False) + "\n")
    partial.replace(path)


def main(arguments: list[str] | None = None) -> int:
    """Write the files; 0, or 2 if a file cannot be read."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    generated = commands.add_parser("generated", help="a small world of fictional companies, people and towns")
    generated.add_argument("--out", type=Path, required=True)
    generated.add_argument("--seed", type=int, default=0)
    generated.add_argument("--companies", type=int, default=40, help="2 to 500; towns as many, people twice as many")
    generated.add_argument("--validation-share", type=float, default=0.2)
    files = commands.add_parser("files", help="the public data sets' files")
    files.add_argument("--out", type=Path, required=True)
    files.add_argument("--split", required=True)
    files.add_argument("--source", action="append", required=True, metavar="NAME=FILE")
    files.add_argument("--limit", type=int, help="questions of each source")
    files.add_argument("--seed", type=int, default=0, help="of the order of the questions")
    options = parser.parse_args(arguments)
    try:
        if options.command == "generated":
            if not 2 <= options.companies <= 500:
                raise ValueError(f"--companies {options.companies} is not 2 to 500")
            counts = write_generated(options.out, options.seed, options.validation_share, options.companies)
            print("{}: {} documents, {} questions to train on, {} to validate".format(options.out, *counts))
            return 0
        questions = []
        for source in options.source:
            name, _, path = source.partition("=")
            questions += read_source(name, Path(path), options.limit)
        Random(options.seed).shuffle(questions)
        write_questions(options.out / f"{options.split}.parquet", questions, options.split)
    except (ValueError, OSError) as error:
        print(f"prepare_search_qa: {error}", file=sys.stderr)
        return 2
    print(f"{options.out / options.split}.parquet: {len(questions)} questions")
    return 0


if __name__ == "__main__":
    sys.exit(main())
