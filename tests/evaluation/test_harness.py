"""The bridge to lm-evaluation-harness, on output recorded from lm_eval (recorded/README.md)."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest

from megatron_soaes.errors import UserError
from megatron_soaes.evaluation.compare import compare
from megatron_soaes.evaluation.harness import HarnessRun, command, read_results, run_harness
from megatron_soaes.evaluation.result import EvaluationResult, Model
from megatron_soaes.evaluation.scoring import score_bits_per_byte, score_choices
from megatron_soaes.evaluation.tasks import read_choices, read_texts

HERE = Path(__file__).parent
RECORDED = HERE / "recorded"
MATERIAL = HERE / "material"

FAKE_LM_EVAL = """
import os, shutil, sys
arguments = sys.argv[1:]
assert arguments[0] == "run"
print(os.environ["HF_HUB_OFFLINE"], os.environ["HF_DATASETS_OFFLINE"])
if "broken" in arguments:
    sys.exit("ValueError: no such task")
output = arguments[arguments.index("--output_path") + 1]
shutil.copytree({recorded!r}, output + "/model-a")
"""


def samples(folder: Path, task: str) -> list[dict[str, object]]:
    file = next(folder.glob(f"samples_{task}_*.jsonl"))
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def test_the_command_says_everything_that_was_asked() -> None:
    run = HarnessRun(
        model=Path("export/cpt"),
        tasks=("cmmlu", "mine"),
        task_directory=Path("tasks"),
        num_fewshot=5,
        apply_chat_template=True,
        limit=10,
        device="cuda:0",
        dtype="bfloat16",
        batch_size=8,
        seed=7,
        python=Path("/env/bin/python"),
    )
    words = command(run, Path("out"))

    assert words[:4] == ["/env/bin/python", "-m", "lm_eval", "run"]
    text = " ".join(words)
    for part in (
        "--model hf --model_args pretrained=export/cpt,dtype=bfloat16",
        "--tasks cmmlu mine",
        "--output_path out --log_samples",
        "--device cuda:0 --batch_size 8 --seed 7",
        "--include_path tasks",
        "--num_fewshot 5",
        "--limit 10",
    ):
        assert part in text
    assert words[-1] == "--apply_chat_template"


def test_what_was_not_asked_is_left_to_the_tasks() -> None:
    words = command(HarnessRun(Path("m"), ("cmmlu",), None), Path("out"))
    absent = {"--include_path", "--num_fewshot", "--limit", "--apply_chat_template"}
    assert not absent & set(words)
    assert words[0] == sys.executable


def test_recorded_results_become_suites_item_by_item() -> None:
    suites = read_results(RECORDED / "model-a")

    assert suites.keys() == {"local_answers", "local_choices", "local_text"}
    choices = suites["local_choices"]
    assert choices.ids == ("0", "1", "2", "3", "4")
    assert choices.measures["lm_eval.acc"].scores == (0, 100, 0, 0, 0)
    assert choices.measures["lm_eval.acc_norm"].scores == (0, 0, 0, 100, 0)
    assert choices.measures["lm_eval.acc"].chances == (25, 25, 25, 25, 50)
    assert choices.versions == {"lm_eval": "0.4.13"}
    assert choices.settings["num_fewshot"] == 0
    answers = suites["local_answers"]
    assert answers.measures.keys() == {
        "lm_eval.exact_match,whole",
        "lm_eval.exact_match,first-number",
    }
    assert len(answers.answers) == 2
    text = suites["local_text"]
    assert text.measures["lm_eval.bits_per_byte"].weights == (39, 25)
    assert text.unpaired.keys() == {"lm_eval.word_perplexity"}


@pytest.mark.parametrize("model", ["model-a", "model-b"])
def test_values_are_those_that_lm_eval_reports(model: str) -> None:
    report = json.loads(next((RECORDED / model).glob("results_*.json")).read_text())["results"]
    suites = read_results(RECORDED / model)
    for name in ("acc", "acc_norm", "acc_bytes"):
        found = suites["local_choices"].measures[f"lm_eval.{name}"].value
        assert found == pytest.approx(100 * report["local_choices"][f"{name},none"])
    found = suites["local_text"].measures["lm_eval.bits_per_byte"].value
    assert found == pytest.approx(report["local_text"]["bits_per_byte,none"])


@pytest.mark.parametrize("model", ["model-a", "model-b"])
def test_our_own_scores_of_the_same_likelihoods_are_those_of_lm_eval(model: str) -> None:
    suites = read_results(RECORDED / model)
    rows = [
        [float(response[0][0]) for response in sample["resps"]]  # type: ignore[attr-defined]
        for sample in samples(RECORDED / model, "local_choices")
    ]
    ours = score_choices(read_choices(MATERIAL / "choices.jsonl"), rows, {})
    for name in ("acc", "acc_norm", "acc_bytes"):
        theirs = suites["local_choices"].measures[f"lm_eval.{name}"]
        assert ours.measures[f"choice.{name}"].scores == theirs.scores
        assert ours.measures[f"choice.{name}"].chances == theirs.chances
    nats = [
        float(sample["resps"][0][0])  # type: ignore[index]
        for sample in samples(RECORDED / model, "local_text")
    ]
    bits = score_bits_per_byte(read_texts(MATERIAL / "text.jsonl"), nats, {})
    theirs = suites["local_text"].measures["lm_eval.bits_per_byte"]
    assert bits.measures["text.bits_per_byte"].scores == pytest.approx(theirs.scores)


def test_two_recorded_runs_are_compared_with_their_flips(tmp_path: Path) -> None:
    paths = []
    for name in ("model-a", "model-b"):
        paths.append(tmp_path / f"{name}.json")
        model = Model(name, name, "0" * 64)
        EvaluationResult(model, read_results(RECORDED / name)).write(paths[-1])

    row = next(row for row in compare(paths).rows if row.path == "local_choices.lm_eval.acc")

    assert row.paired.flips is not None
    assert (row.paired.flips.gained, row.paired.flips.lost) == (2, 1)


def test_other_questions_have_another_hash(tmp_path: Path) -> None:
    shutil.copytree(RECORDED / "model-a", tmp_path / "run")
    file = next((tmp_path / "run").glob("samples_local_choices_*"))
    before = read_results(RECORDED / "model-a")
    first = json.loads(file.read_text(encoding="utf-8").splitlines()[0])
    file.write_text(file.read_text().replace(first["doc_hash"], "0" * 64), encoding="utf-8")
    after = read_results(tmp_path / "run")
    assert after["local_choices"].data_sha256 != before["local_choices"].data_sha256
    assert after["local_text"].data_sha256 == before["local_text"].data_sha256


def test_results_without_samples_are_refused(tmp_path: Path) -> None:
    shutil.copytree(RECORDED / "model-a", tmp_path / "run")
    next((tmp_path / "run").glob("samples_local_text_*")).unlink()
    with pytest.raises(UserError, match=r"samples_local_text_.*Run lm_eval with --log_samples"):
        read_results(tmp_path / "run")


def test_only_one_run_is_read_at_a_time(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"found 0 files results_\*.json"):
        read_results(tmp_path)
    with pytest.raises(UserError, match=r"found 2 files results_\*.json"):
        read_results(RECORDED)


def test_results_of_another_form_are_refused(tmp_path: Path) -> None:
    (tmp_path / "results_x.json").write_text('{"results": {}}')
    with pytest.raises(UserError, match=r"expected results of lm_eval 0.4.13"):
        read_results(tmp_path)


@pytest.fixture
def fake_lm_eval(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A module lm_eval that copies recorded output where it is told to."""
    package = tmp_path / "packages" / "lm_eval"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    program = FAKE_LM_EVAL.format(recorded=str(RECORDED / "model-a"))
    (package / "__main__.py").write_text(program)
    monkeypatch.setenv("PYTHONPATH", str(package.parent))
    return tmp_path


