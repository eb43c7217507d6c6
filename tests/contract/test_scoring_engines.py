"""What every engine that scores pairs of texts owes: the scores of sentence-transformers' rules.

The model is a cross-encoder with random weights. Scores agree within `TOLERANCE` over engines and
batches: rounding depends on a batch's shape.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from mloc_dagster.errors import TaskCancelled, TerminalError
from mloc_dagster.executors import Completion, EngineRequest, Rendered, Replies, loader_of
from mloc_dagster.results import InputRow
from mloc_dagster.schema import RerankSpec, find_engine

pytest.importorskip("torch")

TOLERANCE = 1e-4
WORDS = (
    *("what", "is", "the", "capital", "of", "france", "paris", "owls", "hunt", "at", "night"),
    *("bread", "made", "flour"),
)
POSITIONS = 24
QUERY = "what is the capital of france"
TEXTS = ["paris", "owls hunt at night", "bread is made of flour and what is not", "", "paris " * 60]
VLLM = pytest.param("vllm", marks=pytest.mark.slow)


def save_cross_encoder(folder: Path, **config: Any) -> Path:
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

    known = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *dict.fromkeys(WORDS)]
    vocabulary = {word: number for number, word in enumerate(known)}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_max_length=POSITIONS,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    ).save_pretrained(folder)
    torch.manual_seed(3)
    sizes = {"hidden_size": 64, "num_attention_heads": 2, "intermediate_size": 64}
    BertForSequenceClassification(
        BertConfig(
            vocab_size=len(known),
            num_hidden_layers=2,
            max_position_embeddings=POSITIONS,
            initializer_range=0.5,
            **{"num_labels": 1, **sizes, **config},
        )
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def cross_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_cross_encoder(tmp_path_factory.mktemp("cross-encoder"))


def start(engine: str, folder: Path, **options: Any) -> Any:
    spec = RerankSpec.model_validate(
        {
            "taskType": "rerank",
            "enforce_cpu": True,
            "model": {
                "source": {"type": "local", "identifier": str(folder)},
                "engine": engine,
                engine: options,
            },
            "data": {"type": "upstream", "node": "found", "text": "{prompt}"},
        }
    )
    return loader_of(find_engine(engine)).load(spec)


@pytest.fixture(scope="module")
def transformers_engine(cross_encoder: Path) -> Iterator[Any]:
    engine = start("transformers", cross_encoder, max_batch_size=3)
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def vllm_engine(cross_encoder: Path) -> Iterator[Any]:
    pytest.importorskip("vllm", exc_type=ImportError)
    engine = start("vllm", cross_encoder)
    yield engine
    engine.close()


@pytest.fixture(params=["transformers", VLLM])
def engine(request: pytest.FixtureRequest) -> Any:
    return request.getfixturevalue(f"{request.param}_engine")


def score(
    engine: Any, texts: Sequence[str], query: str = QUERY, *, cancelled: bool = False
) -> list[Completion]:
    found: dict[int, Completion] = {}
    pairs = zip(texts, engine.tokenize_pairs(query, texts), strict=True)
    requests = (
        EngineRequest(
            *(InputRow(index, ""), Rendered(query, pair=text), pair.tokens), second=pair.second
        )
        for index, (text, pair) in enumerate(pairs)
    )
    replies = Replies(
        lambda request, completion: found.update({request.row.index: completion}),
        lambda _, reason: pytest.fail(reason),
        lambda: cancelled,
        lambda _: None,
    )
    engine.run(requests, replies)
    return [found[index] for index in range(len(texts))]


def scores(engine: Any, texts: Sequence[str], query: str = QUERY) -> list[float]:
    return [float(str(each.score)) for each in score(engine, texts, query)]


def expected(folder: Path, texts: Sequence[str]) -> list[float]:
    """Returns what transformers alone says, pair by pair, cut as `CrossEncoder` does it."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    found: list[float] = []
    for text in texts:
        given = tokenizer(
            [QUERY], [text], truncation="only_second", max_length=POSITIONS, return_tensors="pt"
        )
        with torch.inference_mode():
            found.append(torch.sigmoid(model(**given).logits)[0, 0].item())
    return found


