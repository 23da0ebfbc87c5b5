"""Stands for slurm.engines: answers /health on its node's ENGINE_PORT; a file run.dir/engine_crash ends it in error."""

from __future__ import annotations

import os
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path


class Health(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()


def main() -> int:
    run_dir = Path(dict(argument.partition("=")[::2] for argument in sys.argv[1:])["run.dir"])
    server = HTTPServer(("0.0.0.0", int(os.environ["ENGINE_PORT"])), Health)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    while not (run_dir / "engine_crash").exists():
        time.sleep(0.1)
    return 3


if __name__ == "__main__":
    sys.exit(main())
