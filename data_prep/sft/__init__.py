"""Conversations into token ids and loss weights, by the chat template of the model."""
