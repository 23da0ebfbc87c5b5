"""The configuration: frozen dataclasses, filled from configs/ by Hydra, checked before anything heavy is imported.

`load` composes and checks; every fault found is reported in one ConfigError, each with its value and what to set.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import asdict, field
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, TypeAdapter
from pydantic import ValidationError as PydanticError
from pydantic.dataclasses import dataclass

CONFIG_DIR = Path(__file__).parent.parent / "configs"
# KEY=VALUE, or Hydra's +KEY=VALUE, ++KEY=VALUE and ~KEY; a value may hold blanks.
OVERRIDE = re.compile(r"(\+{0,2}[\w./@][\w./@-]*=|~[\w./@-]+(=|$))")
# Of these, what Hydra gets as it is: its own forms, and groups.
AS_GIVEN = re.compile(r"experiment=|[+~]|[^=]*[/@]")
STRICT = ConfigDict(extra="forbid")


class ConfigError(ValueError):
    """The configuration cannot run. The message lists every fault; entry points print it and exit with code 2."""

    def __init__(self, faults: Sequence[str]) -> None:
        self.faults = tuple(faults)
        super().__init__("the configuration cannot run:\n" + "\n".join(f"  - {fault}" for fault in self.faults))


@dataclass(frozen=True, config=STRICT)
class EnvConfig:
    """Which games are played. `data` is where the environment's files lie, `options` are its package's own settings."""

    name: str = "alfworld"
    data: str = ""
    options: dict[str, Any] = field(default_factory=dict)
    train_split: str = "train"
    validation_split: str = "valid_seen"
    max_steps: PositiveInt = 30
    history_length: NonNegativeInt = 5
    prompt_style: Literal["full", "compact"] = "full"
    num_processes: NonNegativeInt = 0  # per rank; 0: environments run in the rank's own process, repeatably
    # Of one reset or step in such a process, which is killed then with all its games; its first includes its start.
    timeout_s: PositiveFloat = 120.0

    @property
    def package_options(self) -> dict[str, Any]:
        """What the environment's package is given (envs.base.EnvironmentPackage)."""
        return {"data": self.data, **self.options}


@dataclass(frozen=True, config=STRICT)
class RolloutConfig:
    """How episodes are sampled. One training step plays `tasks_per_step` tasks, `group_size` episodes each.

    With `one_step_off` the episodes of step k + 1 are played, under the weights of k, while step k is trained on. Those
    in flight at the weight update `finish` under the old weights, which the update waits for, or `continue`: a response
    keeps the weights that it began with, the next ones have the new (each step records its weight version).
    """

    tasks_per_step: PositiveInt = 16
    group_size: PositiveInt = 8
    temperature: PositiveFloat = 1.0
    top_p: PositiveFloat = 1.0
    max_prompt_tokens: PositiveInt = 2048
    max_response_tokens: PositiveInt = 512
    validation_tasks: PositiveInt = 128
    validation_temperature: NonNegativeFloat = 0.4
    one_step_off: bool = False
    across_updates: Literal["finish", "continue"] = "finish"


@dataclass(frozen=True, config=STRICT)
class EngineConfig:
    """What samples. `local` runs transformers in the trainer's processes, one copy of the model each.

    `vllm` and `sglang` are servers: those at `urls`, or `num_servers` that the run starts on each machine; with
    `cpu_servers` those are our own, which speak the same protocol on a CPU. Colocated engines give their memory back
    while the trainer works; disaggregated ones have GPUs of their own, after the trainer's. `sync` is how weights reach
    them: over a file system shared with the trainer, by NCCL, or (colocated) as handles of device memory.
    """

    name: Literal["local", "vllm", "sglang"] = "local"
    max_batch_sequences: PositiveInt = 64
    verify_every: PositiveInt = 10  # weight digests are compared on the first sync and every N syncs
    urls: tuple[str, ...] = ()
    num_servers: PositiveInt = 1
    cpu_servers: bool = False
    tensor_parallel: PositiveInt = 1
    gpu_memory_utilization: PositiveFloat = 0.85
    placement: Literal["colocated", "disaggregated"] = "disaggregated"
    sync: Literal["auto", "in_process", "disk", "nccl", "ipc"] = "auto"  # auto: in_process for local, else disk
    sync_dir: str = ""  # of disk; empty: <run.dir>/weights
    bucket_mib: PositiveInt = 1024  # tensors in transit: at most two of these are in memory with ipc, five with nccl
    # A rank's new requests of a server wait for some ms, until they are this share of those that it has there; 0: none.
    arrival_share: Annotated[float, Field(ge=0, le=1)] = 0.12
    num_api_servers: PositiveInt = 4  # of each vLLM server: processes that answer for one engine
    # Of the command line of servers that the run starts, after ours: of a name given twice the last counts.
    server_arguments: tuple[str | int | float, ...] = ()
    request_timeout_s: PositiveFloat = 600.0  # a response that takes longer makes its engine a hanging one
    slow_ratio: PositiveFloat = 10.0  # against the 90th percentile of the other engines' response times
    startup_timeout_s: PositiveFloat = 1200.0
    recovery_timeout_s: PositiveFloat = 1200.0  # how long requests wait while no engine serves


