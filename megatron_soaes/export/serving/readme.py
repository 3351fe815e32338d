"""README.md of an exported pair: what to use, how many tokens to draft, and when not to draft."""

from __future__ import annotations

from megatron_soaes.export.serving.commands import SGLANG_SOURCES, VLLM_SOURCES
from megatron_soaes.export.serving.deployment import CHECKPOINTS, HF, Deployment
from megatron_soaes.export.serving.versions import LAST_WITH_ENGINES
from megatron_soaes.wording import counted


def readme(deployment: Deployment) -> str:
    """Markdown."""
    sections = [
        f"# A target and its draft, for TensorRT-LLM {deployment.version}",
        _summary(deployment),
        f"## Which to use\n\n{_which(deployment)}",
        f"## Draft length\n\n{_draft_length(deployment)}",
        f"## When to switch speculation off\n\n{_switch_off(deployment)}",
        f"## Limits\n\n{_limits(deployment)}",
        f"## Not verified\n\n{_unverified(deployment)}",
    ]
    return "\n\n".join(sections) + "\n"


def _summary(deployment: Deployment) -> str:
    sizes = deployment.parameters
    return (
        f"`{HF['target']}` has {sizes['target']:,} parameters, `{HF['draft']}` {sizes['draft']:,}; "
        f"both are in {deployment.dtype}. They have one tokenizer, compared entry by entry when "
        f"this folder was written, and {deployment.vocab_size:,} vocabulary rows each: servers "
        "exchange "
        "token ids and logits, and refuse or corrupt a pair whose sizes differ. Start everything "
        "from this folder; it may be moved as a whole."
    )


def _which(deployment: Deployment) -> str:
    lines = []
    if deployment.speculates_in_pytorch:
        lines.append(
            "- `serve/trtllm-serve.sh`: TensorRT-LLM's PyTorch backend reads the HF directories. "
            "The way for a new deployment: it streams, batches and needs no build."
        )
        lines += _spelling(deployment)
    elif deployment.release.decoding_type is None:
        lines.append(
            f"- TensorRT-LLM {deployment.version}: no file for the PyTorch backend. It takes "
            "a draft model in this form from 1.0.0 on."
        )
    if deployment.draft_fits_ranks:
        lines.append("- `serve/vllm.sh`, `serve/sglang.sh`: the same HF directories.")
    else:
        lines.append(
            f"- No files for servers of HF directories: they cut the draft into as many ranks as "
            f"the target, and this draft cannot be cut into {deployment.tensor}."
        )
    lines += _engine_lines(deployment) if deployment.release.engines else [_no_engines(deployment)]
    return "\n".join(lines)


def _spelling(deployment: Deployment) -> list[str]:
    other = deployment.release.other_spelling
    if other is None:
        return []
    return [
        f"  If it refuses `decoding_type: {deployment.release.decoding_type}`, write `{other}` in "
        "`serve/trtllm-serve.yaml`: source and documentation of "
        "TensorRT-LLM differ in it."
    ]


def _engine_lines(deployment: Deployment) -> list[str]:
    return [
        f"- Engines: `{CHECKPOINTS['target']}` and `{CHECKPOINTS['draft']}` are checkpoints for "
        f"`trtllm-build` of TensorRT-LLM {deployment.version}. Engines are legacy: "
        f"{LAST_WITH_ENGINES} is the last stable release with them. `./build_engines.sh` builds "
        f"both in the container `{deployment.engine_plan().container}`, as `engines.json` says; "
        "`soaes engines build` does the same, keeps logs and checks what was built. Then",
        '  - `python3 run_speculative.py "A prompt"` runs the pair (`run_speculative.json`). The '
        "target's cache takes its share of the free memory first; change both shares if one of the "
        "engines does not fit.",
        "  - `triton/fill_templates.sh BACKEND` sketches a Triton repository. Its BLS model takes "
        "one prompt a request and does not stream.",
    ]


def _no_engines(deployment: Deployment) -> str:
    return (
        f"- No engines: TensorRT-LLM {deployment.version} is not built for with `trtllm-build`; "
        f"{LAST_WITH_ENGINES} is the last stable release with it. "
        "For Triton, add `config.pbtxt`, `1/model.py` and `1/helpers.py` of TensorRT-LLM's "
        "`triton_backend/all_models/llmapi/tensorrt_llm` to `triton/models/tensorrt_llm`, and "
        "start `tritonserver --model-repository triton/models` in this folder."
    )


def _draft_length(deployment: Deployment) -> str:
    chosen = deployment.draft_length
    text = f"{chosen.tokens} tokens: {chosen.reason}."
    if chosen.measured is None:
        return (
            f"{text} Acceptance is not known, so neither is whether this draft pays. Measure it on "
            "prompts like your users': `soaes speculate TARGET DRAFT --prompts FILE --out REPORT`, "
            "then export again with `--measured REPORT`."
        )
    return (
        f"{text} Acceptance belongs to the pair and the text, so it stays; the cost ratio belongs "
        "to the machine that measured, so try a token more and a token fewer on yours."
    )


def _switch_off(deployment: Deployment) -> str:
    text = (
        "A target pass over few tokens costs what it costs to read the weights, so judging drafts "
        "is almost free; with many requests at a time it costs computing, and every rejected token "
        "is lost. Raise the number of requests until the target alone is faster, and switch off "
        "there."
    )
    bounds = deployment.break_even()
    if not bounds:
        table = "The break-even batch follows from acceptance, which was not measured."
    else:
        rows = "\n".join(f"| {name} | {batch} |" for name, batch in bounds.items())
        table = (
            "Computed from data sheets, for the measured acceptance and with the draft's share of "
            "the parameters as its cost. These are upper bounds, real ones are lower; 0 means "
            f"that nothing is gained.\n\n| machine | requests at a time |\n| --- | --- |\n{rows}"
        )
    how = (
        "`max_concurrency: N` in the `speculative_config` of the YAML drafts only up to N requests."
        if deployment.release.switches_off
        else "Start the server without its speculative options: this version is not known "
        "to switch by itself."
    )
    return f"{text}\n\n{table}\n\n{how}"


def _limits(deployment: Deployment) -> str:
    return "\n".join(
        [
            f"- {deployment.max_batch_size} requests at a time; {deployment.max_input_len:,} "
            f"tokens of prompt and answer; {deployment.max_seq_len:,} with a draft in flight.",
            f"- {counted(deployment.tensor, 'tensor-parallel rank')}. In engines the target has "
            f"{counted(deployment.pipeline, 'stage')} and the draft "
            f"{counted(deployment.draft_tensor, 'rank')}; servers of HF directories use tensor "
            "parallelism alone, for both.",
            "- No beam search with a draft. Text may differ from that of the target alone where "
            "two tokens are almost equally likely: a pass over several tokens rounds otherwise.",
        ]
    )


def _unverified(deployment: Deployment) -> str:
    notes = deployment.unverified("pytorch", "engines", "triton")
    if deployment.release.engines:
        notes += deployment.engine_plan().unverified
    if deployment.draft_fits_ranks:
        notes += [f"vLLM: {VLLM_SOURCES}", f"SGLang: {SGLANG_SOURCES}"]
    head = "None of these files has been run against its server. What was read where:"
    return "\n".join([head, "", *(f"- {note}" for note in notes)])
