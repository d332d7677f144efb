"""Tokenizers like those of GLM-4, ChatGLM3, Llama 2 and Llama 3, as small as can be."""

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from glmtune.models.gguf.pre_tokenizers import PRE_TOKENIZERS

CORPUS = [
    "they all say that 12+30=42 is right",
    "please, what is 57.84 + 13.64?",
    "你好，世界 ½ naïve",
    "this that hat cat at is it as has his bath path math",
] * 4
CONTROLS = ["[MASK]", "[gMASK]", "[sMASK]"]
ROLES = ["<|system|>", "<|user|>", "<|assistant|>", "<|observation|>"]
VOCAB_SIZE = 512
# What configurations of the models beside them have in common, and the rotary embedding of Llama 3.1.
SIZES = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 128,
    "initializer_range": 0.2,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 5e5,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


def byte_level(family: str) -> PreTrainedTokenizerFast:
    """A tokenizer like GLM-4's, or Llama 3's."""
    names = [*CONTROLS, "<sop>", "<eop>", *ROLES] if family != "llama" else ["<|begin_of_text|>"]
    tokenizer = Tokenizer(models.BPE(ignore_merges=True))
    split = pre_tokenizers.Split(Regex(PRE_TOKENIZERS["llama-bpe"].steps[0]["pattern"]["Regex"]), behavior="isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=320, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_special_tokens(["<|endoftext|>", *names])
    tokenizer.add_tokens(["<tool>"])
    first = "[gMASK] <sop>" if family != "llama" else "<|begin_of_text|>"
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{first} $A", special_tokens=[(name, tokenizer.token_to_id(name)) for name in first.split()]
    )
    begin = {"bos_token": "<|begin_of_text|>"} if family == "llama" else {}
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|endoftext|>", pad_token="<|endoftext|>", **begin
    )


def sentencepiece(family: str) -> PreTrainedTokenizerFast:
    """A tokenizer like ChatGLM3's, or Llama 2's: pieces with a rank, and every pair that makes one."""
    learner = Tokenizer(models.BPE())
    learner.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    learner.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=150, show_progress=False))
    learned = sorted(learner.get_vocab().items(), key=lambda item: item[1])
    normal = [piece for piece, _ in learned]
    pairs = [(p[:cut], p[cut:]) for p in normal for cut in range(1, len(p)) if {p[:cut], p[cut:]} <= set(normal)]
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *normal, "▁</mark>"]
    tokenizer = Tokenizer(
        models.BPE(
            {piece: index for index, piece in enumerate(pieces)},
            pairs,
            unk_token="<unk>",
            byte_fallback=True,
            ignore_merges=True,
        )
    )
    tokenizer.normalizer = learner.normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.Split("▁</mark>", behavior="isolated")
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    if family != "llama":
        words = [AddedToken(word, special=True, normalized=False, single_word=True) for word in ("sop", "eop")]
        tokenizer.add_special_tokens([*CONTROLS, *words, *ROLES])
    first = "[gMASK] sop" if family != "llama" else "<s>"
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{first} $A", special_tokens=[(name, tokenizer.token_to_id(name)) for name in first.split()]
    )
    begin = {"bos_token": "<s>"} if family == "llama" else {}
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="</s>", unk_token="<unk>", pad_token="<unk>", **begin
    )
