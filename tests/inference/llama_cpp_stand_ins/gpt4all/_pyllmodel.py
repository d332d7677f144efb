"""Its bindings: text goes in, tokens come out by callbacks."""

from stand_in import StandIn


class LLModel:
    def __init__(self, model_path, n_ctx, ngl, backend):
        self.path = model_path

    def load_model(self):
        self.model = StandIn(self.path)
        return True

    def set_thread_count(self, threads):
        pass

    def prompt_model(self, prompt, template, callback, n_predict, special, reset_context, top_k, **settings):
        assert template == "%1" and special and reset_context and top_k == 1
        for token in (self.model.begin, *self.model.encode(prompt)):  # this file says add_bos_token
            self._prompt_callback(token)
        for token in self.model.answer(n_predict):
            if token == self.model.end or not self._callback_decoder(callback)(token, b""):
                break
        self._prompt_callback(self.model.end)  # the end of the turn is put there
