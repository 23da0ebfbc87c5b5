"""Our start of an SGLang server: its hooks are registered in the processes that the server spawns, and there alone.

SGLang itself does not run here: a package with the modules that are used, and its way of spawning, stands for it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

MODULES = {
    "sglang/__init__.py": "",
    "sglang/srt/__init__.py": "",
    "sglang/srt/plugins/__init__.py": """
from sglang.srt.plugins.hook_registry import HookRegistry

def load_plugins():
    print("applied:", *HookRegistry.targets, flush=True)
""",
    "sglang/srt/plugins/hook_registry.py": """
from enum import Enum

HookType = Enum("HookType", ["AROUND"])

class HookRegistry:
    targets = []

    @classmethod
    def register(cls, target, hook, hook_type):
        cls.targets.append(f"{target.rpartition('.')[2]} {hook.__module__} {hook_type.name}")
""",
    "sglang/srt/server_args.py": "prepare_server_args = list",
    "sglang/srt/utils.py": """
def kill_process_tree(pid, include_parent):
    print("killed", flush=True)
""",
    "sglang/scheduler.py": """
from sglang.srt.plugins import load_plugins

def run_scheduler_process(arguments):
    load_plugins()
    print("scheduler:", *arguments, flush=True)
""",
    "sglang/launch_server.py": """
import multiprocessing
from sglang.scheduler import run_scheduler_process

def run_server(server_args):
    multiprocessing.set_start_method("spawn", force=True)
    scheduler = multiprocessing.Process(target=run_scheduler_process, args=(server_args,))
    scheduler.start()
    scheduler.join()

if __name__ == "__mp_main__":
    print("spawned from SGLang's own module", flush=True)
""",
}


def test_a_scheduler_that_is_spawned_has_the_hooks(tmp_path: Path):
    for name, text in MODULES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    root = Path(__file__).parents[3]
    done = subprocess.run(
        [sys.executable, "-m", "rollout.engines.sglang_worker", "--port", "1"],
        env=os.environ | {"PYTHONPATH": f"{tmp_path}:{root}"},
        cwd=root,
        capture_output=True,
        text=True,
        check=True,
    )
    hook = "rollout.engines.sglang_hooks AROUND"
    assert done.stdout.splitlines() == [
        "applied:",
        f"applied: update_weights_from_distributed {hook} check_weights {hook}",
        "scheduler: --port 1",
        "killed",
    ]
