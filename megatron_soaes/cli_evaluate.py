"""`soaes evaluate` and `soaes compare`: measure models outside a recipe. No heavy imports."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from megatron_soaes.accelerator.quiet import quiet_libraries
from megatron_soaes.errors import UserError

if TYPE_CHECKING:
    from rich.table import Table

FILE_WIDTH = 100
Files = list[Path] | None
Evaluated = Annotated[
    Path,
    typer.Argument(
        help="HF directory, folder of Megatron checkpoints, or, for an endpoint, an HF directory "
        "with the tokenizer."
    ),
]
ResultFile = Annotated[Path, typer.Option(dir_okay=False, help="The result file to write, JSON.")]
Questions = Annotated[Files, typer.Option(help="JSONL of questions; repeatable.")]
Choices = Annotated[Files, typer.Option(help="JSONL of multiple choice; repeatable.")]
FewShot = Annotated[
    list[str] | None,
    typer.Option(
        metavar="SUITE=FILE:COUNT",
        help="Show the first COUNT items of FILE, solved, before each of a --choices file; "
        "repeatable.",
    ),
]
Texts = Annotated[Files, typer.Option(help="JSONL of texts; repeatable.")]
Profiles = Annotated[list[str] | None, typer.Option(help="llamafactory or swift; by default both.")]
PromptStyle = Annotated[str, typer.Option(help="auto, chat or plain.")]
TemplateDate = Annotated[
    str | None, typer.Option(help="YYYY-MM-DD for a chat template that writes today's date.")
]
LongestAnswer = Annotated[int, typer.Option(help="Longest answer.")]
BatchSize = Annotated[int, typer.Option(help="Sequences, or open requests, at a time.")]
SequenceLength = Annotated[int, typer.Option(help="Tokens of one window of a text.")]
Backend = Annotated[
    str | None, typer.Option(help="megatron, lean or endpoint; by default what MODEL is.")
]
Dtype = Annotated[str, typer.Option(help="fp32 or bf16; an endpoint has its own.")]
Iteration = Annotated[int | None, typer.Option(help="By default the newest.")]
Parallel = Annotated[int, typer.Option(help="For Megatron checkpoints.")]
Url = Annotated[str | None, typer.Option(help="Of a server, up to /v1.")]
ServedModel = Annotated[str | None, typer.Option(help="Its name on the server.")]
HarnessTasks = Annotated[
    list[str] | None, typer.Option(help="Task of lm-evaluation-harness; repeatable.")
]
HarnessFolder = Annotated[Path | None, typer.Option(help="Folder of harness tasks.")]


def evaluate(
    model: Evaluated,
    out: ResultFile,
    *,
    questions: Questions = None,
    choices: Choices = None,
    few_shot: FewShot = None,
    texts: Texts = None,
    profile: Profiles = None,
    prompt: PromptStyle = "auto",
    date: TemplateDate = None,
    max_new_tokens: LongestAnswer = 256,
    batch_size: BatchSize = 32,
    sequence_length: SequenceLength = 2048,
    backend: Backend = None,
    dtype: Dtype = "fp32",
    iteration: Iteration = None,
    tensor_parallel: Parallel = 1,
    pipeline_parallel: Parallel = 1,
    url: Url = None,
    served_model: ServedModel = None,
    harness: HarnessTasks = None,
    include: HarnessFolder = None,
) -> None:
    """Measure one model on task files of your own; the result holds every item."""
    quiet_libraries()
    from megatron_soaes.stages.evaluate_model import backend_of, job_from, run

    evaluation = {
        **_task_files(questions, choices, few_shot, texts),
        "prompt": prompt,
        "date": date,
        "max_new_tokens": max_new_tokens,
        "batch_size": batch_size,
        "sequence_length": sequence_length,
        **({"profiles": profile} if profile else {}),
    }
    asked = {
        "backend": backend or backend_of(model, url),
        "model": str(model.resolve()),
        "evaluation": evaluation,
        "out": str(out.resolve()),
        "dtype": dtype,
        "iteration": iteration,
        "layout": {"tensor_parallel": tensor_parallel, "pipeline_parallel": pipeline_parallel},
        "url": url,
        "served_model": served_model,
        **_of_the_harness(harness, include),
    }
    _measured(run(job_from(asked)), out)


def _task_files(
    questions: Files, choices: Files, few_shot: list[str] | None, texts: Files
) -> dict[str, Any]:
    asked = {"questions": questions, "choices": choices, "texts": texts}
    named = {kind: _named(f"--{kind}", paths) for kind, paths in asked.items()}
    return {**named, "few_shot": _worked_examples(few_shot or [], choices or [])}


def _of_the_harness(tasks: list[str] | None, folder: Path | None) -> dict[str, Any]:
    return {"harness": tasks or [], "include": None if folder is None else str(folder.resolve())}


def _measured(code: int, out: Path) -> None:
    """End the command with the job's code, and the table of its result if there is one."""
    if code == 0:
        _print_result(out)
    raise typer.Exit(code)


