"""The packages that only some tools need: where an extra of pyproject.toml is missing, a line says what to type."""

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
        SystemExit: one of its packages is not installed, and the tool is what runs; what to type is printed. Where
            help was asked for, what the tool does stands before it: a reader may not want to install anything.
        ModuleNotFoundError: the same for a tool that is imported, or a module of ours is not there.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package in OURS or importer != "__main__":
            raise
        fault = package_fault(f"tools.{Path(sys.argv[0]).stem}", package, extra)
        if {"-h", "--help"}.intersection(sys.argv[1:]):
            print(f"{sys.modules['__main__'].__doc__}\n{fault}; then --help lists every option")
            raise SystemExit(0) from error
        print(fault, file=sys.stderr)
        raise SystemExit(2) from error
