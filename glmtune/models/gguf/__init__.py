"""GGUF files as checkpoints: read within bounds, and what their writers share with them."""
