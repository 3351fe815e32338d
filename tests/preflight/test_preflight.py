"""A recipe that is sound, and mistakes that only a queue would have told."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from data_prep.sft.convert import SFTOptions, convert_sft
from megatron_soaes.checkpoint.import_hf import import_hf
from megatron_soaes.errors import ExitCode
from megatron_soaes.preflight.page import page
from megatron_soaes.preflight.run import Preflight, preflight
from megatron_soaes.recipe.load import load_recipe
from tests.checkpoint.tiny import Case, make_model
from tests.data_prep.conftest import TRAINING_TEXT, save_tokenizer, train_tokenizer
from tests.data_prep.sft_material import CHATML

EXAMPLES = Path(__file__).parents[2] / "examples"
CASE = Case("qwen2", vocab_size=512)
RECIPE = """
version: 1
name: sound
workdir: work
cluster: {gpu: h100-80g, nodes: 2, gpus_per_node: 8, transformer_engine: 2.11.0}
models:
  target:
    source: target
    layout: {tensor_parallel: 2, sequence_parallel: true, pipeline_parallel: 2, data_parallel: 4}
  draft: {source: draft, layout: {pipeline_parallel: 2, virtual_pipeline: 2, data_parallel: 4}}
data:
  datasets:
    domain: {text: [domain.jsonl]}
    chats: {conversations: [chats.jsonl]}
    indexed: {indexed_conversations: indexed}
  blends:
    documents: {weights: {domain: 1}}
    talk: {weights: {chats: 1, indexed: 1}}
stages:
  - &cpt
    name: cpt
    kind: cpt
    blend: documents
    steps: 10
    sequence_length: 64
    global_batch_size: 16
    checkpoints: {keep_last: 2}
  - {<<: *cpt, name: draft-cpt, model: draft}
  - {name: sft, kind: sft, blend: talk, steps: 4, sequence_length: 64, global_batch_size: 16}
  - {name: hf, kind: export, layout: {}}
"""


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a recipe with everything that it needs."""
    root = tmp_path_factory.mktemp("sound")
    tokenizer = train_tokenizer()
    for name in ("target", "draft"):
        save_tokenizer(make_model(root / name, CASE), tokenizer, chat_template=CHATML)
    turns = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "the fox"}]
    chats = "".join(json.dumps({"messages": turns}) + "\n" for _ in range(9))
    (root / "chats.jsonl").write_text(chats, "utf-8")
    texts = "".join(json.dumps({"text": text}) + "\n" for text in TRAINING_TEXT)
    (root / "domain.jsonl").write_text(texts, "utf-8")
    convert_sft(
        SFTOptions(
            inputs=(str(root / "chats.jsonl"),),
            output_prefix=root / "indexed",
            tokenizer_model=root / "target",
            workers=1,
        )
    )
    (root / "recipe.yaml").write_text(RECIPE, "utf-8")
    return root


@pytest.fixture
def project(sound: Path, tmp_path: Path) -> Path:
    """A copy of it to spoil."""
    return Path(shutil.copytree(sound, tmp_path / "project"))


def look(root: Path, *overrides: str) -> Preflight:
    return preflight(load_recipe(root / "recipe.yaml", overrides), None, files_elsewhere=False)


def test_a_sound_recipe_is_ready_and_the_page_says_what_was_seen(sound: Path) -> None:
    found = look(sound)
    assert found.wrong == []
    said = page("sound", found)
    assert "16 ranks, 4 of them distinct: each is built" in said
    assert "well   ranks of draft-cpt" in said
    assert "together they hold each of 10 tensors once" in said
    assert "1 files, 0.00 GB; the first record of each can be read" in said
    assert "9 indexed records, with this tokenizer" in said
    assert "bash has read the commands and 5 scripts" in said
    assert "Not looked at:\n  - speed" in said
    assert said.endswith("Ready to submit.\n")
    assert not (sound / "work").exists(), "nothing is written"


def other_vocabulary(root: Path) -> None:
    file = root / "target/config.json"
    file.write_text(file.read_text("utf-8").replace('"vocab_size": 512', '"vocab_size": 640'))


def three_kv_heads(root: Path) -> None:
    file = root / "target/config.json"
    text = file.read_text("utf-8")
    file.write_text(text.replace('"num_key_value_heads": 2', '"num_key_value_heads": 3'))


def other_checkpoint(root: Path) -> None:
    other = make_model(root / "other", Case("qwen2", vocab_size=512, layers=2))
    save_tokenizer(other, train_tokenizer())
    import_hf(other, root / "work/import-target/checkpoints", verify=False)


def other_tokenizer(root: Path) -> None:
    file = root / "target/tokenizer.json"
    content = json.loads(file.read_text("utf-8"))
    content["added_tokens"][0]["special"] = not content["added_tokens"][0]["special"]
    file.write_text(json.dumps(content))


def no_text(root: Path) -> None:
    (root / "domain.jsonl").unlink()


def nothing(root: Path) -> None:
    pass


MISTAKES: dict[str, tuple[Callable[[Path], None], list[str], str]] = {
    "heads": (nothing, ["target.layout.tensor_parallel=16"], "a divisor of the attention heads, 8"),
    "kv groups": (three_kv_heads, [], "8 heads and 3 KV heads"),
    "layers": (nothing, ["target.layout.pipeline_parallel=3"], "layers, 4"),
    "vocabulary": (other_vocabulary, [], "shape [512, 64]; expected [640, 64], as config.json"),
    "checkpoint": (other_checkpoint, [], "expected shape [4, 64"),
    "dataset": (no_text, [], "domain.jsonl; expected at least one"),
    "fp8": (nothing, ["cpt.precision.fp8={}", "cpt.sequence_length=24"], "multiple of 16"),
    "memory": (
        nothing,
        ["cpt.micro_batch_size=524288", "cpt.global_batch_size=8388608"],
        "of 80 GiB",
    ),
    "disk": (nothing, ["cpt.steps=100000000", "cpt.checkpoints={every: 1}"], "GB free"),
    "gpu": (nothing, ["cluster.gpu=h100-81g"], "Did you mean 'h100-80g'"),
    "tokenizer": (other_tokenizer, [], "expected tokens of this model's"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_planted_mistake_is_found_and_named(project: Path, mistake: str) -> None:
    plant, overrides, expected = MISTAKES[mistake]
    plant(project)
    found = look(project, *overrides)
    assert any(expected in problem for problem in found.wrong), found
    assert page("spoiled", found).rstrip().endswith("to mend.")


def test_a_damaged_first_record_is_found(project: Path) -> None:
    (project / "domain.jsonl").write_text('{"txt": "no"}\n', "utf-8")
    (project / "chats.jsonl").write_text('{"messages": [{"role": "cook"}]}\n', "utf-8")
    wrong = "\n".join(look(project).wrong)
    assert f"{project}/domain.jsonl:1: found " in wrong
    assert f"{project}/chats.jsonl:1: found " in wrong


def test_the_72b_example_passes_on_any_machine() -> None:
    recipe = EXAMPLES / "soaes_v2_72b/recipe.yaml"
    done = subprocess.run(
        [sys.executable, "-m", "megatron_soaes", "preflight", recipe, "--files-elsewhere"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == ExitCode.OK, done.stdout + done.stderr
    assert "at most 65.9 of 80 GiB, as planned" in done.stdout
    assert "64 ranks, 32 of them distinct" in done.stdout
    assert "models, corpora and disk: they are on another machine" in done.stdout
