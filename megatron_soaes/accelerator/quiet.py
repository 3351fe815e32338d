"""Keep libraries' notes on their own implementation out of the user's log."""

from __future__ import annotations

import logging
import warnings


def quiet_libraries() -> None:
    """Drop the warnings Megatron-Core and torch give about themselves; call before importing them.

    What they mean for a run is said by `check_node` and `substitutions` instead.
    """
    warnings.filterwarnings("ignore", module=r"(megatron\.core|torch|transformers)\b.*")
    warnings.filterwarnings("ignore", message=".*Transformer Engine and Apex are not installed.*")
    logging.getLogger("megatron.core").setLevel(logging.ERROR)
