"""A checkpoint as one GGUF file, which llama.cpp and all that is built on it read.

The file holds the weights under ggml's names, the sizes of the model, the tokenizer and its chat template
(https://github.com/ggml-org/ggml/blob/master/docs/gguf.md). What llama.cpp needs of each architecture was read in its
loader and graphs (src/models/chatglm.cpp, glm4.cpp, llama.cpp) and in its tokenizer (src/llama-vocab.cpp).

What a GGUF file cannot say is told by a warning. llama.cpp puts no control token but one `bos` before a text: the
`[gMASK]<sop>` of the GLM models come from the chat template, or from whoever writes the prompt.
"""
