"""Programs that run in processes of their own, forked from one that has imported what they need: to import PyTorch
takes longer than most of them do."""

import gc
import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

# After so many seconds a program is killed.
OVERDUE = 240


class Forks:
    """A process that has imported ``modules``, also those in the folders ``path``, and forks programs."""

    def __init__(self, *modules: str, path: tuple[Path, ...] = ()):
        self._modules, self._path = modules, path

    def __enter__(self):
        path = os.pathsep.join(filter(None, [*map(str, self._path), os.environ.get("PYTHONPATH")]))
        self._server = subprocess.Popen(
            [sys.executable, __file__, *self._modules],
            env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        return self

    def __exit__(self, *_):
        self._server.stdin.close()
        self._server.wait()
        self._server.stdout.close()

    def start(self, code: str, *arguments: object, folder: Path | None = None, **environment: str) -> "Program":
        """Starts ``python -c code``, in ``folder`` and with additions to the environment."""
        return Program(
            self._ask, [code, *map(str, arguments)], str(folder or os.getcwd()), {**os.environ, **environment}
        )

    def run(self, *arguments: object, **settings) -> str:
        """What a program prints that ends well."""
        done = self.start(*arguments, **settings).wait()
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def _ask(self, *question: object) -> int:
        print(json.dumps(question), file=self._server.stdin, flush=True)
        return int(self._server.stdout.readline())


class Program:
    """A process that leads a group of its own, whose number is ``pid``."""

    def __init__(self, ask, arguments: list[str], folder: str, environment: dict[str, str]):
        self._ask, self._arguments = ask, arguments
        self._printed = [tempfile.NamedTemporaryFile("r") for _ in ("stdout", "stderr")]  # noqa: SIM115
        self.pid = ask("start", arguments, folder, environment, [file.name for file in self._printed])

    def wait(self) -> subprocess.CompletedProcess:
        status = self._ask("wait", self.pid)
        stdout, stderr = (file.read() for file in self._printed)
        for file in self._printed:
            file.close()
        return subprocess.CompletedProcess(self._arguments, status, stdout, stderr)


def become(arguments: list[str], folder: str, environment: dict[str, str], printed: list[str]) -> None:
    """What a new interpreter would be before it runs ``arguments``."""
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for number, name in enumerate(printed, start=1):
        os.dup2(os.open(name, os.O_WRONLY), number)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    sys.argv = ["-c", *arguments[1:]]
    sys.path[0] = ""


def wait_for(program: int) -> int:
    signal.signal(signal.SIGALRM, lambda *_: os.killpg(program, signal.SIGKILL))
    signal.alarm(OVERDUE)
    status = os.waitstatus_to_exitcode(os.waitpid(program, 0)[1])
    signal.alarm(0)
    return status


def serve(modules: list[str]) -> None:
    for module in modules:
        __import__(module)
    gc.freeze()  # what a program does not touch at its end is not copied for it
    for line in sys.stdin:
        question, *details = json.loads(line)
        if question == "wait":
            print(wait_for(*details), flush=True)
            continue
        program = os.fork()
        # In both processes: neither may go on before the group is there.
        os.setpgid(program, 0)
        if program == 0:
            become(*details)
            # To its end as every program, with what an interpreter has to say there.
            exec(compile(details[0][0], "<string>", "exec"), {"__name__": "__main__"})
            return
        print(program, flush=True)


if __name__ == "__main__":
    serve(sys.argv[1:])
