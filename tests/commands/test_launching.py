"""What is said when one of several processes ends, by itself or because another has."""

import os
from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace

import pytest
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

from optimum_ffp.commands.errors import one_line_endings
from optimum_ffp.commands.launching import launch
from optimum_ffp.errors import FFPError
from optimum_ffp.utils.processes import LAUNCHED, ProcessLostError


def end_with(error: FFPError) -> None:
    with pytest.raises(SystemExit) as stop, one_line_endings():
        raise error
    assert stop.value.code == 2


@pytest.mark.parametrize(("codes", "said"), [((2, 2), "lost"), ((2, -9), "process 2 of 2 was killed (SIGKILL)")])
def test_one_line_names_what_has_ended_the_processes(codes, said, monkeypatch, capsys):
    monkeypatch.setattr(os, "environ", dict(os.environ))
    # What one process would use, which may be fewer than the machine's cores.
    monkeypatch.setattr("torch.get_num_threads", lambda: 6)

    def fail(options: Namespace) -> None:
        assert options.num_cpu_threads_per_process == 3
        end_with(ProcessLostError("lost"))
        raise ChildFailedError("run", {rank: SimpleNamespace(exitcode=code) for rank, code in enumerate(codes)})

    monkeypatch.setattr("accelerate.commands.launch.launch_command", fail)
    # It would need an address to format the failures.
    monkeypatch.setattr(ChildFailedError, "format_msg", lambda self: "")
    with pytest.raises(SystemExit) as stop:
        launch(2)
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert stop.value.code == 2 and line.startswith(f"error: {said}")
    assert not Path(os.environ[LAUNCHED]).exists()


def test_a_process_says_itself_what_is_not_the_end_of_another(monkeypatch, capsys):
    monkeypatch.delenv(LAUNCHED, raising=False)
    end_with(ProcessLostError("lost"))
    end_with(FFPError("wrong"))
    assert capsys.readouterr().err == "error: lost\nerror: wrong\n"
