from types import SimpleNamespace

import pytest
import torch

from optimum_ffp.utils.precision import autocast_dtype, compute_dtype, computing_in, float32_products, in_compute_dtype
from tests.helpers import make_tiny_model, run_python


HAS_FAST_MATMUL = "optimum_ffp.utils.precision._cpu_has_fast_matmul"
PROGRAM = """
import torch
from optimum_ffp.utils.precision import _cpu_has_fast_matmul
print({_cpu_has_fast_matmul.__wrapped__(torch.bfloat16) for _ in range(5)})
"""
CPU, GPU = torch.device("cpu"), torch.device("cuda")


def model_on(device: str, dtype: torch.dtype = torch.float32) -> SimpleNamespace:
    return SimpleNamespace(dtype=dtype, device=torch.device(device))


@pytest.mark.parametrize("native", [False, True])
def test_autocast_uses_bfloat16_only_with_hardware_support(monkeypatch, native):
    expected = torch.bfloat16 if native else None
    monkeypatch.setattr(HAS_FAST_MATMUL, lambda dtype: native)
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda including_emulation: native)
    assert [autocast_dtype(model_on(device), "auto") for device in ("cpu", "cuda")] == [expected, expected]
    assert autocast_dtype(model_on("mps"), "auto") is None


@pytest.mark.slow
@pytest.mark.parametrize(("instructions", "results"), [("AVX2", ["{False}"]), ("DEFAULT", ["{False}", "{True}"])])
def test_cpu_bfloat16_detection_is_reproducible(instructions, results):
    assert run_python("-c", PROGRAM, ONEDNN_MAX_CPU_ISA=instructions).strip() in results


@pytest.mark.parametrize("native", [False, True])
def test_compute_dtype_follows_hardware_support(monkeypatch, native):
    monkeypatch.setattr(HAS_FAST_MATMUL, lambda dtype: native)
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda including_emulation: native)
    for dtype in (torch.bfloat16, torch.float16):
        assert compute_dtype(CPU, dtype) == (dtype if native else torch.float32)
        # Cards older than Ampere, such as a T4, multiply float16 alone.
        assert compute_dtype(GPU, dtype) == (dtype if native or dtype == torch.float16 else torch.float32)
        assert compute_dtype(torch.device("mps"), dtype) == dtype
    assert compute_dtype(CPU, torch.float32) == compute_dtype(GPU, torch.float32) == torch.float32


def test_autocast_is_off_for_half_precision_or_model_dtype(monkeypatch):
    monkeypatch.setattr(HAS_FAST_MATMUL, lambda dtype: True)
    assert autocast_dtype(model_on("cpu", torch.float16), "auto") is None
    assert autocast_dtype(model_on("cpu"), "model") is None


def test_computing_in_enables_and_disables_autocast():
    matrix = torch.eye(3)
    with computing_in(CPU, torch.bfloat16):
        assert (matrix @ matrix).dtype == torch.bfloat16
        with computing_in(CPU, None):
            assert (matrix @ matrix).dtype == torch.float32
        assert (matrix @ matrix).dtype == torch.bfloat16


def precisions() -> list[str]:
    return [backend.fp32_precision for backend in (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_float32_products_inside_autocast(monkeypatch, dtype):
    monkeypatch.setattr(HAS_FAST_MATMUL, lambda dtype: True)
    lossless = {torch.float32: "highest", torch.bfloat16: "medium", torch.float16: "high"}[dtype]
    generator = torch.Generator().manual_seed(0)
    factors = [torch.randn(40, 40, generator=generator).to(dtype) for _ in range(2)]
    exact = factors[0].double() @ factors[1].double()
    before = torch.get_float32_matmul_precision()
    with computing_in(CPU, torch.bfloat16), float32_products(factors[0]) as left:
        found, found_by_backend = left @ factors[1].float(), precisions()
    with pytest.raises(RuntimeError), float32_products(factors[0]):
        raise RuntimeError
    assert found.dtype == torch.float32 and torch.allclose(found.double(), exact, atol=1e-4)
    assert torch.get_float32_matmul_precision() == before
    torch.set_float32_matmul_precision(lossless)
    assert found_by_backend == precisions()
    torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("chosen", ["tf32", "ieee"])
def test_cuda_matmul_precision_set_by_user_is_restored(monkeypatch, chosen):
    monkeypatch.setattr(HAS_FAST_MATMUL, lambda dtype: True)
    # As `torch.backends.cuda.matmul.fp32_precision` of a user, after which torch tells no precision of all.
    before = precisions()
    torch.backends.cuda.matmul.fp32_precision = chosen
    try:
        chosen_by_backend = precisions()
        with float32_products(torch.eye(2, dtype=torch.bfloat16)) as factor:
            assert torch.equal(factor @ factor, torch.eye(2)) and precisions() == ["tf32", "bf16"]
        assert precisions() == chosen_by_backend == [chosen, before[1]]
    finally:
        torch.backends.cuda.matmul.fp32_precision = before[0]
    assert torch.get_float32_matmul_precision() == "highest"


def test_in_compute_dtype_casts_and_restores_model(monkeypatch):
    model = make_tiny_model().to(torch.bfloat16)
    model.model.norm.weight.data = model.model.norm.weight.data.float()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for native, dtype in ((False, torch.float32), (True, torch.bfloat16)):
        monkeypatch.setattr(HAS_FAST_MATMUL, lambda dtype, found=native: found)
        with in_compute_dtype(model):
            assert model.dtype == model.lm_head.weight.dtype == dtype
            assert model.model.norm.weight.dtype == torch.float32
        for name, tensor in model.state_dict().items():
            assert tensor.dtype == before[name].dtype and torch.equal(tensor, before[name])
    monkeypatch.setattr(HAS_FAST_MATMUL, lambda dtype: False)
    model.config.quantization_config = {}
    with in_compute_dtype(model):
        assert model.dtype == torch.bfloat16
