"""What is known of the files that stages read and made, as a run walks over them."""

from __future__ import annotations

from pathlib import Path

from megatron_soaes.errors import UserError
from megatron_soaes.pipeline.hashing import HashCache
from megatron_soaes.pipeline.manifest import Manifest
from megatron_soaes.stages.base import Plan


class Results:
    """Hashes of inputs: those that a stage made are known from its manifest."""

    def __init__(self, workdir: Path) -> None:
        self.hashes = HashCache(workdir / "hashes.json")
        self._made: dict[Path, str] = {}

    def take(self, manifest: Manifest) -> None:
        """Remember what a finished stage made."""
        for output in manifest.outputs.values():
            self._made[Path(output.path)] = output.hash

    def input_hashes(self, plan: Plan) -> dict[str, str]:
        """The hash of each input. Raises UserError for one that is not there."""
        return {name: self._hash(plan.name, name, path) for name, path in plan.inputs.items()}

    def _hash(self, stage: str, name: str, path: Path) -> str:
        if path in self._made:
            return self._made[path]
        if not path.exists():
            raise UserError(
                f"stage {stage}, input {name}", f"nothing at {path}", "a file or folder",
                "Correct the path in the recipe.",
            )  # fmt: skip
        return self.hashes.of(path)
