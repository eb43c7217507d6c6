"""Reading and rendering prompts: plain text or chat messages."""

from __future__ import annotations

from typing import Any

from mloc_dagster.results.rows import Message, Prompt

TEXT_ONLY = "this model reads text only"
NO_TEMPLATE = "this model has no chat template, which would say where images belong: it takes text"


def message_text(message: Message) -> str:
    """Returns the text of a message; parts that are not text are left out."""
    if isinstance(message.content, str):
        return message.content
    texts = (part.get("text") for part in message.content if part.get("type") == "text")
    return "\n".join(text for text in texts if isinstance(text, str))


def is_blank(prompt: Prompt) -> bool:
    """Tells whether a prompt holds nothing but white space, and no part that is not text."""
    if isinstance(prompt, str):
        return not prompt.strip()
    return all(_holds_text_only(turn) and not message_text(turn).strip() for turn in prompt)


def last_user_text(prompt: Prompt) -> str:
    """Returns a plain prompt itself, or the last thing the user said in a chat."""
    if isinstance(prompt, str):
        return prompt
    said = [message for message in prompt if message.role == "user"] or prompt
    return message_text(said[-1]) if said else ""


def render_chat(
    tokenizer: Any,
    prompt: Prompt,
    system_prompt: str | None,
    *,
    sees: bool = False,
    template: str | None = None,
) -> str:
    """Renders a prompt through the tokenizer's chat template, up to where the answer begins.

    A plain prompt is one user message. The system prompt stands first; a chat that brings a
    system message of its own keeps that one. A `template` stands in for the tokenizer's.

    Raises:
        ValueError: If a message holds something other than text (or images, where the model
            `sees`), or the template refuses it.
    """
    messages = [Message("user", prompt)] if isinstance(prompt, str) else prompt
    chat = [_turn(message, sees) for message in messages]
    if system_prompt is not None and not any(turn["role"] == "system" for turn in chat):
        chat.insert(0, {"role": "system", "content": system_prompt})
    try:
        return tokenizer.apply_chat_template(
            chat, chat_template=template, tokenize=False, add_generation_prompt=True
        )
    except Exception as error:
        raise ValueError(f"the model's chat template refuses this prompt: {error}") from error


def render_plain(prompt: Prompt, system_prompt: str | None, *, sees: bool = False) -> str:
    """Renders a prompt for a model without a chat template: paragraphs, system prompt first.

    Raises:
        ValueError: If a message holds something other than text. Even a model that `sees` has
            nothing then that says where images belong.
    """
    why = NO_TEMPLATE if sees else TEXT_ONLY
    texts = [prompt] if isinstance(prompt, str) else [_only_text(turn, why) for turn in prompt]
    own_system = not isinstance(prompt, str) and any(turn.role == "system" for turn in prompt)
    if system_prompt is not None and not own_system:
        texts.insert(0, system_prompt)
    return "\n\n".join(texts)


def _turn(message: Message, sees: bool) -> dict[str, Any]:
    turn: dict[str, Any] = {"role": message.role, "content": _content(message, sees)}
    return turn if message.name is None else {**turn, "name": message.name}


def _content(message: Message, sees: bool) -> str | list[dict[str, str]]:
    """Returns what a chat template reads: text, or for a model that sees, parts of a message."""
    if not sees or isinstance(message.content, str):
        return _only_text(message, TEXT_ONLY)
    image = {"type": "image"}  # a place; the picture itself is loaded beside the engine
    return [
        image if part.get("type") in ("image_url", "image") else part for part in message.content
    ]


def _holds_text_only(message: Message) -> bool:
    content = message.content
    return isinstance(content, str) or all(part.get("type") == "text" for part in content)


def _only_text(message: Message, why: str) -> str:
    if not isinstance(message.content, str):
        others = {str(part.get("type")) for part in message.content} - {"text"}
        if others:
            raise ValueError(f"{why}, not {', '.join(sorted(others))} parts")
    return message_text(message)
