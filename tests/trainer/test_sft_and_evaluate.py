"""The cold start learns, its export plays in plain transformers, and evaluation says how well."""

from __future__ import annotations

import json
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import psutil
import pytest

from envs.base import Task
from megatron_opid import evaluate
from megatron_opid.actor.samples import TokenSequence
from megatron_opid.config import load
from megatron_opid.launch import EXIT_BAD_INPUT
from megatron_opid.metrics import read_metrics
from megatron_opid.rollouts import Rollout
from megatron_opid.sft import every_token
from tests.trainer.conftest import SmallRun, run_module
from tools import play


@pytest.fixture(scope="module")
def cold_start(small_run: SmallRun, tmp_path_factory: pytest.TempPathFactory):
    run_dir = tmp_path_factory.mktemp("cold_start")
    overrides = small_run.overrides(
        run_dir,
        run__num_steps=12,
        sft__samples_per_step=16,
        sft__all_token_share=0.5,
        optimizer__learning_rate=0.01,
        actor__tensor_parallel=2,
    )
    finished = run_module("megatron_opid.sft", overrides)
    assert finished.returncode == 0, finished.stderr[-3000:]
    return run_dir


def test_the_cold_start_learns(cold_start):
    losses = [line["actor/loss"] for line in read_metrics(cold_start / "metrics.jsonl")]
    assert len(losses) == 12
    assert losses[5] < losses[0]  # steps 0 to 5 learn every token
    assert losses[11] < losses[6]  # the others the answers only


def test_every_token_is_learned_once():
    sequence = every_token(TokenSequence(np.array([1, 2, 3]), np.array([4, 5])))
    assert sequence.prompt_ids.tolist() == [1]
    assert sequence.response_ids.tolist() == [2, 3, 4, 5]


def test_evaluation_reports_every_category_with_its_interval(small_run: SmallRun, cold_start, tmp_path, capsys):
    out = tmp_path / "rates.json"
    overrides = small_run.overrides(tmp_path, actor__model=cold_start / "hf")
    for options, num_games in (([], 6), (["--games", "4"], 4)):
        assert evaluate.main([*overrides, "--split", "valid_unseen", "--json", str(out), *options]) == 0
        result = json.loads(out.read_text())
        assert result["rates"]["all"]["num_episodes"] == len(result["outcomes"]) == num_games
        assert sum(r["num_episodes"] for name, r in result["rates"].items() if name != "all") == num_games
        low, high = result["rates"]["all"]["interval"]
        assert low <= result["rates"]["all"]["num_won"] / num_games <= high
    assert "valid_unseen" in capsys.readouterr().out


SERVED = ["engine.name=vllm", "engine.cpu_servers=true", "engine.num_servers=2"]


def test_servers_play_as_this_process_does(small_run: SmallRun, cold_start, tmp_path, capsys):
    overrides = small_run.overrides(tmp_path, actor__model=cold_start / "hf")
    tasks = [Task("alfworld", index, 0, "valid_unseen") for index in range(4)]
    local, served = (evaluate.play(evaluate.evaluation_config([*overrides, *engine]), tasks) for engine in ([], SERVED))
    assert [[s.response_ids for s in t.steps] for t in local] == [[s.response_ids for s in t.steps] for t in served]
    assert not any(trajectory.failure for trajectory in served)
    arguments = ["--split", "valid_unseen", "--games", "4", "--json", str(tmp_path / "served")]
    assert evaluate.main([*overrides, *SERVED, *arguments]) == 0
    assert len(json.loads((tmp_path / "served").read_text())["outcomes"]) == 4
    assert "4 games of valid_unseen, by vllm, servers: 2" in capsys.readouterr().err


def test_a_server_that_dies_is_given_the_model_again(small_run: SmallRun, cold_start, tmp_path):
    config = evaluate.evaluation_config([*small_run.overrides(tmp_path, actor__model=cold_start / "hf"), *SERVED[:2]])
    tasks = [Task("alfworld", index, 0, "valid_unseen") for index in range(2)]
    with Rollout(config, rank=0, num_ranks=1) as rollout:
        rollout.load()
        before = rollout.validate(tasks)
        port = str(urlsplit(rollout._launcher.urls[0]).port)
        (guard,) = (child for child in psutil.Process().children() if port in child.cmdline())
        (server,) = guard.children()
        server.kill()
        guard.wait()
        after = rollout.validate(tasks)
    assert not any(trajectory.failure for trajectory in after)
    assert [[s.response_ids for s in t.steps] for t in before] == [[s.response_ids for s in t.steps] for t in after]


