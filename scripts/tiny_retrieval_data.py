"""Questions, passages that hold their answers, and passages that only share words with them.

Drawn from a grammar over `tiny_retrieval_lexicon.py`, and cut out of mloc's own pages.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from random import Random

from tiny_retrieval_facts import COLOURS, FACTS, KINDS, Attribute
from tiny_retrieval_lexicon import CHINESE, CONCEPTS, ENGLISH, STOP_WORDS, Concept

DOCS = Path(__file__).parents[1] / "docs"
# Pages that no training sees, to tell what is known of form from what is known by heart.
HELD_OUT_PAGES = frozenset({"recovery.md", "multimodal.md", "reuse.md", "errors.md", "viewer.md"})
# One name in eight, and these of the nine ways to pair a question of an attribute with a statement.
HELD_OUT_NAMES = 8
HELD_OUT_WORDINGS = frozenset({(0, 2), (1, 0), (2, 1)})
LONGEST_PASSAGE = 700
_ONSETS = "b d f g h k l m n p r s t v w z br st kl tr ch sh"
ONSETS = tuple(_ONSETS.split())


@dataclass(frozen=True, slots=True)
class Example:
    """What is asked for, and what is found.

    Attributes:
        query: A question, a statement or a heading.
        passage: What holds the answer.
        others: What shares words with the query and does not.
    """

    query: str
    passage: str
    others: tuple[str, ...] = ()


ENGLISH_FORMS = (
    "{time} the {quality} {person} {actions} the {thing} {place}.",
    "The {quality} {person} will {action} a {thing} {place} {time}.",
    "A {thing} is what the {quality} {person} {actions} {place}, {time}.",
    "{place} the {person}, who is {quality}, has to {action} the {thing} {time}.",
    "To {action} the {thing} {place} {time} is up to the {quality} {person}.",
)
ENGLISH_QUESTIONS = (
    "Does the {quality} {person} {action} the {thing} {place} {time}?",
    "When will the {quality} {person} {action} the {thing} {place}?",
    "Where does the {quality} {person} {action} the {thing} {time}?",
    "What does the {quality} {person} {action} {place} {time}?",
    "Who {actions} the {thing} {place} {time}?",
)
CHINESE_FORMS = (
    "{quality}的{person}{time}{place}{action}{thing}。",
    "{time}，{quality}的{person}会{place}{action}{thing}。",
    "{place}，{quality}的{person}{time}{action}这个{thing}。",
)
CHINESE_QUESTIONS = (
    "{quality}的{person}什么时候{place}{action}{thing}？",
    "谁{time}{place}{action}{thing}？",
    "{quality}的{person}{time}在哪里{action}{thing}？",
    "{quality}的{person}{time}{place}{action}什么？",
)
SCENE = tuple(CONCEPTS)
type Scene = dict[str, Concept]


def draw_scene(rng: Random) -> Scene:
    """Draws who does what, how, where and when."""
    return {role: rng.choice(CONCEPTS[role]) for role in SCENE}


def draw_words(
    scene: Scene, rng: Random, language: str, avoid: dict[str, int] | None, *, held_out: bool
) -> dict[str, int]:
    """Chooses a wording of each concept, by its place.

    Where another wording is to be avoided, the first and the last one, which have least in common,
    meet where `held_out` is true, and else seldom.
    """
    places = {}
    for role, concept in scene.items():
        last = len(concept.words[language]) - 1
        choices = list(range(last + 1))
        if avoid is not None and role in avoid:
            before = avoid[role]
            if held_out and last >= 2:
                choices = [last if before == 0 else 0]
            else:
                apart = {0: last, last: 0} if last >= 2 else {}
                choices = [n for n in choices if n != before and n != apart.get(before)]
        places[role] = rng.choice(choices or [0])
    return places


def write(scene: Scene, places: dict[str, int], form: str, language: str) -> str:
    """Writes a scene in the form of a sentence."""
    words = {role: concept.words[language][places[role]] for role, concept in scene.items()}
    text = form.format(**words, actions=third_person(words["action"]))
    return text[0].upper() + text[1:]


def third_person(verb: str) -> str:
    """Returns what he, she or it does."""
    if re.search(r"(s|x|z|ch|sh)$", verb):
        return f"{verb}es"
    return f"{verb[:-1]}ies" if re.search(r"[^aeiou]y$", verb) else f"{verb}s"


def scene_example(
    rng: Random, language: str = ENGLISH, *, negatives: int = 1, held_out: bool = False
) -> Example:
    """Draws a scene that is asked for in some words, and told in others."""
    forms = {ENGLISH: ENGLISH_FORMS, CHINESE: CHINESE_FORMS}
    asked_as = {ENGLISH: ENGLISH_QUESTIONS, CHINESE: CHINESE_QUESTIONS}
    scene = draw_scene(rng)
    asking = draw_words(scene, rng, language, None, held_out=False)
    told_in = CHINESE if language == ENGLISH and rng.random() < 0.06 and not held_out else language
    avoid = asking if told_in == language and (held_out or rng.random() < 0.85) else None
    telling = draw_words(scene, rng, told_in, avoid, held_out=held_out)
    form = rng.choice((*asked_as[language], *forms[language][:2]))
    query = write(scene, asking, form, language)
    passage = write(scene, telling, rng.choice(forms[told_in]), told_in)
    others = []
    for _ in range(negatives):
        # The question's own words, about something else.
        named = [role for role in SCENE if f"{{{role}" in form]
        changed = rng.sample(named, rng.choice((1, 2, 2, 3)))
        other = {**scene, **{role: rng.choice(CONCEPTS[role]) for role in changed}}
        while any(other[role] is scene[role] for role in changed):
            other |= {role: rng.choice(CONCEPTS[role]) for role in changed}
        words = draw_words(other, rng, language, None, held_out=False)
        words |= {role: asking[role] for role in SCENE if role not in changed}
        others.append(write(other, words, rng.choice(forms[language]), language))
    return Example(query, passage, tuple(others))


def held_out_paraphrases(count: int, rng: Random) -> list[Example]:
    """Draws sentences and how else they are said: no word of content is in both."""
    found = []
    while len(found) < count:
        scene = draw_scene(rng)
        one = draw_words(scene, rng, ENGLISH, None, held_out=True)
        other = draw_words(scene, rng, ENGLISH, one, held_out=True)
        query = write(scene, one, rng.choice(ENGLISH_QUESTIONS[:1]), ENGLISH)
        passage = write(scene, other, rng.choice(ENGLISH_FORMS), ENGLISH)
        if not content_words(query) & content_words(passage):
            found.append(Example(query, passage))
    return found


def content_words(text: str) -> set[str]:
    """Returns a text's words, without those of grammar."""
    return set(re.findall(r"\w+", text.lower())) - STOP_WORDS


