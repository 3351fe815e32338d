"""`python -m megatron_soaes` is the `soaes` command."""

from megatron_soaes.cli import main

main()
