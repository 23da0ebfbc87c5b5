"""Configuration: composition, and that all faults come at once, by name."""

import pytest

from megatron_opid.config import Config, ConfigError, load


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


@pytest.mark.parametrize("override", ["experiment=none_such", "not an override"])
def test_what_hydra_refuses_is_a_config_error(override):
    with pytest.raises(ConfigError):
        load([override])
