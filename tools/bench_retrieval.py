"""Measures BM25 retrieval on synthetic passages: index size and build time, search, and the HTTP server under load.

    python -m tools.bench_retrieval --work /tmp/bench_retrieval [--passages 1000000] [--stage build|all]

Words follow Zipf's law; two fifths of a passage come from its own dozen topic words, so words repeat within a passage
as they do in real text. A query has 2 or 3 topic words of a random passage and 2 to 5 of its other words. The
load comes from a second process on the same machine: requests on 64 kept connections, first at fixed times (an open
loop at --rate), then each as soon as its connection is free. Raw results go to docs/bench/retrieval.json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
from numpy.typing import NDArray

VOCABULARY = 300_000
TOPIC_WORDS = 12
PASSAGES_PER_CHUNK = 20_000
CONSONANTS, VOWELS = "bcdfghklmnprtvz", "aeiou"


def word(rank: int) -> str:
    """A pronounceable word for each rank, shorter for frequent words."""
    text, rest = "", rank + len(CONSONANTS)
    while rest:
        rest, consonant = divmod(rest, len(CONSONANTS))
        rest, vowel = divmod(rest, len(VOWELS))
        text += CONSONANTS[consonant] + VOWELS[vowel]
    return text + "k"  # no suffix that a stemmer takes off


def draw_passages(seed: int, count: int) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """(topic words, all words) of each passage, as ranks; the same for the same seed."""
    weights = 1 / (np.arange(VOCABULARY) + 2.7)  # Mandelbrot's form of Zipf's law
    cumulative = np.cumsum(weights / weights.sum())
    for chunk in range(-(-count // PASSAGES_PER_CHUNK)):
        rng = np.random.default_rng((seed, chunk))
        for _ in range(min(PASSAGES_PER_CHUNK, count - chunk * PASSAGES_PER_CHUNK)):
            topic = rng.integers(200, VOCABULARY, TOPIC_WORDS) * rng.random(TOPIC_WORDS)
            topic = topic.astype(np.int64)
            length = int(rng.integers(80, 121))
            words = np.searchsorted(cumulative, rng.random(length))
            is_topic = rng.random(length) < 0.4
            words[is_topic] = rng.choice(topic, int(is_topic.sum()))
            yield topic, words


def write_corpus(path: Path, num_passages: int, seed: int) -> None:
    """The passages in the wiki-18 format."""
    words = [word(rank) for rank in range(VOCABULARY)]
    partial = path.with_name(path.name + ".partial")
    with partial.open("w") as file:
        for number, (topic, ranks) in enumerate(draw_passages(seed, num_passages)):
            text = " ".join([words[rank] for rank in ranks.tolist()])
            title = " ".join(words[rank] for rank in topic[:2])
            file.write(f'{{"id": "{number}", "contents": "\\"{title}\\"\\n{text}."}}\n')
    partial.rename(path)


def draw_queries(num_passages: int, seed: int, count: int) -> list[str]:
    """Queries of 4 to 8 words from passages of the corpus."""
    rng = np.random.default_rng((seed, 1 << 20))
    queries = []
    for topic, ranks in draw_passages(seed, min(num_passages, count)):
        some = [*rng.choice(topic, rng.integers(2, 4), False), *rng.choice(ranks, rng.integers(2, 6), False)]
        queries.append(" ".join(word(int(rank)) for rank in some))
    return [queries[index] for index in rng.permutation(len(queries))]


def build(work: Path, num_passages: int, seed: int) -> dict[str, float]:
    """Corpus and index, unless they are there; what the build took."""
    corpus, index, record = work / "corpus.jsonl", work / "index", work / "build.json"
    if not corpus.exists():
        write_corpus(corpus, num_passages, seed)
    if not record.exists():
        started_s, started_cpu_s = time.perf_counter(), os.times()
        subprocess.run([sys.executable, "-m", "tools.build_index", "--corpus", corpus, "--out", index], check=True)
        cpu = os.times()
        size = sum(path.stat().st_size for path in index.rglob("*") if path.is_file())
        values = {
            "wall_s": time.perf_counter() - started_s,
            "cpu_s": cpu.children_user + cpu.children_system - started_cpu_s.children_user,
            "index_bytes": size,
            "corpus_bytes": corpus.stat().st_size,
        }
        record.write_text(json.dumps(values))
    return json.loads(record.read_text())


def quantiles(seconds: list[float]) -> dict[str, float]:
    """Milliseconds."""
    values = np.percentile(np.array(seconds) * 1000, [50, 90, 99, 100])
    return dict(zip(("p50_ms", "p90_ms", "p99_ms", "max_ms"), np.round(values, 3).tolist(), strict=True)) | {
        "mean_ms": round(float(np.mean(seconds)) * 1000, 3)
    }


def measure_search(work: Path, queries: list[str], count: int) -> dict[str, float]:
    """One thread, one query after the other, in this process."""
    from envs.bm25 import Index

    index = Index.open(work / "index" / "bm25")
    for query in queries[:200]:
        index.search(query, count)
    seconds = []
    for query in queries[200:]:
        started_s = time.perf_counter()
        index.search(query, count)
        seconds.append(time.perf_counter() - started_s)
    return quantiles(seconds)


def measure_server(work: Path, queries: list[str], rate: float, seconds: float, port: int) -> dict[str, object]:
    """The server in one process, the load in another."""
    from tools.retrieval.load import run_load, wait_until_healthy

    server = subprocess.Popen(
        [sys.executable, "-m", "tools.retrieval_server", "--index", work / "index", "--port", str(port)]
    )
    try:
        wait_until_healthy(port, timeout_s=120)
        run_load(port, queries[:2000], rate=None, duration_s=3)  # pages and caches
        results = {
            name: {"rate": wanted, **_measure_load(server.pid, port, queries, wanted, seconds)}
            for name, wanted in (("open_loop", rate), ("closed_loop", None))
        }
    finally:
        server.terminate()
        server.wait()
    return results


def _measure_load(server: int, port: int, queries: list[str], rate: float | None, seconds: float) -> dict[str, object]:
    """A load, with the CPU time that either side spent on a request: it tells what other work on the machine did."""
    from tools.retrieval.load import run_load

    processes = {"server": psutil.Process(server), "client": psutil.Process()}
    before_s = {name: _cpu_s(process) for name, process in processes.items()}
    load = run_load(port, queries, rate=rate, duration_s=seconds)
    spent_ms = {name: 1000 * (_cpu_s(process) - before_s[name]) for name, process in processes.items()}
    cpu = {f"{name}_cpu_ms_per_request": round(ms / len(load.latencies_s), 3) for name, ms in spent_ms.items()}
    return {**_summary(load), **cpu, "load_average": round(os.getloadavg()[0], 1)}


def _cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system


def _summary(load: object) -> dict[str, object]:
    return {
        "requests_per_s": round(len(load.latencies_s) / load.duration_s, 1),
        "num_requests": len(load.latencies_s),
        "statuses": load.statuses,
        **quantiles(load.latencies_s),
    }


def main(arguments: list[str] | None = None) -> int:
    """Build, measure, write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--passages", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rate", type=float, default=500.0, help="requests a second")
    parser.add_argument("--seconds", type=float, default=30.0, help="of each load")
    parser.add_argument("--port", type=int, default=18299)
    parser.add_argument("--stage", choices=("build", "all"), default="all")
    parser.add_argument("--out", type=Path, default=Path("docs/bench/retrieval.json"))
    options = parser.parse_args(arguments)
    options.work.mkdir(parents=True, exist_ok=True)
    results: dict[str, object] = {
        "passages": options.passages,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, load average before {os.getloadavg()[0]:.1f}",
        "build": build(options.work, options.passages, options.seed),
    }
    if options.stage == "build":
        return 0
    queries = draw_queries(options.passages, options.seed, 20_000)
    results["search_top_3"] = measure_search(options.work, queries[:5000], 3)
    results["search_top_50"] = measure_search(options.work, queries[:5000], 50)
    results["server"] = measure_server(options.work, queries, options.rate, options.seconds, options.port)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(results, indent=1) + "\n")
    print(json.dumps(results, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
