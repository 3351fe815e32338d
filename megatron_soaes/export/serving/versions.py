"""What each TensorRT-LLM version can do with a target and its draft, and where that was read.

Files are those of github.com/NVIDIA/TensorRT-LLM, at a commit. The workflow with engines ends with
1.3.0rc20 (its release note), its last stable release is 1.2.1; qwen3 came to it with 1.0
(docs/source/release-notes.md @001eaece). No copy of the source of 1.2.1 or of a later stable
release could be read. What comes from another version's source is a `Fact` with that version in
`read_in`, and is stamped in the written files.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from megatron_soaes.errors import UserError
from megatron_soaes.recipe.schema import FamilyName

LAST_WITH_ENGINES = "1.2.1"
_FINAL = 10**6
_VERSION = re.compile(r"(\d+)\.(\d+)(?:\.(\d+))?(?:rc(\d+))?")
Topic = Literal["engines", "pytorch", "triton"]
Version = tuple[int, int, int, int]
"""Major, minor, patch, and the number of the release candidate (`_FINAL` for none): sortable."""


@dataclass(frozen=True)
class Fact:
    """Something the written files rely on."""

    topic: Topic
    """Which of them."""
    text: str
    source: str
    """File and commit, or page."""
    read_in: str
    """The version of that source; a range is written "1.0 to 1.1"."""


@dataclass(frozen=True)
class Release:
    """A range of versions in which the files look alike."""

    first: str
    until: str
    """The first version after the range."""
    families: tuple[FamilyName, ...]
    """Those whose engines can be built; none without the engine workflow."""
    decoding_type: str | None
    """Draft-target speculation in the PyTorch backend's YAML; None where it is not offered."""
    other_spelling: str | None
    """What to try where `decoding_type` is refused."""
    config_option: str
    """Of trtllm-serve, for the YAML."""
    switches_off: bool
    """Whether `max_concurrency` of the speculative_config turns drafting off under load."""
    facts: tuple[Fact, ...]

    @property
    def engines(self) -> bool:
        """Whether `trtllm-build` and a runtime for its engines exist."""
        return bool(self.families)


_RECIPE = Fact(
    "engines",
    "draft_tokens_external, paged context FMHA, block reuse, no beam search",
    "examples/draft_target_model/README.md @11925f62",
    "0.18",
)
_RUNNER = Fact(
    "engines",
    "run_speculative.py: the arguments of ModelRunnerCpp.from_dir and generate",
    "examples/ngram/run_dtm_ngram.py @77bcb5a5",
    "a version from 0.20 on",
)
_TRITON_ENGINES = Fact(
    "triton",
    "the parameters of the inflight_batcher_llm templates",
    "examples/draft_target_model/README.md @11925f62",
    "0.18",
)
_TRITON_LLMAPI = Fact(
    "triton",
    "the fields of model.yaml",
    "triton_backend/all_models/llmapi/tensorrt_llm/1/model.yaml @0ebb1536",
    "main, 2026",
)
_SERVE_OLD = Fact(
    "pytorch",
    "trtllm-serve: --extra_llm_api_options names the YAML; --backend, --tp_size, --max_batch_size,"
    " --max_seq_len",
    "tensorrt_llm/commands/serve.py @00209af1, which takes --config as another name of it",
    "1.2 candidates, January 2026",
)
_SERVE = Fact(
    "pytorch",
    "trtllm-serve: --config names the YAML; --backend, --tp_size, --max_batch_size, --max_seq_len",
    "tensorrt_llm/commands/serve.py @00209af1; docs/source/features/speculative-decoding.md"
    " @04c8822c",
    "1.2 candidates and main, 2026",
)
_TABLE = "tensorrt_llm/llmapi/llm_args.py, DecodingBaseConfig.from_dict, commit not known"
_LITERAL = (
    "tensorrt_llm/llmapi/llm_args.py @00043967, DraftTargetDecodingConfig; the page"
    " docs/source/features/speculative-decoding.md @04c8822c writes DraftTarget"
)
_MAIN = Fact(
    "pytorch",
    "YAML: decoding_type Draft_Target, speculative_model_dir, max_concurrency; one model, so the"
    " draft has the target's ranks",
    _LITERAL,
    "main, 2026",
)