def draw_name(rng: Random, *, held_out: bool) -> str:
    """Draws a name that nothing has, such as `Karomi` or `velu_tan`."""
    while True:
        name = "".join(
            rng.choice(ONSETS)
            + rng.choice(("a", "e", "i", "o", "u", "ai", "ou"))
            + rng.choice(("", "", "", "n", "r", "s", "l"))
            for _ in range(rng.choice((2, 2, 3)))
        )
        if (zlib.crc32(name.encode()) % HELD_OUT_NAMES == 0) == held_out:
            return name


def name_thing(rng: Random, kind: str, *, held_out: bool) -> str:
    """Names a thing of a kind, in one of several forms."""
    name = draw_name(rng, held_out=held_out)
    return rng.choice(
        (
            f"the {kind} {name.title()}",
            f"{kind} {name.title()}",
            f"the {name.title()} {kind}",
            f"`{name}_{draw_name(rng, held_out=held_out)}`",
            name.title(),
        )
    )


def draw_value(form: str, rng: Random) -> str:
    """Draws what is answered to a question about an attribute."""
    return form.format(
        h=rng.randint(5, 23),
        n=rng.choice((rng.randint(2, 99), rng.randint(100, 999))),
        y=rng.randint(1600, 2020),
        c=rng.choice(COLOURS),
        p=draw_name(rng, held_out=False).title(),
        t=draw_name(rng, held_out=False).title(),
        u=(
            f"{rng.choice(rng.choice(CONCEPTS['action']).words[ENGLISH])} "
            f"the {rng.choice(rng.choice(CONCEPTS['thing']).words[ENGLISH])}"
        ),
    )


def say(fact: Attribute, name: str, wording: int, rng: Random) -> str:
    """States a fact about a thing."""
    text = fact.statements[wording].format(name=name, value=draw_value(fact.value, rng))
    return text[0].upper() + text[1:]


def fact_example(rng: Random, *, held_out: bool = False, negatives: int = 1) -> Example:
    """Draws a question about a named thing; others are about it, or ask the same of another."""
    kind = rng.choice(KINDS)
    name = name_thing(rng, kind, held_out=held_out)
    fact, *rest = rng.sample(FACTS, 5)
    pairs = [(a, b) for a in range(3) for b in range(3)]
    asked, said = rng.choice([p for p in pairs if (p in HELD_OUT_WORDINGS) == held_out])
    sentences = [say(fact, name, said, rng)]
    sentences += [
        say(other, name, rng.randrange(3), rng) for other in rest[: rng.choice((0, 0, 1, 2, 3))]
    ]
    rng.shuffle(sentences)
    others = []
    for _ in range(negatives):
        if rng.random() < 0.5:
            chosen = rng.sample([each for each in FACTS if each is not fact], rng.choice((1, 2)))
            others.append(" ".join(say(each, name, rng.randrange(3), rng) for each in chosen))
        else:
            another = name_thing(rng, kind, held_out=held_out)
            others.append(say(fact, another, rng.randrange(3), rng))
    return Example(fact.questions[asked].format(name=name), " ".join(sentences), tuple(others))


@dataclass(frozen=True, slots=True)
class Section:
    """A piece of a page.

    Attributes:
        page: The page's path.
        heading: What it stands under.
        pieces: Its paragraphs, its rows of tables, its items.
    """

    page: str
    heading: str
    pieces: tuple[str, ...]

    @property
    def text(self) -> str:
        """The heading with all that stands under it."""
        return "\n".join((self.heading, *self.pieces))


