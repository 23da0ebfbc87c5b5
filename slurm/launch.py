"""Prepares a job: checks its configuration and sizes, and prints the sbatch command.

    python -m slurm.launch experiment=NAME nodes=4 [job=train] [--submit|--render] [overrides]

`job` is one of sft, train, disaggregated, evaluate, convert, retrieval: slurm/JOB.sbatch. `nodes` are the trainer's;
`engine_nodes` those of the engines beside it (disaggregated). `time=12:00:00`, `signal=600` (seconds before the end at
which the job saves and requeues itself), `seeds=0-3` (a job array), `after=JOBID`, `name=...` are Slurm's; all the rest
goes to the job. --submit submits it and prints its number; --render prints a batch script with everything filled in.
`python -m slurm.chain` submits the cold start, training, conversion and evaluation, each after the one before.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress

from megatron_opid.config import Config, ConfigError, load
from megatron_opid.launch import EXIT_BAD_INPUT
from slurm.request import CONFIGURED_JOBS, TRAINING_JOBS, Request, parse, size_faults
from slurm.site import ROOT, Site, read_site

MODES = ("--submit", "--render")
# A vLLM server keeps one busy, and its API servers one or two more.
CPUS_PER_SERVING_GPU = 8


class SubmissionError(RuntimeError):
    """A job whose configuration can run was not submitted."""


def job_faults(request: Request, config: Config, site: Site) -> list[str]:
    """Why the job cannot run, as far as can be seen from here."""
    from megatron_opid import preflight

    faults = size_faults(request, config, site)
    world_size = int(request.nodes) * config.run.num_processes
    match request.job:
        case "sft":
            faults += preflight.sft_files_and_layout_faults(config, world_size)
        case _:
            faults += preflight.files_and_layout_faults(config, world_size)
            faults += service_faults(config)
    return faults


def service_faults(config: Config) -> list[str]:
    """What is wrong with training's engines and analyzer wherever it runs, by the environment that the job inherits."""
    from megatron_opid import engines, preflight

    return [*engines.engine_value_faults(config.engine), *preflight.analyzer_faults(config, ask=False)]


def components(request: Request, config: Config | None, site: Site) -> list[dict[str, str]]:
    """sbatch's long options of each component of the job; "" for an option without a value."""
    options = {
        "job-name": request.name or request.job,
        "output": str(site.logs / ("%x-%A_%a.out" if request.seeds else "%x-%j.out")),
        "time": request.time,
        "signal": request.signal and f"B:USR1@{request.signal}",
        "array": request.seeds,
    }
    if request.after:
        options |= {"dependency": f"afterok:{request.after}", "kill-on-invalid-dep": "yes"}
    nodes = {"nodes": request.nodes} if request.job in TRAINING_JOBS else {}
    gpus = {}
    if config is not None and request.job in CONFIGURED_JOBS:
        count = _evaluation_gpus(config, site) if request.job == "evaluate" else site.gpus_per_node
        gpus = {"gpus-per-node": "0" if config.actor.device == "cpu" else str(count)}
        if request.job == "evaluate" and count > 1:
            gpus |= {"cpus-per-task": str(CPUS_PER_SERVING_GPU * count)}
    first = {name: value for name, value in (site.sbatch_options | options | nodes | gpus).items() if value}
    if request.job != "disaggregated":
        return [first]
    engines = site.sbatch_options | {"nodes": request.engine_nodes, "ntasks-per-node": "1", "exclusive": ""} | gpus
    return [first, engines | ({"time": request.time} if request.time else {})]


def _evaluation_gpus(config: Config, site: Site) -> int:
    engine = config.engine
    return 1 if engine.name == "local" else min(engine.num_servers * engine.tensor_parallel, site.gpus_per_node)


