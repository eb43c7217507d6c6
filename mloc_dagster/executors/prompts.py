"""Reading prompts: plain text or chat messages, whatever the executor."""

from __future__ import annotations

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
