"""Submits a whole experiment: cold start, training, conversion, evaluation, each after the one before has succeeded.

    python -m slurm.chain experiment=NAME run.dir=runs/a nodes=4 [sft.demonstrations=FILE sft_experiment=NAME]
        [time=12:00:00] [--print] [overrides]

Everything lies below run.dir: sft/, train/, hf/ (the trained policy), evaluation.json. Without sft.demonstrations there
is no cold start, and training starts from actor.model. A job that is preempted, or runs out of time, requeues itself;
the next ones wait until it is complete. Where one fails, Slurm cancels those after it. --print submits nothing.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from megatron_opid.config import Config, ConfigError, load
from megatron_opid.launch import EXIT_BAD_INPUT
from slurm.launch import command, components, job_faults, submit
from slurm.request import Request, parse
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
        of_sft = [f"experiment={sft_experiment}" if a.startswith("experiment=") else a for a in arguments]
        words = (*(of_sft if sft_experiment else arguments), f"run.dir={root / 'sft'}")
        found.append(Stage(replace(request, job="sft", name=f"{name}-sft"), words))
        initial = str(root / "sft" / "hf")
    trained, exported = root / "train", str(root / "hf")
    training = (*arguments, f"actor.model={initial}", f"run.dir={trained}")
    last = str(trained / "checkpoints" / f"step_{config.run.num_steps}")
    conversion = ("megatron-to-hf", last, exported, "--model", initial)
    evaluation = (*arguments, f"actor.model={exported}", "--json", str(root / "evaluation.json"))
    return [
        *found,
        Stage(replace(request, name=f"{name}-train"), training),
        Stage(replace(request, job="convert", name=f"{name}-convert"), conversion),
        Stage(replace(request, job="evaluate", name=f"{name}-evaluate"), evaluation),
    ]


def submit_all(found: Sequence[Stage], config: Config, site: Site, *, only_print: bool) -> list[str]:
    """Submit the jobs, each depending on the one before; the numbers, or the commands where they are only printed."""
    results, after = [], ""
    for stage in found:
        request = replace(stage.request, after=after)
        words = command(request, stage.arguments, components(request, config, site))
        if only_print:
            results.append(shlex.join(words))
            after = "1"  # stands for the number that sbatch would give
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
        request, rest = parse(words)
        if request.job not in ("train", "disaggregated") or request.seeds:
            raise ConfigError(["a chain trains one seed: set job=train or disaggregated, and no seeds"])
        site, config = read_site(), load(rest)
        os.environ.update(site.environment)  # MODELS_ROOT and the like, as the jobs will have them
        found = stages(request, rest, config, sft_experiment)
        # Of a cold start all is known now; what comes later has the same shape, only its weights do not exist yet.
        first = found[0].request.job if config.sft.demonstrations else request.job
        if faults := job_faults(replace(request, job=first), load(list(found[0].arguments)), site):
            raise ConfigError(faults)
        print("\n".join(submit_all(found, config, site, only_print="--print" in arguments)))
    except ConfigError as error:
        print(f"slurm.chain: {error}", file=sys.stderr)
        return EXIT_BAD_INPUT
    return 0


if __name__ == "__main__":
    sys.exit(main())
