"""One cluster for all tests, and jobs on it."""

from __future__ import annotations

import os
import sys
import tempfile
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from slurm.site import ROOT
from tests.slurm.cluster import Cluster, missing_tools

# `python` of the light jobs: the same interpreter, with stand-ins for what imports torch.
LIGHT_PYTHON = """#!/usr/bin/env bash
arguments=("${{@/#megatron_opid.train/tests.slurm.light_trainer}}")
exec {python} "${{arguments[@]/#slurm.engines/tests.slurm.light_engines}}"
"""


@dataclass(frozen=True)
class Jobs:
    """Submits jobs whose files lie in `directory`, in the repository's root as a user would."""

    cluster: Cluster
    directory: Path
    environment: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of_real_training(cls, cluster: Cluster, directory: Path) -> Jobs:
        """Jobs in this test's own virtual environment."""
        return cls(cluster, directory, {"VIRTUAL_ENVIRONMENT": sys.prefix, "OMP_NUM_THREADS": "1"})

    def submit(self, *words: object) -> str:
        """`sbatch words`; the job's number."""
        output = f"--output={self.directory}/%x-%j.out"
        arguments = ["sbatch", "--parsable", output, *words]
        return self.cluster.run(*arguments, cwd=ROOT, env=self.all_variables)

    @property
    def all_variables(self) -> dict[str, str]:
        """The environment in which jobs are submitted."""
        return {**self.cluster.environment, "LOGS": str(self.directory / "logs"), **self.environment}

    def output(self, name: str, job_id: str) -> str:
        """What a job has printed."""
        return (self.directory / f"{name}-{job_id}.out").read_text()


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    if missing := missing_tools():
        pytest.fail(f"{', '.join(missing)} not found; apt-get install slurmctld slurmd slurm-client munge")
    if os.geteuid() != 0:
        pytest.fail("a test cluster needs root")
    directory = Path(tempfile.gettempdir()) / f"opid_slurm_{uuid.uuid4().hex[:8]}"
    with Cluster(directory, num_nodes=3, port=17800) as cluster:
        yield cluster


@pytest.fixture
def light_jobs(cluster: Cluster, tmp_path: Path) -> Jobs:
    """Jobs of the same scripts with stand-ins for trainer and engines."""
    binaries = tmp_path / "environment" / "bin"
    binaries.mkdir(parents=True)
    python = binaries / "python"
    python.write_text(LIGHT_PYTHON.format(python=sys.executable))
    python.chmod(0o755)
    (binaries / "activate").write_text(f"PATH={binaries}:$PATH\n")
    return Jobs(cluster, tmp_path, {"VIRTUAL_ENVIRONMENT": str(binaries.parent)})
