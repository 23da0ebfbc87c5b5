"""What slurm/job.sh derives from Slurm's variables and the site's settings, without a cluster."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from slurm.site import ROOT

SHOW = 'source slurm/job.sh "$@" && printf "%s\\n" "${SRUN[*]}" "${arguments[*]}" && env'


def derived(tmp_path: Path, *arguments: str, cwd: Path = ROOT, **variables: str) -> tuple[str, str, dict[str, str]]:
    """The srun command, the job's arguments and the environment after sourcing the file."""
    scontrol = tmp_path / "bin" / "scontrol"
    scontrol.parent.mkdir()
    scontrol.write_text('#!/bin/sh\nprintf "%s\\n" $(echo "$3" | tr , " ")\n')  # show hostnames a,b
    scontrol.chmod(0o755)
    of_slurm = {"SLURM_JOB_ID": "7003", "SLURM_JOB_NAME": "train", "SLURM_JOB_NODELIST": "n3,n4"}
    environment = {
        "PATH": f"{scontrol.parent}:{os.environ['PATH']}",
        "LOGS": str(tmp_path / "logs"),
        "LOCAL_SCRATCH": "/scratch",
    }
    done = subprocess.run(
        ["bash", "-c", SHOW, "job", *arguments],
        env=environment | of_slurm | variables,
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    srun, words, *lines = done.stdout.splitlines()
    return srun, words, dict(line.partition("=")[::2] for line in lines)


def make_environment(tmp_path: Path) -> str:
    activate = tmp_path / "venv" / "bin" / "activate"
    activate.parent.mkdir(parents=True)
    activate.write_text("export ACTIVATED=yes\n")
    return str(tmp_path / "venv")


def test_an_image_and_its_mounts_reach_srun(tmp_path: Path):
    srun, _, environment = derived(tmp_path, CONTAINER_IMAGE="/images/opid.sqsh", CONTAINER_MOUNTS="/models:/models")
    words = srun.split()
    assert words[0] == "srun" and "--kill-on-bad-exit=1" in words
    assert "--container-image=/images/opid.sqsh" in words and f"--container-workdir={ROOT}" in words
    logs = tmp_path / "logs"
    mounts = f"{ROOT}:{ROOT},{logs}:{logs},/scratch:/scratch,/models:/models"
    assert f"--container-mounts={mounts}" in words
    assert "ACTIVATED" not in environment


def test_without_an_image_modules_and_the_virtual_environment_are_used(tmp_path: Path):
    loaded = tmp_path / "loaded"
    srun, _, environment = derived(
        tmp_path,
        VIRTUAL_ENVIRONMENT=make_environment(tmp_path),
        MODULES="cuda/13.0 python/3.12",
        **{"BASH_FUNC_module%%": f'() {{ echo "$@" > {loaded}\n}}'},
    )
    assert "--container" not in srun
    assert environment["ACTIVATED"] == "yes"
    assert loaded.read_text() == "load cuda/13.0 python/3.12\n"


def test_ranks_meet_at_the_first_node_and_engines_have_addresses(tmp_path: Path):
    _, words, environment = derived(
        tmp_path,
        "run.dir=runs/seed_%a",
        "run.seed=%a",
        VIRTUAL_ENVIRONMENT=make_environment(tmp_path),
        SLURM_JOB_NODELIST_HET_GROUP_0="n3,n4",
        SLURM_JOB_NODELIST_HET_GROUP_1="n7,n8",
        SLURM_ARRAY_TASK_ID="5",
        SLURM_RESTART_COUNT="2",
        NCCL_SOCKET_IFNAME="ib0",
    )
    assert words == "run.dir=runs/seed_5 run.seed=5"
    assert (environment["MASTER_ADDR"], environment["MASTER_PORT"]) == ("n3", "22003")
    assert (environment["ENGINE_HOSTS"], environment["ENGINE_PORT"]) == ("n7 n8", "27003")
    assert environment["ATTEMPT_LOGS"] == str(tmp_path / "logs" / "train-7003" / "attempt_2")
    assert environment["GLOO_SOCKET_IFNAME"] == "ib0"
    caches = ("TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR", "TORCH_EXTENSIONS_DIR", "CUDA_CACHE_PATH")
    assert all(environment[name].startswith("/scratch/megatron_opid_") for name in caches)


def test_another_folder_than_the_repositorys_root_is_refused(tmp_path: Path):
    done = subprocess.run(
        ["bash", str(ROOT / "slurm" / "train.sbatch")], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "slurm/job.sh" in done.stderr
