"""`soaes evaluate`, `soaes compare` and `soaes prep sft` as a user types them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from click.testing import Result
from rich.console import Console
from typer.testing import CliRunner

from megatron_soaes.cli import app
from megatron_soaes.decoding.lean import LeanModel
from megatron_soaes.errors import ExitCode, UserError
from megatron_soaes.evaluation.harness import HarnessRun, read_results
from megatron_soaes.evaluation.result import read_result
from megatron_soaes.pipeline.run import run
from megatron_soaes.pipeline.summary import print_summary
from megatron_soaes.stages import evaluate_model
from tests.decoding.server import SERVED, running
from tests.stages.exam import NEW_TOKENS, Exam, make_exam, write_lines

RECORDED = Path(__file__).parent / "evaluation/recorded"


@pytest.fixture(scope="module")
def exam(tmp_path_factory: pytest.TempPathFactory) -> Exam:
    return make_exam(tmp_path_factory.mktemp("exam"))


def soaes(*arguments: object) -> Result:
    result = CliRunner().invoke(app, list(map(str, arguments)))
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def evaluate(exam: Exam, model: Path, out: Path, *options: object) -> Result:
    """Measure the exam's questions and texts."""
    files = ("--questions", exam.root / "exam.jsonl", "--texts", exam.root / "prose.jsonl")
    settings = ("--max-new-tokens", NEW_TOKENS, "--sequence-length", 64)
    return soaes("evaluate", model, "--out", out, *files, *settings, *options)


@pytest.fixture(scope="module")
def results(exam: Exam) -> list[Path]:
    """Of the spoiled and of the good model, as HF directories."""
    paths = [exam.root / "spoiled.json", exam.root / "good.json"]
    for model, out in zip((exam.spoiled, exam.good), paths, strict=True):
        assert evaluate(exam, model, out).exit_code == 0
    return paths


def test_a_result_of_an_hf_directory_and_its_table(exam: Exam, results: list[Path]) -> None:
    result = read_result(results[1])

    assert result.model.name == "good"
    assert result.suites.keys() == {"exam", "prose"}
    assert result.suites["exam"].measures["swift.rouge1"].value == pytest.approx(100)
    again = evaluate(exam, exam.good, results[1])
    assert "llamafactory.rouge1" in again.output and "good.json" in again.output
    assert read_result(results[1]) == result


def test_a_checkpoint_on_two_processes_is_the_same_model(
    exam: Exam, results: list[Path], tmp_path: Path
) -> None:
    root = exam.root / "work/cpt/checkpoints"
    out = tmp_path / "megatron.json"
    done = evaluate(exam, root, out, "--tensor-parallel", 2)
    assert done.exit_code == 0, (tmp_path / "megatron.work/logs/rank1.log").read_text()

    lean, megatron = read_result(results[1]), read_result(out)
    assert (megatron.model.name, megatron.model.iteration) == ("cpt", 0)
    assert megatron.suites["exam"] == lean.suites["exam"]
    compared = soaes("compare", results[1], out)
    assert compared.exit_code == 0
    assert "no difference" in compared.output, compared.output


def test_a_server_is_asked_with_the_models_own_tokens(
    exam: Exam, results: list[Path], tmp_path: Path
) -> None:
    out = tmp_path / "served.json"
    with running(LeanModel(exam.good)) as server:
        options = ("--url", server.url, "--served-model", SERVED)
        assert evaluate(exam, exam.good, out, *options).exit_code == 0

    served = read_result(out)
    assert (served.model.name, served.model.weights_sha256) == (SERVED, "unknown")
    prompts = [body["prompt"] for body in server.bodies if not body.get("echo")]
    assert all(prompt[0] == 1 for prompt in prompts)  # <|im_start|>
    scores = served.suites["prose"].measures["text.bits_per_byte"].scores
    own = read_result(results[1]).suites["prose"].measures["text.bits_per_byte"].scores
    assert scores == pytest.approx(own, rel=1e-5)
    with pytest.raises(UserError, match=r"dtype.*the server's"):
        soaes("compare", results[1], out)


def test_better_is_shown_and_can_be_required(results: list[Path]) -> None:
    target = ("--target", "exam.rouge1 >= 5 points", "--margin", "1 points")
    found = soaes("compare", *results, *target)
    assert found.exit_code == 0
    assert "good against spoiled" in found.output
    assert "better" in found.output and "shown" in found.output
    assert soaes("compare", *results, *target, "--require").exit_code == 0

    backwards = soaes("compare", *reversed(results), *target)
    assert backwards.exit_code == 0 and "missed" in backwards.output
    with pytest.raises(
        UserError, match=r"target 'exam.rouge1 >= 5 points' of spoiled: found missed"
    ):
        soaes("compare", *reversed(results), *target, "--require")
    with pytest.raises(UserError, match="no --target"):
        soaes("compare", *results, "--require")


