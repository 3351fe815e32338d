"""The engines of a pair: what is asked of `trtllm-build`, and what is taken from it.

A script stands in for the binary: it takes the arguments, and writes what they ask for.
"""

from __future__ import annotations

import json
import shlex
import shutil
import stat
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from megatron_soaes.cli import app
from megatron_soaes.errors import UserError
from megatron_soaes.export.engines.build import MANIFEST, build_engines
from megatron_soaes.export.engines.options import OPTIONS, require_options, unverified
from megatron_soaes.export.engines.plan import (
    EngineLimits,
    EngineModel,
    plan_pair,
    read_plan,
    write_plan,
)

STAND_IN = """#!{python}
import json, os, pathlib, sys

arguments = dict(zip((name[2:] for name in sys.argv[1::2]), sys.argv[2::2]))
settings = json.loads(os.environ["STAND_IN"])
with open(os.environ["CALLS"], "a") as calls:
    calls.write(json.dumps(arguments) + "\\n")
print("building", arguments["checkpoint_dir"])
if settings.get("fails"):
    sys.exit("no memory on the device")
checkpoint = pathlib.Path(arguments["checkpoint_dir"])
mapping = json.loads((checkpoint / "config.json").read_text())["mapping"]
ranks = mapping["world_size"]
limits = {{k: int(v) for k, v in arguments.items() if v.isdecimal()}} | settings.get("limits", {{}})
out = pathlib.Path(arguments["output_dir"])
mapping["world_size"] = settings.get("world_size", mapping["world_size"])
config = {{
    "version": settings.get("version", "1.2.1"),
    "pretrained_config": {{"mapping": mapping}},
    "build_config": limits,
}}
(out / "config.json").write_text(json.dumps(config))
for rank in range(ranks - settings.get("missing", 0)):
    (out / f"rank{{rank}}.engine").write_bytes(b"engine")
"""