def test_a_run_is_offline_and_its_results_appear_whole(fake_lm_eval: Path) -> None:
    output = fake_lm_eval / "out"
    suites = run_harness(HarnessRun(Path("m"), ("local_text",), None), output)

    assert suites == read_results(RECORDED / "model-a") == read_results(output)
    assert (fake_lm_eval / "out.log").read_text() == "1 1\n"
    assert {file.name for file in fake_lm_eval.iterdir()} == {"packages", "out", "out.log"}


def test_a_failed_run_leaves_its_log_only(fake_lm_eval: Path) -> None:
    output = fake_lm_eval / "out"
    with pytest.raises(UserError, match=r"exit code 1 \(ValueError: no such task\).*out.log"):
        run_harness(HarnessRun(Path("m"), ("broken",), None), output)
    assert {file.name for file in fake_lm_eval.iterdir()} == {"packages", "out.log"}


def test_without_lm_eval_one_is_told_what_to_install(tmp_path: Path) -> None:
    bare = tmp_path / "python"
    bare.write_text("#!/bin/sh\nexit 1\n")
    bare.chmod(0o755)
    run = HarnessRun(Path("m"), ("cmmlu",), None, python=bare)
    with pytest.raises(UserError, match=r"pip install 'megatron-soaes\[harness\]'"):
        run_harness(run, tmp_path / "out")


@pytest.mark.parametrize(("model", "task"), [("a,b", "t"), ("m", "t,u")])
def test_a_comma_would_be_read_as_two_arguments(tmp_path: Path, model: str, task: str) -> None:
    with pytest.raises(UserError, match="without a comma"):
        run_harness(HarnessRun(Path(model), (task,), None), tmp_path / "out")
