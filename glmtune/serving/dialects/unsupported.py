"""The one table of fields that other servers take and this one does not, by dialect.

A field that asks for nothing that would change the answer is taken and has no effect. Any other is refused by its
name, unless its value is what is done here anyway. Null is always taken.
"""

from __future__ import annotations

from glmtune.serving.dialects.bodies import HARMLESS, Unsupported

_OFF = Unsupported(harmless=(False,))
_NONE = Unsupported(harmless=([], {}))
_STATELESS = Unsupported("Nothing is kept between requests: send the whole conversation.", (False,))
_TEXT_ONLY = Unsupported("The models here read and write text.", (["text"],))
_NO_REASONING = Unsupported("How long a model reasons is not set here.", ("none",))
_TIER = Unsupported("There is one tier.", ("auto", "default", "standard_only"))
_TOOLS = Unsupported("Use `tools` and `tool_choice`.")
_TEMPLATE = Unsupported("The template of the model is used: it was trained with it.", ([], {}))
_RUN = Unsupported("What ends an answer, and how it is written, is as the model was trained; use `stop`.", ([], False))
_SAMPLING = Unsupported("Use `temperature`, `top_p`, `top_k` and the penalties.", (0, [], {}, False))

# Names of who asks, and hints to caches and to priorities.
_BOOKKEEPING = dict.fromkeys(
    ("user", "metadata", "safety_identifier", "prompt_cache_key", "prompt_cache_retention", "prompt_cache_options"),
    HARMLESS,
)

# What vLLM's OpenAI dialect adds.
_VLLM = {
    **dict.fromkeys(("min_p", "min_tokens", "logit_bias", "use_beam_search", "length_penalty", "bad_words"), _SAMPLING),
    **dict.fromkeys(("allowed_token_ids", "thinking_token_budget", "logits_processors"), _SAMPLING),
    **dict.fromkeys(("stop_token_ids", "ignore_eos", "include_stop_str_in_output", "truncate_prompt_tokens"), _RUN),
    "skip_special_tokens": Unsupported("Control tokens are no part of an answer.", (True,)),
    "spaces_between_special_tokens": Unsupported("Control tokens are no part of an answer.", (True,)),
    "priority": Unsupported("Requests are answered in the order in which they come.", (0,)),
    "prompt_logprobs": Unsupported("Log-probabilities are told of answers alone.", (0, False)),
    "return_token_ids": Unsupported("Use `/tokenize`.", (False,)),
    "return_tokens_as_token_ids": Unsupported("Use `/tokenize`.", (False,)),
    "request_id": Unsupported("Send it as the header `X-Request-Id`."),
    "guided_decoding_backend": HARMLESS,
    "guided_whitespace_pattern": Unsupported("Say what whitespace there is with `structured_outputs.grammar`."),
    "kv_transfer_params": _NONE,
    "cache_salt": HARMLESS,
    "vllm_xargs": _NONE,
}

CHAT = {
    **_BOOKKEEPING,
    **_VLLM,
    "audio": _TEXT_ONLY,
    "modalities": _TEXT_ONLY,
    "function_call": _TOOLS,
    "functions": _TOOLS,
    "moderation": _OFF,
    "prediction": Unsupported("Answers are not predicted."),
    "reasoning_effort": _NO_REASONING,
    "service_tier": _TIER,
    "store": _STATELESS,
    "verbosity": Unsupported("How much is said is up to the prompt.", ("medium",)),
    "web_search_options": Unsupported("Nothing is searched for."),
    "chat_template": _TEMPLATE,
    "chat_template_kwargs": _TEMPLATE,
    "documents": _TEMPLATE,
    "add_generation_prompt": Unsupported("An answer is always asked for.", (True,)),
    "continue_final_message": Unsupported("Use `/v1/completions`, which goes on with a text.", (False,)),
    "add_special_tokens": Unsupported("The template says which there are.", (False,)),
    "echo": _OFF,
    "include_reasoning": Unsupported("Reasoning is told where the template knows such.", (True,)),
    "mm_processor_kwargs": _TEXT_ONLY,
}

COMPLETIONS = {
    **_BOOKKEEPING,
    **_VLLM,
    "echo": Unsupported("Put the prompt before the answer yourself.", (False,)),
    "suffix": Unsupported("Text is written after the prompt alone.", ("",)),
    "add_special_tokens": Unsupported("The tokenizer says which there are.", (True,)),
    "response_format": Unsupported("Use `structured_outputs`.", ({"type": "text"},)),
    "prompt_embeds": Unsupported("Give `prompt` as text or token ids."),
    "tools": Unsupported("Use `/v1/chat/completions`, which has `tools`.", ([],)),
}