@pytest.mark.parametrize("fault", ["actor.weights=runs/a/checkpoints/step_1", "engine.urls=[http://h:8000]"])
def test_what_evaluation_would_not_use_is_refused(small_run: SmallRun, cold_start, tmp_path, capsys, fault: str):
    overrides = small_run.overrides(tmp_path, actor__model=cold_start / "hf")
    assert evaluate.main([*overrides, *SERVED, fault]) == EXIT_BAD_INPUT
    assert fault.partition("=")[0] in capsys.readouterr().err


def test_what_evaluation_does_not_heed_is_named(small_run: SmallRun, tmp_path, capsys):
    trainers = ["engine.placement=disaggregated", "run.num_processes=1"]  # the second is as it is
    assert evaluate.main([*small_run.overrides(tmp_path / "run"), *trainers, "engine.urls=[http://h:8000]"])
    told = next(line for line in capsys.readouterr().err.splitlines() if "not used here" in line)
    assert "engine.placement=disaggregated" in told and str(tmp_path / "run") in told and "processes" not in told


def test_servers_are_as_many_as_there_is_room_for(small_run: SmallRun, tmp_path, monkeypatch, capsys):
    overrides = small_run.overrides(tmp_path, engine__name="vllm", engine__num_servers=8, engine__tensor_parallel=2)
    for names, num_servers in (("0,1,2,3,4", 2), ("0", 1)):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", names)
        assert evaluate.evaluation_config(overrides).engine.num_servers == num_servers
    assert evaluate.main(overrides) == EXIT_BAD_INPUT
    assert "need 2 GPUs, this machine has 1" in capsys.readouterr().err


def test_a_failed_evaluation_leaves_logs_and_no_empty_folder(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    def fail(options, overrides):
        if options.games:
            Path(overrides[-1].partition("=")[2], "server.log").touch()
        raise RuntimeError("unexpected")

    monkeypatch.setattr(evaluate, "_run", fail)
    with pytest.raises(RuntimeError):
        evaluate.main([])
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(RuntimeError):
        evaluate.main(["--games", "1"])
    assert [path.name for path in tmp_path.glob("*/*")] == ["server.log"]


def test_a_misspelt_option_is_not_taken_for_its_neighbour(small_run: SmallRun, tmp_path, capsys):
    assert evaluate.main([*small_run.overrides(tmp_path), "--game", "4"]) == EXIT_BAD_INPUT
    assert "'--game' is no KEY=VALUE" in capsys.readouterr().err


def test_an_episode_can_be_watched(small_run: SmallRun, cold_start, tmp_path, capsys):
    overrides = small_run.overrides(tmp_path, actor__model=cold_start / "hf")
    assert evaluate.main([*overrides, "--watch", "2"]) == 0
    assert "--- step 0" in capsys.readouterr().out


def test_environments_have_the_time_that_the_run_gives_them(small_run: SmallRun, tmp_path):
    from megatron_opid.rollouts import Rollout

    config = load(small_run.overrides(tmp_path, algorithm__name="grpo", env__num_processes=1, env__timeout_s=77))
    with Rollout(config, rank=0, num_ranks=1) as rollout:
        assert [process.timeout_s for process in rollout._worker.environments.processes] == [77.0]


def test_the_export_plays_in_plain_transformers(small_run: SmallRun, cold_start, capsys):
    options = json.dumps({"data": str(small_run.games)})
    arguments = ["--options", options, "--style", "compact", "--max-steps", "2", "--max-tokens", "8"]
    assert play.main([str(cold_start / "hf"), *arguments]) == 0
    assert "after 2 steps" in capsys.readouterr().out


def test_demonstrations_that_are_no_conversations_are_refused(small_run: SmallRun, tmp_path):
    torn = tmp_path / "torn.jsonl"
    torn.write_text(small_run.conversations.read_text()[:100])
    finished = run_module("megatron_opid.sft", small_run.overrides(tmp_path / "run", sft__demonstrations=torn))
    assert finished.returncode == 2
    assert f"{torn}:1" in finished.stderr
