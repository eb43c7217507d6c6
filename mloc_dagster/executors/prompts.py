"""Reading and rendering prompts: plain text or chat messages."""

from __future__ import annotations

from typing import Any

from mloc_dagster.results.rows import Message, Prompt


def message_text(message: Message) -> str:
    """Returns the text of a message; parts that are not text are left out."""
    if isinstance(message.content, str):
        return message.content
    texts = (part.get("text") for part in message.content if part.get("type") == "text")
    return "\n".join(text for text in texts if isinstance(text, str))


def last_user_text(prompt: Prompt) -> str:
    """Returns a plain prompt itself, or the last thing the user said in a chat."""
    if isinstance(prompt, str):
        return prompt
    said = [message for message in prompt if message.role == "user"] or prompt
    return message_text(said[-1]) if said else ""


def render_chat(tokenizer: Any, prompt: Prompt, system_prompt: str | None) -> str:
    """Renders a prompt through the tokenizer's chat template, up to where the answer begins.

    A plain prompt is one user message. The system prompt stands first; a chat that brings a
    system message of its own keeps that one.

    Raises:
        ValueError: If a message holds something other than text, or the template refuses it.
    """
    messages = [Message("user", prompt)] if isinstance(prompt, str) else prompt
    chat = [{"role": message.role, "content": _only_text(message)} for message in messages]
    if system_prompt is not None and not any(turn["role"] == "system" for turn in chat):
        chat.insert(0, {"role": "system", "content": system_prompt})
    try:
        return tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    except Exception as error:
        raise ValueError(f"the model's chat template refuses this prompt: {error}") from error


def render_plain(prompt: Prompt, system_prompt: str | None) -> str:
    """Renders a prompt for a model without a chat template: paragraphs, system prompt first.

    Raises:
        ValueError: If a message holds something other than text.
    """
    texts = [prompt] if isinstance(prompt, str) else [_only_text(message) for message in prompt]
    own_system = not isinstance(prompt, str) and any(turn.role == "system" for turn in prompt)
    if system_prompt is not None and not own_system:
        texts.insert(0, system_prompt)
    return "\n\n".join(texts)


def _only_text(message: Message) -> str:
    if not isinstance(message.content, str):
        others = {str(part.get("type")) for part in message.content} - {"text"}
        if others:
            raise ValueError(f"this engine reads text only, not {', '.join(sorted(others))} parts")
    return message_text(message)
