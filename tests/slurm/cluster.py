"""A real Slurm of a few virtual nodes on this machine, under one directory, gone without a trace when its `with` ends.

Each node is a slurmd in namespaces of its own (mount, UTS, PID), so that `hostname` says n1, names of nodes have
addresses, and ending the node's first process ends everything on it, as a power cut would.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import psutil

TOOLS = ("munged", "munge", "slurmctld", "slurmd", "sbatch", "unshare")
NAMESPACES = ["unshare", "--mount", "--uts", "--pid", "--fork", "--kill-child", "--mount-proc"]
PORTS_PER_CLUSTER, CLAIMED = 200, 99  # one port of each range is held as long as the cluster lives
QUESTIONS = ("scontrol", "sinfo", "squeue")  # may be asked again
MARK = "MEGATRON_OPID_TEST_CLUSTER"  # in the environment of everything the cluster starts: how stragglers are found
NODE_MAIN = """
mount -n --bind "$1/etc/hosts" /etc/hosts && hostname "$2" || exit 1
slurmd -D -N "$2" &
trap 'kill $!' TERM
while kill -0 $! 2>/dev/null; do wait $!; done
"""


def obstacles() -> list[str]:
    """Why there can be no cluster on this machine; empty where there can."""
    if missing := [tool for tool in TOOLS if shutil.which(tool, path=_PATH) is None]:
        return [f"{', '.join(missing)} not found: apt-get install slurmctld slurmd slurm-client munge"]
    if os.geteuid() != 0:
        return ["a test cluster needs root"]
    probe = "mount -n --bind /etc/hosts /etc/hosts && hostname n1"
    done = subprocess.run([*NAMESPACES, "bash", "-c", probe], capture_output=True, text=True, check=False)
    if done.returncode:
        return [
            "its nodes need namespaces of their own, which this machine refuses "
            f"({done.stderr.strip() or f'exit code {done.returncode}'}): run it with CAP_SYS_ADMIN "
            "(docker run --privileged)"
        ]
    return []


def claim_ports() -> tuple[int, socket.socket]:
    """The first of PORTS_PER_CLUSTER ports of which none is in use, below those that the kernel gives out, and what
    keeps another cluster from them.

    Raises:
        OSError: there is no such range.
    """
    for first in range(16000, 20000, PORTS_PER_CLUSTER):
        claim = socket.socket()
        try:
            claim.bind(("0.0.0.0", first + CLAIMED))
            for port in set(range(first, first + PORTS_PER_CLUSTER)) - {first + CLAIMED}:
                with socket.socket() as probe:
                    probe.bind(("0.0.0.0", port))
        except OSError:
            claim.close()
            continue
        return first, claim
    raise OSError(f"no {PORTS_PER_CLUSTER} free ports in a row between 16000 and 20000")


class Cluster:
    """`with Cluster(directory, num_nodes=3, num_aside=1) as cluster: cluster.run("sbatch", ...)`.

    Partitions: main, and low and high over the same nodes, where high preempts low; aside has `num_aside` more, for
    jobs that run beside all others. Eight GPUs a node are declared. `directory` must be short: a Unix socket's path has
    107 bytes.
    """

    def __init__(self, directory: Path, *, num_nodes: int, num_aside: int) -> None:
        names = [f"n{index}" for index in range(1, num_nodes + num_aside + 1)]
        self.nodes, self._aside = names[:num_nodes], names[num_nodes:]
        self.directory = directory
        self._port, self._claim = claim_ports()
        self._processes: dict[str, subprocess.Popen] = {}
        self.environment = os.environ | {
            "PATH": _PATH,
            "SLURM_CONF": str(directory / "etc" / "slurm.conf"),
            MARK: str(directory),
        }

    def __enter__(self) -> Cluster:
        self.directory.mkdir()  # before anything can fail that ends with its removal
        try:
            self._write_files()
            self._start("munged", "munged", "--foreground", "--force", *self._munge_options())
            self._wait("munged", ["munge", "-S", str(self.directory / "run/munge.sock"), "-n"])
            self._start("slurmctld", "slurmctld", "-D", "-c")
            self._wait("slurmctld", ["scontrol", "ping"])
            for node in (*self.nodes, *self._aside):
                self.start_node(node)
            self.wait_for_nodes()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop()

    def run(self, *command: object, check: bool = True, **options: object) -> str:
        """Run a command with the cluster's SLURM_CONF; its output, stripped.

        Raises:
            AssertionError: it failed, and `check` was asked for; with what it printed.
        """
        options = {"env": self.environment, **options}
        for _ in range(3 if command[0] in QUESTIONS else 1):
            done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False, **options)
            if done.returncode != -signal.SIGPIPE:  # how a client ends to which a busy slurmctld closes the connection
                break
        assert not check or done.returncode == 0, f"{command}: exit code {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout.strip()

    def job(self, job_id: str) -> dict[str, str]:
        """What `scontrol show job` says of a job."""
        text = self.run("scontrol", "show", "job", "-o", job_id).splitlines()[0]
        return dict(word.partition("=")[::2] for word in text.split() if "=" in word)

    def wait_for_state(self, job_id: str, *states: str, timeout_s: float) -> dict[str, str]:
        """Wait until a job is in one of the states; what is known of it then."""
        return self.wait_until(
            lambda: job if (job := self.job(job_id))["JobState"] in states else None,
            timeout_s=timeout_s,
            what=f"job {job_id} to be {' or '.join(states)}",
        )

    def wait_until(self, condition: Callable[[], object], *, timeout_s: float, what: str) -> object:
        """Poll until `condition()` is true; returns its value."""
        deadline_s = time.monotonic() + timeout_s
        while not (value := condition()):
            assert time.monotonic() < deadline_s, f"waited {timeout_s:.0f} s in vain for {what}\n{self._state()}"
            time.sleep(0.1)
        return value

    def wait_for_nodes(self, *, timeout_s: float = 120) -> None:
        """Wait until every node of main is up and free."""
        self.wait_until(lambda: self._num_idle() == len(self.nodes), timeout_s=timeout_s, what="all nodes to be idle")

    def start_node(self, node: str) -> None:
        """Boot a node, also again after `crash_node`."""
        (self.directory / "spool" / node).mkdir(parents=True, exist_ok=True)
        self._start(node, *NAMESPACES, "--", "bash", "-c", NODE_MAIN, "node", str(self.directory), node)

    def crash_node(self, node: str) -> None:
        """Cut a node's power: nothing on it gets to say a word."""
        process = self._processes.pop(node)
        for first in psutil.Process(process.pid).children():  # with it the kernel ends its whole PID namespace
            first.kill()
        process.wait()

    def tidy(self) -> None:
        """End what a test has left: jobs (but those aside) cancelled, dead nodes booted, all nodes free."""
        for partition in ("main", "low", "high"):
            self.run("scancel", "--partition", partition, check=False)
        for node in self.nodes:
            if node not in self._processes:
                self.start_node(node)
        self.wait_for_nodes()

    def _start(self, name: str, *command: str) -> None:
        with (self.directory / "log" / f"{name}.out").open("ab") as log:
            self._processes[name] = subprocess.Popen(
                command, env=self.environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )

    def _wait(self, name: str, probe: list[str]) -> None:
        def answers() -> bool:
            return subprocess.run(probe, env=self.environment, capture_output=True, check=False).returncode == 0

        deadline_s = time.monotonic() + 60
        while not answers():
            log = (self.directory / "log" / f"{name}.out").read_text(errors="replace")
            assert time.monotonic() < deadline_s, f"{name} does not answer:\n{log[-2000:]}"
            time.sleep(0.05)

    def _state(self) -> str:
        return self.run("squeue", "-a", check=False) + "\n" + self.run("sinfo", "-N", "-l", check=False)

    def _num_idle(self) -> int:
        return len(self.run("sinfo", "-h", "-N", "-p", "main", "-t", "idle", "-o", "%N", check=False).split())

    def _stop(self) -> None:
        """End jobs, daemons, and whatever still carries the cluster's mark; remove the directory, free the ports."""
        for process in reversed(self._processes.values()):
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
            process.wait()
        for process in psutil.process_iter():
            if self._is_ours(process):
                process.kill()
        shutil.rmtree(self.directory, ignore_errors=True)
        self._claim.close()

    def _is_ours(self, process: psutil.Process) -> bool:
        try:
            return process.environ().get(MARK) == str(self.directory) and process.pid != os.getpid()
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            return False

    def _munge_options(self) -> list[str]:
        run = self.directory / "run"
        return [
            f"--socket={run / 'munge.sock'}",
            f"--key-file={self.directory / 'etc' / 'munge.key'}",
            f"--log-file={self.directory / 'log' / 'munged.log'}",
            f"--pid-file={run / 'munged.pid'}",
            f"--seed-file={run / 'munged.seed'}",
        ]

    def _write_files(self) -> None:
        for name in ("etc", "log", "run", "state", "spool", "dev"):
            (self.directory / name).mkdir()
        etc, host = self.directory / "etc", os.uname().nodename.partition(".")[0]
        key = etc / "munge.key"
        key.touch(mode=0o600)
        key.write_bytes(os.urandom(128))
        names = (*self.nodes, *self._aside)
        addresses = {node: f"127.0.1.{index}" for index, node in enumerate(names, start=1)}
        hosts = {"localhost": "127.0.0.1", host: "127.0.0.1"} | addresses
        (etc / "hosts").write_text("".join(f"{address} {name}\n" for name, address in hosts.items()))
        for gpu in range(8):
            (self.directory / "dev" / f"gpu{gpu}").symlink_to("/dev/null")
        (etc / "gres.conf").write_text(
            f"AutoDetect=off\nNodeName={','.join(names)} Name=gpu File={self.directory}/dev/gpu[0-7]\n"
        )
        (etc / "cgroup.conf").touch()
        node_lines = [
            f"NodeName={node} NodeAddr={address} Port={self._port + index} CPUs=64 RealMemory=500000 Gres=gpu:8"
            for index, (node, address) in enumerate(addresses.items(), start=1)
        ]
        text = CONFIGURATION.format(
            directory=self.directory,
            host=host,
            port=self._port,
            first_srun_port=self._port + 100,
            last_srun_port=self._port + 199,
            nodes=",".join(self.nodes),
            aside=",".join(self._aside),
        )
        (etc / "slurm.conf").write_text(text + "\n".join(node_lines) + "\n")


