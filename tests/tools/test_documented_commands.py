"""The commands of tools in the documentation have the options that their tools ask for."""

from __future__ import annotations

import argparse
import importlib
import re
import shlex
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
# To the end of the code, of the line, or to what stands for anything.
COMMAND = re.compile(r"python -m (tools\.\w+)([^`#\n]*)")


class Parsed(Exception):
    """The options are there; nothing is to be done with them."""


def commands() -> list[tuple[str, str]]:
    """Of tools that parse options (tools.plan, a package, takes a configuration's overrides)."""
    found = {match.groups() for page in PAGES for match in COMMAND.finditer(page.read_text().replace("\\\n", " "))}
    files = {tool: ROOT / f"{tool.replace('.', '/')}.py" for tool, _ in found}
    parsed = {tool for tool, file in files.items() if file.exists() and "parse_args(" in file.read_text()}
    return sorted((tool, rest.strip()) for tool, rest in found if tool in parsed and "..." not in rest)


@pytest.mark.parametrize("tool, rest", commands())
def test_a_documented_command_is_one(tool: str, rest: str, monkeypatch: pytest.MonkeyPatch):
    parse_args = argparse.ArgumentParser.parse_args

    def parse(parser: argparse.ArgumentParser, *arguments: object) -> argparse.Namespace:
        parse_args(parser, *arguments)
        raise Parsed

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse)
    monkeypatch.setattr(sys, "argv", [tool, *shlex.split(rest)])
    with pytest.raises(Parsed):
        importlib.import_module(tool).main()
