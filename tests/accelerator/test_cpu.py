"""What the CPU must look like, and what must still work beside it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers

from megatron_soaes.accelerator.device import this_device

pytestmark = pytest.mark.usefixtures("installed")


@pytest.fixture(scope="module")
def installed() -> None:
    """Every patch is applied; this machine has no CUDA."""
    assert this_device().kind == "cpu"


FACTORIES = {
    "tensor": lambda device: torch.tensor([1.0], device=device),
    "zeros": lambda device: torch.zeros(2, device=device),
    "empty": lambda device: torch.empty(2, device=device),
    "full": lambda device: torch.full((2,), 3.0, device=device),
    "arange": lambda device: torch.arange(3, device=device),
    "randn": lambda device: torch.randn(3, device=device),
    "zeros_like": lambda device: torch.zeros_like(torch.ones(2), device=device),
}


@pytest.mark.parametrize("name", FACTORIES)
@pytest.mark.parametrize("device", ["cuda", "cuda:0", torch.device("cuda")])
def test_a_tensor_made_on_cuda_is_on_the_cpu(name: str, device: object) -> None:
    assert FACTORIES[name](device).device.type == "cpu"


@pytest.mark.parametrize("name", FACTORIES)
def test_the_meta_device_still_makes_meta_tensors(name: str) -> None:
    with torch.device("meta"):
        assert FACTORIES[name](None).device.type == "meta"
    assert FACTORIES[name](None).device.type == "cpu"


def test_the_meta_device_works_in_a_process_that_never_used_it_before() -> None:
    program = (
        "import torch; from megatron_soaes.accelerator import cpu; cpu.install()\n"
        "with torch.device('meta'): print(torch.zeros(1).device, torch.arange(2).device)"
    )
    ran = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program], capture_output=True, text=True, check=True
    )
    assert ran.stdout.split() == ["meta", "meta"]


def test_a_model_built_on_meta_holds_no_memory() -> None:
    with torch.device("meta"):
        layer = torch.nn.Linear(10, 10)
    assert layer.weight.is_meta


def test_transformers_initialises_its_rotary_buffers(tmp_path: Path) -> None:
    """It loads under `with torch.device("meta")` and then makes these buffers anew."""
    config = transformers.Qwen3Config(
        vocab_size=32, hidden_size=16, intermediate_size=16, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=1, head_dim=8,
    )  # fmt: skip
    transformers.Qwen3ForCausalLM(config).save_pretrained(tmp_path)
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    theta = config.rope_parameters["rope_theta"]
    expected = theta ** (-torch.arange(0, 8, 2, dtype=torch.float32) / 8)
    torch.testing.assert_close(model.model.rotary_emb.inv_freq, expected)


def test_generator_states_of_cuda_are_those_of_the_cpu() -> None:
    torch.manual_seed(1)
    state = torch.cuda.get_rng_state()
    first = torch.rand(3)
    torch.cuda.set_rng_state(state)
    assert torch.equal(torch.rand(3), first)
    torch.cuda.manual_seed(1)
    assert torch.equal(torch.rand(3), first)


def test_tensors_and_modules_stay_where_they_are() -> None:
    tensor, module = torch.ones(2), torch.nn.Linear(2, 2)
    assert tensor.cuda() is tensor
    assert module.cuda() is module


def test_type_names_are_those_the_optimizer_compares() -> None:
    assert torch.ones(1, dtype=torch.bfloat16).type() == "torch.cuda.BFloat16Tensor"
    assert torch.ones(1).type(torch.float64).dtype == torch.float64


def test_streams_and_events_do_nothing() -> None:
    with torch.cuda.stream(torch.cuda.Stream()):
        event = torch.cuda.Event()
        event.record()
        torch.cuda.current_stream().wait_event(event)
    torch.cuda.synchronize()
    assert torch.cuda.current_device() == torch.device("cpu")


def test_the_device_says_what_it_holds() -> None:
    assert this_device().backend == "gloo"
    assert not this_device().has_transformer_engine
    assert this_device().peak_memory_bytes() > 2**26
