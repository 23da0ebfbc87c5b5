"""Serves documents over HTTP for the search environment and for other trainers of the Search-R1 kind.

    python -m tools.retrieval_server --index indexes/wiki-18 [--backend bm25|dense|hybrid] [--port 8000]

The index comes from tools/build_index.py. The server listens on 127.0.0.1 unless told otherwise: it knows no passwords.
SIGTERM and Ctrl-C let the requests in work finish. tools/retrieval/app.py describes the interface.
"""

from __future__ import annotations

import argparse
import gc
import os
import sys
from pathlib import Path

from tools.extras import imports_of

with imports_of("search", __name__):
    import uvicorn

    from envs.search.corpus import Corpus
    from tools.retrieval.app import Service, make_app
    from tools.retrieval.backends import open_backend


def main(arguments: list[str] | None = None) -> int:
    """Serve until a signal comes; 2 if the index is not usable."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--index", type=Path, required=True)
    parser.add_argument("--backend", choices=("bm25", "dense", "hybrid"), default="bm25")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--topk", type=int, default=3, help="for requests that name none")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="that search")
    parser.add_argument("--max-batch", type=int, default=32, help="queries that one thread takes at once")
    parser.add_argument(
        "--max-waiting", type=int, default=2048, help="queries in the queue; beyond it the answer is 429"
    )
    parser.add_argument("--device", default="cpu", help="of the encoder, for dense and hybrid")
    parser.add_argument("--shutdown-grace-s", type=int, default=30)
    options = parser.parse_args(arguments)
    faults = [
        f"--{name.replace('_', '-')} {value} must be at least 1"
        for name in ("topk", "threads", "max_batch", "max_waiting")
        if (value := getattr(options, name)) < 1
    ]
    try:
        if faults:
            raise ValueError("; ".join(faults))
        backend, corpus = open_backend(options.backend, options.index, options.device), Corpus.open(options.index)
    except (ValueError, OSError) as error:
        print(f"retrieval_server: {error}", file=sys.stderr)
        return 2
    service = Service(
        backend,
        corpus,
        topk=options.topk,
        num_threads=options.threads,
        max_batch=options.max_batch,
        max_waiting=options.max_waiting,
    )
    print(f"{len(corpus)} documents, {options.backend}, on http://{options.host}:{options.port}/retrieve", flush=True)
    gc.collect()
    gc.freeze()  # a full collection over what the imports left would stop all requests for 0.1 s, every few seconds
    uvicorn.run(
        make_app(service, options.backend, len(corpus)),
        host=options.host,
        port=options.port,
        log_level="warning",
        access_log=False,
        loop="uvloop",
        http="httptools",
        backlog=4096,
        timeout_graceful_shutdown=options.shutdown_grace_s,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
