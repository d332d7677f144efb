"""ChatGLM-6B: configuration, model and tokenizer as transformers classes."""
