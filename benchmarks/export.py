"""TensorRT-LLM export against a plain copy of the same bytes, in the same run.

    python -m benchmarks.export [--megabytes 2000] [--tp 2] [--pp 1] [--rounds 3] [--folder DIR]

Makes a Qwen2-shaped model with random bf16 weights, exports it, and copies what was exported file
by file; both are flushed to the disk, and they take turns. Each runs in a process of its own, whose
peak of resident memory is read. The export's goals: at least half of the copy's rate, and a peak
below a quarter of the model. The peak is also given above that of a process that only imports what
the export needs, which does not grow with the model.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

HIDDEN = 1024
VOCABULARY = 32768
GB = 1e9


@dataclass(frozen=True)
class Figures:
    """Of one run in a process of its own."""

    seconds: float
    peak_bytes: int
    imported_bytes: int
    """Peak before the work began."""


def make_model(folder: Path, megabytes: int) -> int:
    """Write an HF directory of about that size; returns the bytes of its weights."""
    import torch

    from megatron_soaes.checkpoint.hf_files import SafetensorsWriter
    from megatron_soaes.models.families import weight_table
    from megatron_soaes.models.weights import slices
    from megatron_soaes.recipe.shapes import shape_from_config

    hidden = HIDDEN if megabytes >= 500 else HIDDEN // 4
    config = {
        "architectures": ["Qwen2ForCausalLM"], "hidden_size": hidden,
        "intermediate_size": 4 * hidden, "num_attention_heads": 16, "num_key_value_heads": 2,
        "vocab_size": VOCABULARY, "max_position_embeddings": 4096, "rms_norm_eps": 1e-6,
        "rope_theta": 1e6, "tie_word_embeddings": False, "num_hidden_layers": 1,
    }  # fmt: skip
    one = shape_from_config(config, "config")
    layers = (megabytes * 500_000 - one.parameters) // one.layer_parameters + 1
    config["num_hidden_layers"] = max(1, layers)
    shape = shape_from_config(config, "config")
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    sizes = {
        name: part
        for weight, layer in slices(weight_table(shape), range(shape.layers))
        for name, part in weight.hf_shapes(shape, layer).items()
    }
    plan = {name: (size, torch.bfloat16) for name, size in sizes.items()}
    writer = SafetensorsWriter(folder, plan, 500_000_000)
    for name, size in sizes.items():
        writer.write(name, torch.randn(size, dtype=torch.bfloat16))
    writer.close()
    return 2 * shape.parameters


def copy(source: Path, target: Path) -> None:
    """Copy every file and flush it."""
    target.mkdir()
    for file in sorted(source.iterdir()):
        shutil.copyfile(file, target / file.name)
        with (target / file.name).open("rb") as stream:
            os.fsync(stream.fileno())


def work(job: dict[str, str]) -> Figures:
    """One export or one copy, in this process."""
    from megatron_soaes.export.trtllm.writer import export_trtllm

    source, target = Path(job["source"]), Path(job["target"])
    imported = peak()
    started = time.perf_counter()
    if job["kind"] == "copy":
        copy(source, target)
    else:
        export_trtllm(
            source, target, tensor_parallel=int(job["tp"]), pipeline_parallel=int(job["pp"])
        )
    return Figures(time.perf_counter() - started, peak(), imported)


def peak() -> int:
    """The most memory that was resident in this process, mapped files included."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measured(kind: str, source: Path, target: Path, options: argparse.Namespace) -> Figures:
    """`work` in a new process; what it wrote stays."""
    shutil.rmtree(target, ignore_errors=True)
    job = {
        "kind": kind, "source": str(source), "target": str(target),
        "tp": str(options.tp), "pp": str(options.pp),
    }  # fmt: skip
    command = [sys.executable, "-m", "benchmarks.export", "--job", json.dumps(job)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return Figures(**json.loads(done.stdout.splitlines()[-1]))


def report(model_bytes: int, written: int, exports: list[Figures], copies: list[Figures]) -> None:
    """Print the table."""
    rates = {
        kind: written / GB / statistics.median(run.seconds for run in runs)
        for kind, runs in (("export", exports), ("copy", copies))
    }
    highest = max(run.peak_bytes for run in exports)
    above = max(run.peak_bytes - run.imported_bytes for run in exports)
    print("| | |\n|---|---|")
    print(f"| model | {model_bytes / GB:.2f} GB |")
    print(f"| written | {written / GB:.2f} GB |")
    print(f"| export | {rates['export']:.2f} GB/s |")
    print(f"| copy of the same bytes | {rates['copy']:.2f} GB/s |")
    print(f"| export over copy | {rates['export'] / rates['copy']:.2f} (goal: 0.5) |")
    share = highest / model_bytes
    print(f"| peak memory | {highest / GB:.2f} GB, {share:.0%} of the model (goal: 25%) |")
    print(f"| of it above the imports | {above / GB:.2f} GB, {above / model_bytes:.0%} |")


def main() -> None:
    """Make the model, take turns, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--megabytes", type=int, default=2000)
    parser.add_argument("--tp", type=int, default=2)
    parser.add_argument("--pp", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="Where to write; by default the temporary one.")
    parser.add_argument("--job", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.job is not None:
        print(json.dumps(asdict(work(options.job))))
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        root = Path(folder)
        model_bytes = make_model(root / "hf", options.megabytes)
        exports, copies = [], []
        for _ in range(options.rounds):
            exports.append(measured("export", root / "hf", root / "out", options))
            copies.append(measured("copy", root / "out", root / "copy", options))
        written = sum(file.stat().st_size for file in (root / "out").iterdir())
    report(model_bytes, written, exports, copies)


if __name__ == "__main__":
    main()
