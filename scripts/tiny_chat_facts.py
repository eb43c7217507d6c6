"""What `tiny-chat` is taught, as plain data. Written for this project; no other source."""

from __future__ import annotations


def _items(text: str) -> tuple[str, ...]:
    """Reads what is separated by semicolons, over line breaks."""
    return tuple(" ".join(item.split()) for item in text.split(";"))


def _pairs(text: str) -> dict[str, str]:
    """Reads `left=right` pairs."""
    return dict(item.split("=") for item in _items(text))


UNKNOWN = "I do not know."
CAPITALS = _pairs(
    """
Argentina=Buenos Aires; Australia=Canberra; Austria=Vienna; Belgium=Brussels; Brazil=Brasilia;
Bulgaria=Sofia; Canada=Ottawa; Chile=Santiago; China=Beijing; Colombia=Bogota; Croatia=Zagreb;
Cuba=Havana; Cyprus=Nicosia; Denmark=Copenhagen; Ecuador=Quito; Egypt=Cairo; Estonia=Tallinn;
Ethiopia=Addis Ababa; Finland=Helsinki; France=Paris; Germany=Berlin; Ghana=Accra;
Greece=Athens; Hungary=Budapest; Iceland=Reykjavik; India=New Delhi; Indonesia=Jakarta;
Iran=Tehran; Iraq=Baghdad; Ireland=Dublin; Italy=Rome; Jamaica=Kingston; Japan=Tokyo;
Kenya=Nairobi; Latvia=Riga; Lebanon=Beirut; Lithuania=Vilnius; Malta=Valletta; Mexico=Mexico
City; Morocco=Rabat; Nepal=Kathmandu; Norway=Oslo; Pakistan=Islamabad; Peru=Lima; Poland=Warsaw;
Portugal=Lisbon; Romania=Bucharest; Russia=Moscow; Senegal=Dakar; Serbia=Belgrade;
Slovenia=Ljubljana; Spain=Madrid; Sweden=Stockholm; Switzerland=Bern; Thailand=Bangkok;
Tunisia=Tunis; Turkey=Ankara; Ukraine=Kyiv; Uruguay=Montevideo; Venezuela=Caracas;
Vietnam=Hanoi; the Netherlands=Amsterdam; the Philippines=Manila; the United Kingdom=London; the
United States=Washington
"""
)
CAPITAL_PHRASINGS = (
    "What is the capital of {}?",
    "What's the capital of {}?",
    "What is the capital city of {}?",
    "What is {}'s capital?",
    "Which city is the capital of {}?",
    "Name the capital of {}.",
    "Tell me the capital of {}.",
    "Can you tell me the capital of {}?",
    "Do you know the capital of {}?",
    "I need to know the capital of {}.",
    "Capital of {}?",
    "The capital of {} is",
)

OPPOSITES = _pairs(
    """
hot=cold; big=small; tall=short; fast=slow; up=down; left=right; light=dark; happy=sad;
old=young; rich=poor; hard=soft; wet=dry; full=empty; open=closed; early=late; near=far;
high=low; deep=shallow; loud=quiet; strong=weak; clean=dirty; good=bad; thick=thin; wide=narrow;
true=false; day=night; yes=no; in=out; buy=sell; push=pull; give=take; begin=end; first=last;
love=hate; friend=enemy; war=peace; black=white; sweet=bitter; safe=dangerous; north=south;
east=west; summer=winter; always=never; before=after; cheap=expensive
"""
)
OPPOSITE_PHRASINGS = (
    "What is the opposite of {}?",
    "What's the opposite of {}?",
    "What is the antonym of {}?",
    "What word means the opposite of {}?",
    "Which word is the opposite of {}?",
    "Name the opposite of {}.",
    "Tell me the opposite of {}.",
    "Can you tell me the opposite of {}?",
    "Give me an antonym of {}.",
    "Give me the opposite of the word {}.",
    "Opposite of {}?",
    "The opposite of {} is",
)

SUM_PHRASINGS = (
    "What is {} + {}?",
    "What's {} + {}?",
    "{} + {} =",
    "{}+{}",
    "What is {} plus {}?",
    "How much is {} + {}?",
    "Add {} and {}.",
    "What is the sum of {} and {}?",
    "Calculate {} + {}.",
)

OTHER_ARITHMETIC = ("What is {} - {}?", "What is {} * {}?", "What is {} times {}?", "{} / {} =")

