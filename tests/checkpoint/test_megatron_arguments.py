"""The `args` in our checkpoints: complete for the programs that read them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from megatron.core import dist_checkpointing
from megatron.core.models.gpt import GPTModel
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
from megatron.core.transformer.transformer_config import TransformerConfig

from megatron_soaes.checkpoint.directory import iteration_directory
from megatron_soaes.checkpoint.import_hf import import_hf
from megatron_soaes.checkpoint.megatron_directory import open_megatron
from megatron_soaes.models.weights import checkpoint_key
from megatron_soaes.recipe.megatron_shapes import shape_from_args
from megatron_soaes.recipe.shapes import read_shape
from tests.checkpoint.tensors import newest_tensors
from tests.checkpoint.tiny import Case, make_model

pytestmark = pytest.mark.usefixtures("one_process")

READ_BY_MEGATRON_BRIDGE = [
    "apply_layernorm_1p",
    "bf16",
    "bias_gelu_fusion",
    "bias_swiglu_fusion",
    "config_logger_dir",
    "cp_comm_type",
    "decoder_first_pipeline_num_layers",
    "decoder_last_pipeline_num_layers",
    "fp16",
    "fp16_lm_cross_entropy",
    "fp8_param_gather",
    "group_query_attention",
    "heterogeneous_layers_config_path",
    "init_method_xavier_uniform",
    "init_model_with_meta_device",
    "is_hybrid_model",
    "make_vocab_size_divisible_by",
    "max_position_embeddings",
    "moe_grouped_gemm",
    "moe_use_legacy_grouped_gemm",
    "mtp_num_layers",
    "multi_latent_attention",
    "no_persist_layer_norm",
    "norm_epsilon",
    "normalization",
    "num_experts",
    "num_query_groups",
    "overlap_p2p_comm",
    "padded_vocab_size",
    "params_dtype",
    "position_embedding_type",
    "qk_l2_norm",
    "qk_layernorm",
    "rotary_base",
    "rotary_interleaved",
    "rotary_percent",
    "squared_relu",
    "swiglu",
    "tokenizer_model",
    "tokenizer_type",
    "transformer_impl",
    "untie_embeddings_and_output_weights",
    "use_rope_scaling",
    "vocab_size",
]
"""Arguments without which megatron/bridge/training/mlm_compat of Megatron-Bridge 0.3.1 fails, or
builds another model."""


@pytest.mark.parametrize("family", ["qwen2", "qwen3", "llama"])
def test_an_import_can_be_read_as_a_run_of_megatron_lm(tmp_path: Path, family: str) -> None:
    hf = make_model(tmp_path / "hf", Case(family), dtype=torch.bfloat16)
    import_hf(hf, tmp_path / "out", verify=False)
    run = open_megatron(tmp_path / "out")
    shape = read_shape(hf / "config.json")
    assert shape_from_args(run.arguments, shape.vocab_size, run.where) == shape
    assert run.arguments["params_dtype"] == torch.bfloat16
    assert run.arguments["tokenizer_model"] == str(tmp_path / "out/hf")
    assert [name for name in READ_BY_MEGATRON_BRIDGE if name not in run.arguments] == []


def test_training_checkpoints_are_as_complete(layout_runs: Path) -> None:
    roots = [path.parent for path in layout_runs.rglob("latest_checkpointed_*.txt")]
    assert roots
    for root in roots:
        arguments = open_megatron(root).arguments
        assert [name for name in READ_BY_MEGATRON_BRIDGE if name not in arguments] == []


def test_megatron_core_loads_an_import_strictly(tmp_path: Path) -> None:
    """A model of its own layers, without our code; it refuses a checkpoint without extra states."""
    hf = make_model(tmp_path / "hf", Case("qwen3"))
    import_hf(hf, tmp_path / "out", verify=False)
    args = open_megatron(tmp_path / "out").arguments
    config = TransformerConfig(
        num_layers=args["num_layers"],
        hidden_size=args["hidden_size"],
        ffn_hidden_size=args["ffn_hidden_size"],
        num_attention_heads=args["num_attention_heads"],
        num_query_groups=args["num_query_groups"],
        kv_channels=args["kv_channels"],
        normalization=args["normalization"],
        qk_layernorm=args["qk_layernorm"],
        add_bias_linear=args["add_bias_linear"],
        gated_linear_unit=args["swiglu"],
        perform_initialization=False,
    )
    model = GPTModel(
        config,
        get_gpt_layer_local_spec(qk_layernorm=True, normalization="RMSNorm"),
        args["padded_vocab_size"],
        args["max_position_embeddings"],
        share_embeddings_and_output_weights=False,
        position_embedding_type="rope",
    )
    wanted = {"model": model.sharded_state_dict()}
    where = str(iteration_directory(tmp_path / "out", 0))
    model.load_state_dict(dist_checkpointing.load(wanted, where)["model"])
    stored = newest_tensors(tmp_path / "out")
    for name, parameter in model.named_parameters():
        key, layer = checkpoint_key(name)
        expected = stored[key] if layer is None else stored[key][layer]
        assert torch.equal(parameter, expected), name
