"""What is refused before any rank starts, and what is not, without running anything."""

from __future__ import annotations

import json
from types import SimpleNamespace

import psutil
import pytest

from megatron_opid.config import Config, load
from megatron_opid.preflight import device_faults, evaluation_faults, host_memory_faults, sft_faults, training_faults
from megatron_opid.resume import job_identity
from tests.trainer.conftest import SmallRun


def configure(small_run: SmallRun, run_dir, **extra) -> Config:
    return load(small_run.overrides(run_dir, **extra))


def write_checkpoint(run_dir, config: Config, entry_point: str, step: int) -> None:
    """The description that a checkpoint of this job would have; its tensors are not looked at before a run."""
    from megatron_opid.actor.checkpoint_directory import identity
    from megatron_opid.weights.hf_config import parse_hf_config, read_hf_config

    path = run_dir / "checkpoints" / f"step_{step}"
    path.mkdir(parents=True)
    shape = parse_hf_config(read_hf_config(config_path(config)))
    state = {"step": step, "job": job_identity(entry_point, config)}
    description = {"step": step, "identity": identity(shape, config.actor), "num_ranks": 2, "trainer_state": state}
    (path / "checkpoint.json").write_text(json.dumps(description))
    (run_dir / "checkpoints" / "latest").write_text(path.name + "\n")


def config_path(config: Config):
    from megatron_opid.config import resolve_model

    return resolve_model(config.actor.model)


def test_a_sound_run_has_no_faults(small_run: SmallRun, tmp_path):
    config = configure(small_run, tmp_path)
    assert training_faults(config, 2) == []
    assert sft_faults(config, 2) == []


def test_ranks_on_gpus_need_one_each_and_what_computes_there(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr("megatron_opid.preflight.find_spec", lambda name: None)
    ranks, package = device_faults(load(["actor.device=cuda", "actor.precision=bf16"]), 4)
    assert ranks == "run.num_processes: 4 ranks need a GPU each, this machine has 2; set it to 2"
    assert package.startswith("actor.precision=bf16 on a GPU needs the package transformer_engine")
    assert device_faults(load(["actor.device=cuda", "actor.precision=fp32"]), 2) == []
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "NoDevFiles")  # Slurm's, and any name: it is torch that counts
    assert device_faults(load(["actor.device=auto"]), 4) == []
    (none,) = device_faults(load(["actor.device=cuda"]), 1)
    assert none == "actor.device=cuda: no GPU can be used here; set it to cpu or auto"


def test_a_run_may_start_from_a_converted_checkpoint_of_its_model_only(small_run: SmallRun, tmp_path):
    from megatron_opid.weights.stored import TargetLayout
    from tools.convert import hf_to_megatron

    converted = tmp_path / "converted"
    hf_to_megatron(small_run.model, converted, TargetLayout(pipeline_parallel=2))
    config = configure(small_run, tmp_path / "run", actor__weights=converted)
    assert training_faults(config, 2) == []
    description = json.loads((converted / "checkpoint.json").read_text())
    description["identity"]["num_layers"] = 3
    (converted / "checkpoint.json").write_text(json.dumps(description))
    (fault,) = training_faults(config, 2)
    assert "num_layers is 3 there, 2 here" in fault
    (fault,) = training_faults(configure(small_run, tmp_path / "run", actor__weights=tmp_path / "nowhere"), 2)
    assert "nowhere holds neither model.safetensors nor" in fault


def test_a_run_may_resume_itself(small_run: SmallRun, tmp_path):
    config = configure(small_run, tmp_path)
    write_checkpoint(tmp_path, config, "train", step=2)
    assert training_faults(config, 2) == []


@pytest.mark.parametrize(
    "extra, entry_point, message",
    [
        ({}, "sft", "entry_point is 'sft'"),
        ({"run__seed": 7}, "train", "run.seed is 0"),
        ({"run__num_steps": 1}, "train", "at step 2, beyond run.num_steps=1"),
    ],
)
def test_another_job_in_the_run_directory_is_refused(small_run: SmallRun, tmp_path, extra, entry_point, message):
    write_checkpoint(tmp_path, configure(small_run, tmp_path), entry_point, step=2)
    faults = training_faults(configure(small_run, tmp_path, **extra), 2)
    assert len(faults) == 1 and message in faults[0]


def test_a_checkpoint_of_other_weights_of_the_same_shape_is_refused(small_run: SmallRun, tmp_path):
    import torch
    from safetensors.torch import load_file, save_file

    config = configure(small_run, tmp_path / "run")
    write_checkpoint(tmp_path / "run", config, "train", step=2)
    other = tmp_path / "other"
    other.mkdir()
    for path in small_run.model.iterdir():
        (other / path.name).write_bytes(path.read_bytes())
    tensors = load_file(other / "model.safetensors")
    save_file({name: torch.zeros_like(t) for name, t in tensors.items()}, other / "model.safetensors", {"format": "pt"})
    faults = training_faults(configure(small_run, tmp_path / "run", actor__model=other), 2)
    assert len(faults) == 1 and "initial weights" in faults[0]


