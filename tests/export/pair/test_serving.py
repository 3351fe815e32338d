"""The written scripts and settings: they can be started anywhere, and say what they rest on."""

from __future__ import annotations

import json
import os
import py_compile
import runpy
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st

from megatron_soaes.errors import UserError
from megatron_soaes.export.serving.draft_length import (
    GUESS,
    MACHINES,
    Measurement,
    break_even_batch,
    choose_draft_length,
    read_measurement,
    tokens_per_pass,
)
from megatron_soaes.export.serving.run_speculative import Tokens, decode
from megatron_soaes.export.serving.versions import (
    RELEASES,
    parse_version,
    release_of,
    unverified,
)
from tests.export.pair.conftest import write_report

SCRIPTS = ["serve/vllm.sh", "serve/sglang.sh", "serve/trtllm-serve.sh"]


def run(script: Path, fake: Path, *arguments: str) -> list[str]:
    """What a script would start: each argument of the server, after the folder it runs in."""
    fake.mkdir(exist_ok=True)
    for name in ("vllm", "python3", "trtllm-serve"):
        file = fake / name
        file.write_text('#!/bin/sh\npwd\nprintf "%s\\n" "$(basename "$0")" "$@"\n')
        file.chmod(0o755)
    path = {"PATH": f"{fake}:{os.environ['PATH']}"}
    done = subprocess.run(
        [script, *arguments], env=path, cwd="/", capture_output=True, text=True, check=True
    )
    return done.stdout.splitlines()


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_server_starts_in_the_folder_wherever_that_lies(
    engine_pair: Path, tmp_path: Path, name: str
) -> None:
    started = run(engine_pair / name, tmp_path / "bin", "--port", "9000")
    assert started[0] == str(engine_pair.resolve())
    assert "hf/target" in started
    assert started[-2:] == ["--port", "9000"]


def test_vllm_gets_the_pair(hf_pair: Path, tmp_path: Path) -> None:
    _, name, *arguments = run(hf_pair / "serve/vllm.sh", tmp_path / "bin")
    assert (name, *arguments[:2]) == ("vllm", "serve", "hf/target")
    options = dict(zip(arguments[2::2], arguments[3::2], strict=True))
    speculation = json.loads(options.pop("--speculative-config"))
    assert speculation == {
        "method": "draft_model", "model": "hf/draft", "num_speculative_tokens": 4,
        "draft_tensor_parallel_size": 1,
    }  # fmt: skip
    assert options == {
        "--dtype": "float16", "--tensor-parallel-size": "1", "--max-model-len": "128",
        "--max-num-seqs": "4",
    }  # fmt: skip


def test_sglang_judges_one_token_more_than_is_drafted(hf_pair: Path, tmp_path: Path) -> None:
    arguments = run(hf_pair / "serve/sglang.sh", tmp_path / "bin")
    options = dict(zip(arguments[4::2], arguments[5::2], strict=True))
    assert options["--speculative-num-steps"] == "4"
    assert options["--speculative-num-draft-tokens"] == "5"
    assert options["--speculative-draft-model-path"] == "hf/draft"


@pytest.mark.parametrize(
    ("folder", "spelling", "option"),
    [
        ("engine_pair", "DraftTarget", "--extra_llm_api_options"),
        ("hf_pair", "Draft_Target", "--config"),
    ],
)
def test_trtllm_serve_is_told_of_the_draft_as_its_version_spells_it(
    request: pytest.FixtureRequest, tmp_path: Path, folder: str, spelling: str, option: str
) -> None:
    pair: Path = request.getfixturevalue(folder)
    arguments = run(pair / "serve/trtllm-serve.sh", tmp_path / "bin")
    assert arguments[-2:] == [option, "serve/trtllm-serve.yaml"]
    content = yaml.safe_load((pair / "serve/trtllm-serve.yaml").read_text(encoding="utf-8"))
    assert content["disable_overlap_scheduler"] is True
    speculation = content["speculative_config"]
    assert speculation.pop("max_draft_len") in (4, 6)
    assert speculation == {"decoding_type": spelling, "speculative_model_dir": "hf/draft"}