@dataclass(frozen=True, config=STRICT)
class SkillsConfig:
    """The analyzer and when its skills are used. Schedules count training steps from 0; null means no bound."""

    analyzer: Literal["openai", "policy", "rules", "none"] = "openai"
    max_step_skills: NonNegativeInt = 5
    max_skill_tokens: PositiveInt = 512  # room for a skill in a teacher prompt, above rollout.max_prompt_tokens
    success_threshold: float = 1.0
    routing: Literal["step_priority", "additive"] = "step_priority"
    start_after_steps: NonNegativeInt | None = None
    stop_after_steps: NonNegativeInt | None = None
    failed_only: bool = False
    failed_only_after_steps: NonNegativeInt | None = None
    shuffle: bool = False  # control experiment: skills are permuted over the batch's trajectories
    max_failed_share: NonNegativeFloat = 0.5  # of a step's analyses; above it the run stops
    concurrency: PositiveInt = 128
    timeout_s: PositiveFloat = 120.0
    max_prompt_tokens: PositiveInt = 16384  # of the analyzer's own prompt, a whole episode; back end `policy`
    max_completion_tokens: PositiveInt = 4096
    cache_dir: str = ""  # of the back end `openai`; empty: <run.dir>/analyzer_cache


@dataclass(frozen=True, config=STRICT)
class AlgorithmConfig:
    """The advantage and the loss; megatron_opid/algorithm has the equations.

    `name` decides which terms exist: grpo the group-relative outcome alone, gigpo adds the state term, opid the skill
    term (and the state term where its weight is not 0).
    """

    name: Literal["grpo", "gigpo", "opid"] = "opid"
    advantage_mode: Literal["mean_norm", "mean_std_norm"] = "mean_norm"
    gamma: PositiveFloat = 0.95
    state_weight: NonNegativeFloat = 0.0
    episode_skill_weight: NonNegativeFloat = 0.001
    step_skill_weight: NonNegativeFloat = 0.001
    teacher: Literal["policy", "reference"] = "policy"
    normalize_teacher: bool = False
    teacher_clip: PositiveFloat | None = None
    invalid_action_penalty: NonNegativeFloat = 0.1
    clip_low: PositiveFloat = 0.2
    clip_high: PositiveFloat = 0.2
    dual_clip: PositiveFloat = 3.0
    kl_coefficient: NonNegativeFloat = 0.01
    entropy_coefficient: NonNegativeFloat = 0.001
    aggregation: Literal["token-mean", "seq-mean-token-sum", "seq-mean-token-mean"] = "token-mean"
    distillation_coefficient: NonNegativeFloat = 0.0
    distillation_weight: Literal["delta", "importance"] = "delta"
    distillation_clip: PositiveFloat | None = None
    # What π_old is: a pass of its own before the update; the update's own first forward (no pass: one update per step
    # only); or the log-probs that the engine sampled with.
    old_logprob: Literal["recompute", "reuse", "engine"] = "recompute"
    correction: Literal["none", "truncate", "mask"] = "none"  # engine against trainer log-probs
    correction_low: PositiveFloat = 0.5
    correction_high: PositiveFloat = 2.0
    max_mismatch_k3: PositiveFloat = 0.1  # nats; k3 KL of engine against trainer above which the run stops


