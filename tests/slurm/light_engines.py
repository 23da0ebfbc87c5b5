"""Stands for slurm.engines: answers /health on its node's ENGINE_PORT until it is told to end.

It adds the attempt to run.dir/engines_ended then. A file run.dir/engine_crash ends it in error.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

from megatron_opid.launch import request_flag
from slurm.engines import END


class Health(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()


def main() -> int:
    run_dir = Path(dict(argument.partition("=")[::2] for argument in sys.argv[1:])["run.dir"])
    server = HTTPServer(("0.0.0.0", int(os.environ["ENGINE_PORT"])), Health)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    stop = request_flag([END])
    while not stop():
        time.sleep(0.1)
        if (run_dir / "engine_crash").exists():
            return 3
    with (run_dir / "engines_ended").open("a") as file:
        file.write(f"{os.environ.get('SLURM_RESTART_COUNT', '0')}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
