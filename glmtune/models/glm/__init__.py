"""ChatGLM2-6B, ChatGLM3-6B and GLM-4-9B from their own checkpoints, as transformers' `Glm` classes."""