@pytest.fixture
def pair(tmp_path: Path, engine_pair: Path) -> Path:
    """A pair in a folder of its own, whose name a shell must not read."""
    return Path(shutil.copytree(engine_pair, tmp_path / engine_pair.name))


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`trtllm-build` is on PATH; its arguments go to this file, a JSON line each."""
    command = tmp_path / "bin" / "trtllm-build"
    command.parent.mkdir()
    command.write_text(STAND_IN.format(python=sys.executable), encoding="utf-8")
    command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{command.parent}:/usr/bin:/bin")
    monkeypatch.setenv("CALLS", str(tmp_path / "calls.jsonl"))
    monkeypatch.setenv("STAND_IN", "{}")
    return tmp_path / "calls.jsonl"


def read_calls(file: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def test_only_the_target_is_told_of_drafts(engine_pair: Path) -> None:
    plan = read_plan(engine_pair)
    draft, target = plan.builds["draft"].options, plan.builds["target"].options
    assert list(plan.builds) == ["draft", "target"]
    assert target["speculative_decoding_mode"] == "draft_tokens_external"
    assert target["max_draft_len"] == "6"
    assert target.keys() - draft.keys() == {"speculative_decoding_mode", "max_draft_len"}
    for options in (draft, target):
        assert options["use_paged_context_fmha"] == "enable"
        assert options["kv_cache_type"] == "paged"
        assert options["gemm_plugin"] == "bfloat16"
        assert (options["max_batch_size"], options["max_seq_len"]) == ("8", "256")
    assert (draft["workers"], target["workers"]) == ("1", "4")
    assert draft["output_timing_cache"] == "engines/draft.timing_cache"
    assert plan.container == "nvcr.io/nvidia/tensorrt-llm/release:1.2.1"


def test_every_option_names_a_file_and_a_commit(engine_pair: Path) -> None:
    for build in read_plan(engine_pair).builds.values():
        require_options(build.options, "plan")
    for option in OPTIONS.values():
        assert all("@" in source and source.endswith(".py") for source in option.sources())


def test_what_was_not_read_in_a_version_itself_is_stamped(engine_pair: Path) -> None:
    plan = read_plan(engine_pair)
    options = plan.builds["target"].options
    assert unverified("0.20.0", options) == unverified("1.1.0rc6", options) == []
    stamps = unverified("1.2.1", options)
    assert plan.unverified == stamps
    named = {word for stamp in stamps for word in stamp.split() if word.startswith("--")}
    assert named == {f"--{name}" for name in options}
    script = (engine_pair / "build_engines.sh").read_text(encoding="utf-8")
    assert all(stamp in script for stamp in stamps)


@pytest.mark.parametrize("name", OPTIONS)
def test_each_option_takes_its_own_values(name: str) -> None:
    option = OPTIONS[name]
    pair = {"speculative_decoding_mode": "draft_tokens_external", "max_draft_len": "4"}
    partner = pair if name in pair else {}
    for value in option.values or ("8",):
        require_options({**partner, name: value}, "plan")
    wrong = "" if option.values is None else "0"
    with pytest.raises(UserError, match=f"plan: {name}: found '{wrong}'"):
        require_options({**partner, name: wrong}, "plan")


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({"paged_kv_cache": "enable"}, "paged_kv_cache: found an option"),
        ({"output_dir": "elsewhere"}, "output_dir: found an option"),
        ({"gemm_plugin": "bf16"}, "gemm_plugin: found 'bf16'"),
        ({"max_batch_size": "-1"}, "max_batch_size: found '-1'"),
        ({"max_draft_len": "4"}, "max_draft_len: found one of"),
    ],
)
def test_an_option_that_is_not_known_is_refused(
    pair: Path, change: dict[str, str], found: str
) -> None:
    plan = read_plan(pair)
    draft = plan.builds["draft"]
    edited = replace(draft, options=draft.options | change)
    write_plan(replace(plan, builds=plan.builds | {"draft": edited}), pair)
    with pytest.raises(UserError, match=rf"engines\.json: builds\.draft\.options: {found}"):
        read_plan(pair)


@pytest.mark.parametrize(
    ("path", "value", "found"),
    [
        (["version"], 1.2, "version: found 1.2; expected a text"),
        (["version"], "1.4.0", "found no trtllm-build to plan for.*PyTorch backend"),
        (["author"], "me", "found .*author; expected the fields version"),
        (["unverified"], [1], "unverified: found 1; expected a text"),
        (["builds"], [], r"builds: found \[\]; expected an object"),
        (["builds", "judge"], {}, "builds: found draft, target, judge; expected the fields draft"),
        (["builds", "draft"], {}, r"builds\.draft: found nothing; expected the fields checkpoint"),
        (["builds", "draft", "ranks"], True, r"builds\.draft: ranks: found True; expected a whole"),
        (["builds", "draft", "ranks"], 0, r"builds\.draft\.ranks: found 0"),
        (["builds", "draft", "engine"], "../draft", r"builds\.draft\.engine: found '\.\./draft'"),
        (["builds", "target", "checkpoint"], "/t", r"builds\.target\.checkpoint: found '/t'"),
        (["builds", "draft", "options", "workers"], 1, r"draft\.options\.workers: found 1; exp"),
    ],
)
def test_a_plan_that_was_edited_wrongly_names_the_field(
    pair: Path, path: list[str], value: object, found: str
) -> None:
    file = pair / "engines.json"
    plan = json.loads(file.read_text(encoding="utf-8"))
    place = plan
    for name in path[:-1]:
        place = place[name]
    place[path[-1]] = value
    file.write_text(json.dumps(plan), encoding="utf-8")
    with pytest.raises(UserError, match=found):
        read_plan(pair)


def test_a_folder_without_a_plan_is_refused(pair: Path) -> None:
    (pair / "engines.json").write_text('{"builds"', encoding="utf-8")
    with pytest.raises(UserError, match=r"engines\.json: found .*expected JSON"):
        read_plan(pair)
    (pair / "engines.json").unlink()
    with pytest.raises(UserError, match=r"engines\.json: found no file"):
        read_plan(pair)


@pytest.mark.parametrize("version", ["1.3.0", "1.4.0rc1"])
def test_no_plan_for_a_version_without_engines(version: str) -> None:
    model = EngineModel("trtllm/model", "engines/model", 1)
    with pytest.raises(UserError, match=r"Serve the HF directories .* for 1\.2\.1"):
        plan_pair(version, model, model, EngineLimits("bfloat16", 8, 512, 520), 4)


def test_the_engines_are_built_once(pair: Path, calls: Path) -> None:
    report = build_engines(pair)
    assert report.built == ["draft", "target"]
    made = sorted(path.name for path in (pair / "engines/target").iterdir())
    assert made == ["config.json", MANIFEST, *(f"rank{rank}.engine" for rank in range(4))]
    manifest = json.loads((pair / "engines/target" / MANIFEST).read_text(encoding="utf-8"))
    assert manifest["version"] == "1.2.1"
    assert manifest["command"][:3] == ["trtllm-build", "--checkpoint_dir", "trtllm/target"]
    assert set(manifest["engine"]) == set(made) - {MANIFEST}
    assert "rank3.safetensors" in manifest["checkpoint"]
    assert "building trtllm/draft" in (pair / "logs/build-draft.log").read_text(encoding="utf-8")
    assert build_engines(pair).kept == ["draft", "target"]
    assert len(read_calls(calls)) == 2


def test_the_script_asks_for_the_same(pair: Path, calls: Path, tmp_path: Path) -> None:
    script = pair / "build_engines.sh"
    assert script.stat().st_mode & stat.S_IXUSR
    for role in ("draft", "target"):
        (pair / "engines" / role).mkdir(parents=True)
    subprocess.run([str(script)], cwd=tmp_path, check=True)
    plan = read_plan(pair)
    for call, build in zip(read_calls(calls), plan.builds.values(), strict=True):
        folders = {"checkpoint_dir": build.checkpoint, "output_dir": build.engine}
        assert call == folders | build.options


@pytest.mark.parametrize(
    ("behaviour", "found"),
    [
        ({"fails": True}, "ended with code 1(.|\n)*no memory on the device"),
        ({"missing": 1}, "draft engine: found the files config.json"),
        ({"version": "1.1.0"}, r"found TensorRT-LLM 1\.1\.0; expected 1\.2\.1"),
        ({"world_size": 2}, "draft engine: world_size: found 2; expected 1"),
        ({"limits": {"max_seq_len": 64}}, "draft engine: max_seq_len: found 64; expected 256"),
    ],
)
def test_another_engine_than_asked_for_is_not_taken(
    pair: Path,
    calls: Path,
    monkeypatch: pytest.MonkeyPatch,
    behaviour: dict[str, Any],
    found: str,
) -> None:
    monkeypatch.setenv("STAND_IN", json.dumps(behaviour))
    with pytest.raises(UserError, match=found):
        build_engines(pair)
    assert list((pair / "engines").iterdir()) == []
    assert len(read_calls(calls)) == 1


def test_another_checkpoint_does_not_replace_an_engine(pair: Path, calls: Path) -> None:
    build_engines(pair)
    with (pair / "trtllm/draft/config.json").open("a") as stream:
        stream.write(" ")
    with pytest.raises(UserError, match="an engine of another checkpoint"):
        build_engines(pair)


def test_without_trtllm_build_the_container_is_named(
    pair: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    result = CliRunner().invoke(app, ["engines", "build", str(pair)])
    assert result.exit_code != 0
    assert "release:1.2.1" in str(result.exception)
    assert f"bash {shlex.quote(str(pair / 'build_engines.sh'))}" in str(result.exception)
    assert not (pair / "engines").exists()