# Of what the messages themselves hold, as clients send back what they were given.
MESSAGE = {"audio": _TEXT_ONLY, "function_call": _TOOLS, "refusal": Unsupported(), "annotations": _NONE}
PART = dict.fromkeys(("image_url", "input_audio", "file", "video_url", "audio_url", "refusal"), _TEXT_ONLY)
STREAM_OPTIONS = {"include_obfuscation": _OFF, "continuous_usage_stats": _OFF}
STRUCTURED = {
    "structural_tag": Unsupported("Use `grammar`."),
    "whitespace_pattern": Unsupported("Use `grammar`."),
    "disable_fallback": HARMLESS,  # there is one engine, and nothing to fall back to
    "disable_any_whitespace": _OFF,
    "disable_additional_properties": _OFF,
}

TOKENIZE = {
    "add_generation_prompt": Unsupported("It is always there, as in what is answered.", (True,)),
    "continue_final_message": Unsupported("Give `prompt`, which is gone on with.", (False,)),
    "chat_template": _TEMPLATE,
    "chat_template_kwargs": _TEMPLATE,
    "mm_processor_kwargs": _TEXT_ONLY,
}
ADAPTER = {
    "lora_int_id": HARMLESS,
    "load_inplace": Unsupported("Unload it first.", (False,)),
    "base_model_name": HARMLESS,
}

ANTHROPIC = {
    "metadata": HARMLESS,
    "cache_control": HARMLESS,
    "user_profile_id": HARMLESS,
    "workspace_id": HARMLESS,
    "service_tier": _TIER,
    "container": Unsupported("Nothing is kept between requests."),
    "context_management": _NONE,
    "diagnostics": _OFF,
    "inference_geo": Unsupported("All is computed here."),
    "mcp_servers": Unsupported("Define `tools`, and run them yourself.", ([],)),
    "speed": Unsupported("There is one speed.", ("standard",)),
    "thinking": Unsupported("How long a model reasons is not set here.", ({"type": "disabled"},)),
}
ANTHROPIC_OUTPUT = {"effort": _NO_REASONING}
ANTHROPIC_TOOL = {
    "cache_control": HARMLESS,
    "defer_loading": _OFF,
    "eager_input_streaming": _OFF,
    "allowed_callers": Unsupported("The model calls tools itself.", (["direct"],)),
    "input_examples": Unsupported("Put them into `description`.", ([],)),
}
_FOREIGN = Unsupported("The models here read and write text.")
ANTHROPIC_BLOCK = {
    "cache_control": HARMLESS,
    "citations": Unsupported("Nothing is cited.", ([], {"enabled": False})),
    "source": _FOREIGN,  # of images and documents
    "title": _FOREIGN,
    "context": _FOREIGN,
    "caller": Unsupported("The model calls tools itself.", ({"type": "direct"},)),
    "signature": HARMLESS,
}

RESPONSES = {
    **_BOOKKEEPING,
    "access_programs": _NONE,
    "background": _STATELESS,
    "background_options": _STATELESS,
    "context_management": _NONE,
    "conversation": _STATELESS,
    "image": _TEXT_ONLY,
    "max_tool_calls": Unsupported("There is a bound on the turns of one answer already."),
    "moderation": _OFF,
    "previous_response_id": _STATELESS,
    "prompt": Unsupported("Send `input` itself."),
    "reasoning": Unsupported("How long a model reasons is not set here.", ({}, {"effort": None}, {"effort": "none"})),
    "service_tier": _TIER,
    "store": _STATELESS,
    "truncation": Unsupported("Nothing is left out of what is asked.", ("disabled",)),
}
RESPONSES_ITEM = {
    "status": HARMLESS,
    "phase": HARMLESS,
    "annotations": _NONE,
    "logprobs": HARMLESS,  # of what the model said before
    "image_url": _TEXT_ONLY,
    "file_id": _TEXT_ONLY,
    "file_data": _TEXT_ONLY,
    "file_url": _TEXT_ONLY,
    "filename": _TEXT_ONLY,
    "detail": _TEXT_ONLY,
    "refusal": Unsupported(),
    "namespace": _NONE,
    "caller": Unsupported("The model calls tools itself.", ({"type": "direct"},)),
    "async": _OFF,
}
RESPONSES_TEXT = {"verbosity": CHAT["verbosity"]}
RESPONSES_TOOL = {"defer_loading": _OFF, "allowed_callers": _NONE, "output_schema": _NONE, "async": _OFF}