@dataclass(frozen=True, config=STRICT)
class ActorConfig:
    """The Megatron model's layout and batch sizes.

    `model` is a Hugging Face directory, relative to the environment variable MODELS_ROOT where that is set. `weights`
    stand for the directory's own: a checkpoint of tools.convert or of another run (…/step_N); empty: none do.
    """

    model: str = ""
    weights: str = ""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["fp32", "bf16"] = "bf16"
    tensor_parallel: PositiveInt = 1
    pipeline_parallel: PositiveInt = 1
    virtual_pipeline_parallel: PositiveInt = 1
    context_parallel: PositiveInt = 1
    expert_parallel: PositiveInt = 1
    expert_tensor_parallel: PositiveInt = 1  # splits each expert's matrices; with expert_parallel > 1 on GPUs only
    sequence_parallel: bool = False
    tokens_per_micro_batch: PositiveInt = 16384
    updates_per_step: PositiveInt = 1  # the step's samples are split into this many optimizer updates
    # Activations made again in the backward pass: none, attention's (selective), the MLPs' (mlp), every layer's (full).
    recompute: Literal["none", "selective", "mlp", "full"] = "none"
    recompute_layers: NonNegativeInt = 0  # with full: only this many layers of each pipeline stage; 0: all
    fp8: Literal["none", "delayed", "current"] = "none"  # scaling of 8-bit matrix products; GPU only
    # Of a mixture: an update sends tokens to the experts that the pass for its old log-probs chose.
    routing_replay: bool = False
    fused_kernels: bool = True  # rotary embedding and SwiGLU in one kernel each; on a GPU
    deterministic: bool = False  # the same bits in every run, slower on a GPU
    distributed_optimizer: bool = True
    overlap_communication: bool = False
    head: Literal["auto", "torch", "triton", "cuda"] = "auto"  # the back end of kernels/linear_logprob


@dataclass(frozen=True, config=STRICT)
class OptimizerConfig:
    """AdamW. The schedule counts training steps."""

    learning_rate: PositiveFloat = 1e-6
    min_learning_rate: NonNegativeFloat = 0.0
    schedule: Literal["constant", "cosine"] = "constant"
    warmup_steps: NonNegativeInt = 0
    weight_decay: NonNegativeFloat = 0.01
    beta1: PositiveFloat = 0.9
    beta2: PositiveFloat = 0.999
    epsilon: PositiveFloat = 1e-8
    gradient_clip: PositiveFloat = 1.0
    offload_fraction: NonNegativeFloat = 0.0  # of the state kept, and updated, in host memory; GPU only


@dataclass(frozen=True, config=STRICT)
class SftConfig:
    """The cold start: next-token loss on the assistant's last turn in `demonstrations`; docs/slurm.md says more.

    The file is JSONL, a conversation a line: {"messages": [{"role": "user", ...}, {"role": "assistant", ...}]}.
    The first `all_token_share` of the steps learns every token, prompts included: a model with random weights learns to
    copy from its prompt much sooner that way. A pretrained model needs none of it.
    """

    demonstrations: str = ""
    samples_per_step: PositiveInt = 48
    all_token_share: NonNegativeFloat = 0.0


@dataclass(frozen=True, config=STRICT)
class RunConfig:
    """One run = one directory; nothing is written outside it. `num_processes` is the ranks started on this machine."""

    dir: str = "runs/default"
    seed: NonNegativeInt = 0
    num_processes: PositiveInt = 1
    num_steps: PositiveInt = 160
    save_every: PositiveInt = 10
    keep_checkpoints: PositiveInt = 2
    async_checkpoints: bool = False  # written by a process of their own while training goes on
    validate_every: PositiveInt = 5
    validate_first: bool = True
    save_trajectories_every: PositiveInt = 5
    wandb: Literal["disabled", "offline", "online"] = "disabled"
    wandb_project: str = "megatron-opid"
    rank_timeout_s: PositiveFloat = 1800.0
    hang_report_s: PositiveFloat = 900.0  # a phase that takes longer is reported: who waits for what, with stacks
    shutdown_grace_s: PositiveInt = 45  # from a rank's failure until the others are killed
    signal_grace_s: PositiveInt = 1800  # from a signal to stop until ranks are killed: the step in progress must finish


