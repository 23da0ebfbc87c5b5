"""Configuration: composition, and that all faults come at once, by name."""

import pytest
import torch

from megatron_opid.config import Config, ConfigError, load, value_faults


def test_defaults_compose():
    assert load([]) == Config()


def test_overrides_reach_the_dataclasses():
    config = load(["algorithm.teacher_clip=2", "rollout.group_size=4", "skills.stop_after_steps=null"])
    assert config.algorithm.teacher_clip == 2.0
    assert config.rollout.group_size == 4
    assert config.skills.stop_after_steps is None


def test_all_faults_are_reported_together():
    with pytest.raises(ConfigError) as caught:
        load(["algorithm.nam=grpo", "nonsense.x=3", "rollout.top_p=-1", "algorithm.name=ppo", "run.seed=abc"])
    text = str(caught.value)
    for fragment in ("algorithm.nam is not", "nonsense is not", "rollout.top_p=-1", "algorithm.name='ppo'", "run.seed"):
        assert fragment in text
    assert len(caught.value.faults) == 5


@pytest.mark.parametrize(
    ("override", "key", "advice"),
    [
        ("actor.tensor_paralel=2", "actor.tensor_paralel", "did you mean actor.tensor_parallel or "),
        ("enigne.name=vllm", "enigne", "did you mean engine?"),
        ("actor.learning_rate=1", "actor.learning_rate", "did you mean optimizer.learning_rate"),  # another group
        ("model=x", "model", "did you mean actor.model?"),  # without its group
        ("experimnt=demo", "experimnt", "did you mean experiment?"),
        ("skills.xyz=1", "skills.xyz", "see megatron_opid/config.py"),
    ],
)
def test_a_misspelt_key_is_told_its_neighbours(override, key, advice):
    with pytest.raises(ConfigError) as caught:
        load([override, "rollout.group_sise=3"])
    assert any(fault.startswith(f"{key} is not a configuration key; {advice}") for fault in caught.value.faults)
    assert "rollout.group_sise is not a configuration key; did you mean rollout.group_size?" in caught.value.faults


@pytest.mark.parametrize("words", ["demo", "--run.num_processes=8", "actor.model = x", "-h"])
def test_what_is_no_override_is_said_with_all_the_others(words: str):
    with pytest.raises(ConfigError) as caught:
        load([words, "run.dir=a", "x y"])
    assert [fault.partition(" is no KEY=VALUE")[0] for fault in caught.value.faults] == [repr(words), "'x y'"]


def test_what_hydra_refuses_is_a_config_error():
    with pytest.raises(ConfigError):
        load(["run.dir=[a"])


def test_a_misspelt_experiment_is_told_its_neighbours():
    with pytest.raises(ConfigError, match=r"experiment=demo_serch does not exist; did you mean demo_search .*\?"):
        load(["experiment=demo_serch"])
    with pytest.raises(ConfigError, match="experiment=xyz does not exist; set one of .*demo"):
        load(["experiment=xyz"])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["algorithm.old_logprob=reuse", "actor.updates_per_step=2"], "needs actor.updates_per_step=1, it is 2"),
        (["algorithm.old_logprob=reuse", "algorithm.normalize_teacher=true"], "cannot normalize_teacher"),
        (["algorithm.old_logprob=engine", "algorithm.correction=truncate"], "nothing to correct"),
        (["actor.recompute_layers=2"], "actor.recompute_layers=2 has no effect"),
        (["optimizer.offload_fraction=0.5", "actor.device=cpu"], "optimizer.offload_fraction=0.5 needs a GPU; set 0.0"),
        (["actor.fp8=delayed", "actor.device=cpu"], "actor.fp8=delayed needs a GPU; set none"),
        (["actor.fp8=current", "actor.precision=fp32"], "needs actor.precision=bf16"),
    ],
)
def test_values_that_contradict_each_other(overrides, message):
    assert any(message in fault for fault in value_faults(load(overrides)))


def test_options_for_a_gpu_are_accepted_where_there_is_one(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    config = load(["actor.fp8=current", "optimizer.offload_fraction=0.5", "algorithm.old_logprob=reuse"])
    assert value_faults(config) == []