def test_a_sequence_must_fit_a_micro_batch(small_run: SmallRun, tmp_path):
    faults = training_faults(configure(small_run, tmp_path, actor__tokens_per_micro_batch=100), 2)
    assert len(faults) == 1 and "actor.tokens_per_micro_batch=100" in faults[0]


def test_a_policy_analyzer_must_fit_the_model(small_run: SmallRun, tmp_path):
    faults = training_faults(configure(small_run, tmp_path, skills__analyzer="policy"), 2)
    assert len(faults) == 1 and "skills.max_prompt_tokens" in faults[0]


def test_grpo_needs_no_analyzer_endpoint(small_run: SmallRun, tmp_path, monkeypatch):
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "OPENAI_MODEL"):
        monkeypatch.delenv(name, raising=False)
    extra = {"skills__analyzer": "openai"}
    assert training_faults(configure(small_run, tmp_path, algorithm__name="grpo", **extra), 2) == []
    faults = training_faults(configure(small_run, tmp_path, algorithm__name="opid", **extra), 2)
    assert any("OPENAI_API_KEY" in fault for fault in faults)


def test_a_search_must_give_its_servers_up_before_its_process_is_killed(small_run: SmallRun, tmp_path):
    from envs.search.generator import Question
    from envs.search.questions import write_questions

    for split in ("train", "validation"):
        write_questions(tmp_path / f"{split}.parquet", [Question("Who?", ("Nobody",), "nq")], split)
    search = {"env__name": "search", "env__data": tmp_path, "env__validation_split": "validation"}
    search |= {"env__options": "{retriever: http://127.0.0.1:9/retrieve}", "env__num_processes": 2}
    config = configure(small_run, tmp_path / "run", **search)
    assert training_faults(config, 2) == []
    (fault,) = training_faults(configure(small_run, tmp_path / "run", **search, env__timeout_s=90), 2)
    assert "env.timeout_s=90" in fault and "env.options.patience_s=90" in fault and "set env.timeout_s above" in fault
    assert evaluation_faults(configure(small_run, tmp_path / "run", **search, env__timeout_s=90), "train", None, None)
    java = {"env__name": "sciworld", "env__num_processes": 2, "env__timeout_s": 100}
    (fault,) = training_faults(configure(small_run, tmp_path / "run", **java), 2)
    assert "env.timeout_s=100" in fault and "set it above 100" in fault
    inline = search | {"env__num_processes": 0, "env__timeout_s": 90}  # nobody's time is taken there
    assert training_faults(configure(small_run, tmp_path / "run", **inline), 2) == []


@pytest.mark.parametrize("faults", [training_faults, sft_faults])
def test_a_run_must_be_able_to_write(small_run: SmallRun, tmp_path, faults):
    file = tmp_path / "file"
    file.touch()
    for name in ("/proc/z", file / "below"):
        (fault,) = faults(configure(small_run, name), 2)
        assert f"run.dir='{name}' cannot be made or written to" in fault
    assert faults(configure(small_run, tmp_path / "deep" / "run"), 2) == []
    assert [path.name for path in tmp_path.iterdir()] == ["file"]  # trying leaves nothing


def test_wandb_online_needs_a_key(small_run: SmallRun, tmp_path, monkeypatch):
    for name in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE", "WANDB_BASE_URL", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path))

    def found(mode: str = "online") -> list[str]:
        return training_faults(configure(small_run, tmp_path / "run", run__wandb=mode), 2)

    assert found("offline") == []
    (fault,) = found()
    assert "run.wandb=online: there is no key for api.wandb.ai" in fault and f"{tmp_path}/.netrc" in fault
    assert len(sft_faults(configure(small_run, tmp_path / "run", run__wandb="online"), 2)) == 1
    (tmp_path / ".netrc").write_text("machine wandb.example.org login user password secret\n")
    assert "secret" not in found()[0]
    (tmp_path / "settings").write_text(
        "[default]\nbase_url = https://wandb.example.org\n"
    )  # as wandb login --host has it
    assert found() == []
    monkeypatch.setenv("WANDB_BASE_URL", "https://api.wandb.ai")
    assert len(found()) == 1
    monkeypatch.setenv("WANDB_API_KEY", "secret")
    assert found() == []


def test_evaluation_does_not_care_for_the_training_layout(small_run: SmallRun, tmp_path):
    config = configure(small_run, tmp_path, actor__tensor_parallel=2)
    assert evaluation_faults(config, "valid_seen", None, 6) == []
    assert "the games 0 to 5" in evaluation_faults(config, "valid_seen", 6, None)[0]
    assert "--games 7: valid_seen has 6" in evaluation_faults(config, "valid_seen", None, 7)[0]


def test_an_offloaded_optimizer_must_fit_the_host(small_run: SmallRun, tmp_path, monkeypatch):
    """An 8B's state is 131 GB, on one machine or split over two."""
    from tools.bench_actor_cases import write_config

    write_config("qwen3-8b", tmp_path)
    overrides = {"optimizer__offload_fraction": 1.0, "actor__model": tmp_path}
    config = configure(small_run, tmp_path, **overrides)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=100e9))
    (fault,) = host_memory_faults(config, 2)
    assert "keeps 131 GB in this machine's memory, 100 GB are free; set it to 0.68 or lower" in fault
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
    assert host_memory_faults(config, 2) == []
