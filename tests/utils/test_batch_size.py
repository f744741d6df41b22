import weakref

import pytest
import torch

from optimum_ffp.errors import FFPError
from optimum_ffp.utils.batch_size import memory_errors, out_of_memory, with_halving_batches
from tests.helpers import make_pruner


@pytest.mark.slow
def test_batch_size_is_halved_until_it_fits():
    tried = []

    def run(size: int) -> str:
        tried.append(size)
        if size > 3:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return "done"

    assert with_halving_batches(run, 12) == "done" and tried == [12, 6, 3]


def test_out_of_memory_at_batch_size_1_is_rejected():
    def run(size: int) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    with pytest.raises(FFPError, match="offload"), memory_errors():
        with_halving_batches(run, 4)


def test_out_of_memory_errors_are_recognized():
    for message in ("CUDA out of memory. Tried to allocate", "CUDA error: out of memory\nCUDA kernel errors might"):
        assert out_of_memory(RuntimeError(message))
    assert out_of_memory(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"))
    assert not out_of_memory(RuntimeError("CUDA error: an illegal memory access was encountered"))


def test_out_of_memory_error_releases_tensors():
    kept = []

    @memory_errors()
    def fail() -> None:
        large = torch.zeros(8)
        kept.append(weakref.ref(large))
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    with pytest.raises(FFPError, match="loading") as error:
        fail()
    assert error.value.__context__ is not None and kept[0]() is None


def test_errors_other_than_out_of_memory_are_raised():
    def run(size: int) -> None:
        raise RuntimeError("shapes differ")

    with pytest.raises(RuntimeError, match="shapes differ"):
        with_halving_batches(run, 4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("function", "stage"),
    [
        ("analysis.prepare.collect_statistics", "statistics"),
        ("search.evaluator.measure_size_gradients", "search"),
        ("compression.distillation.distill", "calibration"),
    ],
)
def test_out_of_memory_in_prune_is_one_line_error(function, stage, save_tiny_model, data_folder, monkeypatch):
    def exhausted(*args, **options):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB\nand more lines")

    pruner = make_pruner(save_tiny_model(), data_folder)
    monkeypatch.setattr(f"optimum_ffp.{function}", exhausted)
    with pytest.raises(FFPError) as caught:
        pruner.prune()
    (line,) = str(caught.value).splitlines()
    assert "offload" in line and stage in line
