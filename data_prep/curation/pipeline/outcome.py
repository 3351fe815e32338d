"""The account of a whole curation: the funnel from what was read to what is left."""

from __future__ import annotations

import itertools
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from datatrove.pipeline.base import PipelineStep

from data_prep.curation.pipeline.account import Account, total_account
from data_prep.curation.pipeline.plan import OUTCOME, Plan
from megatron_soaes.errors import UserError
from megatron_soaes.files import write_json


class WriteOutcome(PipelineStep):
    """Adds the accounts of all blocks up and writes `outcome.json`."""

    type = "Account"
    name = "Outcome"

    def __init__(self, plan: Plan, blocks: list[str]) -> None:
        super().__init__()
        self.plan = plan
        self.blocks = blocks

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> None:
        """Raise UserError when the books do not balance: nothing may be lost between blocks."""
        plan = self.plan
        accounts = {
            block: total_account(plan.accounts / block, len(plan.parts)) for block in self.blocks
        }
        _require_balance(plan, accounts)
        write_json(plan.recipe.output / OUTCOME, _outcome(plan, accounts))


def _require_balance(plan: Plan, accounts: dict[str, Account]) -> None:
    blocks = list(accounts)
    for before, after in itertools.pairwise(blocks):
        kept, read = accounts[before].kept, accounts[after].read
        if kept != read:
            differing = next(name for name in {**kept, **read} if kept.get(name) != read.get(name))
            raise UserError(
                f"{plan.accounts / after}: {differing}",
                f"{read.get(differing, [0, 0])} documents and characters in",
                f"the {kept.get(differing, [0, 0])} that {before} left",
                "Remove the output and curate again.",
            )  # fmt: skip


def _outcome(plan: Plan, accounts: dict[str, Account]) -> dict[str, Any]:
    tokens = _tokens(plan)
    return {
        "blocks": [
            {"name": name, "account": asdict(account)} for name, account in accounts.items()
        ],
        "documents": {
            name: [
                str(plan.document_file(task).relative_to(plan.recipe.output))
                for task, part in enumerate(plan.parts)
                if part.corpus == name
            ]
            for name in plan.recipe.corpora
        },
        "tokens": tokens,
        "blend": _blend(plan, tokens),
        "identity": plan.identity,
    }


def _tokens(plan: Plan) -> dict[str, int]:
    """Tokens by corpus; empty when none were asked for."""
    if not plan.recipe.tokenize:
        return {}
    manifests = {name: Path(f"{plan.dataset(name)}.manifest.json") for name in plan.recipe.corpora}
    return {
        name: json.loads(manifest.read_text("utf-8"))["tokens"]["text"]
        for name, manifest in manifests.items()
    }


def _blend(plan: Plan, tokens: dict[str, int]) -> list[dict[str, Any]]:
    """Each dataset with its weight: its tokens times the corpus's weight, summing to 1."""
    weights = {name: tokens[name] * plan.recipe.corpora[name].weight for name in tokens}
    total = sum(weights.values())
    return [
        {"name": name, "prefix": f"{plan.dataset(name)}_text_document", "weight": weight / total}
        for name, weight in weights.items()
    ]


def describe(outcome: Path) -> list[str]:
    """The funnel and the datasets in words, a line each."""
    account = json.loads(outcome.read_text("utf-8"))
    lines = []
    for block in account["blocks"]:
        total = Account(**block["account"])
        (read, _), (kept, characters) = total.totals("read"), total.totals("kept")
        lines.append(
            f"{block['name']}: {read:,} documents in, {kept:,} kept ({characters:,} characters)"
        )
        for reason, documents in sorted(reasons(total).items(), key=lambda item: -item[1]):
            lines.append(f"  {documents:,} dropped: {reason}")
    for dataset in account["blend"]:
        tokens = account["tokens"][dataset["name"]]
        lines.append(f"{dataset['prefix']}: {tokens:,} tokens, weight {dataset['weight']:.3f}")
    return lines


def reasons(account: Account) -> dict[str, int]:
    """Documents dropped by reason, over all sources."""
    total: dict[str, int] = {}
    for by_reason in account.dropped.values():
        for reason, (documents, _) in by_reason.items():
            total[reason] = total.get(reason, 0) + documents
    return total
