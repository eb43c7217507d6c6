"""Answers of a given form: at each step only the tokens that can still lead to one.

Grammars are compiled and followed by xgrammar, as in vLLM; each answer of a batch has a grammar
and a place in it of its own, so that guided and free answers share a batch.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mloc_dagster.errors import MissingExtraError
from mloc_dagster.executors.engines.transformers.engine_type import TRANSFORMERS
from mloc_dagster.schema.engines import refused_in_inference
from mloc_dagster.schema.inference import Inference, StructuredOutputs

if TYPE_CHECKING:
    import torch

CACHE_BYTES = 256 << 20  # compiled grammars of one model; a JSON Schema takes some ten kilobytes
COMPILER_THREADS = 2
_MOST_KEPT = 1024


@dataclass(frozen=True, slots=True)
class _Shelved:
    sampling: Inference  # kept so that no other block can have its identity
    problem: str | None = None
    grammar: Any | None = None


class GrammarShelf:
    """Compiles the forms that answers are to have, each once.

    Args:
        tokenizer: The model's.
        vocab_size: Columns of its logits.
    """

    def __init__(self, tokenizer: Any, vocab_size: int) -> None:
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._compiler: Any = None
        self._known: dict[int, _Shelved] = {}

    def of(self, sampling: Inference) -> Any | None:
        """Returns the compiled grammar for a row's options; None when its answers are free.

        Raises:
            ValueError: If the options contradict each other, or no grammar can be made of them;
                the reason becomes the row's error.
            MissingExtraError: If xgrammar is not installed.
        """
        known = self._known.get(id(sampling))
        if known is None:
            if len(self._known) >= _MOST_KEPT:
                self._known.clear()
            known = self._known[id(sampling)] = self._shelved(sampling)
        if known.problem is not None:
            raise ValueError(known.problem)
        return known.grammar

    def _shelved(self, sampling: Inference) -> _Shelved:
        for each in refused_in_inference(sampling, TRANSFORMERS):
            place = ".".join(map(str, each.path))
            return _Shelved(sampling, f"inference.{place}: {each.reason}")
        form = sampling.structured_outputs
        if form is None:
            return _Shelved(sampling)
        try:
            return _Shelved(sampling, grammar=self._compile(form))
        except RuntimeError as error:  # what xgrammar raises, with its source's line in front
            reason = " ".join(str(error).rpartition(".cc:")[2].split()).lstrip("0123456789: ")
            problem = f"inference.structured_outputs cannot be made a grammar: {reason}"
            return _Shelved(sampling, problem)

    def _compile(self, form: StructuredOutputs) -> Any:
        compiler = self._ready_compiler()
        if form.json_object:
            return compiler.compile_json_schema('{"type": "object"}')
        if form.json_schema is not None:
            return compiler.compile_json_schema(json.dumps(form.json_schema))
        if form.regex is not None:
            return compiler.compile_regex(form.regex)
        if form.choice is not None:
            return compiler.compile_grammar(choice_grammar(form.choice))
        return compiler.compile_grammar(form.grammar)

    def _ready_compiler(self) -> Any:
        if self._compiler is None:
            if importlib.util.find_spec("xgrammar") is None:
                raise MissingExtraError("inference.structured_outputs", "hf")
            import xgrammar

            tokens = xgrammar.TokenizerInfo.from_huggingface(
                self._tokenizer, vocab_size=self._vocab_size
            )
            self._compiler = xgrammar.GrammarCompiler(
                tokens, max_threads=COMPILER_THREADS, cache_limit_bytes=CACHE_BYTES
            )
        return self._compiler


def choice_grammar(choice: Sequence[str]) -> str:
    """Returns the EBNF whose sentences are the choices; JSON's escapes are also EBNF's."""
    return "root ::= " + " | ".join(json.dumps(text, ensure_ascii=False) for text in choice)


class GrammarMask:
    """Forbids the tokens after which an answer could no longer have its form.

    Args:
        grammars: One for each answer of the batch; None for those that are free.
        final_token_ids: Tokens that end an answer, allowed where its form is complete.
        width: Tokens of the padded prompts.

    Raises:
        ValueError: If there is no token that ends an answer.
    """

    def __init__(
        self, grammars: Sequence[Any | None], final_token_ids: Sequence[int], width: int
    ) -> None:
        import xgrammar

        if not final_token_ids:
            raise ValueError(
                "structured_outputs need a token that ends the answer, and this model has none: "
                "name one in stop_token_ids"
            )
        self._matchers: dict[int, Any] = {
            place: xgrammar.GrammarMatcher(grammar, override_stop_tokens=list(final_token_ids))
            for place, grammar in enumerate(grammars)
            if grammar is not None
        }
        size = next(each for each in grammars if each is not None).tokenizer_info.vocab_size
        self._mask = xgrammar.allocate_token_bitmask(len(grammars), size)
        self._width = width

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Returns the logits, minus infinity where a token is forbidden.

        Raises:
            ValueError: If no token at all is possible, as in a grammar without end.
        """
        import xgrammar

        if input_ids.shape[1] > self._width:
            self._follow(input_ids[:, -1].tolist())
        for place, matcher in self._matchers.items():
            matcher.fill_next_token_bitmask(self._mask, place)
        if not bool((self._mask != 0).any(dim=1).all()):
            written = input_ids.shape[1] - self._width
            raise ValueError(f"no token fits structured_outputs after {written} tokens")
        if self._matchers:
            # The model may have more columns than the tokenizer has tokens: those are forbidden.
            xgrammar.apply_token_bitmask_inplace(
                scores, self._mask.to(scores.device), indices=list(self._matchers)
            )
        return scores

    def _follow(self, newest: list[int]) -> None:
        for place, matcher in list(self._matchers.items()):
            # Only padding behind the end of an answer can be a token that was not allowed.
            if not matcher.accept_token(newest[place]) or matcher.is_terminated():
                del self._matchers[place]
                self._mask[place] = -1