def test_every_shell_script_is_sound(engine_pair: Path, hf_pair: Path) -> None:
    scripts = [file for pair in (engine_pair, hf_pair) for file in pair.rglob("*.sh")]
    assert len(scripts) == 8
    for file in scripts:
        assert os.access(file, os.X_OK)
        subprocess.run(["bash", "-n", file], check=True)


def test_triton_templates_are_filled(engine_pair: Path, tmp_path: Path) -> None:
    pair, backend = tmp_path / "pair's $HOME", tmp_path / "a backend"
    shutil.copytree(engine_pair / "triton", pair / "triton")
    models = ("ensemble", "preprocessing", "postprocessing", "tensorrt_llm", "tensorrt_llm_bls")
    for model in models:
        config = backend / "all_models/inflight_batcher_llm" / model / "config.pbtxt"
        config.parent.mkdir(parents=True)
        config.write_text(f'name: "{model}"\n', encoding="utf-8")
    (backend / "tools").mkdir()
    (backend / "tools/fill_template.py").write_text(
        "import sys\nopen(sys.argv[2], 'a').write(sys.argv[3] + '\\n')\n", encoding="utf-8"
    )
    script = pair / "triton/fill_templates.sh"
    done = subprocess.run([script, backend], capture_output=True, text=True, check=True)
    assert "gpu_device_ids 0,1,2,3" in done.stdout
    name, settings = (
        (pair / "triton/models/tensorrt_llm_draft/config.pbtxt").read_text().splitlines()
    )
    assert name == 'name: "tensorrt_llm_draft"'
    assert f"engine_dir:{pair.resolve()}/engines/draft," in settings
    assert settings.endswith(",gpu_device_ids:0")
    again = subprocess.run([script, backend], capture_output=True, text=True, check=False)
    assert again.returncode == 2
    assert "already there" in again.stderr


