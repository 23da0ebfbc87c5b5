"""The launcher: sizes are checked against nodes, commands and rendered scripts are complete, scripts are clean."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from types import ModuleType

import pytest

from megatron_opid.config import Config, ConfigError, load
from slurm import chain, engines, launch, node
from slurm.launch import command, components, job_faults, main, render
from slurm.request import Request, parse, size_faults
from slurm.site import ROOT, Site, read_site
from tests.trainer.conftest import SmallRun, small_run  # noqa: F401  (a fixture)

SITE = Site(8, Path("/logs"), {"SBATCH_ACCOUNT": "project", "HOME": "/root"})


APART = ["engine.placement=disaggregated"]


@pytest.fixture
def logs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Of a site that is submitted from."""
    path, logs = tmp_path / "site.sh", tmp_path / "logs"
    path.write_text(f"GPUS_PER_NODE=8\nLOGS={logs}\n")
    monkeypatch.setenv("MEGATRON_OPID_SITE", str(path))
    return logs


@pytest.fixture(scope="module")
def config() -> Config:
    return load(["experiment=alfworld_qwen3_1_7b"])


def test_words_without_a_dot_are_slurms(config: Config):
    request, rest = parse(["experiment=x", "nodes=4", "time=1-00", "run.seed=3", "name=a.b"])
    assert request == Request(nodes="4", time="1-00", name="a.b")
    assert rest == ["experiment=x", "run.seed=3"]


def test_what_slurm_would_not_understand_is_refused_at_once():
    with pytest.raises(ConfigError) as error:
        parse(["nodes=0", "time=soon", "job=dance", "after=12;rm"])
    assert len(error.value.faults) == 4


def test_a_misspelt_flag_is_refused_and_not_handed_to_the_job(capsys):
    assert main(["experiment=alfworld_qwen3_1_7b", "--sumbit", "--dry"]) == 2
    printed = capsys.readouterr()
    assert "--sumbit is unknown; did you mean --submit?" in printed.err
    assert "--dry is unknown; set one of --submit, --render" in printed.err
    assert not printed.out


def test_misspelt_words_of_slurm_are_told_their_neighbours():
    with pytest.raises(ConfigError) as error:
        parse(["experiment=demo", "node=2", "tiem=01:00:00", "run.seed=1", "actor={tensor_parallel: 2}", "xyz=1"])
    node, time, xyz = error.value.faults
    assert node == "node is unknown; did you mean nodes?"
    assert time == "tiem is unknown; did you mean time?"
    assert xyz.startswith("xyz is unknown; set one of job, nodes, ") and xyz.endswith(", experiment")


def test_faults_of_slurms_words_flags_and_the_configuration_are_told_together(capsys):
    assert main(["experiment=demo", "runs.dir=x", "nodes=two", "--dry-run", "seeds=0-3", "run.seed=%a"]) == 2
    nodes, flag, key = capsys.readouterr().err.splitlines()[1:]
    assert "nodes='two'" in nodes and "--dry-run is unknown" in flag and "runs is not a configuration key" in key


