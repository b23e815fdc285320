"""The processes of Python models, found among the children of a server: here real ones of ours."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from launcher.triton.stubs import children, model_of, stubs

STUB = "/backends/python/triton_python_backend_stub"


@contextmanager
def running(program: str, model: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """A shell that calls itself `program` and runs the model until its input ends."""
    pipe = subprocess.PIPE
    with subprocess.Popen([program, model], executable="/bin/sh", stdin=pipe, stdout=pipe) as made:
        assert made.stdout and made.stdout.readline() == b"started\n"
        yield made
        made.kill()


def test_stubs_are_known_by_their_command_line(tmp_path: Path) -> None:
    model = tmp_path / "multilora_llm/1/model.py"
    model.parent.mkdir(parents=True)
    model.write_text("echo started; read -r _\n")
    with running(STUB, model) as stub, running("/bin/other", model) as other:
        assert {stub.pid, other.pid} <= set(children(os.getpid()))
        assert stubs(os.getpid()) == {stub.pid: "multilora_llm"}
        assert model_of(other.pid) == ""
        stub.kill()
        os.waitid(os.P_PID, stub.pid, os.WEXITED | os.WNOWAIT)
        assert stub.pid in children(os.getpid()), "nobody has asked yet how it ended"
        assert stubs(os.getpid()) == {} and model_of(stub.pid) == ""
    assert model_of(stub.pid) == "" and children(stub.pid) == []