def test_another_prompt_is_not_compared(exam: Exam, results: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "plain.json"
    assert evaluate(exam, exam.good, out, "--prompt", "plain").exit_code == 0
    assert "plain" in read_result(out).suites["exam"].settings["prompt"]
    with pytest.raises(UserError, match=r"setting 'chat_template_sha256'"):
        soaes("compare", results[0], out)


def test_harness_tasks_are_suites_of_the_same_result(
    exam: Exam, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = []

    def recorded(run: HarnessRun, output: Path) -> object:
        runs.append(run)
        shutil.copytree(RECORDED / "model-a", output)
        return read_results(output)

    monkeypatch.setattr(evaluate_model, "run_harness", recorded)
    out = tmp_path / "harness.json"
    include = ("--include", tmp_path, "--harness", "local_text", "--harness", "local_choices")
    assert soaes("evaluate", exam.good, "--out", out, *include).exit_code == 0

    assert read_result(out).suites.keys() >= {"local_text", "local_choices"}
    assert runs[0].tasks == ("local_text", "local_choices")
    assert runs[0].task_directory == tmp_path
    with pytest.raises(UserError, match="output of an earlier run"):
        soaes("evaluate", exam.good, "--out", out, *include)


def test_worked_examples_stand_before_every_choice(exam: Exam, tmp_path: Path) -> None:
    """The right choices of `mini` are the model's own behind two examples."""
    choices = ("--choices", exam.root / "mini.jsonl")
    shown = ("--few-shot", f"mini={exam.root / 'examples.jsonl'}:2")
    for name, options in (("none", ()), ("two", shown)):
        out = tmp_path / f"{name}.json"
        assert soaes("evaluate", exam.good, "--out", out, *choices, *options).exit_code == 0
    none, two = (read_result(tmp_path / f"{name}.json").suites["mini"] for name in ("none", "two"))
    assert two.measures["choice.acc"].value == 100 > none.measures["choice.acc"].value
    assert (two.settings["few_shot"], "few_shot" in none.settings) == (2, False)
    with pytest.raises(UserError, match="few_shot"):
        soaes("compare", tmp_path / "none.json", tmp_path / "two.json")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "nothing to measure"),
        (("--questions", "nowhere.jsonl"), r"evaluation\.questions\.nowhere: found no file"),
        (("--prompt", "loud"), r"evaluation\.prompt: found 'loud'"),
        (("--profile", "mine"), r"evaluation\.profiles\.0: found 'mine'"),
        (("--backend", "gpu"), "backend: found 'gpu'"),
        (("--url", "http://here"), "--served-model: found nothing"),
        (("--tensor-parallel", 2), "backend lean; expected backend megatron"),
        (("--include", "."), "--include"),
        (("--backend", "megatron", "--harness", "t"), "soaes export hf"),
        (("--texts", "a/x.jsonl", "--texts", "b/x.jsonl"), "two files called x"),
        (("--few-shot", "x.jsonl"), "--few-shot: found 'x.jsonl'; expected SUITE=FILE:COUNT"),
        (("--choices", "x.jsonl", "--few-shot", "y=y.jsonl:5"), "found 'y'; expected .*once: x"),
    ],
)
def test_what_does_not_go_together_is_refused(
    exam: Exam, tmp_path: Path, options: tuple[object, ...], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        soaes("evaluate", exam.good, "--out", tmp_path / "x.json", *options)
    assert list(tmp_path.iterdir()) == []


def test_a_layout_that_does_not_fit_is_refused_before_anything_starts(
    exam: Exam, tmp_path: Path
) -> None:
    root = exam.root / "work/cpt/checkpoints"
    with pytest.raises(UserError, match=r"layout\.tensor_parallel: found 3"):
        evaluate(exam, root, tmp_path / "x.json", "--tensor-parallel", 3)


def test_conversations_are_prepared_with_all_options(exam: Exam, tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}]
    chats = write_lines(tmp_path / "chats.jsonl", [{"messages": turns}])
    prefix = tmp_path / "chats"
    options = ("--input", chats, "--tokenizer-model", exam.good, "--output-prefix", prefix)
    assert soaes("prep", "sft", *options, "--train-on", "last").exit_code == 0
    assert json.loads((tmp_path / "chats.json").read_text())["format"] == "soaes-sft"
    assert soaes("prep", "sft", *options).exit_code == ExitCode.BAD_INPUT  # it exists


def test_the_help_of_a_preparation_shows_the_command_that_was_typed() -> None:
    assert soaes("prep", "sft", "--help").stdout.startswith("usage: soaes prep sft [")


def test_a_recipe_ends_with_the_tables_and_goes_on_after_a_stop(
    exam: Exam, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    overrides = ["workdir=" + str(tmp_path), "compare.checkpoints=[import]", "targets=[]"]
    recipe = exam.recipe(*overrides)
    stages = [stage for stage in recipe.stages if stage.name == "compare"]
    recipe = recipe.model_copy(update={"stages": stages})
    assert run(recipe) == ExitCode.OK
    answers = tmp_path / "compare/answers/import.jsonl"
    written = answers.stat().st_mtime_ns

    (tmp_path / "compare/manifest.json").unlink()
    assert run(recipe) == ExitCode.OK
    assert "compare: goes on" in capsys.readouterr().out
    assert answers.stat().st_mtime_ns == written

    console = Console(width=100, record=True, highlight=False)
    print_summary(recipe, console)
    text = console.export_text()
    assert "compare: held-out perplexity" in text
    assert "import, iteration 0" in text and "choice.acc_norm" in text