@pytest.mark.parametrize("module", [launch, chain])
def test_a_submission_that_fails_is_no_fault_of_the_configuration(
    module: ModuleType,
    small_run: SmallRun,  # noqa: F811
    logs: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    sbatch = tmp_path / "bin" / "sbatch"
    words = [*small_run.overrides(tmp_path / "run"), "nodes=1", *(["--submit"] if module is launch else [])]
    sbatch.parent.mkdir()
    monkeypatch.setenv("PATH", f"{sbatch.parent}:/usr/bin:/bin")
    if shutil.which("sbatch") is None:
        assert module.main(words) == 1
        told = capsys.readouterr().err
        assert "sbatch was not found" in told and "configuration" not in told
    sbatch.write_text("#!/bin/sh\necho 'error: Unable to contact slurm controller' >&2\nexit 1\n")
    sbatch.chmod(0o755)
    assert module.main(words) == 1
    told = capsys.readouterr().err
    assert "Unable to contact slurm controller" in told and "configuration" not in told


@pytest.mark.parametrize("module", [node, engines])
def test_what_a_step_starts_says_so_elsewhere(
    module: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    for name in ("SLURM_NODEID", "SLURM_STEP_NUM_NODES", "ATTEMPT_LOGS", "ENGINE_PORT"):
        monkeypatch.delenv(name, raising=False)
    assert module.main(["megatron_opid.train", "experiment=demo"]) == 2
    assert f"{module.__name__} runs under srun" in capsys.readouterr().err


def test_every_seed_has_its_own_directory():
    assert parse(["seeds=0-3", "run.dir=runs/a"])[1] == ["run.dir=runs/a", "run.seed=%a", "run.dir=runs/a_seed_%a"]
    assert parse(["seeds=0-3", "run.dir=runs/%a"])[1] == ["run.dir=runs/%a", "run.seed=%a"]


@pytest.mark.parametrize(
    "job, overrides, words",
    [
        ("train", ["run.num_processes=16"], "GPUS_PER_NODE=8"),
        ("train", ["actor.tensor_parallel=16"], "cross nodes"),
        ("disaggregated", [*APART, "engine.num_servers=4", "engine.tensor_parallel=4"], "than the 8 GPUs that a node"),
        ("disaggregated", [], "to sleep that have nodes of their own"),
        ("train", APART, "than the 0 GPUs that a node has for engines"),
        ("train", [], None),
        ("disaggregated", [*APART, "engine.num_servers=4", "engine.tensor_parallel=2"], None),
    ],
)
def test_nodes_must_hold_ranks_and_engines(job: str, overrides: list[str], words: str | None):
    faults = size_faults(Request(job=job), load(["experiment=alfworld_qwen3_1_7b", *overrides]), SITE)
    assert (words in faults[0] and len(faults) == 1) if words else faults == []


def test_engine_nodes_need_engines_that_serve():
    for device in ("cpu", "cuda"):
        config = load(["experiment=demo", f"actor.device={device}", "engine.name=local"])
        (fault,) = size_faults(Request(job="disaggregated"), config, SITE)
        assert fault.startswith("engine.name=local has no servers for engine nodes; set")
        assert size_faults(Request(job="train"), config, SITE) == []


def test_layouts_are_checked_against_all_nodes(
    small_run: SmallRun,  # noqa: F811
    logs: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
):
    words = [*small_run.overrides(tmp_path / "run"), "run.num_processes=1", "actor.pipeline_parallel=2"]
    assert main([*words, "nodes=3"]) == 2
    assert "3 ranks cannot be divided" in capsys.readouterr().err
    assert main([*words, "nodes=2"]) == 0
    assert "--nodes=2 --gpus-per-node=0 slurm/train.sbatch experiment=demo" in capsys.readouterr().out
    assert logs.is_dir()  # the printed command needs it


def test_a_login_node_needs_no_gpus_for_a_cold_start():
    config = load(["experiment=demo_gpu_sft"])
    assert config.actor.device == "cuda"
    faults = job_faults(Request(job="sft", nodes="2"), config, SITE)
    assert not any("GPU" in fault or "transformer_engine" in fault for fault in faults), faults


@pytest.mark.parametrize(
    "overrides",
    [
        ["engine.sync=nccl", "engine.placement=colocated"],
        ["engine.sync=in_process"],
        ["engine.placement=disaggregated", "engine.sync=ipc"],
    ],
)
def test_engines_that_the_job_would_refuse_are_refused_here(overrides: list[str]):
    config = load(["experiment=alfworld_qwen3_1_7b", "engine.name=vllm", *overrides])
    job = "disaggregated" if "engine.placement=disaggregated" in overrides else "train"
    assert any("engine.sync=" in fault for fault in job_faults(Request(job=job, nodes="1"), config, SITE))


def test_checks_see_what_the_sites_file_exports(
    small_run: SmallRun,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    path = tmp_path / "site.sh"
    path.write_text(f"GPUS_PER_NODE=8\nLOGS={tmp_path}\nexport MODELS_ROOT={small_run.model.parent}\n")
    words = [*small_run.overrides(tmp_path / "run"), f"actor.model={small_run.model.name}", "nodes=1"]
    monkeypatch.setenv("MODELS_ROOT", "")
    assert main(words) == 2
    monkeypatch.setenv("MEGATRON_OPID_SITE", str(path))
    assert main(words) == 0, capsys.readouterr().err


def test_an_evaluation_is_refused_for_its_own_options_before_it_waits_in_the_queue(
    small_run: SmallRun,  # noqa: F811
    logs: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
):
    words = ["job=evaluate", *small_run.overrides(tmp_path / "run"), "actor.tensor_parallel=2"]  # of training alone
    assert main([*words, "--games", "4", "--split", "valid_unseen"]) == 0, capsys.readouterr().err
    assert "--games 4 --split valid_unseen" in capsys.readouterr().out
    assert main([*words, "--games", "700", "--json", f"{tmp_path}/nowhere/rates"]) == 2
    said = capsys.readouterr().err
    assert "--games 700: valid_seen has 6" in said and "nowhere/rates is no file in a folder that is there" in said
    assert main([*words, "--game", "4", "--lots"]) == 2 and "--lots" in capsys.readouterr().err


def test_a_heterogeneous_job_has_two_components(config: Config):
    request = Request(job="disaggregated", nodes="4", engine_nodes="2", time="60", signal="300", after="7")
    words = command(request, ["experiment=x"], components(request, config, SITE))
    colon = words.index(":")
    assert {"--nodes=4", "--account=project", "--signal=B:USR1@300", "--dependency=afterok:7"} < set(words[:colon])
    assert {"--nodes=2", "--account=project", "--exclusive", "--gpus-per-node=8"} < set(words[colon:])
    assert words[-2:] == ["slurm/disaggregated.sbatch", "experiment=x"]


def test_an_evaluation_has_the_gpus_of_its_servers_or_one():
    for engine, num_servers, gpus, cpus in (("vllm", 8, "8", "64"), ("vllm", 2, "2", "16"), ("local", 8, "1", None)):
        config = load(["experiment=alfworld_qwen3_1_7b", f"engine.name={engine}", f"engine.num_servers={num_servers}"])
        (options,) = components(Request(job="evaluate"), config, SITE)
        assert (options["gpus-per-node"], options.get("cpus-per-task")) == (gpus, cpus)
    config = load(["experiment=alfworld_qwen3_1_7b", "engine.tensor_parallel=16"])
    (fault,) = size_faults(Request(job="evaluate"), config, SITE)
    assert "engine.tensor_parallel=16 is more than a node's 8 GPUs" in fault


def test_a_rendered_script_is_complete_and_clean(config: Config, tmp_path: Path):
    request = Request(job="disaggregated", nodes="4", engine_nodes="2", name="mine")
    text = render(request, ["run.dir=a b", "experiment=x"], components(request, config, SITE))
    lines = text.splitlines()
    assert lines.count("#SBATCH hetjob") == 1
    assert lines.count("#SBATCH --job-name=mine") == 1 and "#SBATCH --job-name=disaggregated" not in lines
    assert "set -- 'run.dir=a b' experiment=x" in lines
    assert text.index("set -- ") < text.index("source slurm/job.sh")
    script = tmp_path / "rendered.sbatch"
    script.write_text(text)
    check_shell(script)


def test_batch_scripts_pass_shellcheck():
    check_shell(*sorted((ROOT / "slurm").glob("*.s*h")), *sorted((ROOT / "slurm").glob("*.sbatch")))


def check_shell(*paths: Path) -> None:
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is not installed (apt-get install shellcheck)")
    done = subprocess.run(["shellcheck", "-x", *map(str, paths)], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_the_sites_file_is_read_as_bash_reads_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "site.sh"
    path.write_text("GPUS_PER_NODE=$((2 * 2))\nLOGS=/scratch/logs\nexport SBATCH_PARTITION='a b'\n")
    monkeypatch.setenv("MEGATRON_OPID_SITE", str(path))
    site = read_site()
    assert (site.gpus_per_node, site.logs, site.sbatch_options) == (4, Path("/scratch/logs"), {"partition": "a b"})
    path.write_text("GPUS_PER_NODE=many\nLOGS=/x\n")
    with pytest.raises(ConfigError, match="GPUS_PER_NODE='many'"):
        read_site()
    monkeypatch.setenv("MEGATRON_OPID_SITE", str(tmp_path / "nowhere"))
    with pytest.raises(ConfigError, match="nowhere"):
        read_site()


def test_a_job_without_its_analyzers_key_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    faults = job_faults(Request(job="train", nodes="1"), load(["experiment=alfworld_qwen3_1_7b"]), SITE)
    assert any("OPENAI_API_KEY" in fault for fault in faults)
    rules = load(["experiment=alfworld_qwen3_1_7b", "skills.analyzer=rules"])
    assert not any("OPENAI" in fault for fault in job_faults(Request(job="train", nodes="1"), rules, SITE))
