from datetime import timedelta

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from optimum_ffp.errors import FFPError
from optimum_ffp.utils import processes
from optimum_ffp.utils.processes import Shares


@given(st.integers(1, 60), st.one_of(st.none(), st.integers(1, 12)), st.integers(1, 9))
def test_every_window_belongs_to_one_process_and_one_chunk(windows, chunks, count):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(processes, "count", lambda: count)
        found, owned = [], []
        for rank in range(count):
            patch.setattr(processes, "rank", lambda rank=rank: rank)
            shares = Shares(windows, chunks)
            own = range(windows)[shares.own]
            assert own == shares.of(rank) or not (own or shares.of(rank))
            found += own
            for index, chunk in shares.own_chunks:
                # Slices count from the first window of the process.
                assert own[chunk] == shares.chunks[index] and shares.owner(index) == rank
                owned.append(index)
    assert found == list(range(windows)) and owned == list(range(len(shares.chunks)))
    assert len(shares.chunks) == min(windows, chunks or windows)
    sizes = [len(chunk) for chunk in shares.chunks]
    assert max(sizes) - min(sizes) <= 1


def test_alone_nothing_is_sent():
    tensor = torch.randn(3)
    assert processes.count() == processes.local_count() == 1 and processes.is_main()
    assert processes.gather(tensor, Shares(3)) is processes.broadcast_tensor(tensor, 0) is tensor
    assert processes.broadcast({"name": tensor}, 0)["name"] is tensor
    assert processes.on_main(lambda: "value") == "value" and processes.tell_first()
    processes.wait(), processes.join(), processes.leave()


def test_processes_have_devices_of_their_own(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(FFPError, match="has a device of its own; leave out device 'cuda:1'"):
        processes.join("cuda:1")
    monkeypatch.setattr("torch.distributed.init_process_group", lambda **_: pytest.fail())
    for name in ("RANK", "MASTER_ADDR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.undo()
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(FFPError, match="can't reach each other .*; start all again"):
        processes.join("cpu")
    with pytest.raises(FFPError, match="device 'gpu' can't be used here: "):
        processes.join("gpu")


def test_a_process_that_does_not_come_is_told_of_soon(monkeypatch):
    """Not after the day that the main process may take for what it writes."""
    for name, value in {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(processes, "MEETING", timedelta(seconds=1))
    with pytest.raises(FFPError, match="the processes of this run can't reach each other .*; start all again"):
        processes.join("cpu")


def test_there_is_a_backend_for_tensors_of_every_kind(monkeypatch):
    """Sums and results are exchanged in host memory beside the accelerators, where torch has no backend by itself."""
    monkeypatch.setattr("torch.accelerator.current_accelerator", lambda: torch.device("cuda"))
    made = [torch.distributed.distributed_c10d.BackendConfig(processes._backends(cpu)) for cpu in (True, False)]
    assert made[0].get_device_backend_map()["cpu"] == "gloo"
    assert made[1].get_device_backend_map() == {"cpu": "gloo", "cuda": "nccl"}


def test_processes_that_something_else_has_joined_need_a_backend_for_host_memory(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    monkeypatch.setattr("torch.distributed.get_backend_config", lambda: "cuda:nccl")
    with pytest.raises(FFPError, match="joined by cuda:nccl alone, without a backend for host memory; load the model"):
        processes.join()
    monkeypatch.setattr("torch.distributed.get_backend_config", lambda: "cpu:gloo,cuda:nccl")
    assert processes.join() is None


def test_the_end_of_another_process_is_an_error_of_one_line(monkeypatch):
    monkeypatch.setattr(processes, "GRACE_SECONDS", 0)
    monkeypatch.setattr(processes, "_several", lambda: True)
    monkeypatch.setattr(processes, "count", lambda: 4)

    def barrier() -> None:
        raise RuntimeError("Connection closed by peer\nmore")

    monkeypatch.setattr("torch.distributed.barrier", barrier)
    message = r"another of the 4 processes has ended \(Connection closed by peer\); .* --resume"
    with pytest.raises(processes.ProcessLostError, match=message):
        processes.wait()
    with pytest.raises(processes.ProcessLostError, match=message), processes.lost_connections():
        barrier()
    with pytest.raises(RuntimeError, match="^shapes cannot be multiplied$"), processes.lost_connections():
        raise RuntimeError("shapes cannot be multiplied")
