"""Commands that decode: `soaes speculate` and `soaes chat`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from megatron_soaes.accelerator.quiet import quiet_libraries
from megatron_soaes.errors import ExitCode

Target = Annotated[Path, typer.Argument(help="HF directory of the target.")]
MaxNewTokens = Annotated[int, typer.Option(help="Most tokens to write after a prompt.")]
Temperature = Annotated[float, typer.Option(help="0 takes the most likely token.")]
TopK = Annotated[int, typer.Option(help="Draw from so many likely tokens; 0 from all.")]
TopP = Annotated[float, typer.Option(help="Draw from the likely tokens that reach this together.")]
Seed = Annotated[int, typer.Option(help="Of sampling.")]
Dtype = Annotated[str, typer.Option(help="Of the target: fp32, bf16, or auto, the faster here.")]
DraftDtype = Annotated[str, typer.Option(help="Of the draft: fp32, bf16, or auto.")]
Exact = Annotated[bool, typer.Option("--exact", help="Logits bitwise those of plain decoding.")]
ResultFile = Annotated[
    Path | None, typer.Option(dir_okay=False, help="JSON to write; a plot beside it, if any.")
]


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command()(speculate)
    app.command()(speculate_served)
    app.command()(chat)


def speculate(
    target: Target,
    draft: Annotated[Path, typer.Argument(help="HF directory of the draft.")],
    *,
    prompts: Annotated[Path, typer.Option(help=".jsonl with prompt or messages, or text lines.")],
    draft_length: Annotated[
        list[int] | None, typer.Option(help="Once for each length; by default 1 to 7.")
    ] = None,
    adaptive: Annotated[
        bool, typer.Option("--adaptive", help="Also a length that follows the acceptance.")
    ] = False,
    exact: Exact = False,
    rows: Annotated[int, typer.Option(help="Prompts decoded together.")] = 1,
    repeats: Annotated[int, typer.Option(help="Times that every prompt is decoded.")] = 3,
    max_new_tokens: MaxNewTokens = 64,
    temperature: Temperature = 0.0,
    top_k: TopK = 0,
    top_p: TopP = 1.0,
    seed: Seed = 0,
    dtype: Dtype = "auto",
    draft_dtype: DraftDtype = "auto",
    out: ResultFile = None,
) -> None:
    """Measure what a draft is worth: speed, acceptance, the same text or not, a recommendation."""
    quiet_libraries()
    from rich.console import Console

    from megatron_soaes.decoding.comparison import compare_directories
    from megatron_soaes.decoding.comparison_report import print_comparison, write_comparison
    from megatron_soaes.decoding.interface import Sampling

    found = compare_directories(
        target,
        draft,
        prompts,
        Sampling(max_new_tokens, temperature, top_p, seed, top_k=top_k),
        draft_lengths=draft_length or range(1, 8),
        exact=exact,
        adaptive=adaptive,
        rows=rows,
        repeats=repeats,
        dtypes=(dtype, draft_dtype),
        note=lambda line: typer.echo(line, err=True),
    )
    print_comparison(found, Console(highlight=False))
    if out is not None:
        typer.echo(f"-> {out}, {write_comparison(found, out)}")
    if not found.identity_holds:
        raise typer.Exit(ExitCode.FAILURE)


def speculate_served(
    target: Annotated[Path, typer.Argument(help="HF directory of the target: its tokenizer.")],
    *,
    plain_url: Annotated[str, typer.Option(help="The target alone, up to /v1.")],
    speculative_url: Annotated[str, typer.Option(help="The target with its draft, up to /v1.")],
    served_model: Annotated[str, typer.Option(help="The name under which both serve.")],
    prompts: Annotated[Path, typer.Option(help=".jsonl with prompt or messages, or text lines.")],
    rows: Annotated[int, typer.Option(min=1, help="Requests in flight together.")] = 1,
    repeats: Annotated[int, typer.Option(min=1, help="Times that every prompt is asked.")] = 3,
    max_new_tokens: MaxNewTokens = 64,
    temperature: Temperature = 0.0,
    top_k: TopK = 0,
    top_p: TopP = 1.0,
    seed: Seed = 0,
    out: ResultFile = None,
) -> None:
    """Measure what a draft is worth where it is served: trtllm-serve, vLLM or SGLang, twice."""
    quiet_libraries()
    from megatron_soaes.decoding.interface import Sampling
    from megatron_soaes.decoding.served import Service, compare_services
    from megatron_soaes.files import write_json

    found = compare_services(
        Service(plain_url, served_model),
        Service(speculative_url, served_model),
        target,
        prompts,
        Sampling(max_new_tokens, temperature, top_p, seed, top_k=top_k),
        rows=rows,
        repeats=repeats,
        note=lambda line: typer.echo(line, err=True),
    )
    for sentence in found.sentences():
        typer.echo(sentence)
    if out is not None:
        write_json(out, found.as_json())
        typer.echo(f"-> {out}")


def chat(
    target: Target,
    *,
    draft: Annotated[Path | None, typer.Option(help="HF directory of a draft.")] = None,
    prompt: Annotated[str | None, typer.Option(help="Answer this and end.")] = None,
    draft_length: Annotated[int, typer.Option(min=0, help="Most tokens drafted for a pass.")] = 7,
    fixed: Annotated[
        bool, typer.Option("--fixed", help="Always that many, whatever is accepted.")
    ] = False,
    exact: Exact = False,
    max_new_tokens: MaxNewTokens = 512,
    temperature: Temperature = 0.0,
    top_k: TopK = 0,
    top_p: TopP = 1.0,
    seed: Seed = 0,
    dtype: Dtype = "auto",
    draft_dtype: DraftDtype = "auto",
) -> None:
    """Talk to a model in the terminal; what its draft wrote is tinted. End with Ctrl-D."""
    quiet_libraries()
    from megatron_soaes.decoding.chat import Chat, converse
    from megatron_soaes.decoding.interface import Sampling

    session = Chat.open(
        target,
        draft,
        Sampling(max_new_tokens, temperature, top_p, seed, top_k=top_k),
        draft_length=draft_length,
        adaptive=not fixed,
        exact=exact,
        dtypes=(dtype, draft_dtype),
    )

    def show(piece: str, drafted: bool) -> None:
        typer.secho(piece, fg="green" if drafted else None, nl=False)

    def tell(line: str) -> None:
        typer.secho(f"\n{line}", dim=True, err=True)

    if prompt is not None:
        tell(session.reply([{"role": "user", "content": prompt}], show).status())
    else:
        converse(_ask, lambda turns: session.reply(turns, show), tell)


def _ask() -> str | None:
    """A line of the user's; None at the end of input."""
    try:
        return input("> ")
    except (EOFError, KeyboardInterrupt):
        return None
