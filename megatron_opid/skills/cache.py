"""Answers of an analyzer model on disk: a repeated or resumed run does not pay twice."""

from __future__ import annotations

import hashlib
import json
import logging
import tempfile
from collections.abc import Sequence
from pathlib import Path

logger = logging.getLogger(__name__)


class ReplyCache:
    """One JSON file per (model, messages); written atomically, so that processes may share a directory.

    Plain JSON rather than a database of pickles: a cache directory may come from another machine.
    """

    def __init__(self, directory: Path):
        directory.mkdir(parents=True, exist_ok=True)
        self._directory = directory

    def get(self, model: str, messages: Sequence[dict[str, str]]) -> str | None:
        """The stored answer, or None. A damaged file counts as absent, with a warning."""
        path = self._path(model, messages)
        try:
            reply = json.loads(path.read_text(encoding="utf-8"))["reply"]
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError) as error:
            logger.warning("ignoring damaged cache file %s: %s", path, error)
            return None
        return reply if isinstance(reply, str) else None

    def put(self, model: str, messages: Sequence[dict[str, str]], reply: str) -> str:
        """Store an answer, unless one is there already; returns the one that counts.

        Members of a group may be the same episode, asked about at the same time: a resumed run finds one answer.
        """
        path = self._path(model, messages)
        with tempfile.NamedTemporaryFile("w", dir=self._directory, suffix=".tmp", delete=False) as file:
            json.dump({"model": model, "reply": reply}, file)
        first = self.get(model, messages)
        if first is None:
            Path(file.name).replace(path)
            return reply
        Path(file.name).unlink()
        return first

    def _path(self, model: str, messages: Sequence[dict[str, str]]) -> Path:
        key = hashlib.sha256(json.dumps([model, list(messages)], sort_keys=True).encode()).hexdigest()
        return self._directory / f"{key}.json"
