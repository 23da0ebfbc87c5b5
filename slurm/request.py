"""What is asked of Slurm: the words `nodes=4 time=12:00:00` of a command line; the rest of it is for the job."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

from megatron_opid.config import Config, ConfigError, did_you_mean, load, nearest
from slurm.site import Site

TRAINING_JOBS = ("sft", "train", "disaggregated")
# The batch scripts whose arguments are configuration overrides; the others' are handed on as they are.
CONFIGURED_JOBS = (*TRAINING_JOBS, "evaluate")
JOBS = (*CONFIGURED_JOBS, "convert", "retrieval")
PATTERNS = {
    "nodes": r"[1-9]\d*",
    "engine_nodes": r"[1-9]\d*",
    "time": r"\d+(-\d+)?(:\d\d){0,2}",
    "signal": r"\d+",
    "seeds": r"\d+([-,]\d+)*(%\d+)?",
    "after": r"\d+(:\d+)*",
    "name": r"[\w.+-]+",
}


@dataclass(frozen=True)
class Request:
    """One job. An empty value leaves what the batch script says.

    `time` is Slurm's (minutes, h:mm:ss, days-hours); `signal` the seconds before its end at which the job saves and
    requeues itself; `seeds` those of a job array, as 0-3 or 1,5; `after` the jobs that have to succeed before.
    """

    job: str = "train"
    nodes: str = "1"
    engine_nodes: str = "1"
    time: str = ""
    signal: str = ""
    seeds: str = ""
    after: str = ""
    name: str = ""


def parse(
    arguments: Sequence[str], *, flags: Sequence[str] = (), others: Sequence[str] = ()
) -> tuple[Request, list[str]]:
    """The request, and the arguments that are the job's. `flags` and `others` are words that the caller knows, to be
    named to those who misspell them.

    Raises:
        ConfigError: a value that Slurm would not understand, a flag or a word without a dot that nobody knows; all of
            them, and what is wrong with the configuration's words beside them.
    """
    own = [field.name for field in fields(Request)]
    given = {key: value for key, _, value in (argument.partition("=") for argument in arguments) if key in own}
    faults = [
        f"{key}={given[key]!r} is not understood; see python -m slurm.launch --help"
        for key, pattern in PATTERNS.items()
        if key in given and not re.fullmatch(pattern, given[key])
    ]
    if given.get("job", "train") not in JOBS:
        faults.append(f"job={given['job']!r} does not exist; set one of {', '.join(JOBS)}")
    known, groups = [*own, "experiment", *others], [field.name for field in fields(Config)]
    words = [key for key, is_set, _ in (argument.partition("=") for argument in arguments) if is_set]
    unknown = [word for word in words if re.fullmatch(r"\w+", word) and word not in known + groups]
    faults += unknown_faults(unknown, known)
    rest = [argument for argument in arguments if argument.partition("=")[0] not in own]
    if given.get("job", "train") in TRAINING_JOBS:  # the others have flags of their own
        faults += unknown_faults([word for word in rest if word.startswith("-")], flags)
        if faults:
            faults += _override_faults([a for a in rest if a.partition("=")[0] not in [*unknown, *others]])
    if faults:
        raise ConfigError(faults)
    request = replace(Request(), **given)
    return request, rest + _of_each_seed(request, rest)


def _override_faults(arguments: Sequence[str]) -> Sequence[str]:
    try:
        load([argument.replace("%a", "0") for argument in arguments if not argument.startswith("-")])
    except ConfigError as error:
        return error.faults
    return ()


def unknown_faults(words: Sequence[str], known: Sequence[str]) -> list[str]:
    """A fault for each of `words`, none of which is `known`."""
    all_of_them = f"set one of {', '.join(known)}"
    return [f"{word} is unknown; {did_you_mean(nearest(word, known), all_of_them)}" for word in words]


def size_faults(request: Request, config: Config, site: Site) -> list[str]:
    """Why the nodes asked for cannot hold the ranks and engines of the configuration."""
    gpus, ranks = site.gpus_per_node, config.run.num_processes
    if request.job == "disaggregated" and config.engine.name == "local":
        return ["engine.name=local has no servers for engine nodes; set engine.name=vllm or sglang, or job=train"]
    if config.actor.device == "cpu":
        return []
    faults = []
    if request.job in TRAINING_JOBS:
        if ranks > gpus:
            faults.append(
                f"run.num_processes={ranks} ranks a node are more than its GPUs (GPUS_PER_NODE={gpus} in "
                f"slurm/site.sh); set {gpus} or less"
            )
        elif config.actor.tensor_parallel > ranks:
            faults.append(
                f"actor.tensor_parallel={config.actor.tensor_parallel} would cross nodes of {ranks} ranks, at the "
                f"speed of the network; set {ranks} or less"
            )
    engine = config.engine
    if request.job == "disaggregated" or (request.job == "train" and engine.name != "local" and not engine.urls):
        beside = ranks if request.job == "train" and engine.placement == "disaggregated" else 0
        if engine.num_servers * engine.tensor_parallel > gpus - beside:
            faults.append(
                f"engine.num_servers={engine.num_servers} × engine.tensor_parallel={engine.tensor_parallel} are more "
                f"than the {gpus - beside} GPUs that a node has for engines; set them lower"
                + (", or engine.placement=colocated" if beside else "")
            )
    if request.job == "evaluate" and engine.name != "local" and engine.tensor_parallel > gpus:
        faults.append(
            f"engine.tensor_parallel={engine.tensor_parallel} is more than a node's {gpus} GPUs; set it lower"
        )
    if request.job == "disaggregated" and engine.placement == "colocated":
        faults.append(
            "engine.placement=colocated would put engines to sleep that have nodes of their own; set "
            "engine.placement=disaggregated, or job=train"
        )
    return faults


def _of_each_seed(request: Request, arguments: Sequence[str]) -> list[str]:
    """A job array's tasks differ in seed and run directory; the batch scripts put the task's number for %a."""
    if not request.seeds:
        return []
    given = dict(argument.partition("=")[::2] for argument in arguments)
    directory = given.get("run.dir", "runs/default")
    return ["run.seed=%a", *([] if "%a" in directory else [f"run.dir={directory}_seed_%a"])]
