"""The packages that only some tools need: an extra of pyproject.toml that is missing ends the tool with one line."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from envs.base import package_fault

OURS = ("envs", "megatron_opid", "rollout", "tools")


@contextmanager
def imports_of(extra: str, importer: str) -> Iterator[None]:
    """Around the imports that need `extra`; `importer` is the tool's `__name__`.

    Raises:
        SystemExit: one of its packages is not installed, and the tool is what runs; what to type is printed.
        ModuleNotFoundError: the same for a tool that is imported, or a module of ours is not there.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package in OURS or importer != "__main__":
            raise
        print(package_fault(f"tools.{Path(sys.argv[0]).stem}", package, extra), file=sys.stderr)
        raise SystemExit(2) from error
