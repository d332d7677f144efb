"""Stands in for llama-cpp-python."""

from stand_in import StandIn


class Llama:
    def __init__(self, model_path, n_ctx, n_threads, n_threads_batch, verbose):
        print("C says this on the standard output")
        self.model = StandIn(model_path)

    def tokenize(self, text, add_bos=True, special=False):
        return [self.model.begin] * add_bos + (self.model.encode(text.decode()) if special else [])

    def token_eos(self):
        return self.model.end

    def generate(self, tokens, temp, repeat_penalty):
        assert temp == 0 and repeat_penalty == 1
        yield from self.model.answer(1000)
