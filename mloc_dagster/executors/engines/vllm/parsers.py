"""vLLM's parsers of tool calls and thoughts, outside of its server.

`choose_parsers` says which ones read a model's answers, `AnswerParsers` prepares requests for them,
and `RequestParsing` reads the answers of one request, whole or as they grow.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

from mloc_dagster.errors import TerminalError, nearest_hint
from mloc_dagster.executors.engines.protocol import Answer, Completion, EngineRequest
from mloc_dagster.executors.engines.tool_calls import (
    CallIds,
    finish_reason,
    format_of,
    held_tools,
)
from mloc_dagster.executors.engines.vllm.engine_type import (
    AUTO_PARSER,
    NO_PARSER,
    OWN_TEMPLATE_PARSER,
    VllmOptions,
)
from mloc_dagster.results import FunctionCall, Prompt, ToolCall, ToolCallDelta
from mloc_dagster.schema import Inference

BY_MODEL_TYPE: Mapping[str, tuple[str | None, str | None]] = MappingProxyType(
    {
        "apertus": ("apertus", None),
        "deepseek_v32": ("deepseek_v32", "deepseek_v3"),
        "ernie4_5_moe": ("ernie45", "ernie45"),
        "glm4_moe": ("glm45", "glm45"),
        "gpt_oss": ("openai", "openai_gptoss"),
        "granite": ("granite", None),
        "granitemoehybrid": ("granite4", None),
        "hunyuan_v1_moe": ("hunyuan_a13b", "hunyuan_a13b"),
        "internlm2": ("internlm", None),
        "jamba": ("jamba", None),
        "kimi_k2": ("kimi_k2", "kimi_k2"),
        "llama4": ("llama4_pythonic", None),
        "longcat_flash": ("longcat", None),
        "minimax_m2": ("minimax_m2", "minimax_m2"),
        "olmo3": ("olmo3", "olmo3"),
        "seed_oss": ("seed_oss", "seed_oss"),
    }
)
"""Families whose `model_type` alone tells which parsers read them, of calls and of thoughts."""


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What tells a model's family.

    Attributes:
        model_type: Of its configuration.
        chat_template: Its text; empty where there is none.
        begins: What the chat template writes at the end of a prompt, where the answer begins.
        response_fields: What its own response template finds in an answer; empty without one.
    """

    model_type: str = ""
    chat_template: str = ""
    begins: str = ""
    response_fields: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class ParserChoice:
    """Which parsers read a model's answers.

    Attributes:
        tool: vLLM's name of the one that finds calls; None for none.
        reasoning: Of the one that finds thoughts.
        forcing: Of the one that finds calls where answers have to be calls: a response template
            cannot hold them to that.
        gate: Of the one that tells the engine where thoughts end and a form begins; None where a
            model may well not think, and would be held to no form then.
        notes: Why, for the task's log.
    """

    tool: str | None = None
    reasoning: str | None = None
    forcing: str | None = None
    gate: str | None = None
    notes: tuple[str, ...] = ()


def choose_parsers(
    options: VllmOptions, facts: ModelFacts, usable: Callable[[str | None, str | None], bool]
) -> ParserChoice:
    """Returns the parsers of a model: those that its template names, or those of its family.

    Args:
        options: The template's.
        facts: What tells the family.
        usable: Whether vLLM has a pair of parsers, of calls and of thoughts, for this tokenizer.
    """
    notes: list[str] = []

    def settled(
        option: str, named: str, found: tuple[str, str] | None, pair: Callable[[str], Any]
    ) -> str | None:
        if named == NO_PARSER:
            return None
        if named != AUTO_PARSER:
            notes.append(f"model.vllm.{option}: {named}")
            return named
        if found is None:
            return None
        name, why = found
        if not usable(*pair(name)):
            notes.append(
                f"model.vllm.{option}: none: {name} (because {why}) cannot read its tokens"
            )
            return None
        notes.append(f"model.vllm.{option}: {name}, because {why}")
        return name

    tool = settled(
        "tool_call_parser", options.tool_call_parser, _tool_parser(facts), lambda name: (name, None)
    )
    # vLLM has one parser for a response template, which cannot stand beside another one.
    found = _reasoning_parser(
        facts, own=tool in (None, OWN_TEMPLATE_PARSER), others=tool != OWN_TEMPLATE_PARSER
    )
    reasoning = settled(
        "reasoning_parser", options.reasoning_parser, found, lambda name: (tool, name)
    )
    family = _family_parser(facts)
    own = tool == OWN_TEMPLATE_PARSER and options.tool_call_parser == AUTO_PARSER
    forcing = family[0] if own and family and usable(family[0], None) else tool
    thinks = options.reasoning_parser != AUTO_PARSER or reasoning != OWN_TEMPLATE_PARSER
    opens = facts.begins.rstrip().endswith("<think>")
    return ParserChoice(
        tool, reasoning, forcing, reasoning if thinks or opens else None, tuple(notes)
    )