RELEASES = (
    Release(
        "0.20.0", "1.0.0", ("qwen2", "llama"), None, None, "--extra_llm_api_options", False,
        (_RECIPE, _RUNNER, _TRITON_ENGINES),
    ),
    Release(
        "1.0.0", "1.2.0rc0", ("qwen2", "qwen3", "llama"), "DraftTarget", None,
        "--extra_llm_api_options", False,
        (
            _RECIPE, _RUNNER, _TRITON_ENGINES, _SERVE_OLD,
            Fact("pytorch", "YAML: decoding_type DraftTarget, speculative_model_dir",
                 _TABLE, "1.0 to 1.1"),
        ),
    ),
    Release(
        "1.2.0rc0", "1.3.0rc0", ("qwen2", "qwen3", "llama"), "DraftTarget", "Draft_Target",
        "--extra_llm_api_options", False,
        (
            _RECIPE, _RUNNER, _TRITON_ENGINES, _SERVE_OLD,
            Fact("pytorch", "YAML: decoding_type DraftTarget, speculative_model_dir",
                 _TABLE, "1.2 candidates"),
        ),
    ),
    Release(
        "1.3.0rc0", "1.5.0rc0", (), "Draft_Target", "DraftTarget", "--config", True,
        (_MAIN, _SERVE, _TRITON_LLMAPI),
    ),
)  # fmt: skip


def parse_version(text: str) -> Version:
    """UserError for what is not like "1.2.1" or "1.3.0rc20"."""
    match = _VERSION.fullmatch(text)
    if match is None:
        raise UserError(
            "--trtllm-version", repr(text), "a version such as 1.2.1 or 1.3.0rc20",
            "See `pip show tensorrt_llm`, or the tag of the container.",
        )  # fmt: skip
    major, minor, patch, candidate = match.groups()
    return int(major), int(minor), int(patch or 0), int(candidate or _FINAL)


def release_of(text: str) -> Release:
    """The range that a version belongs to; UserError for one that is unknown."""
    version = parse_version(text)
    for release in RELEASES:
        if parse_version(release.first) <= version < parse_version(release.until):
            return release
    raise UserError(
        "--trtllm-version", text, "0.20.0 to 1.4, which the written files are known for",
        f"Choose one of them; {LAST_WITH_ENGINES} is the last stable one with engines.",
    )  # fmt: skip


def unverified(release: Release, version: str, *topics: Topic) -> list[str]:
    """One line for each fact about `topics` that was not read in the source of `version` itself."""
    return [
        f"unverified against {version}: {fact.text} (read in {fact.read_in}: {fact.source})"
        for fact in release.facts
        if fact.topic in topics and fact.read_in != version
    ]


def require_families(release: Release, version: str, families: dict[str, FamilyName]) -> None:
    """UserError when engines exist but not for the family of one of the models, by role."""
    for role, family in families.items():
        if release.engines and family not in release.families:
            raise UserError(
                f"{role}: {family} with TensorRT-LLM {version}", "no engine of that family there",
                "qwen2 or llama; qwen3 from 1.0.0", f"Use {LAST_WITH_ENGINES}.",
            )  # fmt: skip


def require_ranks(
    release: Release, version: str, tensor: int, draft_tensor: int, pipeline: int
) -> None:
    """UserError for ranks that the version cannot give a target and its draft."""
    if release.engines:
        return
    if draft_tensor != tensor:
        raise UserError(
            "--draft-tp", f"{draft_tensor} beside --tp {tensor}",
            f"the same: in TensorRT-LLM {version} the draft runs inside the target's ranks",
            f"Leave --draft-tp out, or use engines of {LAST_WITH_ENGINES}.",
        )  # fmt: skip
    if pipeline != 1:
        raise UserError(
            "--pp", str(pipeline), f"1: TensorRT-LLM {version} has no engines to split into stages",
            f"Use --tp alone, or engines of {LAST_WITH_ENGINES}.",
        )  # fmt: skip