@dataclass(frozen=True, config=STRICT)
class Config:
    """Everything a run is made of."""

    env: EnvConfig = field(default_factory=EnvConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    skills: SkillsConfig = field(default_factory=SkillsConfig)
    algorithm: AlgorithmConfig = field(default_factory=AlgorithmConfig)
    actor: ActorConfig = field(default_factory=ActorConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    sft: SftConfig = field(default_factory=SftConfig)
    run: RunConfig = field(default_factory=RunConfig)


def load(overrides: Sequence[str]) -> Config:
    """Compose configs/ with command-line overrides (`group.key=value`, `experiment=NAME`).

    Raises:
        ConfigError: an unknown key, a value of the wrong type or outside its range; all of them at once.
    """
    from hydra import compose, initialize_config_dir
    from hydra.core.config_store import ConfigStore
    from hydra.errors import HydraException, MissingConfigException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    if malformed := [o for o in overrides if not OVERRIDE.match(o)]:
        raise ConfigError([f"{o!r} is no KEY=VALUE, like run.dir=runs/a (no dashes, no blanks)" for o in malformed])
    ConfigStore.instance().store("schema", node=asdict(Config()))
    # ++ lets Hydra take any key, so that all unknown ones are reported together below.
    forced = [o if AS_GIVEN.match(o) else f"++{o}" for o in overrides]
    try:
        with initialize_config_dir(str(CONFIG_DIR.resolve()), version_base="1.3"):
            composed = OmegaConf.to_container(compose("config", overrides=forced), resolve=True)
    except MissingConfigException as error:
        raise ConfigError([_unknown_experiment(overrides) or str(error).splitlines()[0]]) from error
    except (HydraException, OmegaConfBaseException) as error:
        cause = error.__cause__ or error
        raise ConfigError([f"{error}".splitlines()[0] + (f" ({cause})" if cause is not error else "")]) from error
    try:
        return TypeAdapter(Config).validate_python(composed)
    except PydanticError as error:
        raise ConfigError([_fault(detail) for detail in error.errors()]) from error


def _unknown_experiment(overrides: Sequence[str]) -> str:
    """What to say of an experiment that is not there; nothing if they all are."""
    known = sorted(path.stem for path in (CONFIG_DIR / "experiment").glob("*.yaml"))
    for override in overrides:
        key, _, name = override.partition("=")
        if key == "experiment" and name not in known:
            near = did_you_mean(nearest(name, known), f"set one of {', '.join(known)}")
            return f"experiment={name} does not exist; {near}"
    return ""


def nearest(name: str, known: Sequence[str]) -> list[str]:
    """The `known` names that `name` may be a slip of, the likeliest first. Of dotted names the last parts are compared:
    a group that they share would make any two alike."""
    last_parts = {key: key.rpartition(".")[2] for key in known}
    near = get_close_matches(name.rpartition(".")[2], set(last_parts.values()), cutoff=0.7)
    return [key for part in near for key in known if last_parts[key] == part]


def did_you_mean(near: Sequence[str], otherwise: str) -> str:
    """The end of a fault about a misspelt name: a question after the `near` ones, `otherwise` where there is none."""
    return f"did you mean {' or '.join(near)}?" if near else otherwise


def resolve_model(name: str) -> Path:
    """Where model `name` lies: below MODELS_ROOT unless absolute or present relative to the current directory."""
    path = Path(name).expanduser()
    root = os.environ.get("MODELS_ROOT", "")
    return path if path.is_absolute() or path.exists() or not root else Path(root).expanduser() / path


def value_faults(config: Config) -> list[str]:
    """What is wrong between values that are each right alone; files and models are looked at in preflight.py."""
    faults = []
    algorithm, optimizer = config.algorithm, config.optimizer
    if algorithm.name != "opid" and config.skills.shuffle:
        faults.append(f"skills.shuffle=true has no effect with algorithm.name={algorithm.name}; set opid")
    if algorithm.name == "opid" and config.skills.analyzer == "none":
        faults.append("skills.analyzer=none gives opid no skills; set rules, policy or openai, or algorithm.name=grpo")
    if algorithm.name == "gigpo" and algorithm.state_weight == 0:
        faults.append("algorithm.state_weight=0 makes gigpo grpo; set it above 0 (the paper: 1.0)")
    if algorithm.distillation_coefficient and algorithm.name != "opid":
        faults.append(f"algorithm.distillation_coefficient needs skills, algorithm.name={algorithm.name} has none")
    if config.rollout.group_size == 1:
        faults.append("rollout.group_size=1 leaves no group to compare an episode with; set 2 or more")
    if algorithm.correction_low >= algorithm.correction_high:
        faults.append(
            f"algorithm.correction_low={algorithm.correction_low} must be below "
            f"correction_high={algorithm.correction_high}"
        )
    faults += _old_logprob_faults(algorithm, config.actor.updates_per_step)
    faults += _one_step_off_faults(config) if config.rollout.one_step_off else []
    faults += _across_updates_faults(config) if config.rollout.across_updates == "continue" else []
    faults += _actor_faults(config.actor, optimizer)
    faults += _routing_replay_faults(config) if config.actor.routing_replay else []
    if optimizer.min_learning_rate > optimizer.learning_rate:
        faults.append(
            f"optimizer.min_learning_rate={optimizer.min_learning_rate} is above "
            f"optimizer.learning_rate={optimizer.learning_rate}"
        )
    return faults


def _actor_faults(actor: ActorConfig, optimizer: OptimizerConfig) -> list[str]:
    """Options of the actor that contradict each other or need a GPU where there is none."""
    faults = []
    if optimizer.offload_fraction > 1:
        faults.append(f"optimizer.offload_fraction={optimizer.offload_fraction} is above 1; set 0 to 1")
    if optimizer.offload_fraction and not actor.distributed_optimizer:
        faults.append("optimizer.offload_fraction needs actor.distributed_optimizer=true")
    if actor.fp8 != "none" and actor.precision != "bf16":
        faults.append(f"actor.fp8={actor.fp8} needs actor.precision=bf16, it is {actor.precision}")
    if actor.recompute_layers and actor.recompute != "full":
        faults.append(f"actor.recompute_layers={actor.recompute_layers} has no effect; set actor.recompute=full")
    gpu_only = {"actor.fp8": (actor.fp8, "none"), "optimizer.offload_fraction": (optimizer.offload_fraction, 0.0)}
    chosen = {name: (value, default) for name, (value, default) in gpu_only.items() if value != default}
    if chosen and not _has_gpu(actor):
        faults += [f"{name}={value} needs a GPU; set {default}" for name, (value, default) in chosen.items()]
    return faults


def _routing_replay_faults(config: Config) -> list[str]:
    faults, old_logprob = [], config.algorithm.old_logprob
    if old_logprob != "recompute":
        faults.append(
            f"actor.routing_replay=true has nothing to replay with algorithm.old_logprob={old_logprob}; set recompute"
        )
    if config.actor.recompute == "full":
        faults.append(
            "actor.routing_replay=true with actor.recompute=full: layers made again would choose experts for "
            "themselves; set actor.recompute=mlp, selective or none"
        )
    return faults


def _has_gpu(actor: ActorConfig) -> bool:
    """Asked only where it matters: torch is slow to import."""
    import torch

    return actor.device != "cpu" and torch.cuda.is_available()


def _old_logprob_faults(algorithm: AlgorithmConfig, updates_per_step: int) -> list[str]:
    """Combinations in which π_old would not be what its name says."""
    faults = []
    if algorithm.old_logprob == "reuse" and updates_per_step > 1:
        faults.append(
            f"algorithm.old_logprob=reuse needs actor.updates_per_step=1, it is {updates_per_step}: the forward pass "
            "of a later update is not the old policy's; set recompute"
        )
    if algorithm.old_logprob == "reuse" and algorithm.name == "opid" and algorithm.normalize_teacher:
        faults.append(
            "algorithm.old_logprob=reuse cannot normalize_teacher: the mean over the batch needs all old log-probs "
            "before the first gradient; set recompute"
        )
    if algorithm.old_logprob == "engine" and algorithm.correction != "none":
        faults.append(
            f"algorithm.old_logprob=engine leaves algorithm.correction={algorithm.correction} nothing to correct; "
            "set none"
        )
    return faults


def _across_updates_faults(config: Config) -> list[str]:
    faults = []
    if not config.rollout.one_step_off:
        faults.append("rollout.across_updates=continue has no effect; set rollout.one_step_off=true")
    if config.algorithm.name == "opid" and config.skills.analyzer == "policy":
        faults.append(
            "rollout.across_updates=continue counts an update into the time that skills.analyzer=policy has for an "
            "answer; set finish or another analyzer"
        )
    if config.engine.name == "local" and config.actor.device != "cpu":
        faults.append(
            "rollout.across_updates=continue with engine.name=local is for actor.device=cpu; "
            "set engine.name=vllm or sglang"
        )
    return faults


def _one_step_off_faults(config: Config) -> list[str]:
    faults = []
    algorithm, engine = config.algorithm, config.engine
    if engine.name != "local" and engine.placement == "colocated":
        faults.append(
            "rollout.one_step_off=true needs engines that sample while the trainer works, engine.placement=colocated "
            "puts them to sleep; set engine.placement=disaggregated"
        )
    if algorithm.correction == "none" and algorithm.old_logprob != "engine":
        faults.append(
            "rollout.one_step_off=true samples from the weights of the step before, algorithm.correction=none does "
            "not correct for it; set algorithm.correction=truncate"
        )
    return faults


def _fault(detail: dict) -> str:
    key = ".".join(str(part) for part in detail["loc"])
    if detail["type"] == "unexpected_keyword_argument":
        near = did_you_mean(_nearest_keys(key), "see megatron_opid/config.py")
        return f"{key} is not a configuration key; {near}"
    return f"{key}={detail['input']!r}: {detail['msg']}"


def _nearest_keys(unknown: str) -> list[str]:
    """Those of the group that was named; where it has none that is near, those of all groups."""
    groups = asdict(Config())
    keys = ["experiment", *groups, *(f"{group}.{key}" for group, keys in groups.items() for key in keys)]
    own = [key for key in keys if key.rpartition(".")[0] == unknown.rpartition(".")[0]]
    return nearest(unknown, own) or nearest(unknown, keys)
