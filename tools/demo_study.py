"""The demo over seeds and arms, for the README's figure: OPID, GRPO, and OPID with other games' skills as the control.

    python -m tools.demo_study [--dir runs/study] [--seeds 0 1 2] [--out runs/study/demo]

All arms of a seed start from the same cold start and play the same games in the same order. Resumes where it stopped.
Writes OUT.svg (curves, mean and spread over seeds), OUT.html and OUT.json (every number of the table that it prints).
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from megatron_opid.report.compare import parse_arm, write_comparison
from megatron_opid.report.statistics import mean_and_deviation
from tools.demo import ARMS, Demo, evaluate, prepare, train


@dataclass(frozen=True)
class ArmResult:
    """One arm over all seeds: success on the held-out games before and after training, a value per seed."""

    arm: str
    temperature: float
    before: tuple[float, ...]
    after: tuple[float, ...]

    def line(self) -> str:
        gains = [after - before for before, after in zip(self.before, self.after, strict=True)]
        columns = (mean_and_deviation(values) for values in (self.before, self.after, gains))
        return (
            f"| {self.temperature} | {self.arm} | "
            + " | ".join(f"{mean:.1%} ± {deviation:.1%}" for mean, deviation in columns)
            + " |"
        )


def study(root: Path, seeds: list[int]) -> list[ArmResult]:
    """Run what has not been run and read the results of all arms."""
    root.mkdir(parents=True, exist_ok=True)
    for arm in ARMS:
        for seed in seeds:
            demo = Demo(root, seed, arm)
            prepare(demo)
            train(demo)
    results = []
    for arm in ARMS:
        rates = [evaluate(Demo(root, seed, arm)) for seed in seeds]
        for temperature in rates[0]:
            before, after = zip(*(rate[temperature] for rate in rates), strict=True)
            results.append(ArmResult(arm, temperature, before, after))
    return sorted(results, key=lambda result: result.temperature)


def main(arguments: list[str] | None = None) -> int:
    """Run the study, write the figure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dir", type=Path, default=Path("runs/study"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("runs/study/demo"))
    options = parser.parse_args(arguments)
    results = study(options.dir, options.seeds)
    arms = [
        parse_arm(f"{arm}=" + ",".join(str(Demo(options.dir, seed, arm).training) for seed in options.seeds))
        for arm in ARMS
    ]
    options.out.parent.mkdir(parents=True, exist_ok=True)
    for suffix in (".svg", ".html"):
        write_comparison(arms, options.out.with_suffix(suffix))
    options.out.with_suffix(".json").write_text(json.dumps([asdict(result) for result in results], indent=1) + "\n")
    print("\n| temperature | arm | before | after | gain |\n| --- | --- | --- | --- | --- |")
    print("\n".join(result.line() for result in results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
