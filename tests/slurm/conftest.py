"""One cluster for all tests, and jobs on it."""

from __future__ import annotations

import sys
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from slurm.site import ROOT
from tests.slurm.cluster import Cluster, obstacles

# `python` of the light jobs: the same interpreter, with stand-ins for what imports torch.
LIGHT_PYTHON = """#!/usr/bin/env bash
arguments=("${{@/#megatron_opid.train/tests.slurm.light_trainer}}")
arguments=("${{arguments[@]/#megatron_opid.sft/tests.slurm.light_trainer}}")
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
        return self.run("sbatch", "--parsable", output, *words)

    def run(self, *command: object) -> str:
        """A command in the repository's root, with the cluster and the settings of these jobs; its output."""
        return self.cluster.run(*command, cwd=ROOT, env=self.all_variables)

    @property
    def all_variables(self) -> dict[str, str]:
        """The environment in which jobs are submitted."""
        return {**self.cluster.environment, "LOGS": str(self.directory / "logs"), **self.environment}

    def output(self, name: str, job_id: str) -> str:
        """What a job has printed so far."""
        path = self.directory / f"{name}-{job_id}.out"
        return path.read_text() if path.exists() else ""


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    if reasons := obstacles():
        pytest.fail(f"no test cluster here: {'; '.join(reasons)}", pytrace=False)
    with Cluster(Path("/tmp") / f"opid_slurm_{uuid.uuid4().hex[:8]}", num_nodes=3, num_aside=3) as cluster:
        yield cluster


@pytest.fixture
def tidy_cluster(cluster: Cluster) -> Iterator[None]:
    """What one test leaves behind does not reach the next."""
    yield
    cluster.tidy()


@pytest.fixture
def light_jobs(cluster: Cluster, tmp_path: Path) -> Jobs:
    """Jobs of the same scripts with stand-ins for trainer and engines."""
    return make_light_jobs(cluster, tmp_path)


def make_light_jobs(cluster: Cluster, directory: Path) -> Jobs:
    binaries = directory / "environment" / "bin"
    binaries.mkdir(parents=True)
    python = binaries / "python"
    python.write_text(LIGHT_PYTHON.format(python=sys.executable))
    python.chmod(0o755)
    (binaries / "activate").write_text(f"PATH={binaries}:$PATH\n")
    return Jobs(cluster, directory, {"VIRTUAL_ENVIRONMENT": str(binaries.parent)})
