"""The options of `trtllm-build`, as read in the sources of its versions.

Two readings. 0.20.0 and 1.1.0rc6 are both in the files of a fork's merge of the two; main after
1.1.0rc6 does not say its version. The source of 1.2.1 and of other stable releases could not be
read, so an option is known for such a version when the readings before and after it have it, and
that is stamped where the option is written.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from megatron_soaes.errors import UserError

SWITCH = ("enable", "disable")
DTYPES = ("auto", "float16", "float32", "bfloat16", "int32", "disable")
NUMBER: tuple[str, ...] = ()
"""Stands for any whole number above 0."""


@dataclass(frozen=True)
class Reading:
    """Files in which options were read."""

    versions: tuple[str, ...]
    """Those that say to be of; none where they do not say."""
    build: str
    """Where `parse_arguments` was read."""
    plugin: str
    """Where `PluginConfig` and `cli_plugin_args` were read."""


READINGS = (
    Reading(
        ("0.20.0", "1.1.0rc6"),
        "github.com/Ataraksia/TensorRT-LLM @a451bf93, a merge of both:"
        " tensorrt_llm/commands/build.py",
        "github.com/Ataraksia/TensorRT-LLM @a451bf93, a merge of both:"
        " tensorrt_llm/plugin/plugin.py",
    ),
    Reading(
        (),
        "github.com/NVIDIA/TensorRT-LLM @65f1d153, after 1.1.0rc6: tensorrt_llm/commands/build.py",
        "github.com/NVIDIA/TensorRT-LLM @c20322ff, after 1.1.0rc6: tensorrt_llm/plugin/plugin.py",
    ),
)


@dataclass(frozen=True)
class Option:
    """One option that takes a value."""

    values: tuple[str, ...] | None
    """Those it takes; `NUMBER`, or None for any text."""
    is_plugin: bool
    """Whether `PluginConfig` has it; else `parse_arguments` names it itself."""

    def takes(self, value: str) -> bool:
        """Whether the value is one of those."""
        if self.values is None:
            return bool(value)
        if not self.values:
            return value.isdecimal() and int(value) > 0
        return value in self.values

    def sources(self) -> list[str]:
        """The files and commits it was read from."""
        return [reading.plugin if self.is_plugin else reading.build for reading in READINGS]


OPTIONS: Mapping[str, Option] = {
    "output_timing_cache": Option(None, False),
    "workers": Option(NUMBER, False),
    "log_level": Option(
        ("internal_error", "error", "warning", "info", "verbose", "debug", "trace"), False
    ),
    "max_batch_size": Option(NUMBER, False),
    "max_input_len": Option(NUMBER, False),
    "max_seq_len": Option(NUMBER, False),
    "max_num_tokens": Option(NUMBER, False),
    "max_beam_width": Option(NUMBER, False),
    "kv_cache_type": Option(("continuous", "paged", "disabled"), False),
    "logits_dtype": Option(("float16", "float32"), False),
    "speculative_decoding_mode": Option(
        ("draft_tokens_external", "lookahead_decoding", "medusa", "explicit_draft_tokens", "eagle"),
        False,
    ),
    "max_draft_len": Option(NUMBER, False),
    "gpt_attention_plugin": Option(DTYPES, True),
    "gemm_plugin": Option((*DTYPES, "fp8", "nvfp4"), True),
    "nccl_plugin": Option(DTYPES, True),
    "context_fmha": Option(SWITCH, True),
    "remove_input_padding": Option(SWITCH, True),
    "tokens_per_block": Option(NUMBER, True),
    "use_paged_context_fmha": Option(SWITCH, True),
    "use_fp8_context_fmha": Option(SWITCH, True),
    "multiple_profiles": Option(SWITCH, True),
    "reduce_fusion": Option(SWITCH, True),
    "user_buffer": Option(SWITCH, True),
    "use_fused_mlp": Option(SWITCH, True),
}
"""Both readings have all of them with these values. Beside them stand `--checkpoint_dir` and
`--output_dir`, which are no choice."""


def require_options(options: Mapping[str, str], where: str) -> None:
    """UserError for an option or a value that no reading has, and for options that exclude."""
    for name, value in options.items():
        option = OPTIONS.get(name)
        if option is None:
            raise UserError(
                f"{where}: {name}", "an option of trtllm-build that is not recorded",
                ", ".join(OPTIONS), "Leave it out, or build by hand with the script.",
            )  # fmt: skip
        if not option.takes(value):
            expected = " or ".join(option.values) if option.values else "a number above 0"
            raise UserError(f"{where}: {name}", repr(value), expected, "Change the value.")
    if ("max_draft_len" in options) != ("speculative_decoding_mode" in options):
        raise UserError(
            f"{where}: max_draft_len", "one of max_draft_len and speculative_decoding_mode",
            "both, or neither", "The target has both, the draft neither.",
        )  # fmt: skip


def unverified(version: str, options: Mapping[str, str]) -> list[str]:
    """One line for each group of options that was not read in the source of `version` itself."""
    if any(version in reading.versions for reading in READINGS):
        return []
    groups: dict[str, list[str]] = {}
    for name in sorted(options):
        groups.setdefault("; ".join(OPTIONS[name].sources()), []).append(f"--{name}")
    return [
        f"unverified against {version}: {' '.join(names)} (read in {sources})"
        for sources, names in groups.items()
    ]
