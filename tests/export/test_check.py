"""The checker: a good checkpoint breaks no rule, and each kind of damage is named."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from megatron_soaes.checkpoint.import_hf import import_hf
from megatron_soaes.errors import UserError
from megatron_soaes.export.trtllm.check import check
from megatron_soaes.export.trtllm.writer import export_trtllm
from tests.checkpoint.tiny import Case, edit_weights
from tests.export.conftest import ModelOf
from tests.export.ranks import edit_rank, read_config, write_config

CASE = Case("qwen3", tied=True)
LAYER = "transformer.layers.0."
EMBEDDING = "transformer.vocab_embedding.weight"


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory, model_of: ModelOf) -> Path:
    """A tied Qwen3 of 4 layers on 4 x 2 ranks: shared key heads, 2 rows of padding."""
    out = tmp_path_factory.mktemp("original") / "out"
    export_trtllm(model_of(CASE), out, tensor_parallel=4, pipeline_parallel=2)
    return out


@pytest.fixture
def checkpoint(tmp_path: Path, original: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(original, tmp_path / "checkpoint"))


def problems(checkpoint: Path, against: Path | None = None) -> list[str]:
    """What the checker says, by paths inside the checkpoint."""
    report = check(checkpoint, against)
    return [str(problem).replace(f"{checkpoint}/", "") for problem in report.problems]


def test_a_good_checkpoint_breaks_no_rule(checkpoint: Path, model_of: ModelOf) -> None:
    report = check(checkpoint, model_of(CASE))
    assert not report.problems
    assert not report.notes
    assert (report.ranks, report.tensors) == (8, 156)
    assert report.compared == 46


def test_it_may_be_compared_with_a_megatron_checkpoint(
    tmp_path: Path, checkpoint: Path, model_of: ModelOf
) -> None:
    import_hf(model_of(CASE), tmp_path / "megatron", verify=False)
    assert problems(checkpoint, tmp_path / "megatron") == []


def test_every_file_is_there_and_no_other(checkpoint: Path) -> None:
    (checkpoint / "rank5.safetensors").unlink()
    (checkpoint / "tokenizer.json").write_text("{}", encoding="utf-8")
    assert problems(checkpoint) == [
        "rank5.safetensors: found nothing; expected a file",
        "tokenizer.json: found a file; expected config.json and rank0 to rank7.safetensors only",
    ]


def test_a_cut_file_is_damaged_and_the_others_are_looked_at(checkpoint: Path) -> None:
    file = checkpoint / "rank1.safetensors"
    file.write_bytes(file.read_bytes()[:-10])
    edit_rank(checkpoint, 2, lambda tensors: tensors.pop(LAYER + "mlp.fc.weight"))
    found = problems(checkpoint)
    assert found[0].startswith("rank1.safetensors: found a damaged file")
    assert found[1:] == [
        "rank2.safetensors: transformer.layers.0.mlp.fc.weight: found nothing; "
        "expected BF16 [24, 64]"
    ]


def add(name: str) -> Callable[[dict[str, Tensor]], None]:
    def edit(tensors: dict[str, Tensor]) -> None:
        tensors[name] = torch.zeros(3, dtype=torch.bfloat16)

    return edit


def change(name: str, edit: Callable[[Tensor], Tensor]) -> Callable[[dict[str, Tensor]], None]:
    def edit_all(tensors: dict[str, Tensor]) -> None:
        tensors[name] = edit(tensors[name])

    return edit_all


def put(name: str, where: Any, value: float) -> Callable[[dict[str, Tensor]], None]:
    def edit(tensors: dict[str, Tensor]) -> None:
        tensors[name][where] = value

    return edit


DAMAGES = [
    (
        0, add("transformer.layers.0.attention.rotary_inv_freq"),
        ["rank0.safetensors: transformer.layers.0.attention.rotary_inv_freq: found a tensor; "
         "expected none of that name"],
    ),
    (
        4, change(LAYER + "attention.dense.weight", lambda t: t.T),
        ["rank4.safetensors: transformer.layers.0.attention.dense.weight: found BF16 [32, 64]; "
         "expected BF16 [64, 32]"],
    ),
    (
        4, change(LAYER + "mlp.proj.weight", Tensor.float),
        ["rank4.safetensors: transformer.layers.0.mlp.proj.weight: found F32 [64, 24]; "
         "expected BF16 [64, 24]"],
    ),
    (
        3, put(LAYER + "mlp.gate.weight", (1, 2), float("nan")),
        ["rank3.safetensors: transformer.layers.0.mlp.gate.weight: found 1 values NaN or infinite; "
         "expected finite values"],
    ),
    (
        2, put(LAYER + "post_layernorm.weight", 5, 7.0),
        ["rank2.safetensors: transformer.layers.0.post_layernorm.weight: found other values than "
         "in rank0.safetensors; expected the same on all ranks of a stage"],
    ),
    (
        3, put(LAYER + "attention.qkv.weight", -1, 7.0),
        ["rank3.safetensors: transformer.layers.0.attention.qkv.weight: found other key or value "
         "rows than in rank2.safetensors; expected the same, because both hold the same key head"],
    ),
    (
        7, put("lm_head.weight", -1, 0.5),
        ["rank7.safetensors: lm_head.weight: found values in rows 61 to 62; expected zeros, "
         "because the vocabulary ends at 250"],
    ),
    (
        6, put("lm_head.weight", 0, 0.5),
        ["rank6.safetensors: lm_head.weight: found other values than the embedding; expected the "
         "same, because config.json says tie_word_embeddings"],
    ),
]  # fmt: skip


@pytest.mark.parametrize(("rank", "edit", "expected"), DAMAGES, ids=lambda value: "")
def test_a_damaged_tensor_is_named(
    checkpoint: Path, rank: int, edit: Callable[[dict[str, Tensor]], None], expected: list[str]
) -> None:
    edit_rank(checkpoint, rank, edit)
    assert problems(checkpoint) == expected


def test_other_values_than_the_models_are_named(checkpoint: Path, model_of: ModelOf) -> None:
    edit_rank(checkpoint, 5, put(LAYER + "attention.qkv.weight", 3, 0.25))
    assert problems(checkpoint, model_of(CASE)) == [
        "rank5.safetensors: transformer.layers.0.attention.qkv.weight: found other values in rows "
        "0 to 31; expected its part of model.layers.2.self_attn.q_proj.weight of the model"
    ]


def test_fc_and_gate_may_not_be_swapped(checkpoint: Path, model_of: ModelOf) -> None:
    def swap(tensors: dict[str, Tensor]) -> None:
        fc, gate = (f"{LAYER}mlp.{name}.weight" for name in ("fc", "gate"))
        tensors[fc], tensors[gate] = tensors[gate], tensors[fc]

    edit_rank(checkpoint, 0, swap)
    assert problems(checkpoint) == [], "values alone cannot tell"
    assert [p.split(": ")[1] for p in problems(checkpoint, model_of(CASE))] == [
        LAYER + "mlp.fc.weight", LAYER + "mlp.gate.weight",
    ]  # fmt: skip


def test_negative_zero_is_another_value(
    tmp_path: Path, checkpoint: Path, model_of: ModelOf
) -> None:
    hf_dir = Path(shutil.copytree(model_of(CASE), tmp_path / "hf"))
    edit_weights(hf_dir, put("model.norm.weight", 0, 0.0))
    for rank in range(4, 8):
        edit_rank(checkpoint, rank, put("transformer.ln_f.weight", 0, -0.0))
    found = problems(checkpoint, hf_dir)
    assert [problem.split(": ")[1] for problem in found] == ["transformer.ln_f.weight"] * 4


def test_another_model_is_told_by_its_settings(
    tmp_path: Path, checkpoint: Path, model_of: ModelOf
) -> None:
    other = model_of(Case("llama", layers=3, rope={"rope_type": "default", "rope_theta": 5.0}))
    report = check(checkpoint, other)
    assert {problem.where.split(": ")[1] for problem in report.problems} == {
        "architecture", "head_size", "num_hidden_layers", "rotary_base",
    }  # fmt: skip
    assert report.compared == 0


def test_another_vocabulary_size_is_remarked(tmp_path: Path, model_of: ModelOf) -> None:
    export_trtllm(model_of(Case()), tmp_path / "out")
    edit_rank(tmp_path / "out", 0, change("lm_head.weight", lambda t: t[:240]))
    edit_rank(tmp_path / "out", 0, change(EMBEDDING, lambda t: t[:240]))
    write_config(tmp_path / "out", read_config(tmp_path / "out") | {"vocab_size": 240})
    report = check(tmp_path / "out", model_of(Case()))
    assert report.problems == []
    assert report.notes == [
        "vocabulary: 240 rows here, 250 in the model; the first 240 were compared"
    ]


CONFIGURATIONS: list[tuple[dict[str, Any], str]] = [
    ({"head_size": None}, "head_size: found nothing; expected a value"),
    ({"vocab_size": "250"}, "vocab_size: found '250'; expected a valid integer"),
    ({"hidden_act": "gelu"}, "hidden_act: found 'gelu'; expected 'silu'"),
    (
        {"position_embedding_type": None},
        "position_embedding_type: found nothing, which means 'learned_absolute'; "
        "expected 'rope_gpt_neox'",
    ),
    (
        {"norm_epsilon": None},
        "norm_epsilon: found nothing, which means 1e-05; expected the model's own value",
    ),
    ({"architecture": "LLaMAForCausalLM"}, "architecture: found 'LLaMAForCausalLM'"),
    ({"attn_bias": None}, "attn_bias: found nothing, which means True; expected False, for qwen3"),
    ({"qwen_type": "qwen2"}, "qwen_type: found 'qwen2'; expected 'qwen3'"),
    ({"seq_length": None}, "seq_length: found nothing; expected a number"),
    (
        {"rotary_scaling": {"rope_type": "default"}},
        'rotary_scaling: found {"rope_type": "default"}; expected null, or a type of none',
    ),
    ({"rotary_scaling": {}}, "rotary_scaling: found {}"),
    ({"quant_mode": 1}, "quant_mode: found a field; expected none of that name"),
    (
        {"mapping": {"world_size": 4, "tp_size": 4, "pp_size": 2}},
        "mapping.world_size: found 4; expected 8, tp * pp * cp",
    ),
    (
        {"mapping": {"world_size": 8, "tp_size": 4, "pp_size": 2, "stages": 2}},
        "mapping.stages: found a field; expected none of that name",
    ),
    (
        {"mapping": {"world_size": 3, "tp_size": 3, "pp_size": 1}},
        "mapping.tp_size: found 3; expected a divisor of 8 query heads",
    ),
    (
        {"quantization": {"quant_algo": None, "bits": 8}},
        "quantization.bits: found a field; expected none of that name",
    ),
    (
        {"quantization": {"quant_algo": "W4A16_AWQ"}},
        "quantization.quant_algo: found 'W4A16_AWQ'; expected null or 'FP8'",
    ),
]


@pytest.mark.parametrize(("changes", "expected"), CONFIGURATIONS, ids=lambda value: "")
def test_a_wrong_field_is_named(checkpoint: Path, changes: dict[str, Any], expected: str) -> None:
    config = read_config(checkpoint) | changes
    kept = {n: v for n, v in config.items() if v is not None or n == "rotary_scaling"}
    write_config(checkpoint, kept)
    (found,) = problems(checkpoint)
    assert found.startswith(f"config.json: {expected}")


def test_without_a_readable_configuration_nothing_else_is_looked_at(checkpoint: Path) -> None:
    (checkpoint / "config.json").write_text("[]", encoding="utf-8")
    report = check(checkpoint)
    assert [problem.found for problem in report.problems] == ["no readable object (a JSON list)"]
    assert report.notes == ["the rank files: not looked at"]
    with pytest.raises(UserError, match="no such directory"):
        check(checkpoint / "nowhere")


def test_keys_of_some_versions_are_remarked(checkpoint: Path) -> None:
    config = read_config(checkpoint)
    config["mapping"] |= {"moe_tp_size": 4, "gpus_per_node": 8, "cp_size": 1}
    write_config(checkpoint, config)
    report = check(checkpoint)
    assert report.problems == []
    assert report.notes == ["mapping.moe_tp_size: only some versions of TensorRT-LLM know it"]


@pytest.mark.parametrize("axis", [0, 1])
def test_a_cut_embedding_is_read_as_it_says(checkpoint: Path, model_of: ModelOf, axis: int) -> None:
    def cut(way: int) -> Callable[[Tensor], Tensor]:
        padded = (0, 0, 0, 2) if axis == 0 else (0, 0)
        return lambda t: torch.nn.functional.pad(t, padded).chunk(4, axis)[way]

    for way in range(4):
        edit_rank(checkpoint, way, change(EMBEDDING, cut(way)))
    fields = {"use_parallel_embedding": True, "embedding_sharding_dim": axis}
    write_config(checkpoint, read_config(checkpoint) | fields)
    assert problems(checkpoint, model_of(CASE)) == []
    edit_rank(checkpoint, 2, put(EMBEDDING, 0, 0.5))
    assert {problem.split(": found")[0] for problem in problems(checkpoint)} == {
        f"rank{rank}.safetensors: lm_head.weight" for rank in ([6] if axis == 0 else [4])
    }


@pytest.mark.parametrize(("ways", "accepted"), [(1, True), (2, False)])
def test_an_output_layer_may_be_missing_where_the_engine_shares(
    tmp_path: Path, model_of: ModelOf, ways: int, accepted: bool
) -> None:
    out = tmp_path / "out"
    export_trtllm(model_of(CASE), out, tensor_parallel=ways)
    for rank in range(ways):
        edit_rank(out, rank, lambda tensors: tensors.pop("lm_head.weight"))
    write_config(out, read_config(out) | {"share_embedding_table": True})
    missing = [f"rank{rank}.safetensors: lm_head.weight" for rank in range(ways)]
    found = [problem.split(": found")[0] for problem in problems(out)]
    assert found == ([] if accepted else missing)


def quantise(checkpoint: Path) -> None:
    """Make an FP8 checkpoint of another: one scale for all, and the caches of keys and values."""
    scale = torch.tensor([0.01])

    def edit(tensors: dict[str, Tensor]) -> None:
        for name in [n for n in tensors if ".attention.dense." in n or ".qkv.weight" in n]:
            cache = name.split("attention.")[0] + "attention.kv_cache_scaling_factor"
            tensors[cache] = torch.ones(1)
        for name in [n for n in tensors if tensors[n].dim() == 2 and ".layers." in n]:
            module = name.removesuffix(".weight")
            tensors[name] = (tensors[name].float() / scale).to(torch.float8_e4m3fn)
            tensors[module + ".weights_scaling_factor"] = scale.clone()
            tensors[module + ".activation_scaling_factor"] = scale.clone()

    for rank in range(8):
        edit_rank(checkpoint, rank, edit)
    config = read_config(checkpoint)
    config["quantization"] |= {"quant_algo": "FP8", "kv_cache_quant_algo": "FP8"}
    write_config(checkpoint, config)


@pytest.fixture
def fp8(checkpoint: Path) -> Path:
    quantise(checkpoint)
    return checkpoint


def test_an_fp8_checkpoint_breaks_no_rule(fp8: Path, model_of: ModelOf) -> None:
    as_bytes = LAYER + "mlp.fc.weight"
    edit_rank(fp8, 0, change(as_bytes, lambda t: t.view(torch.int8)))
    report = check(fp8, model_of(CASE))
    assert report.problems == []
    assert report.notes == [
        "28 tensors of the model were not compared: quantised, or not there in the right form"
    ]
    assert report.compared == 46 - 28


SCALE = LAYER + "mlp.fc.weights_scaling_factor"
FP8_DAMAGES = [
    (SCALE, lambda t: t.half(), {"found F16 [1]; expected F32 [1]"}),
    (SCALE, lambda t: t.repeat(2), {"found F32 [2]; expected F32 [1]"}),
    (
        LAYER + "attention.qkv.weights_scaling_factor", lambda t: t * 0,
        {
            "found 0; expected a scale above 0",
            "found other values than in rank0.safetensors; expected the same on all ranks of a "
            "stage",
        },
    ),
    (
        LAYER + "mlp.gate.activation_scaling_factor", lambda t: t * 2,
        {
            "found another scale; expected that of mlp.fc",
            "found other values than in rank0.safetensors; expected the same on all ranks of a "
            "stage",
        },
    ),
    (
        LAYER + "mlp.proj.weight", lambda t: t.float().fill_(1e9).to(torch.float8_e5m2),
        {"found F8_E5M2 [64, 24]; expected F8_E4M3 or I8 [64, 24]"},
    ),
]  # fmt: skip


@pytest.mark.parametrize(("name", "edit", "expected"), FP8_DAMAGES, ids=lambda value: "")
def test_a_damaged_scale_is_named(
    fp8: Path, name: str, edit: Callable[[Tensor], Tensor], expected: set[str]
) -> None:
    edit_rank(fp8, 1, change(name, edit))
    assert set(problems(fp8)) == {f"rank1.safetensors: {name}: {text}" for text in expected}


def test_a_missing_cache_scale_is_named(fp8: Path) -> None:
    name = LAYER + "attention.kv_cache_scaling_factor"
    edit_rank(fp8, 4, lambda tensors: tensors.pop(name))
    assert problems(fp8) == [f"rank4.safetensors: {name}: found nothing; expected F32 [1]"]


def test_a_list_of_excluded_modules_replaces_the_default(fp8: Path) -> None:
    config = read_config(fp8)
    config["quantization"]["exclude_modules"] = ["*mlp.fc"]
    write_config(fp8, config)
    found = {problem.split(": ")[1] for problem in problems(fp8)}
    assert "lm_head.weight" in found, "it is quantised now"
    assert LAYER + "mlp.fc.weight" in found, "and this is not"
    assert LAYER + "mlp.gate.weight" not in found