_PATH = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
# cred_expire is also how long a requeued job waits (default 120 s); heterogeneous jobs start in the backfill scheduler
# only (default: every 30 s); a dead node is noticed after SlurmdTimeout; KillWait is TERM to KILL.
CONFIGURATION = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
AuthInfo=socket={directory}/run/munge.sock,cred_expire=5
SlurmctldPort={port}
FirstJobId={port}
SrunPortRange={first_srun_port}-{last_srun_port}
SlurmctldPidFile={directory}/run/slurmctld.pid
SlurmdPidFile={directory}/run/slurmd.%n.pid
SlurmctldLogFile={directory}/log/slurmctld.log
SlurmdLogFile={directory}/log/slurmd.%n.log
StateSaveLocation={directory}/state
SlurmdSpoolDir={directory}/spool/%n
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
SlurmdParameters=config_overrides
ReturnToService=2
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
GresTypes=gpu
SchedulerParameters=bf_interval=1,bf_continue,sched_interval=2,sched_min_interval=0,batch_sched_delay=0
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
KillWait=10
SlurmdTimeout=10
SlurmctldTimeout=10
TCPTimeout=3
MinJobAge=900
AccountingStorageType=accounting_storage/none
PartitionName=main Nodes={nodes} Default=YES MaxTime=INFINITE PriorityTier=5 PreemptMode=OFF
PartitionName=low Nodes={nodes} MaxTime=INFINITE PriorityTier=1 PreemptMode=REQUEUE GraceTime=60
PartitionName=high Nodes={nodes} MaxTime=INFINITE PriorityTier=10 PreemptMode=OFF
PartitionName=aside Nodes={aside} MaxTime=INFINITE PriorityTier=5 PreemptMode=OFF
"""