def _tool_parser(facts: ModelFacts) -> tuple[str, str] | None:
    if "tool_calls" in facts.response_fields:
        return OWN_TEMPLATE_PARSER, "the tokenizer has a response_template"
    return _family_parser(facts)


def _family_parser(facts: ModelFacts) -> tuple[str, str] | None:
    name = BY_MODEL_TYPE.get(facts.model_type, (None, None))[0]
    if name is not None:
        return name, f"the model's type is {facts.model_type}"
    written = format_of(facts.chat_template)
    if written is None:
        return None
    marks = " and ".join(written.marks)
    return written.tool_parser, f"the chat template has {marks}"


def _reasoning_parser(facts: ModelFacts, *, own: bool, others: bool) -> tuple[str, str] | None:
    if own and "thinking" in facts.response_fields:
        return OWN_TEMPLATE_PARSER, "the tokenizer's response_template has thoughts"
    if not others:
        return None
    name = BY_MODEL_TYPE.get(facts.model_type, (None, None))[1]
    if name is not None:
        return name, f"the model's type is {facts.model_type}"
    template = facts.chat_template
    if "[THINK]" in template:
        return "mistral", "the chat template has [THINK]"
    if "<think>" in template and "enable_thinking" in template:
        return "qwen3", "the chat template has <think> and enable_thinking"
    if facts.begins.rstrip().endswith("<think>"):
        return "deepseek_r1", "the chat template begins every answer with <think>"
    return None


def model_facts(model_config: Any, tokenizer: Any, chat_template: str | None) -> ModelFacts:
    """Returns what tells the family of a model that vLLM knows.

    Args:
        model_config: vLLM's `ModelConfig`.
        tokenizer: Its tokenizer.
        chat_template: The one that prompts are rendered with.
    """
    from vllm.parser.response_template import (
        resolve_response_template,
        validate_response_template_for_serving,
    )

    fields: frozenset[str] = frozenset()
    if (own := resolve_response_template(tokenizer)) is not None:
        try:
            fields = frozenset(validate_response_template_for_serving(own).fields)
        except (TypeError, ValueError):
            fields = frozenset()  # written for other parsers: others may still know the family
    return ModelFacts(
        model_type=str(getattr(model_config.hf_config, "model_type", "")),
        chat_template=template_text(chat_template),
        begins=_begins(tokenizer, chat_template),
        response_fields=fields,
    )


def template_text(chat_template: Any) -> str:
    """Returns a tokenizer's chat template as one text; some have several, by name."""
    if isinstance(chat_template, Mapping):
        return "\n".join(map(str, chat_template.values()))
    return chat_template or ""


def _begins(tokenizer: Any, chat_template: str | None) -> str:
    if not chat_template:
        return ""
    try:
        text = tokenizer.apply_chat_template(
            [{"role": "user", "content": "?"}],
            chat_template=chat_template,
            tokenize=False,
            add_generation_prompt=True,
        )
    except Exception:  # noqa: BLE001  a template may want what this chat has not
        return ""
    return str(text)[-64:]


