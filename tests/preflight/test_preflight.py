"""A recipe that is sound, and mistakes that only a queue would have told."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from megatron_soaes.checkpoint.import_hf import import_hf
from megatron_soaes.cli import app
from megatron_soaes.errors import ExitCode
from megatron_soaes.preflight.findings import Found, look
from megatron_soaes.preflight.page import page
from tests.checkpoint.tiny import Case, make_model
from tests.data_prep.conftest import save_tokenizer, train_tokenizer
from tests.preflight.conftest import change_json, look_at

EXAMPLES = Path(__file__).parents[2] / "examples"


def test_a_sound_recipe_is_ready_and_the_page_says_what_was_seen(sound: Path) -> None:
    found = look_at(sound)
    assert found.wrong == []
    said = page("sound", found)
    assert "16 ranks, 4 of them distinct: each is built" in said
    assert "well   ranks of draft-cpt" in said
    assert "together they hold each of 10 tensors once" in said
    assert "1 file, 0.00 GB; the first record of each can be read" in said
    assert "9 indexed records, with this tokenizer" in said
    assert "tokenizers of the pair\n       both mean the same" in said
    assert f"1 item in {sound}/exam.jsonl" in said
    assert f"2 prompts in {sound}/prompts.jsonl" in said
    assert "bash has read the environment file, the commands and 7 scripts" in said
    assert "Not looked at:\n  - speed" in said
    assert said.endswith("Ready to submit.\n")
    assert not (sound / "work").exists(), "nothing is written"


def other_vocabulary(root: Path) -> None:
    change_json(root / "target/config.json", vocab_size=640)


def three_kv_heads(root: Path) -> None:
    change_json(root / "target/config.json", num_key_value_heads=3)


def other_checkpoint(root: Path) -> None:
    other = make_model(root / "other", Case("qwen2", vocab_size=512, layers=2))
    save_tokenizer(other, train_tokenizer())
    import_hf(other, root / "work/import-target/checkpoints", verify=False)


def nothing(root: Path) -> None:
    pass


MISTAKES: dict[str, tuple[Callable[[Path], None], list[str], str]] = {
    "heads": (nothing, ["target.layout.tensor_parallel=16"], "a divisor of the attention heads, 8"),
    "kv groups": (three_kv_heads, [], "8 heads and 3 KV heads"),
    "layers": (nothing, ["target.layout.pipeline_parallel=3"], "layers, 4"),
    "vocabulary": (other_vocabulary, [], "shape [512, 64]; expected [640, 64], as config.json"),
    "checkpoint": (other_checkpoint, [], "expected shape [4, 64"),
    "fp8": (nothing, ["cpt.precision.fp8={}", "cpt.sequence_length=24"], "multiple of 16"),
    "memory": (
        nothing,
        ["cpt.micro_batch_size=524288", "cpt.global_batch_size=8388608"],
        "of 79 GiB",
    ),
    "gpu": (nothing, ["cluster.gpu=h100-81g"], "Did you mean 'h100-80g'"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_planted_mistake_is_found_and_named(project: Path, mistake: str) -> None:
    plant, overrides, expected = MISTAKES[mistake]
    plant(project)
    found = look_at(project, *overrides)
    assert any(expected in problem for problem in found.wrong), found
    assert page("spoiled", found).rstrip().endswith("to mend.")


def test_what_does_not_fit_is_not_said_to_fit(project: Path) -> None:
    too_large = ["cpt.micro_batch_size=524288", "cpt.global_batch_size=8388608"]
    memory = next(one for one in look_at(project, *too_large).findings if one.subject == "memory")
    assert memory.wrong and not memory.well


def test_without_a_cluster_the_page_says_that_memory_was_not_looked_at(sound: Path) -> None:
    found = look_at(sound, "cluster=null")
    assert found.wrong == []
    assert "memory: the recipe names no cluster" in found.not_looked_at


def test_what_is_missing_is_told_once(project: Path) -> None:
    """Not again by the tokenizer, by what becomes of it, or by the jobs that are blocked."""
    (project / "domain.jsonl").unlink()
    shutil.move(project / "target/config.json", project / "config.json")
    shutil.rmtree(project / "target")
    found = look_at(project, f"models.target.config={project}/config.json")
    assert len(found.wrong) == 2
    assert found.wrong[0].startswith(f"{project}/target: found no weights")
    assert found.wrong[1].startswith("data.datasets.domain.text: found no file at")
    assert "the dataset chats: the target's tokenizer must be right first" in found.not_looked_at
    assert "Not ready: 2 to mend." in page("missing", found)


def test_an_error_that_no_check_foresaw_is_on_the_page() -> None:
    def check() -> Found:
        yield "this is well"
        raise AssertionError("of a library")

    found = look("dataset odd", check())
    assert found.well == ("this is well",)
    (wrong,) = found.wrong
    assert wrong.startswith("dataset odd: found an unexpected AssertionError (of a library) at ")
    assert f"{__file__}:" in wrong


@pytest.mark.parametrize(
    ("overrides", "code", "end"),
    [
        ([], ExitCode.OK, "Ready to submit."),
        (["evaluation.questions.exam=absent.jsonl"], ExitCode.BAD_INPUT, "Not ready: 1 to mend."),
    ],
)
def test_the_exit_code_says_whether_to_submit(
    sound: Path, overrides: list[str], code: ExitCode, end: str
) -> None:
    done = CliRunner().invoke(app, ["preflight", str(sound / "recipe.yaml"), *overrides])
    assert done.exit_code == code, done.output
    assert done.output.rstrip().endswith(end)


def test_the_72b_example_passes_on_any_machine() -> None:
    recipe = EXAMPLES / "soaes_v2_72b/recipe.yaml"
    done = subprocess.run(
        [sys.executable, "-m", "megatron_soaes", "preflight", recipe, "--files-elsewhere"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == ExitCode.OK, done.stdout + done.stderr
    assert "at most 65.8 of 79 GiB, as planned" in done.stdout
    assert "64 ranks, 32 of them distinct" in done.stdout
    assert "well   ranks of respond, evaluation\n       64 ranks, 8 of them" in done.stdout
    assert "models, corpora and disk: they are on another machine" in done.stdout
