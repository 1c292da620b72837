"""Programs that run in processes of their own, forked from one that has imported what they need: to import it takes
longer than they do."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
# After so many seconds a program is killed.
OVERDUE = 240


class Forks:
    """A process that forks one program after the other."""

    def __enter__(self):
        path = os.pathsep.join(filter(None, [str(ROOT), str(ROOT / "examples"), os.environ.get("PYTHONPATH")]))
        self._server = subprocess.Popen(
            [sys.executable, __file__],
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

    def start(self, code: str, output: Path) -> int:
        """Run Python ``code``, which writes what it prints into the file ``output``; returns its process group."""
        print(json.dumps([code, str(output)]), file=self._server.stdin, flush=True)
        return int(self._server.stdout.readline())

    def wait(self) -> int:
        """The exit status of what was started."""
        return int(self._server.stdout.readline())


def serve() -> None:
    import test_training  # noqa: F401
    import torch.distributed.launcher  # noqa: F401

    for line in sys.stdin:
        code, output = json.loads(line)
        program = os.fork()
        # In both processes: neither may go on before the group is there.
        os.setpgid(program, 0)
        if program == 0:
            with open(output, "w") as file:
                os.dup2(file.fileno(), 1)
                os.dup2(file.fileno(), 2)
            # To its end as every program, with what an interpreter has to say there.
            exec(code, {"__name__": "__main__"})
            return
        signal.signal(signal.SIGALRM, lambda *_, group=program: os.killpg(group, signal.SIGKILL))
        signal.alarm(OVERDUE)
        print(program, flush=True)
        status = os.waitstatus_to_exitcode(os.waitpid(program, 0)[1])
        signal.alarm(0)
        print(status, flush=True)


if __name__ == "__main__":
    serve()