def test_a_folder_that_the_templates_cannot_name_is_refused(
    engine_pair: Path, tmp_path: Path
) -> None:
    shutil.copytree(engine_pair / "triton", tmp_path / "a,b/triton")
    script = tmp_path / "a,b/triton/fill_templates.sh"
    done = subprocess.run([script, tmp_path], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "no path with a comma" in done.stderr


def test_triton_without_engines_reads_the_hf_directories(hf_pair: Path) -> None:
    file = hf_pair / "triton/models/tensorrt_llm/1/model.yaml"
    content = yaml.safe_load(file.read_text(encoding="utf-8"))
    assert content["model"] == "hf/target"
    assert content["speculative_config"]["speculative_model_dir"] == "hf/draft"


def test_the_runner_is_complete_in_itself(engine_pair: Path, tmp_path: Path) -> None:
    script = engine_pair / "run_speculative.py"
    py_compile.compile(str(script), cfile=str(tmp_path / "compiled"), doraise=True)
    assert "megatron" not in script.read_text(encoding="utf-8")
    settings = json.loads((engine_pair / "run_speculative.json").read_text(encoding="utf-8"))
    assert settings["target"]["devices"] == [0, 1, 2, 3]
    assert settings["draft"]["engine"] == "engines/draft"
    assert (settings["end_ids"], settings["pad_id"]) == ([5, 2], 5)


END = 99


def following(text: Tokens, mistakes: frozenset[int] = frozenset()) -> object:
    """An engine that knows the text after a prompt of one token; wrong at some places."""

    def generate(
        prefixes: list[Tokens], new_tokens: int, drafts: list[Tokens] | None
    ) -> list[Tokens]:
        found = []
        for row, prefix in enumerate(prefixes):
            place = len(prefix) - 1
            own = [-1 if n in mistakes else text[n] for n in range(place, len(text))]
            count = new_tokens
            if drafts is not None:
                pairs = list(zip(drafts[row], own, strict=False))
                same = next((n for n, (one, two) in enumerate(pairs) if one != two), len(pairs))
                count = same + 1
            found.append(own[:count])
        return found

    return generate


@given(
    st.lists(st.integers(0, 9), max_size=12),
    st.frozensets(st.integers(0, 12)),
    st.integers(1, 6),
    st.integers(1, 15),
)
def test_the_text_is_the_targets_whatever_the_draft_says(
    text: Tokens, mistakes: frozenset[int], draft_length: int, most: int
) -> None:
    whole = [*text, END]
    written, counts = decode(
        following(whole, mistakes), following(whole), [[0], [1]],  # type: ignore[arg-type]
        draft_length=draft_length, max_new_tokens=most, end_ids=[END],
    )  # fmt: skip
    assert written == [whole[:most]] * 2
    assert counts.accepted <= counts.drafted


class FakeRunner:
    """Writes "b" (id 1) twice after any prompt, then the end (5); it keeps what it was given."""

    made: ClassVar[list[dict[str, Any]]] = []
    asked: ClassVar[list[dict[str, Any]]] = []

    @classmethod
    def from_dir(cls, **arguments: Any) -> FakeRunner:
        cls.made.append(arguments)
        return cls()

    def generate(self, **arguments: Any) -> dict[str, torch.Tensor]:
        self.asked.append(arguments)
        prompt = 1
        rows = []
        for prefix in arguments["batch_input_ids"]:
            left = [1, 1, 5][len(prefix) - prompt :][: arguments["max_new_tokens"]]
            rows.append([*prefix.tolist(), *left])
        return {
            "output_ids": torch.tensor(rows)[:, None],
            "sequence_lengths": torch.tensor([[len(row)] for row in rows]),
        }


def test_the_runner_talks_to_both_engines(
    engine_pair: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    package, runtime = ModuleType("tensorrt_llm"), ModuleType("tensorrt_llm.runtime")
    monkeypatch.setattr(package, "mpi_rank", lambda: 0, raising=False)
    monkeypatch.setattr(runtime, "ModelRunnerCpp", FakeRunner, raising=False)
    monkeypatch.setitem(sys.modules, "tensorrt_llm", package)
    monkeypatch.setitem(sys.modules, "tensorrt_llm.runtime", runtime)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    script = str(engine_pair / "run_speculative.py")
    monkeypatch.setattr(sys, "argv", [script, "a", "--max-new-tokens", "9"])
    runpy.run_path(script, run_name="__main__")
    printed = capsys.readouterr()
    assert printed.out == "a\nbb\n\n"
    assert printed.err == "1 target passes, 3 drafted, 100.0% accepted\n"
    target, draft = FakeRunner.made
    assert target["engine_dir"] == str(engine_pair.resolve() / "engines/target")
    assert (target["device_ids"], draft["device_ids"]) == ([0, 1, 2, 3], [0])
    assert target["max_input_len"] + target["max_output_len"] == 256
    first, second = FakeRunner.asked
    assert (first["max_new_tokens"], second["max_new_tokens"]) == (6, 7)
    assert second["draft_tokens_list"] == [[1, 1, 5]]
    monkeypatch.setattr(sys, "argv", [script, "a", "--max-new-tokens", "249"])
    with pytest.raises(SystemExit, match="250 tokens; the engines take 249"):
        runpy.run_path(script, run_name="__main__")


def test_a_good_draft_saves_target_passes() -> None:
    text = [*range(11), END]
    _, counts = decode(
        following(text), following(text), [[0]],  # type: ignore[arg-type]
        draft_length=3, max_new_tokens=50, end_ids=[END],
    )  # fmt: skip
    assert (counts.rounds, counts.drafted, counts.accepted) == (3, 9, 9)
    assert counts.line() == "3 target passes, 9 drafted, 100.0% accepted"


def test_a_measurement_gives_the_length_and_a_guess_is_called_one(measured: Path) -> None:
    found = read_measurement(measured)
    assert (found.acceptance, found.cost_ratio) == (0.8, 0.1)
    assert choose_draft_length(None, found).tokens == 6
    assert choose_draft_length(None, replace(found, longest=2)).tokens == 2
    assert choose_draft_length(3, found).tokens == 3
    guess = choose_draft_length(None, None)
    assert (guess.tokens, guess.reason) == (GUESS, "a guess: nothing was measured")


def test_a_draft_that_never_pays_is_refused_unless_it_is_asked_for(tmp_path: Path) -> None:
    found = read_measurement(write_report(tmp_path / "r.json", acceptance=0.3, cost_ratio=0.5))
    with pytest.raises(UserError, match="an acceptance above the cost ratio"):
        choose_draft_length(None, found)
    assert choose_draft_length(1, found).tokens == 1


@pytest.mark.parametrize("content", ["", "{}", '{"lengths": []}', '{"lengths": 1}'])
def test_what_is_no_report_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "r.json").write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=r"r\.json: found no readable report"):
        read_measurement(tmp_path / "r.json")