def test_scores_are_the_models_whatever_the_batch(engine: Any, cross_encoder: Path) -> None:
    wanted = expected(cross_encoder, TEXTS)
    assert max(wanted) - min(wanted) > 0.05  # else the rest would say nothing
    assert scores(engine, TEXTS) == pytest.approx(wanted, abs=TOLERANCE)
    alone = [scores(engine, [text])[0] for text in TEXTS]
    assert scores(engine, TEXTS) == pytest.approx(alone, abs=TOLERANCE)


def test_which_text_is_the_first_counts(engine: Any) -> None:
    (one,), (other,) = scores(engine, ["paris"], "owls"), scores(engine, ["owls"], "paris")
    assert one != pytest.approx(other, abs=TOLERANCE)


def test_the_second_text_is_cut_and_never_the_first(engine: Any) -> None:
    (cut,) = score(engine, ["paris " * 60])
    assert cut.prompt_tokens == POSITIONS
    with pytest.raises(ValueError, match=f"40 tokens.*at most {POSITIONS} of both"):
        engine.tokenize_pairs("paris " * 40, ["paris"])


def test_tokens_are_counted(engine: Any) -> None:
    found = score(engine, ["paris", "owls hunt"])
    assert [each.prompt_tokens for each in found] == [10, 11]


def test_a_cancelled_task_ends_and_the_engine_goes_on(engine: Any) -> None:
    with pytest.raises(TaskCancelled):
        score(engine, TEXTS, cancelled=True)
    assert len(scores(engine, TEXTS)) == len(TEXTS)


def test_text_by_itself_fails_alone(engine: Any) -> None:
    failed: list[str] = []
    request = EngineRequest(InputRow(0, "paris"), Rendered("paris"), [2, 5, 3])
    replies = Replies(
        lambda *_: pytest.fail("answered"),
        lambda _, reason: failed.append(reason),
        lambda: False,
        lambda _: None,
    )
    engine.run(iter([request]), replies)
    assert failed == ["this engine scores pairs of texts and does nothing else"]


def test_the_models_own_files_say_what_a_score_is(cross_encoder: Path, tmp_path: Path) -> None:
    folder = save_cross_encoder(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    wanted = expected(cross_encoder, TEXTS)
    logits = [math.log(each / (1 - each)) for each in wanted]
    for named in (
        {"sbert_ce_default_activation_function": "torch.nn.modules.linear.Identity"},
        {"sentence_transformers": {"activation_fn": "torch.nn.modules.linear.Identity"}},
    ):
        (folder / "config.json").write_text(json.dumps({**config, **named}))
        engine = start("transformers", folder)
        assert scores(engine, TEXTS) == pytest.approx(logits, abs=1e-3)
        engine.close()
    (folder / "config.json").write_text(
        json.dumps({**config, "sentence_transformers": {"activation_fn": "os.system"}})
    )
    with pytest.raises(TerminalError, match=r"makes its scores by os\.system: mloc knows Identity"):
        start("transformers", folder)


@pytest.mark.parametrize("engine", ["transformers", VLLM])
def test_models_that_score_no_pairs_are_refused(engine: str, tmp_path: Path) -> None:
    if engine == "vllm":
        pytest.importorskip("vllm", exc_type=ImportError)
    labels = {0: "contradiction", 1: "entailment", 2: "neutral"}
    folder = save_cross_encoder(tmp_path, num_labels=3, id2label=labels)
    with pytest.raises(TerminalError, match=r"3 labels \(contradiction, entailment, neutral\)"):
        start(engine, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "architectures": ["BertModel"]}))
    with pytest.raises(TerminalError, match=r"\(BertModel\) has no head that scores two texts"):
        start(engine, folder)
