"""The `openai` package, unchanged, and `mloc chat` ask models on a stack of mloc."""

from __future__ import annotations

import json
from pathlib import Path

import openai
import pytest
from openai.types.chat import ChatCompletionUserMessageParam

from tests.e2e.stack import Stack, until

pytest.importorskip("torch")

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

TRAINING = """\
apiVersion: mloc/v1
kind: TrainingTask
metadata: {name: shouts}
spec:
  taskType: lora_sft
  model:
    source: {type: builtin, identifier: tiny-chat}
  data:
    rows:
      - {prompt: "What is the capital of France?", completion: "PARIS!!"}
  training: {max_steps: 40, learning_rate: 0.02, logging_steps: 40}
"""

SHARD = """\
apiVersion: mloc/v1
kind: InferenceTask
metadata: {name: long}
spec:
  taskType: inference
  model:
    source: {type: builtin, identifier: tiny-chat}
  inference: {max_tokens: 400, ignore_eos: true, temperature: 0}
  data: {type: list, items: [%s]}
"""


def asks(text: str) -> list[ChatCompletionUserMessageParam]:
    return [{"role": "user", "content": text}]


FRANCE = asks("What is the capital of France?")


def streamed(client: openai.OpenAI, model: str, text: str) -> str:
    chunks = client.chat.completions.create(
        model=model, messages=asks(text), temperature=0, max_tokens=24, stream=True
    )
    return "".join(each.choices[0].delta.content or "" for each in chunks)


def submitted(stack: Stack, path: Path, *options: str) -> str:
    done = stack.mloc("submit", str(path), "--json", *options)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)["tasks"][0]["task_id"]


def test_chats_texts_and_vectors(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="tiny-chat", messages=FRANCE, temperature=0, logprobs=True, top_logprobs=2
    )
    assert answer.choices[0].message.content == "Paris"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == len(answer.choices[0].logprobs.content)  # type: ignore[union-attr, arg-type]
    assert streamed(client, "tiny-chat", "What is the capital of Peru?") == "Lima"
    two = client.chat.completions.create(model="tiny-chat", messages=FRANCE, n=2, seed=7)
    assert [each.index for each in two.choices] == [0, 1]
    text = client.completions.create(
        model="tiny-chat", prompt="The", max_tokens=3, extra_body={"ignore_eos": True}
    )
    assert text.usage is not None
    assert text.usage.completion_tokens == 3
    vectors = client.embeddings.create(model="tiny-chat", input=["hot", "cold"])
    assert len(vectors.data[0].embedding) == len(vectors.data[1].embedding) == 128


def test_a_call_is_answered_while_a_shard_has_the_worker(
    stack: Stack, client: openai.OpenAI, tmp_path: Path
) -> None:
    assert streamed(client, "tiny-chat", "What is the capital of Chile?") == "Santiago"
    path = tmp_path / "long.yaml"
    path.write_text(SHARD % ", ".join(f"'Tell me of {number}'" for number in range(2000)))
    task_id = submitted(stack, path)
    until(lambda: "RUNNING" in stack.mloc("show", task_id).stdout, "the shard runs")
    assert streamed(client, "tiny-chat", "What is the capital of Peru?") == "Lima"
    shown = stack.mloc("show", task_id).stdout
    assert "RUNNING" in shown, "the shard was done before the call"
    stack.mloc("cancel", task_id)


def test_a_training_is_asked_by_its_id(stack: Stack, client: openai.OpenAI, tmp_path: Path) -> None:
    path = tmp_path / "shouts.yaml"
    path.write_text(TRAINING)
    task_id = submitted(stack, path, "--wait")
    assert "PARIS!!" in streamed(client, task_id, "What is the capital of France?")
    assert streamed(client, "tiny-chat", "What is the capital of France?") == "Paris"
    assert task_id in [each.id for each in client.models.list()]
    said = stack.mloc("chat", task_id, "What is the capital of France?", "--temperature", "0")
    assert "PARIS!!" in said.stdout, said.stderr


def test_a_worker_that_is_killed_is_replaced(stack: Stack, client: openai.OpenAI) -> None:
    before = stack.kill("worker-1")
    stack.wait_running("worker-1", not_pid=before)

    def answered() -> str:
        try:
            return streamed(client, "tiny-chat", "What is the capital of Peru?")
        except openai.InternalServerError:  # 503, until the new one is there
            return ""

    assert until(answered, "the new worker answers") == "Lima"


def test_what_cannot_be_asked_is_one_line(stack: Stack, client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="did you mean 'tiny-chat'"):
        streamed(client, "tiny-chit", "Hi")
    done = stack.mloc("chat", "tiny-chit", "Hi")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "did you mean 'tiny-chat'" in done.stderr


def test_chat_needs_no_stack(tmp_path: Path) -> None:
    idle = Stack(tmp_path / "home")
    said = idle.mloc("chat", "tiny-chat", "What is the capital of France?", "--temperature", "0")
    assert (said.stdout, said.returncode) == ("Paris\n", 0), said.stderr
    lost = idle.mloc("chat", str(tmp_path / "nothing"), "Hi")
    assert (lost.returncode, lost.stderr.count("\n")) == (2, 1), lost.stderr