def compare(
    results: Annotated[list[Path], typer.Argument(help="Result files, the base first.")],
    *,
    target: Annotated[
        list[str] | None,
        typer.Option(help="'exam.rouge1 >= 1.08' or 'mini.acc >= 5 points'; repeatable."),
    ] = None,
    margin: Annotated[
        str, typer.Option(help="What may be lost and still count as kept: '2%' or '1.5 points'.")
    ] = "2%",
    require: Annotated[
        bool, typer.Option("--require", help="End with code 2 unless every target is shown.")
    ] = False,
) -> None:
    """Compare results with the first of them, item by item, with intervals."""
    from megatron_soaes.evaluation.compare import compare as compare_results
    from megatron_soaes.evaluation.compare import require_targets
    from megatron_soaes.evaluation.report import comparison_tables

    if require and not target:
        raise UserError("--require", "no --target", "one at least", "Say what is required.")
    found = compare_results(results, target or [], margin)
    _print(comparison_tables(found))
    if require:
        require_targets(found)


def prep_sft(context: typer.Context) -> None:
    """Turn conversations into an SFT dataset, by the model's chat template."""
    from data_prep.preprocess_sft import main

    raise typer.Exit(main(context.args, program="soaes prep sft"))


def _named(option: str, paths: Sequence[Path] | None) -> dict[str, str]:
    """Task files by the names of their suites: file names without ending."""
    named: dict[str, str] = {}
    for path in paths or []:
        if path.stem in named:
            raise UserError(
                option, f"two files called {path.stem}", "each name once", "Rename one of them."
            )
        named[path.stem] = str(path.resolve())
    return named


def _worked_examples(given: Sequence[str], choices: Sequence[Path]) -> dict[str, Any]:
    """The section `few_shot` of a recipe from what `--few-shot` was given."""
    suites = [path.stem for path in choices]
    shown: dict[str, Any] = {}
    for text in given:
        name, _, rest = text.partition("=")
        file, _, count = rest.rpartition(":")
        if not file or not count.isdecimal():
            raise UserError(
                "--few-shot", repr(text), "SUITE=FILE:COUNT, such as cmmlu=cmmlu-dev.jsonl:5",
                "Name the suite, the file of its examples and how many to show.",
            )  # fmt: skip
        if name not in suites or name in shown:
            known = ", ".join(suites) or "(none given)"
            raise UserError(
                "--few-shot", repr(name), f"a suite of --choices, each once: {known}",
                "A suite is called like its file, without the ending.",
            )  # fmt: skip
        shown[name] = {"examples": str(Path(file).resolve()), "count": int(count)}
    return shown


def _print_result(out: Path) -> None:
    from megatron_soaes.evaluation.report import result_table
    from megatron_soaes.evaluation.result import read_result

    _print([result_table(read_result(out))])
    typer.echo(f"-> {out}")


def _print(tables: Sequence[Table]) -> None:
    """Show tables; a file or a pipe gets the columns that they need."""
    from rich.console import Console

    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = FILE_WIDTH
    for table in tables:
        console.print(table)
