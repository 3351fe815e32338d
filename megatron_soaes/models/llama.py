"""Llama, 2 to 3.3: the decoder that the other families vary."""

from __future__ import annotations

from megatron_soaes.models.weights import DIRECT, EMBEDDING, GATED, OUTPUT, QKV, VOCABULARY, Weight

ATTENTION = "decoder.layers.self_attention."
MLP = "decoder.layers.mlp."
HF_LAYER = "model.layers.{layer}."

WEIGHTS = (
    Weight(
        EMBEDDING,
        {"model.embed_tokens.weight": ("vocab_size", "hidden")},
        VOCABULARY,
    ),
    Weight(
        ATTENTION + "linear_qkv.layer_norm_weight",
        {HF_LAYER + "input_layernorm.weight": ("hidden",)},
        DIRECT,
    ),
    Weight(
        ATTENTION + "linear_qkv.weight",
        {
            HF_LAYER + "self_attn.q_proj.weight": ("query_width", "hidden"),
            HF_LAYER + "self_attn.k_proj.weight": ("kv_width", "hidden"),
            HF_LAYER + "self_attn.v_proj.weight": ("kv_width", "hidden"),
        },
        QKV,
    ),
    Weight(
        ATTENTION + "linear_proj.weight",
        {HF_LAYER + "self_attn.o_proj.weight": ("hidden", "query_width")},
        DIRECT,
    ),
    Weight(
        MLP + "linear_fc1.layer_norm_weight",
        {HF_LAYER + "post_attention_layernorm.weight": ("hidden",)},
        DIRECT,
    ),
    Weight(
        MLP + "linear_fc1.weight",
        {
            HF_LAYER + "mlp.gate_proj.weight": ("ffn", "hidden"),
            HF_LAYER + "mlp.up_proj.weight": ("ffn", "hidden"),
        },
        GATED,
    ),
    Weight(
        MLP + "linear_fc2.weight",
        {HF_LAYER + "mlp.down_proj.weight": ("hidden", "ffn")},
        DIRECT,
    ),
    Weight("decoder.final_layernorm.weight", {"model.norm.weight": ("hidden",)}, DIRECT),
    Weight(OUTPUT, {"lm_head.weight": ("vocab_size", "hidden")}, VOCABULARY),
)
