"""The main job on this machine: games, a small model, its cold start, OPID, and the export played by transformers.

    python -m tools.demo [--dir runs/demo] [--seed 0] [--arm opid|grpo|shuffled]

Every stage is a command that a user could type; it is printed, and skipped when its result is there already, so a
killed demo goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from megatron_opid.config import load

# Nineteen object classes: every task type can be drawn from them, and a small model meets each often enough.
OBJECTS = (
    *("Apple", "Potato", "Tomato", "Egg", "Mug", "Cup", "Bowl", "Plate", "SoapBar", "Cloth", "ToiletPaper"),
    *("Book", "CD", "CellPhone", "Pen", "KeyChain", "RemoteControl", "Laptop", "DeskLamp"),
)
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
    print(f"\n=== {title}\n$ python {' '.join(command)}", flush=True)
    if result is not None and result.exists():
        print(f"{result} is there already", flush=True)
        return
    started_s = time.monotonic()
    finished = subprocess.run([sys.executable, "-W", "ignore", *command], check=False, env=_quiet_environment())
    if finished.returncode:
        sys.exit(finished.returncode)
    print(f"[{time.monotonic() - started_s:.0f} s]", flush=True)


def prepare(demo: Demo) -> None:
    """Games, demonstrations, the model with random weights, and its cold start."""
    run_stage(
        "1 of 6: generate household games in ALFWorld's format, each proven solvable",
        "tools.make_alfworld_games",
        ["--out", demo.games, "--seed", 0, "--train", 1500, "--difficulty", 0, "--objects", *OBJECTS],
        demo.games / "json_2.1.1",
    )
    run_stage(
        "2 of 6: demonstrations of an expert that errs, with hindsight skills",
        "tools.make_alfworld_demonstrations",
        ["--data", demo.games, "--out", demo.demonstrations, "--seed", demo.seed],
        demo.demonstrations,
    )
    run_stage(
        "3 of 6: a small Qwen3 with random weights and its own tokenizer",
        "tools.make_tiny_model",
        ["--texts", demo.demonstrations, "--out", demo.initial_model, "--seed", demo.seed],
        demo.initial_model,
    )
    run_stage(
        "4 of 6: cold start, supervised, on two Megatron ranks",
        "megatron_opid.sft",
        [
            "experiment=demo_sft",
            f"actor.model={demo.initial_model}",
            f"env.data={demo.games}",
            f"sft.demonstrations={demo.demonstrations}",
            f"run.dir={demo.cold_start}",
            f"run.seed={demo.seed}",
        ],
        demo.cold_start / "hf",
    )


def train(demo: Demo) -> None:
    """Reinforcement learning of one arm from the cold start."""
    run_stage(
        f"5 of 6: train ({demo.arm}) on two Megatron ranks",
        "megatron_opid.train",
        [
            "experiment=demo",
            f"actor.model={demo.cold_start / 'hf'}",
            f"env.data={demo.games}",
            f"run.dir={demo.training}",
            f"run.seed={demo.seed}",
            *ARMS[demo.arm],
        ],
        demo.training / "hf",
    )


def play_export(demo: Demo) -> None:
    """The trained model, alone with transformers, in a game of a room that training never saw."""
    config = load(["experiment=demo"])
    run_stage(
        "6 of 6: the export plays a game in an unseen room, by plain transformers",
        "tools.play",
        [
            demo.training / "hf",
            "--data",
            demo.games,
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
    rollout = load(["experiment=demo"]).rollout
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
            "experiment=demo",
            f"actor.model={run / 'hf'}",
            f"env.data={demo.games}",
            f"rollout.validation_temperature={temperature}",
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
    parser.add_argument("--dir", type=Path, default=Path("runs/demo"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--arm", choices=ARMS, default="opid")
    options = parser.parse_args(arguments)
    demo = Demo(options.dir, options.seed, options.arm)
    demo.root.mkdir(parents=True, exist_ok=True)
    started_s = time.monotonic()
    prepare(demo)
    train(demo)
    rates = evaluate(demo)
    play_export(demo)
    print("\nsuccess on 128 held-out games     before   after")
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