class AnswerParsers:
    """Reads the answers of one model.

    Args:
        options: The template's.
        model_config: vLLM's `ModelConfig`.
        tokenizer: The model's.
        chat_template: The one that prompts are rendered with.
        model: What messages call the model.

    Raises:
        TerminalError: If the template names a parser that vLLM does not have, or that cannot read
            this model.
    """

    def __init__(
        self,
        options: VllmOptions,
        model_config: Any,
        tokenizer: Any,
        chat_template: str | None,
        model: str,
    ) -> None:
        check_parser_names(options)
        # What cannot be read stays in the text: to vLLM that is an error, with a traceback each.
        for name in ("vllm.tool_parsers", "vllm.parser", "vllm.reasoning"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
        self._model_config = model_config
        self._tokenizer = tokenizer
        self._model = model
        self._named_none = options.tool_call_parser == NO_PARSER
        self.choice = ParserChoice()
        self._class: Any = None
        self._forcing: Any = None
        self._prepared: dict[int, _Prepared] = {}
        self._specials = tuple(tokenizer.all_special_tokens)
        if chat_template:
            facts = model_facts(model_config, tokenizer, chat_template)
            self.choice = choose_parsers(options, facts, self._usable)
            self._class = self._composed(self.choice.tool, self.choice.reasoning)
            self._forcing = self._class
            if self.choice.forcing != self.choice.tool:
                self._forcing = self._composed(self.choice.forcing, None)

    def _usable(self, tool: str | None, reasoning: str | None) -> bool:
        try:
            self._composed(tool, reasoning)
        except TerminalError:
            return False
        return True

    def _composed(self, tool: str | None, reasoning: str | None) -> Any:
        from vllm.parser.parser_manager import ParserManager

        try:
            return ParserManager.get_parser(
                tool_parser_name=tool,
                reasoning_parser_name=reasoning,
                enable_auto_tools=True,
                model_name=self._model,
                is_harmony=getattr(self._model_config.hf_config, "model_type", "") == "gpt_oss",
                tokenizer=self._tokenizer,
            )
        except (TypeError, KeyError) as error:
            named = {"tool_call_parser": tool, "reasoning_parser": reasoning}
            options = " and ".join(
                f"model.vllm.{name}: {each}" for name, each in named.items() if each
            )
            raise TerminalError(f"{options} cannot read this model: {error}") from error

    def check(self, block: Inference) -> None:
        """Raises what would be every row's error.

        Raises:
            TerminalError: If the answers to a block cannot be read, or not be held to calls.
        """
        try:
            self._of(block)
        except ValueError as error:
            raise TerminalError(str(error)) from error

    def begin(self, request: EngineRequest) -> RequestParsing | None:
        """Returns what reads the answers of a request; None for those that are text only.

        Raises:
            ValueError: If nothing reads them, or they cannot be held to calls as it asks for.
        """
        block = request.sampling
        # A prompt that went through no chat template is continued, not answered.
        if block is None or request.rendered.special:
            return None
        prepared = self._of(block)
        if prepared is None:
            return None
        return RequestParsing(request, block, prepared, self._new_parser, self._specials)

    def _of(self, block: Inference) -> _Prepared | None:
        if block.calls_tools and self.choice.tool is None:
            raise ValueError(self._no_parser())
        if self._class is None or not (block.calls_tools or self.choice.reasoning):
            return None
        known = self._prepared.get(id(block))
        if known is None:
            if len(self._prepared) >= _MOST_KEPT:
                self._prepared.clear()
            known = self._prepared[id(block)] = self._prepare(block)
        return known

    def _no_parser(self) -> str:
        option = "model.vllm.tool_call_parser"
        if self._named_none:
            return f"inference.tools need a parser of calls, and {option} is none"
        return (
            f"nothing tells how {self._model} writes calls of tools: name a parser of vLLM in "
            f"{option}, such as hermes, llama3_json or mistral"
        )

    def _prepare(self, block: Inference) -> _Prepared:
        from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest

        asked: dict[str, Any] = {}
        if block.calls_tools:
            choice = block.tool_choice
            asked = {
                "tools": held_tools(block),
                "tool_choice": choice
                if isinstance(choice, str)
                else choice.model_dump(mode="json"),
            }
            # A response template would refuse to keep to one call: the rest is cut by us as well.
            if block.forces_calls or self.choice.tool != OWN_TEMPLATE_PARSER:
                asked["parallel_tool_calls"] = block.parallel_tool_calls
        request = ChatCompletionRequest(
            messages=[{"role": "user", "content": ""}],
            chat_template_kwargs=dict(block.chat_template_kwargs),
            skip_special_tokens=block.skip_special_tokens,
            **asked,
        )
        parser = self._forcing if block.forces_calls else self._class
        prepared = _Prepared(block, request, {} if _keeps_nothing(parser) else None)
        name = self.choice.forcing if block.forces_calls else self.choice.tool
        try:
            request = self._new_parser(prepared, {}).adjust_request(request)
        except Exception as error:
            raise ValueError(f"vLLM's parser {name} refuses this: {error}") from error
        if block.forces_calls and request.extract_structured_outputs() is None:
            raise ValueError(
                f"tool_choice other than auto has to hold answers to the form of calls, and vLLM "
                f"knows no such form for its parser {name}"
            )
        return replace(prepared, request=request)

    def _new_parser(self, prepared: _Prepared, template_kwargs: Mapping[str, Any]) -> Any:
        kwargs = {**prepared.block.chat_template_kwargs, **template_kwargs}
        parser = self._forcing if prepared.block.forces_calls else self._class
        return parser(
            self._tokenizer,
            prepared.request.tools,
            model_config=self._model_config,
            chat_template_kwargs=kwargs,
        )


_MOST_KEPT = 1024


def _keeps_nothing(parser: Any) -> bool:
    """Returns whether a class of parsers reads each whole answer as if it were the first.

    To make one takes longer than to read an answer: it checks the model's template each time.
    """
    from vllm.parser.response_template import ResponseTemplateParser

    return isinstance(parser, type) and issubclass(parser, ResponseTemplateParser)


def check_parser_names(options: VllmOptions) -> None:
    """Refuses names that vLLM does not have.

    Raises:
        TerminalError: With the nearest name.
    """
    from vllm.reasoning import ReasoningParserManager
    from vllm.tool_parsers import ToolParserManager

    if plugin := options.arguments.get("reasoning_parser_plugin"):
        ReasoningParserManager.import_reasoning_parser(str(plugin))
    for option, known in (
        ("tool_call_parser", ToolParserManager.list_registered()),
        ("reasoning_parser", ReasoningParserManager.list_registered()),
    ):
        name = getattr(options, option)
        if name not in (NO_PARSER, AUTO_PARSER) and name not in known:
            raise TerminalError(
                f"model.vllm.{option}: vLLM has no parser {name!r}{nearest_hint(name, known)}"
            )


@dataclass(frozen=True, slots=True)
class _Prepared:
    """A block as vLLM's parsers read it.

    Attributes:
        block: Kept so that no other block can have its identity.
        request: vLLM's `ChatCompletionRequest`.
        readers: Parsers that read one whole answer after another, by whether the prompt has closed
            the thoughts; None where a parser is for one answer.
    """

    block: Inference
    request: Any
    readers: dict[bool, Any] | None


class RequestParsing:
    """Reads the answers of one request.

    Args:
        request: The request.
        block: How it is answered.
        prepared: The block, for vLLM.
        new_parser: Makes a parser, which reads one answer.
        specials: Special tokens, which are no part of a text.

    Attributes:
        structured: What holds the answers to a form, for `SamplingParams`; None where nothing does.
        skip_special_tokens: Whether the text that the parser reads has none.
        spaces_between_special_tokens: Whether it has spaces between them.
    """

    def __init__(
        self,
        request: EngineRequest,
        block: Inference,
        prepared: _Prepared,
        new_parser: Callable[[_Prepared, Mapping[str, Any]], Any],
        specials: tuple[str, ...],
    ) -> None:
        self._request = request
        self._block = block
        asked = prepared.request
        history = _history(request.row.prompt)
        self._asked = asked.model_copy(update={"messages": history}) if history else asked
        self._specials = specials if block.skip_special_tokens else ()
        self._streams: dict[int, _Stream] = {}
        # Whoever told the template not to think has closed the thoughts before they began.
        self._closed = request.rendered.text.rstrip().endswith("</think>")
        off = {"enable_thinking": False, "thinking": False} if self._closed else {}
        self._parser = lambda: new_parser(prepared, off)
        self._readers = prepared.readers
        self.structured = asked.extract_structured_outputs() if block.calls_tools else None
        self.skip_special_tokens: bool = asked.skip_special_tokens
        self.spaces_between_special_tokens: bool = asked.spaces_between_special_tokens

    def hear(self, output: Any, say: Say) -> None:
        """Says what is new of an answer that grows; see `parsed` for what it says in the end."""
        number = output.index
        stream = self._streams.get(number)
        if stream is None:
            stream = self._streams[number] = _Stream(self._parser(), CallIds(self._request, number))
        try:
            delta = stream.feed(output, self._asked, self._request.tokens)
        except Exception as error:  # noqa: BLE001  this answer's alone: the engine's step goes on
            stream.problem = error
            return
        if delta is None:
            return
        if reasoning := self._clean(delta.reasoning):
            stream.reasoning += reasoning
            say.reasoning(number, reasoning)
        if text := self._clean(delta.content):
            stream.text += text
            say.text(number, text)
        for each in delta.tool_calls or ():
            say.tool_call(number, stream.take(each))

    def parsed(self, completion: Completion, outputs: list[Any]) -> Completion:
        """Returns a completion with its answers read.

        Args:
            completion: With vLLM's texts.
            outputs: vLLM's outputs, the first answers.

        Raises:
            ValueError: If vLLM's parser cannot read one.
        """
        read = [
            self._streamed(answer, output)
            if output.index in self._streams
            else self._whole(answer, output)
            for answer, output in zip(completion.answers, outputs, strict=False)
        ]
        several = len(completion.answers) // max(1, len(read))
        return replace(completion, answers=tuple(read) * several)

    def _whole(self, answer: Answer, output: Any) -> Answer:
        try:
            parser = self._reader()
            parser.set_prompt_token_ids(self._request.tokens)
            reasoning, text, found = parser.parse(
                output.text,
                self._asked,
                enable_auto_tools=True,
                model_output_token_ids=list(output.token_ids),
            )
        except Exception as error:
            raise ValueError(f"vLLM's parser cannot read this answer: {error}") from error
        ids = CallIds(self._request, output.index)
        calls = tuple(
            ids.call(place, each.name, each.arguments, each.id)
            for place, each in enumerate(found or ())
        )
        return self._answer(answer, output, parser, self._clean(text), reasoning, calls)

    def _reader(self) -> Any:
        if self._readers is None:
            return self._parser()
        if self._closed not in self._readers:
            self._readers[self._closed] = self._parser()
        return self._readers[self._closed]

    def _streamed(self, answer: Answer, output: Any) -> Answer:
        stream = self._streams[output.index]
        if stream.problem is not None:
            raise ValueError(f"vLLM's parser cannot read this answer: {stream.problem}")
        calls, reasoning = stream.calls(), stream.reasoning
        return self._answer(answer, output, stream.parser, stream.text, reasoning, calls)

    def _answer(
        self,
        answer: Answer,
        output: Any,
        parser: Any,
        text: str,
        reasoning: str | None,
        calls: tuple[ToolCall, ...],
    ) -> Answer:
        thoughts = self._clean(reasoning) or None
        return replace(
            answer,
            text=text,
            finish_reason=finish_reason(self._block, answer.finish_reason, calls),
            tool_calls=calls,
            reasoning=thoughts,
            reasoning_tokens=self._thought_tokens(parser, output) if thoughts else 0,
        )

    def _thought_tokens(self, parser: Any, output: Any) -> int:
        tokens = list(output.token_ids)
        count = parser.count_reasoning_tokens(tokens)
        if not count:  # the prompt may have opened the thoughts
            prompt = list(self._request.tokens)
            count = parser.count_reasoning_tokens([*prompt, *tokens])
            count -= parser.count_reasoning_tokens(prompt)
        return max(0, count)

    def _clean(self, text: str | None) -> str:
        text = text or ""
        for each in self._specials:
            if each in text:
                text = text.replace(each, "")
        return text


@dataclass(frozen=True, slots=True)
class Say:
    """Takes pieces of an answer, each with the answer's number."""

    text: Callable[[int, str], None]
    reasoning: Callable[[int, str], None]
    tool_call: Callable[[int, ToolCallDelta], None]


class _Stream:
    """One answer that grows."""

    def __init__(self, parser: Any, ids: CallIds) -> None:
        self.parser = parser
        self.text = self.reasoning = ""
        self.problem: Exception | None = None
        self._ids = ids
        self._heard = 0
        self._read = 0
        self._calls: dict[int, ToolCall] = {}

    def feed(self, output: Any, asked: Any, prompt: list[int]) -> Any:
        """Returns vLLM's `DeltaMessage` for what is new in an output; None for nothing."""
        text, tokens = output.text[self._heard :], list(output.token_ids)[self._read :]
        finished = output.finish_reason is not None
        if self.problem is not None or not (text or tokens or finished):
            return None
        self._heard, self._read = len(output.text), len(output.token_ids)
        return self.parser.parse_delta(
            delta_text=text,
            delta_token_ids=tokens,
            request=asked,
            prompt_token_ids=prompt,
            finished=finished,
        )

    def take(self, delta: Any) -> ToolCallDelta:
        """Notes a piece of a call; returns it as ours."""
        place, function = delta.index, delta.function
        name = (function.name if function is not None else None) or ""
        arguments = (function.arguments if function is not None else None) or ""
        known = self._calls.get(place)
        if known is None:
            self._calls[place] = call = self._ids.call(place, name, arguments, delta.id)
            return ToolCallDelta(place, call.id, name, arguments)
        grown = FunctionCall(known.function.name, known.function.arguments + arguments)
        self._calls[place] = ToolCall(known.id, grown)
        return ToolCallDelta(place, arguments=arguments)

    def calls(self) -> tuple[ToolCall, ...]:
        """Returns the calls so far."""
        return tuple(self._calls[place] for place in sorted(self._calls))


def _history(prompt: Prompt) -> list[dict[str, Any]]:
    """Returns the calls of a chat: some parsers number those that follow."""
    if isinstance(prompt, str) or not any(turn.tool_calls for turn in prompt):
        return []
    return [
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [
                {
                    "id": call.id,
                    "type": "function",
                    "function": {"name": call.function.name, "arguments": call.function.arguments},
                }
                for call in turn.tool_calls
            ],
        }
        for turn in prompt
        if turn.tool_calls
    ]
