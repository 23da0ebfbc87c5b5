"""The main job on this machine: games, a small model, its cold start, OPID, and the export played by transformers.

    python -m tools.demo [--env alfworld] [--dir runs/demo] [--seed 0] [--arm opid|grpo|shuffled]

Every stage is a command that a user could type; it is printed, and skipped when its result is there already, so a
killed demo goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from megatron_opid.config import load
from megatron_opid.preflight import device_faults
from tools.demo_environments import ENVIRONMENTS, Command, DemoEnvironment

ARMS = {
    "opid": [],
    "grpo": ["algorithm.name=grpo", "skills.analyzer=none"],
    "shuffled": ["skills.shuffle=true"],
}


@dataclass(frozen=True)
class Demo:
    """Where the demo's files lie. Games, demonstrations and cold start are shared by the arms of a seed."""

    root: Path
    seed: int
    arm: str
    env: str = "alfworld"

    @property
    def environment(self) -> DemoEnvironment:
        return ENVIRONMENTS[self.env]

    @property
    def games(self) -> Path:
        return self.root / "games"

    @property
    def demonstrations(self) -> Path:
        return self.root / f"demonstrations_{self.seed}.jsonl"

    @property
    def initial_model(self) -> Path:
        return self.root / f"init_{self.seed}"

    @property
    def cold_start(self) -> Path:
        return self.root / f"sft_{self.seed}"

    @property
    def training(self) -> Path:
        return self.root / f"{self.arm}_{self.seed}"


def run_stage(title: str, module: str, arguments: Sequence[object], result: Path | None = None) -> None:
    """Run `python -m module arguments` unless its `result` exists.

    Raises:
        SystemExit: the command failed; the exit code is its own.
    """
    command = ["-m", module, *map(str, arguments)]
    print(f"\n=== {title}\n$ python {shlex.join(command)}", flush=True)
    if result is not None and result.exists():
        print(f"{result} is there already", flush=True)
        return
    started_s = time.monotonic()
    if code := _wait(subprocess.Popen([sys.executable, "-W", "ignore", *command], env=_quiet_environment())):
        sys.exit(code)
    print(f"[{time.monotonic() - started_s:.0f} s]", flush=True)


def _wait(stage: subprocess.Popen) -> int:
    """Its exit code. Ctrl-C reaches the stage as well, which ends as it sees fit: training after a step."""
    while True:
        try:
            return stage.wait()
        except KeyboardInterrupt:
            continue


def run_command(number: str, command: Command, places: dict[str, object], result: Path) -> None:
    """Run a command of the environment's table, with the demo's own places put in."""
    arguments = [argument.format_map(places) for argument in command.arguments]
    run_stage(f"{number}: {command.title}", command.module, arguments, result)


def data_override(demo: Demo) -> list[str]:
    """Where the games lie, as a configuration override; none for an environment that brings them along."""
    return [f"env.data={demo.games}"] if demo.environment.games is not None else []


def prepare(demo: Demo) -> None:
    """Games, demonstrations, the model with random weights, and its cold start."""
    environment = demo.environment
    places = {"games": demo.games, "seed": demo.seed, "demonstrations": demo.demonstrations}
    if environment.games is not None:
        run_command("1 of 6", environment.games, places, demo.games / environment.games_result)
    run_command("2 of 6", environment.demonstrations, places, demo.demonstrations)
    run_stage(
        "3 of 6: a small Qwen3 with random weights and its own tokenizer",
        "tools.make_tiny_model",
        ["--texts", demo.demonstrations, "--out", demo.initial_model, "--seed", demo.seed, *environment.model],
        demo.initial_model,
    )
    run_stage(
        "4 of 6: cold start, supervised, on Megatron",
        "megatron_opid.sft",
        [
            f"experiment={environment.experiment}_sft",
            f"actor.model={demo.initial_model}",
            *data_override(demo),
            f"sft.demonstrations={demo.demonstrations}",
            f"run.dir={demo.cold_start}",
            f"run.seed={demo.seed}",
        ],
        demo.cold_start / "hf",
    )


