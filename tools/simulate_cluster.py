"""Where a training step waits on 8 to 1,024 GPUs: a simulation from measured and planned times.

    python -m tools.simulate_cluster experiment=alfworld_qwen3_8b_2nodes --plot docs/cluster.svg [--json FILE]

Every GPU count gets the same share of episodes a GPU, half of the GPUs train and half sample. Turn, training and model
size come from tools.plan, the rollout worker's costs from docs/bench/rollout_worker.json, the rest from the options.
Arrangements: one rollout process for all, one a node, one a rank (as the trainer does).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from megatron_opid.config import Config, ConfigError, load
from megatron_opid.weights.hf_config import HfConfigError
from tools.extras import imports_of
from tools.plan.constants import GPUS_PER_NODE, constant, gpu
from tools.plan.plan import Plan, make_plan
from tools.plan.rollout import Engines
from tools.plan.shape import find_hf_config
from tools.plan.workload import Workload

with imports_of("dev", __name__):
    from tools.cluster_model import Cluster, Costs, StepTime, simulate_step

WORKER_BENCH = Path(__file__).parent.parent / "docs" / "bench" / "rollout_worker.json"
GPU_COUNTS = (8, 16, 32, 64, 128, 256, 512, 1024)
ARRANGEMENTS = {"one process": lambda ranks: 1, "one a node": lambda ranks: max(1, ranks // 8), "one a rank": int}


def main(arguments: Sequence[str] | None = None) -> int:
    """Simulate, print the table, write JSON and plot."""
    options = _parse(arguments)
    try:
        plan = _plan(load(options.overrides))
        costs = _costs(plan, options)
    except (ConfigError, HfConfigError) as error:
        print(error, file=sys.stderr)
        return 2
    rows = []
    print(f"{'GPUs':>5} {'rollout':>12} {'episodes':>8} {'step s':>8} {'play':>7} {'ideal':>7} {'analyzer':>8} "
          f"{'exchange':>8} {'train':>7} {'sync':>6} {'CPU':>5}  limit")  # fmt: skip
    for name, num_workers in ARRANGEMENTS.items():
        for num_gpus in options.gpus:
            cluster = _cluster(plan, options, num_gpus, num_workers(num_gpus // 2))
            time = simulate_step(cluster, costs)
            rows.append(asdict(cluster) | asdict(time) | _derived(time) | {"arrangement": name})
            print(_line(name, cluster, time))
    if options.json:
        report = {"overrides": options.overrides, "costs": asdict(costs), "steps": rows}
        options.json.write_text(json.dumps(report, indent=1) + "\n")
    if options.plot:
        plot(rows, options.plot)
    return 0


def plot(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Stacked seconds of a step over GPUs, one panel for each arrangement."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    matplotlib.rcParams["svg.hashsalt"] = "cluster"
    parts = ("trainer_s", "ideal_play_s", "rollout process", "analyzer", "exchange of records", "weight sync")
    labels = ("training", "playing", *parts[2:])
    figure, panels = pyplot.subplots(1, len(ARRANGEMENTS), figsize=(12, 4), sharey=True)
    for panel, name in zip(panels, ARRANGEMENTS, strict=True):
        chosen = [row for row in rows if row["arrangement"] == name]
        heights = [[row[part] if part in row else row["waste_s"][part] for row in chosen] for part in parts]
        panel.stackplot([row["num_gpus"] for row in chosen], heights, labels=labels)
        panel.set_xscale("log", base=2)
        panel.set_title(f"rollout: {name}")
        panel.set_xlabel("GPUs, half of them for engines")
    panels[0].set_ylabel("seconds of a step")
    panels[0].legend(loc="upper left", fontsize=8)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


def _plan(config: Config) -> Plan:
    """One node of trainers and one of engines: what every eight GPUs of either kind do."""
    engine = config.engine
    engines = Engines(
        GPUS_PER_NODE // engine.tensor_parallel,
        engine.tensor_parallel,
        is_local=False,
        is_colocated=False,
        max_sequences=engine.max_batch_sequences,
        memory_share=engine.gpu_memory_utilization,
    )
    hf_config = find_hf_config(config.actor.model)
    return make_plan(config, hf_config, GPUS_PER_NODE, gpu("h200"), Workload.of(config), engines)


def _costs(plan: Plan, options: argparse.Namespace) -> Costs:
    versions = {row["version"]: row for row in json.loads(WORKER_BENCH.read_text())["summary"]}
    if options.worker not in versions:
        raise ConfigError([f"--worker {options.worker} was not measured; {WORKER_BENCH} has {', '.join(versions)}"])
    measured = versions[options.worker]  # the last setting of a version: environments in processes, as in the recipes
    workload, rollout = plan.workload, plan.rollout
    # The plan's rollout is max_steps turns of a shrinking crowd; the mean turn is what an episode sees.
    turn_s = (rollout.prefill_s + rollout.decode_s) / workload.max_steps
    return Costs(
        worker_step_s=measured["cpu_ms_per_step"] / 1e3,
        record_encode_s=measured["record_encode_ms_per_step"] / 1e3,
        record_decode_s=measured["record_decode_ms_per_step"] / 1e3,
        record_bytes=measured["record_bytes_per_step"],
        environment_step_s=options.environment_ms / 1e3,
        turn_s=turn_s,
        turn_sigma=options.turn_sigma,
        analysis_s=options.analysis_seconds,
        analysis_sigma=options.turn_sigma,
        plain_score_s=plan.plain_score_s,
        trainer_s=plan.score.seconds + plan.reference.seconds + plan.update.seconds,
        model_bytes=2 * plan.sizes.parameters,
        host_bytes_per_s=options.host_gb_per_s * 1e9,
        nic_bytes_per_s=constant("nic_bytes_per_s"),
        disk_write_bytes_per_s=constant("disk_bytes_per_s"),
        disk_read_bytes_per_s=constant("disk_bytes_per_s"),
        disk_total_bytes_per_s=options.disk_gb_per_s * 1e9,
    )


def _cluster(plan: Plan, options: argparse.Namespace, num_gpus: int, num_workers: int) -> Cluster:
    workload, half = plan.workload, max(1, num_gpus // 2)
    return Cluster(
        num_gpus=num_gpus,
        num_engines=max(1, half // plan.engines.tensor),
        num_episodes=round(workload.num_episodes * half / GPUS_PER_NODE),
        max_steps=workload.max_steps,
        mean_steps=workload.mean_steps,
        num_workers=num_workers,
        environment_processes=max(1, plan.config.env.num_processes),
        analyzer_concurrency=options.endpoint_concurrency if workload.num_analyses else 0,
        max_concurrent_episodes=10**9,
        sync=options.sync,
    )


def _derived(time: StepTime) -> dict[str, Any]:
    return {"total_s": time.total_s, "waste_s": time.waste_s, "limit": time.limit}


def _line(name: str, cluster: Cluster, time: StepTime) -> str:
    return (
        f"{cluster.num_gpus:>5} {name:>12} {cluster.num_episodes:>8,} {time.total_s:>8.1f} {time.play_s:>7.1f} "
        f"{time.ideal_play_s:>7.1f} {time.analyzer_s:>8.1f} {time.exchange_s:>8.1f} {time.trainer_s:>7.1f} "
        f"{time.sync_s:>6.1f} {time.worker_busy:>5.0%}  {time.limit}"
    )


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", help="experiment=NAME and overrides of the configuration")
    parser.add_argument("--gpus", type=int, nargs="+", default=GPU_COUNTS)
    parser.add_argument("--worker", default="now", help="the version in docs/bench/rollout_worker.json")
    parser.add_argument("--sync", choices=("disk", "nccl", "ipc"), default="disk")
    parser.add_argument(
        "--endpoint-concurrency", type=int, default=1024, help="analyses that the endpoint serves at once"
    )
    parser.add_argument("--analysis-seconds", type=float, default=constant("analysis_s"))
    parser.add_argument("--turn-sigma", type=float, default=0.5, help="of the logarithm of a turn's seconds")
    parser.add_argument("--environment-ms", type=float, default=1.0, help="one step in an environment process")
    parser.add_argument("--host-gb-per-s", type=float, default=1.0, help="gloo between hosts, one rank")
    parser.add_argument("--disk-gb-per-s", type=float, default=20.0, help="the shared file system, all readers")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path, help="an .svg or .png file")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
