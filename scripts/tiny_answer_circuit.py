"""The weights of `tiny-answer`: it finds a sentence, copies it, and says where it stood.

Nothing here is trained. Each head has one duty, and reads and writes its own part of the state:

layer  head 0                                    head 1
0      the token before                          what the last tokens were about (a sentence's name)
1      the token two before                      the last mark: which passage, or the question
2      the name of the sentence, at its tokens   the token three before
3      a question's word: where it stands        clears what is done with
4      the answer: all that the words have found clears
5      the sentence that most of them are in     clears
6      the token that follows there              ends the answer after its citation

A sentence's name is a vector that stands for the words before it, so that no two are alike. Each
word of the question votes for the sentences and the passages that have it, in equal parts; a word
that is everywhere thus counts for little.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from transformers import LlamaForCausalLM

LAYERS, HEADS, HEAD_SIZE, WIDTH, NEURONS = 7, 2, 128, 320, 96
# The pairs of a head's dimensions turn by 1 to 10^-12 a token. The first ones tell places; those
# from `SLOW` on stand still over 4,000 tokens, and compare what tokens are.
ROPE_THETA = 1e12
PAIRS = HEAD_SIZE // 2
SLOW = 19
# So large that all states are of one length: norms then change nothing.
CONSTANT = 64.0
READ = CONSTANT / math.sqrt(WIDTH)
MOST_PASSAGES = 20
SURE = 40.0
"""A score, in nats, against which others count for nothing."""

FLAGS = ("boundary", "mark", "nowhere", "heading", "cites", "cite", "end", "question", "answer")
FLAGS += ("refusal", "tells", "speaks")
# What the two heads before have seen of flags, and what was concluded.
SEEN = ("after boundary", "second", "after heading", "in question", "in answer", "refuses")


def _places() -> dict[str, slice]:
    sizes = {"constant": 1, **dict.fromkeys((*FLAGS, *SEEN), 1)}
    sizes |= {"token": 56, "word": 52, "before": 26, "two before": 18, "three before": 18}
    sizes |= {"name": 44, "work": 44, "passage": MOST_PASSAGES + 1, "found": MOST_PASSAGES + 1}
    places, start = {}, 0
    for name, size in sizes.items():
        places[name] = slice(start, start + size)
        start += size
    if start > WIDTH:
        raise ValueError(f"{start} dimensions are used, and there are {WIDTH}")
    return places


PLACES = _places()


@dataclass(frozen=True, slots=True)
class Strengths:
    """How much counts, in nats unless it says otherwise.

    Attributes:
        likeness: What a word that is the same scores above one that has nothing in common.
        common: In how many places (not in nats) a word has to be for its votes to count half.
        phrase: What a word gains whose neighbour before it is the same, too.
        rare: What the rarest word has above one that is everywhere.
        sentence: A vote of all words for a sentence.
        passage: A vote of all words for a passage.
        later: What a passage loses for each one before it.
        refusal: What saying so has, where nothing is found, before what is missing is counted.
    """

    likeness: float = 25.0
    phrase: float = 2.5
    rare: float = 2.5
    common: float = 5.0
    sentence: float = 400.0
    passage: float = 300.0
    later: float = 2.0
    refusal: float = -450.0


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """What the circuit has to know of the tokens.

    Attributes:
        words: A vector for each token's meaning, of length 0 (says nothing) to 1.
        boundaries: Tokens between sentences, rows and items.
        headings: Those of them that stand before a heading.
        passages: The marks of passages, from the first.
        question: The mark of the question.
        opening: Marks before which no passage has begun.
        assistant: Opens an answer.
        citations: The citations, from the first.
        end: Ends an answer.
        refusal: The first token of what is to be said where no passage fits.
    """

    words: torch.Tensor
    boundaries: list[int]
    headings: list[int]
    passages: list[int]
    question: int
    opening: list[int]
    assistant: int
    citations: list[int]
    end: int
    refusal: int


class _Head:
    """One head under construction: scores are sums of terms, each in slots of its own."""

    def __init__(self, model: LlamaForCausalLM, layer: int, head: int) -> None:
        attention = model.model.layers[layer].self_attn
        rows = slice(head * HEAD_SIZE, (head + 1) * HEAD_SIZE)
        self._q = attention.q_proj.weight[rows]
        self._k = attention.k_proj.weight[rows]
        self._v = attention.v_proj.weight[rows]
        self._o = attention.o_proj.weight[:, rows]
        self._slots = [
            place + half for place in reversed(range(SLOW, PAIRS)) for half in (0, PAIRS)
        ]
        self._fast = list(range(SLOW))
        self._values = 0

    def distance(self, offset: int, strength: float) -> None:
        """Prefers the token so far before this one."""
        for pair in self._fast[:8]:
            turn = ROPE_THETA ** (-pair / PAIRS) * offset
            self._position(pair, math.cos(turn), -math.sin(turn), strength)

    def recent(self, slope: float) -> None:
        """Prefers near tokens: each token of distance costs so much."""
        pair = 17
        self._position(pair, 0.0, 1.0, slope * ROPE_THETA ** (pair / PAIRS))

    def _position(self, pair: int, same: float, turned: float, strength: float) -> None:
        root = math.sqrt(strength * math.sqrt(HEAD_SIZE)) / CONSTANT * READ
        self._k[pair, 0] = root
        self._q[pair, 0] = same * root
        self._q[pair + PAIRS, 0] = turned * root

    def alike(self, asked: str, kept: str, strength: float, size: int | None = None) -> None:
        """Compares two parts of the states, the one asked for projected to `size` dimensions."""
        left, right = PLACES[asked], PLACES[kept]
        width = left.stop - left.start
        full = right.stop - right.start
        root = math.sqrt(strength * math.sqrt(HEAD_SIZE)) * READ
        slots = [self._slots.pop() for _ in range(size or full)]
        if width == full == len(slots):
            matrix = keys = torch.eye(width)
        elif full == len(slots):
            matrix, keys = projection(asked, kept), torch.eye(full)
        else:
            matrix = keys = _drawn(len(slots), width, len(slots))
        self._q[slots, left] = matrix * root
        self._k[slots, right] = keys * root

    def prefer(self, strengths: dict[str, float]) -> None:
        """Prefers tokens by a sum of what is said of them."""
        slot = self._slots.pop(0)
        root = math.sqrt(math.sqrt(HEAD_SIZE))
        self._q[slot, 0] = root / CONSTANT * READ
        for name, strength in strengths.items():
            self._k[slot, PLACES[name].start] = strength * root * self._unit(name)

    def prefer_passages(self, strengths: Iterable[float]) -> None:
        """Prefers tokens by the passage that they are of: none, then the first one."""
        slot = self._slots.pop(0)
        root = math.sqrt(math.sqrt(HEAD_SIZE))
        self._q[slot, 0] = root / CONSTANT * READ
        self._k[slot, PLACES["passage"]] = torch.tensor(list(strengths)) * root * READ

    def where(self, asked: str, strengths: dict[str, float]) -> None:
        """As `prefer`, where this token is of a kind."""
        slot = self._slots.pop(0)
        root = math.sqrt(math.sqrt(HEAD_SIZE))
        self._q[slot, PLACES[asked].start] = root * READ
        for name, strength in strengths.items():
            self._k[slot, PLACES[name].start] = strength * root * self._unit(name)

    @staticmethod
    def _unit(name: str) -> float:
        return READ / CONSTANT if name == "constant" else READ

    def write(
        self, source: str, target: str, strength: float = 1.0, matrix: torch.Tensor | None = None
    ) -> None:
        """Writes a part of what is looked at into a part of this state."""
        left, right = PLACES[source], PLACES[target]
        size = min(left.stop - left.start, right.stop - right.start)
        rows = slice(self._values, self._values + size)
        self._values += size
        if self._values > HEAD_SIZE:
            raise ValueError("more is written than a head can carry")
        if left.stop - left.start == right.stop - right.start:
            chosen = torch.eye(size)
        else:
            chosen = projection(source, target)
        self._v[rows, left] = chosen * READ
        self._o[right, rows] = torch.eye(size) * strength


def projection(source: str, target: str) -> torch.Tensor:
    """Returns the directions by which a part is kept in a smaller one, always the same."""
    wide, narrow = (PLACES[each].stop - PLACES[each].start for each in (source, target))
    return _drawn(narrow, wide, sum(map(ord, target)))


def _drawn(narrow: int, wide: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    drawn, _ = torch.linalg.qr(torch.randn(wide, narrow, generator=generator))
    # Vectors keep their length, on average.
    return drawn.T * math.sqrt(wide / narrow)


@torch.no_grad()
def place(model: LlamaForCausalLM, vocabulary: Vocabulary, strengths: Strengths) -> None:
    """Sets all weights."""
    for name, parameter in model.named_parameters():
        parameter.fill_(1.0) if "norm" in name else parameter.zero_()
    _place_tokens(model.model.embed_tokens.weight, vocabulary)
    model.model.norm.weight.fill_(4.0)
    model.model.norm.weight[0] = 0  # what is the same in all tokens
    _read(model)
    _find(model, strengths)
    _copy(model)


def _place_tokens(tokens: torch.Tensor, vocabulary: Vocabulary) -> None:
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randn(len(tokens), 56, generator=generator)
    tokens[:, PLACES["token"]] = torch.nn.functional.normalize(drawn, dim=-1)
    told = vocabulary.words.norm(dim=-1)
    tokens[:, PLACES["word"]] = torch.nn.functional.normalize(vocabulary.words, dim=-1)
    tokens[:, PLACES["tells"]] = told[:, None]
    tokens[:, PLACES["speaks"]] = (told > 0)[:, None].float()
    tokens[:, 0] = CONSTANT

    def flag(name: str, ids: Iterable[int]) -> None:
        tokens[list(ids), PLACES[name].start] = 1.0

    marks = [*vocabulary.passages, vocabulary.question, vocabulary.assistant, *vocabulary.opening]
    flag("boundary", [*vocabulary.boundaries, *marks])
    flag("mark", marks)
    flag("nowhere", vocabulary.opening)
    flag("heading", [*vocabulary.headings, *marks])
    flag("cites", vocabulary.citations)
    flag("cite", [*vocabulary.citations, vocabulary.end])
    flag("end", [vocabulary.end])
    flag("question", [vocabulary.question])
    flag("answer", [vocabulary.assistant])
    flag("refusal", [vocabulary.refusal])
    passage = PLACES["passage"].start
    for n, token in enumerate(vocabulary.passages, 1):
        tokens[token, passage + n] = 1.0
    found = PLACES["found"].start
    for n, token in enumerate(vocabulary.citations, 1):
        tokens[token, found + n] = 1.0
    tokens[vocabulary.opening, passage] = 1.0
    tokens[vocabulary.end, found] = 1.0
    # What is only ever chosen by a flag is not taken for another token.
    tokens[[*vocabulary.citations, vocabulary.end], PLACES["token"]] = 0
    tokens[vocabulary.opening, PLACES["token"]] = 0


def _read(model: LlamaForCausalLM) -> None:
    """Layers 0 to 2: what every token knows of where it stands."""
    before = _Head(model, 0, 0)
    before.distance(1, SURE)
    before.write("token", "before")
    before.write("boundary", "after boundary")
    before.write("heading", "after heading")
    about = _Head(model, 0, 1)
    about.recent(1 / 5)
    about.prefer({"speaks": 4.0})
    about.write("token", "work", 0.3)
    _name(model)
    second = _Head(model, 1, 0)
    second.distance(1, SURE)
    second.write("before", "two before")
    second.write("after boundary", "second")
    mark = _Head(model, 1, 1)
    mark.prefer({"mark": 3000.0})
    mark.recent(1.0)
    # A mark has its own passage already.
    mark.write("passage", "passage")
    mark.write("question", "in question")
    mark.write("answer", "in answer")
    name = _Head(model, 2, 0)
    name.prefer({"after boundary": 700.0, "boundary": -700.0})
    name.recent(1.0)
    name.write("work", "name")
    third = _Head(model, 2, 1)
    third.distance(1, SURE)
    third.write("two before", "three before")
    gate = model.model.layers[2].mlp
    # A refusal is what the instructions offer as one: the token alone may stand in any passage.
    sharp = 60.0
    for name_, weight in (("refusal", 1.0), ("passage", 1.0), ("after boundary", 1.0)):
        gate.gate_proj.weight[0, PLACES[name_].start] = sharp * weight * READ
    gate.gate_proj.weight[0, 0] = -2.5 * sharp / CONSTANT * READ
    gate.up_proj.weight[0, 0] = 1 / CONSTANT * READ
    gate.down_proj.weight[PLACES["refuses"].start, 0] = 1 / (0.5 * sharp)


def _name(model: LlamaForCausalLM) -> None:
    """Makes what the last tokens were about a name: the signs of it, so that all are as long.

    Of a length that varied, sentences after a repeated word would win every vote.
    """
    mlp, part = model.model.layers[0].mlp, PLACES["work"]
    size = part.stop - part.start
    sharp, edge = 2000.0, 0.002
    length = 1 / math.sqrt(size)
    for place in range(size):
        # The difference of the two goes from 0 to 2 * sharp * edge around nought.
        for neuron, side in ((2 * place, 1), (2 * place + 1, -1)):
            mlp.gate_proj.weight[neuron, part.start + place] = sharp * READ
            mlp.gate_proj.weight[neuron, 0] = side * sharp * edge / CONSTANT * READ
            mlp.down_proj.weight[part.start + place, neuron] = side * length / (sharp * edge)
    mlp.gate_proj.weight[2 * size, 0] = 20 / CONSTANT * READ
    mlp.down_proj.weight[part, 2 * size] = -length / 20
    mlp.up_proj.weight[: 2 * size + 1, 0] = 1 / CONSTANT * READ


def _clear(model: LlamaForCausalLM, layer: int, *names: str) -> None:
    itself = _Head(model, layer, 1)
    itself.distance(0, SURE)
    for name in names:
        itself.write(name, name, -1.0)


def _find(model: LlamaForCausalLM, strengths: Strengths) -> None:
    """Layers 3 to 5: from the question's words to the sentence that has most of them."""
    vote = _Head(model, 3, 0)
    likeness = strengths.likeness
    vote.alike("word", "word", likeness)
    vote.alike("before", "before", strengths.phrase)
    # Passages only; where no word is alike, the first token of all is, and it stands nowhere.
    unread = -10 * likeness
    vote.prefer_passages([unread, *[0.0] * MOST_PASSAGES])
    vote.prefer({"in question": unread, "in answer": unread})
    # It is a mark, and so has the part that says "none" twice.
    vote.prefer({"nowhere": likeness + math.log(strengths.common) - 2 * unread})
    vote.write("name", "work")
    vote.write("passage", "found")
    _clear(model, 3, "work")
    gather = _Head(model, 4, 0)
    gather.prefer({"in question": SURE * 3, "tells": strengths.rare})
    gather.write("work", "work")
    gather.write("found", "found")
    _clear(model, 4, "work", "found")
    choose = _Head(model, 5, 0)
    choose.alike("work", "name", strengths.sentence)
    choose.alike("found", "passage", strengths.passage)
    usable = 20 * SURE
    choose.prefer(
        {
            "after boundary": usable,
            "boundary": -usable,
            "after heading": -usable,
            "in question": -usable,
            "in answer": -usable,
            "refuses": usable + strengths.refusal,
        }
    )
    choose.prefer_passages([-usable, *(-strengths.later * n for n in range(MOST_PASSAGES))])
    choose.write("name", "work")
    choose.write("passage", "found")
    _clear(model, 5, "work", "found")


def _copy(model: LlamaForCausalLM) -> None:
    """Layer 6: what follows in the sentence, its citation, and the end."""
    follow = _Head(model, 6, 0)
    follow.alike("work", "name", 2 * SURE, size=24)
    follow.alike("token", "before", SURE)
    follow.alike("before", "two before", SURE)
    follow.alike("two before", "three before", SURE)
    # The mark of the question ends the last sentence before it.
    unread = -9 * SURE
    follow.prefer({"in question": unread, "question": -unread, "in answer": unread})
    follow.where("answer", {"after boundary": 3 * SURE, "boundary": -3 * SURE})
    follow.where("after boundary", {"second": SURE})
    follow.write("token", "token", 40.0)
    follow.write("boundary", "cite", 60.0)
    itself = _Head(model, 6, 1)
    itself.distance(0, SURE)
    itself.write("cites", "end", 400.0)
    itself.write("found", "found", 9.0)