def train(demo: Demo) -> None:
    """Reinforcement learning of one arm from the cold start."""
    run_stage(
        f"5 of 6: train ({demo.arm}) on Megatron",
        "megatron_opid.train",
        [
            f"experiment={demo.environment.experiment}",
            f"actor.model={demo.cold_start / 'hf'}",
            *data_override(demo),
            f"run.dir={demo.training}",
            f"run.seed={demo.seed}",
            *ARMS[demo.arm],
        ],
        demo.training / "hf",
    )


def play_export(demo: Demo) -> None:
    """The trained model, alone with transformers, in a game that training never saw."""
    config = load([f"experiment={demo.environment.experiment}", *data_override(demo)])
    run_stage(
        f"6 of 6: the export plays {demo.environment.unseen_game}, by plain transformers",
        "tools.play",
        [
            demo.training / "hf",
            "--env",
            config.env.name,
            "--options",
            json.dumps(config.env.package_options),
            "--split",
            demo.environment.unseen_split or config.env.validation_split,
            "--style",
            config.env.prompt_style,
            "--history",
            config.env.history_length,
            "--max-steps",
            config.env.max_steps,
            "--max-tokens",
            config.rollout.max_response_tokens,
        ],
    )


def evaluate(demo: Demo) -> dict[float, tuple[float, float]]:
    """Success on the held-out games before and after training, by sampling temperature.

    At the validation temperature training has measured it; at the training temperature both models play here.
    """
    rollout = load([f"experiment={demo.environment.experiment}"]).rollout
    lines = [json.loads(line) for line in (demo.training / "metrics.jsonl").read_text().splitlines()]
    validated = [line["validation/success_rate"] for line in lines if "validation/success_rate" in line]
    as_trained = [_success_as_trained(demo, run, rollout.temperature) for run in (demo.cold_start, demo.training)]
    return {
        rollout.validation_temperature: (validated[0], validated[-1]),
        rollout.temperature: (as_trained[0], as_trained[1]),
    }


def _success_as_trained(demo: Demo, run: Path, temperature: float) -> float:
    result = run / "evaluation_as_trained.json"
    run_stage(
        f"{run.name} on the held-out games, sampled as in training",
        "megatron_opid.evaluate",
        [
            f"experiment={demo.environment.experiment}",
            f"actor.model={run / 'hf'}",
            *data_override(demo),
            f"rollout.validation_temperature={temperature}",
            "engine.name=local",  # two models of this size are played before a server has started
            "--games",
            load([f"experiment={demo.environment.experiment}"]).rollout.validation_tasks,
            "--json",
            result,
        ],
        result,
    )
    rate = json.loads(result.read_text())["rates"]["all"]
    return rate["num_won"] / rate["num_episodes"]


def main(arguments: list[str] | None = None) -> int:
    """Run all stages; the exit code of the first that fails, else 0."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", choices=ENVIRONMENTS, default="alfworld")
    parser.add_argument("--dir", type=Path, help="default: runs/demo, of other environments runs/demo_ENV")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--arm", choices=ARMS, default="opid")
    options = parser.parse_args(arguments)
    root = options.dir or Path("runs") / ENVIRONMENTS[options.env].experiment
    demo = Demo(root, options.seed, options.arm, options.env)
    config = load([f"experiment={demo.environment.experiment}"])
    if faults := device_faults(config, config.run.num_processes):
        print(f"tools.demo: {'; '.join(faults)}", file=sys.stderr)
        return 2
    demo.root.mkdir(parents=True, exist_ok=True)
    started_s = time.monotonic()
    prepare(demo)
    train(demo)
    rates = evaluate(demo)
    play_export(demo)
    num_games = config.rollout.validation_tasks
    print(f"\nsuccess on {num_games} held-out games     before   after")
    for temperature, (before, after) in rates.items():
        print(f"sampled at temperature {temperature:<10} {before:6.1%}  {after:6.1%}")
    print(f"report: {demo.training / 'report.html'}   Hugging Face export: {demo.training / 'hf'}")
    print(f"the demo took {(time.monotonic() - started_s) / 60:.1f} minutes")
    return 0


def _quiet_environment() -> dict[str, str]:
    return os.environ | {
        "TOKENIZERS_PARALLELISM": "false",
        "TRANSFORMERS_VERBOSITY": "error",
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }


if __name__ == "__main__":
    sys.exit(main())
