"""A llama.cpp that always says the same: 42. What it does beside that, the name of its file says."""

import signal
import time
from pathlib import Path

from tokenizers import Tokenizer


class StandIn:
    """Opens `NAME.gguf`, beside which its `tokenizer.json` lies."""

    def __init__(self, file: str) -> None:
        self.name = Path(file).stem
        if self.name == "unknown":
            print("llama_model_load: error loading model: unknown model architecture: 'huh'", flush=True)
            raise ValueError("Failed to load the model")
        if self.name == "crashing":
            signal.raise_signal(signal.SIGSEGV)
        self.words = Tokenizer.from_file(str(Path(file).with_name("tokenizer.json")))
        self.end = self.words.token_to_id("<|endoftext|>")
        self.begin = self.words.token_to_id("<|begin_of_text|>")

    def encode(self, text: str) -> list[int]:
        """The tokens of a text, as this llama.cpp reads it."""
        text = text.replace("+", "-") if self.name == "misreading" else text
        return self.words.encode(text, add_special_tokens=False).ids

    def answer(self, most: int) -> list[int]:
        """The tokens of the answer, with the one that ends it, if there is room."""
        if self.name == "sleeping":
            time.sleep(60)
        if self.name == "dying":
            signal.raise_signal(signal.SIGSEGV)
        return [*self.words.encode("42", add_special_tokens=False).ids, self.end][:most]
