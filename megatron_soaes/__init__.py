"""megatron_soaes: an open-weight language model becomes a fast domain model, on Megatron-Core."""

__version__ = "0.1.0"
