"""GGUF files answered by llama.cpp, as they will run: a `llama-server`, or a Python package in a process of its own."""
