"""What starts an SGLang 0.5.14 server with our hooks: `python -m rollout.engines.sglang_worker`, with the arguments of
`python -m sglang.launch_server`, which it does the same as.

The processes that SGLang spawns, its schedulers among them, import the main module of the first one: this one.
"""

from __future__ import annotations

import os
import sys

from rollout.engines.sglang_hooks import register


def main() -> None:
    """What sglang/launch_server.py does as the main module."""
    from sglang.launch_server import run_server
    from sglang.srt.plugins import load_plugins
    from sglang.srt.server_args import prepare_server_args
    from sglang.srt.utils import kill_process_tree

    load_plugins()
    server_args = prepare_server_args(sys.argv[1:])
    try:
        run_server(server_args)
    finally:
        kill_process_tree(os.getpid(), include_parent=False)


if __name__ == "__mp_main__":
    register()
if __name__ == "__main__":
    main()
