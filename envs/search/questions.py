"""Questions from Search-R1 style parquet files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from envs.search.generator import Question

# The one column that is read; the others are for trainers that take the prompt from the file.
COLUMN = "env_kwargs"


def question_files(data: str, split: str) -> list[Path]:
    """`<data>/<split>.parquet`, or every parquet file in the folder `<data>/<split>`, by name.

    Raises:
        ValueError: neither exists; the message names both.
    """
    file, folder = Path(data) / f"{split}.parquet", Path(data) / split
    files = [file] if file.is_file() else sorted(folder.glob("*.parquet"))
    if not files:
        splits = ", ".join(_splits(Path(data)))
        raise ValueError(
            f"no questions: neither {file} nor {folder}/*.parquet exists; set env.data (now {data!r})"
            + (f" or the split to one of {splits}" if splits else "")
        )
    return files


def _splits(data: Path) -> list[str]:
    return sorted(
        {path.stem for path in data.glob("*.parquet")} | {path.parent.name for path in data.glob("*/*.parquet")}
    )


def read_questions(data: str, split: str) -> tuple[Question, ...]:
    """All questions of a split, in the order of the files; read once per process as long as the files stay the same.

    Raises:
        ValueError: a file is missing, torn, has another schema or no rows; the message names it.
    """
    files = question_files(data, split)
    return _read(tuple((str(path), path.stat().st_mtime_ns) for path in files))


@lru_cache(maxsize=4)
def _read(files: tuple[tuple[str, int], ...]) -> tuple[Question, ...]:
    questions = tuple(question for path, _ in files for question in _read_file(Path(path)))
    if not questions:
        raise ValueError(f"{', '.join(path for path, _ in files)}: no question inside; make the file again")
    return questions


def _read_file(path: Path) -> Iterable[Question]:
    try:
        rows = pq.read_table(path, columns=[COLUMN]).column(COLUMN).to_pylist()
    except (pa.ArrowException, KeyError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{path} is no Search-R1 parquet file with a column {COLUMN} ({reason})") from error
    for number, row in enumerate(rows):
        try:
            yield _question(row)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{path}, row {number}: {COLUMN} has no question, ground_truth.target, data_source"
            ) from error


def _question(row: Mapping[str, Any]) -> Question:
    targets = row["ground_truth"]["target"]
    answers = (targets,) if isinstance(targets, str) else tuple(str(target) for target in targets)
    if not answers or not isinstance(row["question"], str):
        raise ValueError("empty")
    return Question(row["question"], answers, str(row["data_source"]))


def write_questions(path: Path, questions: Sequence[Question], split: str) -> None:
    """Write a Search-R1 style file, every column of its schema, through a temporary name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    pq.write_table(
        pa.Table.from_pylist([_row(question, split, index) for index, question in enumerate(questions)]), partial
    )
    partial.replace(path)


def _row(question: Question, split: str, index: int) -> dict[str, Any]:
    ground_truth = {"target": list(question.answers)}
    own = {"ground_truth": ground_truth, "question": question.text, "data_source": question.data_source}
    return {
        "data_source": question.data_source,
        "prompt": [
            {"role": "system", "content": "You are a helpful and harmless assistant."},
            {"role": "user", "content": question.text},
        ],
        "ability": "fact-reasoning",
        "reward_model": {"ground_truth": ground_truth, "style": "rule"},
        "extra_info": {
            "index": index,
            "need_tools_kwargs": True,
            "question": question.text,
            "split": split,
            "tools_kwargs": {"search": {"create_kwargs": own}},
        },
        "metadata": "",
        COLUMN: own,
    }
