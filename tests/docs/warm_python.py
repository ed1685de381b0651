"""A `python` for the documents' commands that has imported torch: a fork takes 20 ms, torch 5 s.

`warm_python` starts a server that imports other people's packages alone, and writes the program
`python`. That hands its arguments, folder, environment and files to the server, of which a fork
runs the command as Python does, and ends as it ended. Children of the command go the same way, for
they are started by `sys.executable`.
"""

import contextlib
import ctypes
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

CLIENT = """#!{python} -IS
import json, os, signal, socket, sys
with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as server:
    server.connect({place!r})
    command = json.dumps([sys.argv[1:], os.getcwd(), dict(os.environ)])
    socket.send_fds(server, [command.encode()], [0, 1, 2])
    child = int(server.recv(99))
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: os.kill(child, number))
    code = int(server.recv(99))
if code < 0:
    signal.signal(-code, signal.SIG_DFL)
    os.kill(os.getpid(), -code)
sys.exit(code)
"""
PR_SET_PDEATHSIG = 1
PROGRAM, SOCKET = "python", "server"


@contextlib.contextmanager
def warm_python(folder: Path) -> Iterator[None]:
    """Have the program `python` in `folder` for as long as this is open."""
    program, place = folder / PROGRAM, folder / SOCKET
    program.write_text(CLIENT.format(python=sys.executable, place=str(place)), encoding="utf-8")
    program.chmod(0o755)
    server = subprocess.Popen(
        [sys.executable, __file__, str(folder)], stdout=subprocess.PIPE, stdin=subprocess.DEVNULL
    )
    assert server.stdout is not None
    with server.stdout:
        assert server.stdout.readline() == b"ready\n"
    try:
        yield
    finally:
        server.terminate()
        server.wait()


def serve(folder: Path) -> list[str]:
    """Return the arguments of a command, each in a process of its own that is set up for it."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)  # killed tests leave nothing behind
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(str(folder / SOCKET))
        listener.listen()
        os.write(1, b"ready\n")
        while True:
            connection, _ = listener.accept()
            if os.fork() == 0:
                break
            connection.close()
            with contextlib.suppress(ChildProcessError):
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass
    with connection:
        content, files, *_ = socket.recv_fds(connection, 2**20, 3)
        if child := os.fork():  # this process stays to tell how the command ended
            connection.send(b"%d" % child)
            code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            connection.send(b"%d" % code)
            os._exit(0)
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    arguments, here, environment = json.loads(content)
    os.chdir(here)
    os.environ.clear()
    os.environ.update(environment)
    sys.executable = str(folder / PROGRAM)
    return list(arguments)


def run(arguments: list[str]) -> None:
    """Do what `python` does with these arguments."""
    is_safe = "-P" in arguments[:1]  # nothing is imported from the folder
    kind, *sys.argv = arguments[1:] if is_safe else arguments
    if kind not in ("-c", "-m"):
        kind, sys.argv = "file", [kind, *sys.argv]
    before = [str(Path(sys.argv[0]).absolute().parent) if kind == "file" else str(Path.cwd())]
    after = [each for each in os.environ.get("PYTHONPATH", "").split(os.pathsep) if each]
    sys.path[:1] = ([] if is_safe else before) + after
    if kind == "-c":
        program, sys.argv[0] = sys.argv[0], "-c"
        exec(compile(program, "<string>", "exec"), {"__name__": "__main__"})
    elif kind == "-m":
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
    else:
        runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    import detectron2.engine
    import detectron2.evaluation
    import detectron2.model_zoo  # noqa: F401
    import pydantic  # noqa: F401
    import torchvision  # noqa: F401

    run(serve(Path(sys.argv[1])))