def command(request: Request, arguments: Sequence[str], parts: Sequence[dict[str, str]]) -> list[str]:
    """The sbatch command, to be run in the repository's root."""
    words = ["sbatch", "--parsable"]
    for index, options in enumerate(parts):
        words += [":"] * (index > 0) + [_option(name, value) for name, value in options.items()]
    return [*words, f"slurm/{request.job}.sbatch", *arguments]


def render(request: Request, arguments: Sequence[str], parts: Sequence[dict[str, str]]) -> str:
    """The batch script of the job with its options and arguments filled in."""
    lines = (ROOT / "slurm" / f"{request.job}.sbatch").read_text(encoding="utf-8").splitlines()
    head = [line for line in lines if line.startswith("#SBATCH ")]
    given = {f"--{name}" for name in parts[0]}
    options = [line for line in head if line.split()[1].partition("=")[0] not in given]
    for index, part in enumerate(parts):
        options += ["#SBATCH hetjob"] * (index > 0) + [
            f"#SBATCH {_option(name, value)}" for name, value in part.items()
        ]
    first = lines.index(head[0])
    before, after = lines[:first], [line for line in lines[first:] if line not in head]
    return "\n".join([*before, *options, f"set -- {shlex.join(arguments)}", *after]) + "\n"


def submit(words: Sequence[str], site: Site) -> str:
    """Submit a job; returns its number.

    Raises:
        SubmissionError: sbatch refuses it, with its words, or cannot be called.
    """
    try:
        _make_logs(site)
    except OSError as error:
        raise SubmissionError(f"LOGS={site.logs} cannot be made: {error}; set LOGS in slurm/site.sh") from error
    try:
        done = subprocess.run(words, cwd=ROOT, env=site.environment, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise SubmissionError("sbatch was not found; submit on a machine of the cluster, or use --render") from None
    if done.returncode:
        raise SubmissionError(f"sbatch did not take the job:\n{shlex.join(words)}\n{done.stderr.strip()}")
    return done.stdout.strip().partition(";")[0]


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments or "--help" in arguments:
        print(__doc__)
        return 0
    modes = set(MODES) & set(arguments)
    try:
        if len(modes) > 1:
            raise ConfigError(["--submit and --render exclude each other"])
        request, rest = parse([argument for argument in arguments if argument not in modes], flags=MODES)
        site, config = read_site(), None
        os.environ.update(site.environment)  # MODELS_ROOT and the like, as the job will have them
        if request.job in CONFIGURED_JOBS:
            config, faults = _checked(request, [word.replace("%a", "0") for word in rest], site)
            if faults:
                raise ConfigError(faults)
        parts = components(request, config, site)
        if modes == {"--render"}:
            print(render(request, rest, parts), end="")
        elif modes == {"--submit"}:
            print(submit(command(request, rest, parts), site))
        else:
            with suppress(OSError):  # made for whoever pastes the command
                _make_logs(site)
            print(shlex.join(command(request, rest, parts)))
    except ConfigError as error:
        print(f"slurm.launch: {error}", file=sys.stderr)
        return EXIT_BAD_INPUT
    except SubmissionError as error:
        print(f"slurm.launch: {error}", file=sys.stderr)
        return 1
    return 0


def _checked(request: Request, arguments: Sequence[str], site: Site) -> tuple[Config, list[str]]:
    """The configuration that the job will have, and why it cannot run."""
    if request.job == "evaluate":
        from megatron_opid import evaluate

        options, overrides = evaluate.parse_options(arguments)
        config = load([*overrides, *evaluate.PLAYS_ONLY])
        return config, [*size_faults(request, config, site), *evaluate.option_faults(options, config)]
    config = load(arguments)
    return config, job_faults(request, config, site)


def _make_logs(site: Site) -> None:
    """Slurm does not: where the folder is missing a job leaves no word."""
    site.logs.mkdir(parents=True, exist_ok=True)


def _option(name: str, value: str) -> str:
    return f"--{name}={value}" if value else f"--{name}"


if __name__ == "__main__":
    sys.exit(main())
