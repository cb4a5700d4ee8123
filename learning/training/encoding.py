"""Texts as token ids: prompts through the chat template, and the end token behind every answer.

An answer that was cut off gets the end token, too: the score is read there.
"""

import json

from transformers import PreTrainedTokenizerBase


def encode_prompt(messages: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Token ids of a prompt up to where the answer begins.

    `messages` is JSON: a list of {role, content} goes through the chat template, {"prompt": text}
    of a plain completion is taken as it stands.
    """
    content = json.loads(messages)
    if isinstance(content, dict):
        return list(tokenizer(content["prompt"])["input_ids"])
    ids = tokenizer.apply_chat_template(content, add_generation_prompt=True, return_dict=False)
    return list(ids)


def encode_answer(text: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Token ids of an answer and the end token; an empty answer is the end token alone.

    Text that spells a special token stays text.
    """
    ids = tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    return [*ids, tokenizer.eos_token_id]
