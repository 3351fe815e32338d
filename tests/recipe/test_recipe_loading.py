"""Reading a recipe file: types, paths, and one error that lists everything wrong with its form."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_soaes import yaml_text
from megatron_soaes.errors import UserError
from megatron_soaes.recipe.data_settings import Blend, Replay
from megatron_soaes.recipe.load import load_recipe
from megatron_soaes.recipe.problems import Problem, RecipeErrors
from megatron_soaes.recipe.schema import CPTStage

from .recipe_files import RECIPE, write_recipe


def broken(folder: Path, old: str, new: str) -> list[Problem]:
    """The problems of the recipe with one piece of its text replaced."""
    assert old in RECIPE
    with pytest.raises(RecipeErrors) as caught:
        load_recipe(write_recipe(folder, RECIPE.replace(old, new, 1)))
    return list(caught.value.problems)


def test_values_have_their_types(recipe_file: Path) -> None:
    cpt = load_recipe(recipe_file).stages[0]

    assert isinstance(cpt, CPTStage)
    assert cpt.optimizer.lr == 0.001  # YAML 1.1 alone calls 1e-3 text
    assert cpt.precision.dtype == "bf16"


def test_relative_paths_start_at_the_folder_of_the_file(
    recipe_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = recipe_file.parent
    monkeypatch.chdir("/")
    recipe = load_recipe(recipe_file, ["models.draft.source=~/draft"])

    assert recipe.workdir == folder / "results"
    assert recipe.models.target.source == folder / "models/target"
    assert recipe.models.draft and recipe.models.draft.source == Path.home() / "draft"
    assert recipe.data.datasets["general"].indexed == folder / "corpus/general"
    assert recipe.data.datasets["domain"].text == [f"{folder}/corpus/domain-*.jsonl"]


def test_relative_paths_of_conversations_and_exams_do_too(tmp_path: Path) -> None:
    chats = "    domain: {conversations: [chat/*.jsonl]}\n"
    text = RECIPE.replace("    domain: {text: [corpus/domain-*.jsonl], holdout: 0.1}\n", chats)
    text = text.replace("evaluation: {", "evaluation: {questions: {exam: exam.jsonl}, ")
    recipe = load_recipe(write_recipe(tmp_path, text))

    assert recipe.data.datasets["domain"].conversations == [f"{tmp_path}/chat/*.jsonl"]
    assert recipe.evaluation.questions["exam"] == tmp_path / "exam.jsonl"


def test_a_key_given_twice_names_both_lines(tmp_path: Path) -> None:
    path = write_recipe(
        tmp_path, RECIPE.replace("    steps: 20\n", "    steps: 20\n    steps: 30\n")
    )

    with pytest.raises(UserError, match=r"recipe.yaml:25: found the key 'steps'.*line 24"):
        load_recipe(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("version: 1\nname: [a\n", r"recipe.yaml:3: "),
        ("version: 1\n? [a]\n: 2\n", r"recipe.yaml:2: found the key of several parts"),
        ("version: 1\non: 2\n", r"recipe.yaml:2: found the key on, which YAML reads as no text"),
        ("version: 1\nname: &a [*a]\n", r"recipe.yaml:2: found an alias inside its own anchor"),
        ("version: 1\n--- \nversion: 1\n", r"recipe.yaml:2: "),
        ("version: 1\nname: !!python/name:os.system\n", r"recipe.yaml:2: "),
        ("version: 1\nname: \x00\n", r"recipe.yaml: "),
        ("", "an empty file"),
        ("- 1\n", "found a list"),
    ],
)
def test_what_is_no_recipe_is_refused_with_its_line(
    tmp_path: Path, text: str, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        load_recipe(write_recipe(tmp_path, text))


def test_a_missing_file_is_the_users_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none.yaml: found no such file or directory; expected a"):
        load_recipe(tmp_path / "none.yaml")


def test_all_wrong_fields_are_reported_at_once(tmp_path: Path) -> None:
    text = RECIPE.replace("optimizer: {lr: 1e-3", "optimiser: {lr: 1e-3").replace("steps: 20", "")
    text = text.replace("holdout: 0.1", "holdout: 1.5").replace("workdir: results\n", "")
    with pytest.raises(RecipeErrors) as caught:
        load_recipe(write_recipe(tmp_path, text))

    assert {problem.path for problem in caught.value.problems} == {
        "workdir",
        "data.datasets.domain.holdout",
        "stages.cpt.steps",
        "stages.cpt.optimiser",
    }
    assert str(caught.value).count("\n") == 4  # a heading, then one problem a line
    assert "recipe.yaml: 4 problems" in str(caught.value)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


@pytest.mark.parametrize(
    ("change", "path", "value", "fix"),
    [
        (("min_lr: 1e-4", "minlr: 1e-4"), "stages.cpt.optimizer.minlr", "unknown", "'min_lr'"),
        (("kind: evaluate", "kind: eval"), "stages.compare.kind", "eval", "'evaluate'"),
        (("    kind: export", "    gates: []"), "stages.to-hf.kind", "nothing", "export"),
        (("family: qwen2", "family: qwen"), "models.target.family", '"qwen"', "'qwen2'"),
        (("lr: 1e-3", 'lr: "1e-3"'), "stages.cpt.optimizer.lr", '"1e-3"', "Peak learning rate"),
        (("lr: 1e-3", "lr: .inf"), "stages.cpt.optimizer.lr", "Infinity", "Peak learning rate"),
        (("steps: 20", "steps: yes"), "stages.cpt.steps", "true", "Optimizer steps"),
        (("steps: 20", "steps: 0"), "stages.cpt.steps", "0", "Optimizer steps"),
        (("name: cpt", "name: 2cpt"), "stages.2cpt.name", '"2cpt"', "name of that form"),
        (("- name: cpt\n    kind", "- kind"), "stages[0].name", "nothing", "Unique"),
        (("{domain: 1.0}", "{domain: -1}"), "data.blends.mix.weights.domain", "-1", "weight"),
        (("{domain: 1.0}", "{do main: 1}"), "data.blends.mix.weights.do main", '"do', "that form"),
        (("[import, cpt]", "[]"), "stages.compare.checkpoints", "[]", "to compare"),
        (("evaluation:", "cluster: {gpu: 100}\nevaluation:"), "cluster.gpu", "100", "in quotes"),
        (("version: 1", "version: 2"), "version", "2", "Version of this format"),
    ],
)
def test_a_wrong_field_names_its_path_and_the_remedy(
    tmp_path: Path, change: tuple[str, str], path: str, value: str, fix: str
) -> None:
    (problem,) = broken(tmp_path, *change)

    assert problem.path == path
    assert value in problem.value
    assert fix in problem.fix


@settings(deadline=None)
@given(
    st.dictionaries(st.sampled_from("abcd"), st.floats(1e-3, 1e3), min_size=1),
    st.dictionaries(st.sampled_from("cdef"), st.floats(1e-3, 1e3), min_size=1),
    st.floats(0, 1),
)
def test_shares_of_a_blend_sum_to_one(
    weights: dict[str, float], replay: dict[str, float], share: float
) -> None:
    blend = Blend(weights=weights, replay=Replay(weights=replay, share=share))

    assert sum(blend.shares().values()) == pytest.approx(1)


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text("1e5-.:yes #\n"),
    lambda inner: st.lists(inner) | st.dictionaries(st.text("1eno", min_size=1), inner),
    max_leaves=8,
)


@settings(deadline=None)
@given(JSON)
def test_dumped_yaml_reads_back_the_same(value: object) -> None:
    assert yaml_text.parse(yaml_text.dump(value), "here") == value
    assert yaml_text.parse(yaml_text.dump_flow(value), "here") == value


def test_the_recipe_needs_no_torch(recipe_file: Path) -> None:
    program = (
        "import sys; from pathlib import Path\n"
        "from megatron_soaes.recipe import check, check_node, graph, load, reference\n"
        f"check.check(load.load_recipe(Path({str(recipe_file)!r})))\n"
        "reference.recipe_reference()\n"
        "print([name for name in ('torch', 'transformers', 'megatron') if name in sys.modules])"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert ran.stdout.strip() == "[]"
