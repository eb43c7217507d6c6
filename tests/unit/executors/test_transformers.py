"""The transformers engine on a random tiny Llama: loading, each inference field, bad rows."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from mloc_dagster.errors import (
    InputError,
    TaskCancelled,
    TerminalError,
    TransientError,
)
from mloc_dagster.executors.base import ShardContext, ShardInput
from mloc_dagster.executors.engines.protocol import Completion, EngineRequest, Replies
from mloc_dagster.executors.engines.transformers import engine as batch_run
from mloc_dagster.executors.engines.transformers.engine import TransformersEngine, load_engine
from mloc_dagster.executors.engines.transformers.generation import Slot
from mloc_dagster.executors.engines.transformers.model import LoadedModel, options_of
from mloc_dagster.executors.inference import InferenceExecutor
from mloc_dagster.executors.row_requests import single_request
from mloc_dagster.results import InputRow, Message, OutputRow, Prompt
from mloc_dagster.schema import InferenceSpec
from mloc_dagster.settings import settings

SPECIAL = ["<pad>", "<end>", "<system>", "<user>", "<assistant>"]
CHAT_TEMPLATE = """\
{%- for m in messages -%}
{%- if m['role'] == 'tool' -%}{{ raise_exception('no tools here') }}{%- endif -%}
<{{ m['role'] }}>{{ m['content'] }}<end>
{%- endfor -%}<assistant>"""
POSITIONS = 128


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    torch.set_num_threads(1)
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: place for place, token in enumerate([*SPECIAL, *letters])}
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens(SPECIAL)
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", eos_token="<end>"
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=POSITIONS,
        initializer_range=0.4,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    place = tmp_path_factory.mktemp("tiny-llama")
    transformers.LlamaForCausalLM(config).save_pretrained(place)
    tokenizer.save_pretrained(place)
    return place


@pytest.fixture(scope="module")
def loaded(folder: Path) -> LoadedModel:
    return load_engine(make_spec(folder)).loaded


def make_spec(place: Path | str, **blocks: Any) -> InferenceSpec:
    model = {"source": {"type": "local", "identifier": str(place)}, **blocks.pop("model", {})}
    return InferenceSpec.model_validate(
        {
            "taskType": "inference",
            "enforce_cpu": True,
            "model": model,
            "data": {"type": "list", "items": ["unused"]},
            "inference": {"max_tokens": 8, "temperature": 1.0, **blocks},
        }
    )


def run(
    loaded: LoadedModel,
    prompts: list[Any],
    cancelled: Callable[[], bool] = lambda: False,
    log: Callable[[str], None] = lambda _: None,
    **inference: Any,
) -> list[OutputRow]:
    rows = [InputRow(index, prompt) for index, prompt in enumerate(prompts)]
    given: dict[int, OutputRow] = {}
    context = ShardContext(lambda row: given.__setitem__(row.index, row), cancelled, log)
    spec = make_spec("unused", **inference)
    engine = TransformersEngine(loaded, options_of(spec.model))
    InferenceExecutor().run(ShardInput("t", 0, 1, 5, rows, len(rows)), spec, engine, context)
    return [given[index] for index in range(len(prompts))]


def output(loaded: LoadedModel, prompt: Prompt = "hello", **inference: Any) -> OutputRow:
    return run(loaded, [prompt], **inference)[0]


def test_greedy_is_what_generate_gives(loaded: LoadedModel) -> None:
    text = "<user>hello<end><assistant>"
    ids = loaded.tokenizer(text, return_tensors="pt", add_special_tokens=False)
    plain = loaded.model.generate(
        **ids, max_new_tokens=8, do_sample=False, eos_token_id=1, pad_token_id=0
    )
    row = output(loaded, temperature=0)
    expected = loaded.tokenizer.decode(
        plain[0, ids["input_ids"].shape[1] :], skip_special_tokens=True
    )
    assert row.output == expected
    assert row.prompt_tokens == ids["input_ids"].shape[1]
    assert output(loaded, do_sample=False).output == expected


def test_several_turns_of_one_row_are_kept_apart(loaded: LoadedModel) -> None:
    engine = TransformersEngine(loaded, options_of(make_spec("unused").model))
    block = make_spec("unused", temperature=0).inference
    texts = ["hello", "what is this", "hello there"]
    requests = [single_request(InputRow(0, text), block, 1, engine) for text in texts]
    found: dict[str, str] = {}

    def done(request: EngineRequest, completion: Completion) -> None:
        found[str(request.row.prompt)] = completion.answers[0].text

    engine.run(iter(requests), Replies(done, lambda *_: None, lambda: False, lambda _: None))
    assert found == {text: output(loaded, text, temperature=0).output for text in texts}


def test_a_seed_repeats_and_another_differs(loaded: LoadedModel) -> None:
    prompts = ["a", "b", "c"]
    first = [row.output for row in run(loaded, prompts, seed=1)]
    assert first == [row.output for row in run(loaded, prompts, seed=1)]
    assert first != [row.output for row in run(loaded, prompts, seed=2)]
    assert [row.output for row in run(loaded, prompts)] == [
        row.output for row in run(loaded, prompts)
    ]  # the plan's seed


def test_equal_rows_have_equal_answers_with_a_seed_and_own_ones_without(
    loaded: LoadedModel,
) -> None:
    same = ["a"] * 4
    assert len({row.output for row in run(loaded, same, seed=1)}) == 1
    assert len({row.output for row in run(loaded, same)}) == 4


def test_several_answers_to_a_row(loaded: LoadedModel) -> None:
    row = output(loaded, n=3, ignore_eos=True)
    assert row.outputs is not None
    assert len(set(row.outputs)) == 3
    assert row.finish_reasons is not None
    assert len(row.finish_reasons) == len(row.outputs)
    assert row.output == row.outputs[0] == output(loaded, ignore_eos=True).output
    assert row.completion_tokens == 24


def test_output_ends_before_a_stop_string(loaded: LoadedModel) -> None:
    whole = output(loaded, max_tokens=20, ignore_eos=True).output
    stop = whole[6:8]
    row = output(loaded, max_tokens=20, ignore_eos=True, stop=["never in there", stop])
    assert row.output == whole[: whole.index(stop)]
    assert row.finish_reason == "stop"
    assert row.completion_tokens < 20


def test_stop_token_ids_and_eos(loaded: LoadedModel) -> None:
    free = output(loaded, ignore_eos=True, skip_special_tokens=False)
    assert (free.finish_reason, free.completion_tokens) == ("length", 8)
    everything = list(range(5, 261))
    row = output(loaded, ignore_eos=True, stop_token_ids=everything)
    assert (row.output, row.finish_reason) == ("", "stop")
    later = output(loaded, stop_token_ids=everything, min_tokens=3, skip_special_tokens=False)
    assert later.completion_tokens == 4  # three special tokens that are no end, then an end


def test_an_end_token_ends_the_answer_unless_ignored(loaded: LoadedModel) -> None:
    prompts = [f"p{number}" for number in range(40)]
    ended = [row for row in run(loaded, prompts, max_tokens=60) if row.finish_reason == "stop"]
    assert ended
    assert all(row.completion_tokens <= 60 for row in ended)
    ignoring = run(loaded, prompts, max_tokens=60, ignore_eos=True)
    assert {row.completion_tokens for row in ignoring} == {60}


def test_an_answer_stops_where_the_context_ends(loaded: LoadedModel) -> None:
    frame = 3  # the template's own tokens: user, end, assistant
    almost = "x" * (POSITIONS - frame - 2)
    rows = run(loaded, [almost, "short", almost + "x", almost + "xx", "y" * 500], ignore_eos=True)
    assert [row.completion_tokens for row in rows] == [2, 8, 1, 0, 0]
    assert [row.finish_reason for row in rows] == ["length", "length", "length", "error", "error"]
    assert "503 tokens" in (rows[4].error or "")
    assert "at most 128" in (rows[4].error or "")


def test_bad_prompts_end_with_an_error_and_harm_no_other(loaded: LoadedModel) -> None:
    rows = run(
        loaded,
        [
            "fine",
            [Message("tool", "x")],
            [Message("user", [{"type": "image_url", "image_url": "x"}])],
            "",
            [Message("user", [{"type": "text", "text": "fine"}])],
        ],
    )
    assert [row.error is None for row in rows] == [True, False, False, False, True]
    assert "no tools here" in (rows[1].error or "")
    assert rows[3].error == "the prompt is empty"
    assert "image_url" in (rows[2].error or "")
    assert rows[0].prompt_tokens == rows[4].prompt_tokens


def test_the_system_prompt_stands_before_each_row(loaded: LoadedModel) -> None:
    plain, own = run(
        loaded, ["q", [Message("system", "own"), Message("user", "q")]], system_prompt="brief"
    )
    assert plain.prompt_tokens == len("brief") + len("q") + 5
    assert own.prompt_tokens == len("own") + len("q") + 5


def test_a_model_without_chat_template_reads_paragraphs(folder: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(folder, bare)
    (bare / "chat_template.jinja").unlink()
    model = load_engine(make_spec(bare)).loaded
    assert output(model, "q", system_prompt="brief").prompt_tokens == len("brief\n\nq")
    assert output(model, "").error == "the prompt is empty"


def test_one_row_that_breaks_the_model_does_not_break_its_batch(
    loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = batch_run.generate

    def picky(model: Any, inference: Any, batch: list[Slot], *asked: Any) -> Any:
        if any(each.request.row.index == 3 for each in batch):
            raise IndexError("row 3 is odd")
        return real(model, inference, batch, *asked)

    prompts = [f"p{number}" for number in range(8)]
    whole = run(loaded, prompts)
    monkeypatch.setattr(batch_run, "generate", picky)
    rows = run(loaded, prompts)
    assert (rows[3].error, rows[3].fault) == ("IndexError: row 3 is odd", "server")
    assert [r.output for r in rows if r.index != 3] == [r.output for r in whole if r.index != 3]


def test_batches_that_do_not_fit_in_memory_are_halved_from_then_on(
    loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = batch_run.generate
    tried: list[int] = []

    def small(model: Any, inference: Any, batch: list[Slot], *asked: Any) -> Any:
        tried.append(len(batch))
        if len(batch) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(model, inference, batch, *asked)

    monkeypatch.setattr(batch_run, "generate", small)
    log: list[str] = []
    rows = run(loaded, [f"p{number}" for number in range(8)], log=log.append)
    assert tried == [8, 4, 2, 2, 2, 2]
    assert all(row.error is None for row in rows)
    assert any("out of memory" in line for line in log)


def test_a_lost_device_is_no_fault_of_the_rows(
    loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(*_: Any) -> Any:
        raise RuntimeError("CUDA error: device-side assert triggered")

    monkeypatch.setattr(batch_run, "generate", lost)
    with pytest.raises(TransientError, match="device is lost"):
        run(loaded, ["a", "b"])


def test_cancellation_is_seen_between_tokens(loaded: LoadedModel) -> None:
    answers = iter([False, True])  # before the window, then at the first token
    with pytest.raises(TaskCancelled, match="between two tokens"):
        run(loaded, ["a"], cancelled=lambda: next(answers), max_tokens=100, ignore_eos=True)


def test_the_log_says_which_engine_and_why(loaded: LoadedModel) -> None:
    log: list[str] = []
    run(loaded, ["a"], log=log.append)
    assert "enforce_cpu rules vLLM out" in log[0]
    assert loaded.revision.startswith("sha256:")
    assert loaded.revision in log[1]


def test_batch_sizes_share_a_model_and_dtypes_do_not(folder: Path) -> None:
    def key(**options: Any) -> Any:
        spec = make_spec(folder, model={"transformers": options})
        return InferenceExecutor().model_key(spec)

    assert key(max_batch_size=1) == key(max_batch_size=2)
    assert key(dtype="float32") != key(dtype="bfloat16")


def test_a_missing_folder_is_named() -> None:
    with pytest.raises(TerminalError, match="'/nowhere/model' does not exist"):
        load_engine(make_spec("/nowhere/model"))


def test_pickled_weights_need_the_operator(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = shutil.copytree(folder, tmp_path / "old")
    weights = transformers.AutoModelForCausalLM.from_pretrained(folder).state_dict()
    torch.save(weights, old / "pytorch_model.bin")
    (old / "model.safetensors").unlink()
    with pytest.raises(TerminalError, match=r"pytorch_model\.bin.*MLOC_ALLOW_PICKLE"):
        load_engine(make_spec(old))
    monkeypatch.setenv("MLOC_ALLOW_PICKLE", "true")
    settings.cache_clear()
    assert load_engine(make_spec(old)).name == str(old)


def test_remote_code_needs_the_operator(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = make_spec(folder, model={"transformers": {"trust_remote_code": True}})
    with pytest.raises(TerminalError, match="MLOC_TRUST_REMOTE_CODE=true"):
        load_engine(spec)
    monkeypatch.setenv("MLOC_TRUST_REMOTE_CODE", "true")
    settings.cache_clear()
    try:
        load_engine(spec)
    finally:
        monkeypatch.undo()
        settings.cache_clear()


@pytest.mark.parametrize(
    ("cause", "expected"),
    [
        (httpx.ConnectError("no route"), TransientError),
        (type("RepositoryNotFoundError", (Exception,), {})("404"), TerminalError),
    ],
)
def test_an_unreachable_hub_may_be_retried_and_an_unknown_model_not(
    monkeypatch: pytest.MonkeyPatch, cause: Exception, expected: type[Exception]
) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise OSError("cannot load") from cause

    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", refuse)
    spec = make_spec("x", model={"source": {"identifier": "some/model", "revision": "v9"}})
    with pytest.raises(expected, match="'some/model' at revision 'v9'"):
        load_engine(spec)


def test_an_adapter_is_merged_from_a_folder_or_an_archive(folder: Path, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    base = transformers.AutoModelForCausalLM.from_pretrained(folder)
    lora = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    peft.get_peft_model(base, lora).save_pretrained(tmp_path / "adapter")
    archive = shutil.make_archive(str(tmp_path / "packed"), "gztar", tmp_path / "adapter")

    def answer(*adapters: dict[str, Any]) -> str:
        model = load_engine(make_spec(folder, model={"adapters": adapters})).loaded
        return output(model, temperature=0, ignore_eos=True).output

    merged = answer({"path": str(tmp_path / "adapter")})
    assert merged != answer()
    assert merged == answer({"url": archive})
    with pytest.raises(InputError, match="nowhere' does not exist"):
        answer({"path": str(tmp_path / "nowhere")})
    assert merged == answer({"path": str(tmp_path / "adapter"), "apply": "request"})
    twice = answer({"path": str(tmp_path / "adapter")}, {"path": str(tmp_path / "adapter")})
    assert twice not in (merged, answer())
    with pytest.raises(InputError, match="two adapters are called 'adapter'"):
        answer(*[{"path": str(tmp_path / "adapter"), "apply": "request"}] * 2)


def test_unloading_lets_go_of_the_weights(folder: Path) -> None:
    executor = InferenceExecutor()
    model = executor.load(make_spec(folder))
    executor.unload(model)
    assert model.loaded.model is None