@cache
def read_sections() -> tuple[Section, ...]:
    """Cuts mloc's pages at their headings, and long parts where they are long enough."""
    found = []
    for path in sorted(DOCS.rglob("*.md")):
        page = path.relative_to(DOCS).as_posix()
        title = heading = ""
        pieces: list[str] = []
        # Code is left in: commands and fields are what is asked for.
        for block in re.split(r"\n(?=#|\||- )|\n\s*\n", path.read_text(encoding="utf-8")):
            text = block.strip()
            if not text or re.fullmatch(r"[\s|:-]+", text):
                continue
            if match := re.match(r"#+ (.*)", text):
                if pieces:
                    found.append(Section(page, heading, tuple(pieces)))
                title = title or match[1]
                heading = match[1] if match[1] == title else f"{title}: {match[1]}"
                rest = text[match.end() :].strip()
                pieces = [rest] if rest else []
                continue
            if pieces and len("\n".join((*pieces, text))) > LONGEST_PASSAGE:
                found.append(Section(page, heading, tuple(pieces)))
                pieces = []
            pieces.append(text)
        if pieces:
            found.append(Section(page, heading, tuple(pieces)))
    return tuple(found)


PROMPTS = (
    "how do I {}",
    "what is {}",
    "what happens to {}",
    "which option is for {}",
    "where is {}",
    "what does {} do",
    "why {}",
    "when {}",
    "{}",
    "{}",
)


@cache
def synonyms() -> dict[str, tuple[str, ...]]:
    """Returns the other wordings of each English word."""
    found: dict[str, set[str]] = {}
    for role in ("person", "thing", "action", "quality"):
        for concept in CONCEPTS[role]:
            for word in concept.words[ENGLISH]:
                found.setdefault(word, set()).update(set(concept.words[ENGLISH]) - {word})
    return {word: tuple(sorted(others)) for word, others in found.items()}


def reword(text: str, rng: Random, *, dropped: float, reworded: float) -> str:
    """Leaves words out, and says others by words that are alike."""
    words = []
    for word in re.findall(r"\w+", text):
        if rng.random() < dropped:
            continue
        others = synonyms().get(word.lower(), ())
        words.append(rng.choice(others) if others and rng.random() < reworded else word)
    return " ".join(words) or text


def page_example(sections: Sequence[Section], rng: Random, *, negatives: int = 1) -> Example:
    """Makes a query of a section: its heading, some of its words, or a piece of it."""
    section = rng.choice(sections)
    piece = rng.choice(section.pieces)
    words = piece.split()
    left = section.text
    drawn = rng.random()
    if drawn < 0.2:
        query, left = section.heading.rpartition(": ")[2], "\n".join(section.pieces)
    elif drawn < 0.55:
        told = sorted(content_words(piece))
        query = " ".join(rng.sample(told, min(len(told), rng.randint(3, 6))))
    else:
        length = rng.randint(4, 14)
        start = rng.randrange(max(1, len(words) - length + 1))
        query = " ".join(words[start : start + length])
        if drawn < 0.7 and len(section.pieces) > 1:
            # Somewhere near it, in words that stand there no more.
            left = left.replace(piece, " ".join([*words[:start], *words[start + length :]]))
    query = rng.choice(PROMPTS).format(reword(query, rng, dropped=0.25, reworded=0.5))
    others = []
    if negatives:
        words = content_words(query)
        drawn_sections = [each for each in rng.sample(sections, 60) if each is not section]
        drawn_sections.sort(key=lambda each: -len(words & section_words(each)))
        others = [each.text for each in drawn_sections[:negatives]]
    return Example(query, left, tuple(others))


@cache
def section_words(section: Section) -> set[str]:
    """Returns the words of a section."""
    return content_words(section.text)


def trained_sections() -> list[Section]:
    """Returns the sections that may be trained on."""
    return [each for each in read_sections() if each.page not in HELD_OUT_PAGES]


def draw_examples(rng: Random, *, negatives: int = 1) -> Iterator[list[Example]]:
    """Draws batches of one kind each, for ever: others of the kind are what is hard to tell."""
    sections = trained_sections()
    while True:
        drawn = rng.random()
        if drawn < 0.45:
            yield [page_example(sections, rng, negatives=negatives) for _ in range(48)]
        elif drawn < 0.75:
            yield [scene_example(rng, negatives=negatives) for _ in range(96)]
        elif drawn < 0.83:
            yield [scene_example(rng, CHINESE, negatives=negatives) for _ in range(96)]
        else:
            yield [fact_example(rng, negatives=negatives) for _ in range(64)]


def load_questions() -> list[tuple[str, tuple[str, ...]]]:
    """Returns questions about mloc, written by hand, with the pages that answer them."""
    path = DOCS.parent / "templates" / "data" / "handbook.jsonl"
    rows = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    return [(row["question"], tuple(row["relevant"])) for row in rows]
