"""The rehearsal corpus: real general text, an invented domain, dialogues, an exam, a tokenizer."""