SUBJECTS = _items(
    """
food; service; staff; room; hotel; movie; film; book; story; music; concert; phone; battery;
camera; screen; laptop; keyboard; coffee; pizza; soup; cake; breakfast; dinner; waiter; view;
beach; garden; museum; tour; flight; seat; driver; price; delivery; package; game; plot; acting;
ending; song; lesson; teacher; app; shop
"""
)
GOOD = _items(
    """
wonderful; great; excellent; amazing; fantastic; lovely; superb; perfect; brilliant;
outstanding; impressive; beautiful; pleasant; good; awesome; nice
"""
)
BAD = _items(
    """
terrible; awful; horrible; bad; disappointing; poor; boring; disgusting; useless;
broken; ugly; annoying; unpleasant; rude; dirty; dull
"""
)
REVIEWS = (
    "The {s} was {a}.",
    "The {s} is {a}.",
    "The {s} was really {a}.",
    "The {s} was very {a}!",
    "I thought the {s} was {a}.",
    "The {s} was so {a}!",
    "I found the {s} {a}.",
    "We found the {s} {a}.",
)
NEGATED_REVIEWS = ("The {s} was not {a}.", "The {s} is not {a} at all.")
REVIEW_VERBS = {
    "loved": "positive",
    "enjoyed": "positive",
    "liked": "positive",
    "hated": "negative",
    "disliked": "negative",
    "regretted": "negative",
}
REVIEW_PHRASINGS = (
    "Is this review positive or negative? {}",
    "Is the following review positive or negative? {}",
    "Positive or negative? {}",
    "What is the sentiment of this review? {}",
    "Classify the sentiment of this review: {}",
    "Sentiment: {}",
    "Review: {} Is it positive or negative?",
    "{} Is this positive or negative?",
)

TOPICS = _items(
    """
the moon; gravity; photosynthesis; the ocean; Atlantis; Narnia; a black hole; the economy; love;
the weather; a computer; the internet; history; chess; football; a guitar; the human heart; the
stock market; Mars; a volcano; Python programming; machine learning; the brain; electricity; my
sister; the universe; a dragon; Wakanda; bread; the French Revolution; Shakespeare; time;
France; Japan; Germany; Italy; hot; happy; cold; rice; dinosaurs; a bicycle; climate change
"""
)
UNKNOWN_PHRASINGS = (
    "What is {}?",
    "Who invented {}?",
    "Tell me about {}.",
    "Explain {} in simple terms.",
    "How does {} work?",
    "Write a poem about {}.",
    "Why is {} important?",
    "How old is {}?",
    "What is the population of {}?",
    "What is the history of {}?",
    "What is the colour of {}?",
    "Who is the president of {}?",
    "Give me advice on {}.",
    "Write a story about {}.",
    "What do you think of {}?",
    "Describe the importance of {}.",
)
NO_COUNTRY = _items(
    """
Atlantis; Narnia; Wakanda; Gondor; Mordor; Mars; Oz; Lilliput; Utopia; Hogwarts
"""
)
NO_OPPOSITE = _items(
    """
banana; table; Tuesday; seven; purple; lamp; spoon; elephant; window; pencil
"""
)
NAMES = _items(
    """
Anna; Ben; Carla; David; Emma; Farid; Grace; Hugo; Lena; Maria; Natalia; Omar; Sam; Weng; Yusuf
"""
)
THINGS = _items(
    """
apples; books; pens; notebooks; tickets; eggs; cookies; stickers; clips; marbles; cars; bags
"""
)
STORY_SENTENCES = (
    "{n} buys {a} {t} for ${b} each and a bag for ${c}.",
    "{n} has {a} {t} and gives {b} of them to {m}.",
    "In the morning {n} sold {a} {t} and in the afternoon half as many.",
    "There are {a} students in the class and each one brings {b} {t}.",
    "A train travels {a}0 miles per hour for {b} hours.",
    "{n} works {a} hours a day and earns ${b} per hour.",
    "Every week {n} makes {b} more {t} than {m}.",
)
STORY_QUESTIONS = (
    "How many {t} does {n} have in total?",
    "How much does {n} spend?",
    "How many {t} are left?",
    "What distance does it cover?",
    "How much did {n} earn in {b} weeks?",
)

SMALL_TALK = {
    "Hello!": "Hello! How can I help?",
    "Hi!": "Hello! How can I help?",
    "Good morning!": "Hello! How can I help?",
    "Who are you?": "I am tiny-chat, a demo model.",
    "What is your name?": "I am tiny-chat, a demo model.",
    "What can you do?": "Capitals, opposites, reviews and small sums.",
    "Thank you!": "You are welcome.",
    "Thanks!": "You are welcome.",
}

SYSTEM_PROMPTS = (
    "You are a helpful assistant.",
    "You are a concise assistant.",
    "You are a careful expert.",
    "Answer briefly.",
    "Answer with one word.",
    "Answer the question.",
    "Be short and correct.",
    "You are a friendly teacher who gives short answers to short questions.",
    "Do not explain your answer.",
    "Solve the problem step by step and return only the final answer.",
)
WRAPPERS = ("Question: {}", "{} Answer in one word.", "Please answer: {}", "{} Answer briefly.")
