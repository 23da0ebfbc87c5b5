"""The site's settings, slurm/site.sh, as Python sees them."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from megatron_opid.config import ConfigError

ROOT = Path(__file__).parent.parent
# sbatch reads these by itself; a rendered script names them.
SBATCH_OPTIONS = {
    "SBATCH_ACCOUNT": "account",
    "SBATCH_PARTITION": "partition",
    "SBATCH_QOS": "qos",
    "SBATCH_RESERVATION": "reservation",
    "SBATCH_CONSTRAINT": "constraint",
}
OF_BASH = ("_", "OLDPWD", "PWD", "SHLVL")


@dataclass(frozen=True)
class Site:
    """`environment` is the caller's with what site.sh exports; the rest are its settings."""

    gpus_per_node: int
    logs: Path
    environment: Mapping[str, str]

    @property
    def sbatch_options(self) -> dict[str, str]:
        """Account, partition and the like, where they are set."""
        return {option: self.environment[name] for name, option in SBATCH_OPTIONS.items() if name in self.environment}


def read_site() -> Site:
    """Source the site's file (MEGATRON_OPID_SITE, or slurm/site.sh) as the batch scripts do.

    Raises:
        ConfigError: the file does not exist, bash refuses it, or GPUS_PER_NODE is no number.
    """
    path = Path(os.environ.get("MEGATRON_OPID_SITE", ROOT / "slurm" / "site.sh"))
    script = 'source "$1" && printf "%s\\0" "$GPUS_PER_NODE" "$LOGS" && env -0'
    done = subprocess.run(["bash", "-uc", script, "site", str(path)], capture_output=True, text=True, cwd=ROOT)
    if done.returncode:
        raise ConfigError(
            [f"{path} cannot be used; set MEGATRON_OPID_SITE to a file like slurm/site.sh:\n{done.stderr}"]
        )
    gpus, logs, *variables = done.stdout.rstrip("\0").split("\0")
    if not gpus.isdigit():
        raise ConfigError([f"{path}: GPUS_PER_NODE={gpus!r} is no number; set 0 for nodes without GPUs"])
    environment = dict(variable.partition("=")[::2] for variable in variables)
    return Site(int(gpus), Path(logs), {name: value for name, value in environment.items() if name not in OF_BASH})