@given(st.floats(0, 1), st.floats(0.001, 1))
def test_the_length_is_within_bounds(acceptance: float, cost_ratio: float) -> None:
    found = Measurement("r.json", acceptance, cost_ratio, 7)
    try:
        length = choose_draft_length(None, found).tokens
    except UserError:
        assert acceptance <= cost_ratio + 1e-9
    else:
        assert 1 <= length <= 7


def test_the_break_even_batch() -> None:
    # E = 1 + 0.5 = 1.5 tokens a round of one drafted; 1.5 - 0.1 of 200 tokens over 2 a request.
    assert break_even_batch(0.5, 1, 0.1, 200.0) == 140
    assert break_even_batch(0.05, 1, 0.1, 200.0) == 0
    assert tokens_per_pass("H100 SXM") == pytest.approx(295.2, abs=0.1)


def test_versions_are_ordered_with_candidates_before_the_release() -> None:
    texts = ["0.20.0", "1.0.0rc3", "1.0.0", "1.2.0rc1", "1.2.1", "1.3.0rc2", "1.3.0rc20", "1.3.0"]
    versions = [parse_version(text) for text in texts]
    assert versions == sorted(versions)
    assert not release_of("1.3.0rc20").engines
    assert release_of("1.2.1").engines
    assert "qwen3" not in release_of("1.0.0rc3").families


def test_ranges_of_versions_touch_and_every_fact_has_a_source() -> None:
    assert [one.until for one in RELEASES[:-1]] == [one.first for one in RELEASES[1:]]
    for release in RELEASES:
        assert all(
            "@" in fact.source or "commit not known" in fact.source for fact in release.facts
        )


def test_everything_not_read_in_the_version_itself_is_stamped(engine_pair: Path) -> None:
    notes = unverified(release_of("1.2.1"), "1.2.1", "pytorch", "engines", "triton")
    text = (engine_pair / "README.md").read_text(encoding="utf-8")
    assert notes
    assert all(note.startswith("unverified against 1.2.1: ") and note in text for note in notes)
    assert "unverified against 1.2.1" in (engine_pair / "serve/trtllm-serve.yaml").read_text()


def test_the_readme_tells_what_to_use(engine_pair: Path, hf_pair: Path) -> None:
    with_engines = (engine_pair / "README.md").read_text(encoding="utf-8")
    assert "6 tokens: the best ideal speedup at the measured acceptance 0.800" in with_engines
    assert all(f"| {name} |" in with_engines for name in MACHINES)
    assert "`./build_engines.sh` builds both in the container" in with_engines
    assert "unverified against 1.2.1: --context_fmha" in with_engines
    without = (hf_pair / "README.md").read_text(encoding="utf-8")
    assert "4 tokens: a guess: nothing was measured." in without
    assert "No engines: TensorRT-LLM 1.3.0rc24" in without
    assert "max_concurrency" in without
