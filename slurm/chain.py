"""Submits a whole experiment: cold start, training, conversion, evaluation, each after the one before has succeeded.

    python -m slurm.chain experiment=NAME run.dir=runs/a nodes=4 [sft.demonstrations=FILE sft_experiment=NAME]
        [time=12:00:00] [--print] [overrides]

Everything lies below run.dir: sft/, train/, hf/ (the trained policy), evaluation.json. Without sft.demonstrations there
is no cold start, and training starts from actor.model; sft_experiment=NAME, as alfworld_qwen3_1_7b_sft, gives it an
optimizer and a number of steps of its own, which are training's otherwise. The jobs are submitted at once, unless
--print asks for the commands only. A job that is preempted, or runs out of time, requeues itself; the next ones wait
until it is complete. Where one fails, Slurm cancels those after it.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from megatron_opid.config import Config, ConfigError, load
from megatron_opid.launch import EXIT_BAD_INPUT
from slurm.launch import SubmissionError, command, components, job_faults, service_faults, submit
from slurm.request import Request, parse, size_faults
from slurm.site import Site, read_site


@dataclass(frozen=True)
class Stage:
    """One job of the chain, and the arguments of its module."""

    request: Request
    arguments: tuple[str, ...]


def stages(request: Request, arguments: Sequence[str], config: Config, sft_experiment: str) -> list[Stage]:
    """The jobs in order; `arguments` are the overrides that all of them share."""
    root = Path(config.run.dir)
    name = request.name or root.name
    initial, found = config.actor.model, []
    if config.sft.demonstrations:
        of_sft = {"experiment": sft_experiment} if sft_experiment else {}
        words = with_values(arguments, of_sft | {"run.dir": str(root / "sft")})
        found.append(Stage(replace(request, job="sft", name=f"{name}-sft"), words))
        initial = str(root / "sft" / "hf")
    trained, exported = root / "train", str(root / "hf")
    training = with_values(arguments, {"actor.model": initial, "run.dir": str(trained)})
    last = str(trained / "checkpoints" / f"step_{config.run.num_steps}")
    conversion = ("megatron-to-hf", last, exported, "--model", initial)
    evaluation = (
        *with_values(arguments, {"actor.model": exported, "actor.weights": ""}),
        "--json",
        str(root / "evaluation.json"),
    )
    return [
        *found,
        Stage(replace(request, name=f"{name}-train"), training),
        Stage(replace(request, job="convert", name=f"{name}-convert"), conversion),
        Stage(replace(request, job="evaluate", name=f"{name}-evaluate"), evaluation),
    ]


def with_values(arguments: Sequence[str], values: Mapping[str, str]) -> tuple[str, ...]:
    """The overrides with these values in the place of those that they give to the same keys."""
    others = [a for a in arguments if a.partition("=")[0].lstrip("+") not in values]
    return (*others, *(f"{key}={value}" for key, value in values.items()))


def submit_all(found: Sequence[Stage], config: Config, site: Site, *, only_print: bool) -> list[str]:
    """Submit the jobs, each depending on the one before; the numbers, or the commands where they are only printed."""
    results, after = [], found[0].request.after
    for stage in found:
        request = replace(stage.request, after=after)
        words = command(request, stage.arguments, components(request, config, site))
        if only_print:
            results.append(shlex.join(words))
            after = f"JOBID_OF_{request.name}"  # sbatch gives it a number only when it is submitted
        else:
            after = submit(words, site)
            results.append(f"{after}  {request.name}")
    return results


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments or "--help" in arguments:
        print(__doc__)
        return 0
    try:
        sft_experiment = dict(a.partition("=")[::2] for a in arguments).get("sft_experiment", "")
        words = [a for a in arguments if a != "--print" and not a.startswith("sft_experiment=")]
        request, rest = parse(words, flags=["--print"], others=["sft_experiment"])
        if request.job not in ("train", "disaggregated") or request.seeds:
            raise ConfigError(["a chain trains one seed: set job=train or disaggregated, and no seeds"])
        site, config = read_site(), load(rest)
        os.environ.update(site.environment)  # MODELS_ROOT and the like, as the jobs will have them
        found = stages(request, rest, config, sft_experiment)
        first = found[0].request.job if config.sft.demonstrations else request.job
        faults = job_faults(replace(request, job=first), load(list(found[0].arguments)), site)
        if first != request.job:  # training's model does not exist yet, but what it runs beside it is known
            faults += [*size_faults(request, config, site), *service_faults(config)]
        if faults:
            raise ConfigError(list(dict.fromkeys(faults)))
        print("\n".join(submit_all(found, config, site, only_print="--print" in arguments)))
    except ConfigError as error:
        print(f"slurm.chain: {error}", file=sys.stderr)
        return EXIT_BAD_INPUT
    except SubmissionError as error:
        print(f"slurm.chain: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
