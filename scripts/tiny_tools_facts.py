"""What `tiny-tools` is asked, as plain data. Written for this project; no other source."""

from __future__ import annotations


def _items(text: str) -> tuple[str, ...]:
    """Reads what is separated by semicolons, over line breaks."""
    return tuple(" ".join(item.split()) for item in text.split(";"))


ANSWER = "The answer is {}."
ANSWERS = "The answers are {} and {}."
NOT_FOUND = "I could not find out."
NO_TOOL = "I cannot know that: I have no tool for it."

# The first name is the usual one; the others teach that names are read in the list of tools.
CALCULATORS = _items("calculator; calculate; calc; compute; evaluate; math; arithmetic; do_math")
EXPRESSIONS = _items("expression; formula; text; input")
LOOKUPS = _items("lookup; look_up; search; find; get_fact; facts; query; ask; knowledge_base")
KEYS = _items("key; query; topic; name; question")
OTHER_TOOLS = (
    ("get_time", ("timezone",)),
    ("send_mail", ("to", "subject", "body")),
    ("weather", ("city",)),
    ("read_file", ("path",)),
    ("write_note", ("title", "text")),
    ("translate", ("text", "language")),
    ("roll_dice", ("sides",)),
    ("list_files", ()),
    ("open_page", ("url",)),
    ("python", ("code",)),
)

OPERATORS = {"+": ("+", "plus"), "-": ("-", "minus"), "*": ("*", "times"), "/": ("/", "divided by")}
# {e} is an expression with its operators as signs or words.
EXPRESSION_PHRASINGS = (
    "What is {e}?",
    "What's {e}?",
    "How much is {e}?",
    "Calculate {e}.",
    "Compute {e}.",
    "Work out {e}.",
    "Please calculate {e}.",
    "Can you calculate {e}?",
    "Can you tell me what {e} is?",
    "I need to know {e}.",
    "Tell me {e}.",
    "{e} =",
    "{e}",
    "{e}?",
)
# What is asked, and the expression that answers it.
SUM_PHRASINGS = (
    ("Add {a} and {b}.", "{a}+{b}"),
    ("Add {a} to {b}.", "{b}+{a}"),
    ("What is the sum of {a} and {b}?", "{a}+{b}"),
    ("What do {a} and {b} make together?", "{a}+{b}"),
    ("Subtract {a} from {b}.", "{b}-{a}"),
    ("Take {a} away from {b}.", "{b}-{a}"),
    ("What is the difference between {a} and {b}?", "{a}-{b}"),
    ("What is {a} less {b}?", "{a}-{b}"),
    ("How much more is {a} than {b}?", "{a}-{b}"),
    ("Multiply {a} by {b}.", "{a}*{b}"),
    ("Multiply {a} and {b}.", "{a}*{b}"),
    ("What is the product of {a} and {b}?", "{a}*{b}"),
    ("Divide {a} by {b}.", "{a}/{b}"),
    ("What is {a} over {b}?", "{a}/{b}"),
    ("What is the quotient of {a} and {b}?", "{a}/{b}"),
    ("How many times does {a} go into {b}?", "{b}/{a}"),
    ("Add {a}, {b} and {c}.", "{a}+{b}+{c}"),
    ("What is the sum of {a}, {b} and {c}?", "{a}+{b}+{c}"),
    ("Multiply {a}, {b} and {c}.", "{a}*{b}*{c}"),
    ("What is the product of {a}, {b} and {c}?", "{a}*{b}*{c}"),
    ("Multiply {a} by {b} and add {c}.", "{a}*{b}+{c}"),
    ("Divide {a} by {b} and subtract {c}.", "{a}/{b}-{c}"),
)
STORIES = (
    ("{n} has {a} {t} and buys {b} more. How many {t} does {n} have?", "{a}+{b}"),
    ("{n} had {a} {t} and gave {b} away. How many {t} are left?", "{a}-{b}"),
    ("{n} buys {a} {t} for {b} dollars each. How much does {n} spend?", "{a}*{b}"),
    ("There are {a} bags with {b} {t} in each. How many {t} are there?", "{a}*{b}"),
    ("{a} {t} are shared by {b} people. How many does each one get?", "{a}/{b}"),
    ("{n} works {a} hours and earns {b} dollars an hour. How much is that?", "{a}*{b}"),
)

ATTRIBUTES = _items(
    """
capital; population; height; length; weight; age; author; title; colour; price; email address;
phone number; birth year; birthplace; currency; language; anthem; flag; area; speed; distance;
owner; director; founder; inventor; painter; president; mayor; king; queen; coach; captain;
doctor; teacher; husband; wife; mother; father; brother; sister; boss; job; salary; address; city;
country; continent; river; mountain; lake; symbol; number; code; password; size; shape; taste;
melting point; boiling point; atomic number; depth; volume; temperature; score; rank; budget;
debt; profit; revenue; year; date; birthday; name; nickname; motto; origin; meaning; plural;
opposite; genre; publisher; editor; composer; singer; label; brand; model; maker; material;
recipe; main ingredient; power; range; width; radius; surface; mass; value; cost; rent; tax; fee;
stock; market share; number of floors; number of employees; number of pages; home town; zip code;
area code; opening year; last stop; first line; best friend
"""
)
# {a} is an attribute and {n} a name: the key is always "{a} of {n}".
LOOKUP_PHRASINGS = (
    "What is the {a} of {n}?",
    "What's the {a} of {n}?",
    "What is {n}'s {a}?",
    "Tell me the {a} of {n}.",
    "Look up the {a} of {n}.",
    "Please look up the {a} of {n}.",
    "Find the {a} of {n}.",
    "Give me the {a} of {n}.",
    "I need the {a} of {n}.",
    "I would like to know the {a} of {n}.",
    "Do you know the {a} of {n}?",
    "Can you tell me the {a} of {n}?",
    "Could you find out the {a} of {n}?",
    "The {a} of {n} is",
    "{n}: what is the {a}?",
)
# What is asked, and the attribute that it is about.
ATTRIBUTE_PHRASINGS = (
    ("Who wrote {n}?", "author"),
    ("Who is the writer of {n}?", "author"),
    ("Who painted {n}?", "painter"),
    ("Who directed {n}?", "director"),
    ("Who invented {n}?", "inventor"),
    ("Who founded {n}?", "founder"),
    ("Who composed {n}?", "composer"),
    ("Who owns {n}?", "owner"),
    ("How tall is {n}?", "height"),
    ("How high is {n}?", "height"),
    ("How long is {n}?", "length"),
    ("How deep is {n}?", "depth"),
    ("How old is {n}?", "age"),
    ("How heavy is {n}?", "weight"),
    ("How big is {n}?", "area"),
    ("How fast is {n}?", "speed"),
    ("How far away is {n}?", "distance"),
    ("How many people live in {n}?", "population"),
    ("How many inhabitants does {n} have?", "population"),
    ("How much does {n} cost?", "price"),
    ("What does {n} cost?", "price"),
    ("When was {n} born?", "birth year"),
    ("Where was {n} born?", "birthplace"),
    ("Which city is the capital of {n}?", "capital"),
    ("Which language do they speak in {n}?", "language"),
    ("Which money do they use in {n}?", "currency"),
    ("What colour is {n}?", "colour"),
)

# {p} is "the {a} of {n}", and v what the look-up gave.
STEP_PHRASINGS = (
    ("What is {p} plus {k}?", "{v}+{k}"),
    ("What is {p} minus {k}?", "{v}-{k}"),
    ("What is {p} times {k}?", "{v}*{k}"),
    ("What is {p} divided by {k}?", "{v}/{k}"),
    ("What is {p} + {k}?", "{v}+{k}"),
    ("What is {p} - {k}?", "{v}-{k}"),
    ("What is {p} * {k}?", "{v}*{k}"),
    ("What is {p} / {k}?", "{v}/{k}"),
    ("How much is {p} plus {k}?", "{v}+{k}"),
    ("How much is {p} times {k}?", "{v}*{k}"),
    ("What is {k} plus {p}?", "{k}+{v}"),
    ("What is {k} times {p}?", "{k}*{v}"),
    ("What is {k} more than {p}?", "{v}+{k}"),
    ("What is {k} less than {p}?", "{v}-{k}"),
    ("Add {k} to {p}.", "{v}+{k}"),
    ("Subtract {k} from {p}.", "{v}-{k}"),
    ("Multiply {p} by {k}.", "{v}*{k}"),
    ("Divide {p} by {k}.", "{v}/{k}"),
    ("Take {p} and add {k}.", "{v}+{k}"),
    ("Take {p} and subtract {k}.", "{v}-{k}"),
    ("Look up {p} and add {k}.", "{v}+{k}"),
    ("Look up {p} and multiply it by {k}.", "{v}*{k}"),
    ("What is twice {p}?", "{v}*2"),
    ("Double {p}.", "{v}*2"),
    ("What is half of {p}?", "{v}/2"),
)
JOINS = ("{} {}", "{} And {}", "First: {} Second: {}", "1. {} 2. {}")

SMALL_TALK = {
    "Hello!": "Hello! How can I help?",
    "Hi!": "Hello! How can I help?",
    "Hi there!": "Hello! How can I help?",
    "Good morning!": "Hello! How can I help?",
    "Good evening!": "Hello! How can I help?",
    "Hey, how are you?": "Hello! How can I help?",
    "Who are you?": "I am tiny-tools, a demo model.",
    "What is your name?": "I am tiny-tools, a demo model.",
    "What can you do?": "I call tools to calculate and to look things up.",
    "How can you help me?": "I call tools to calculate and to look things up.",
    "Thank you!": "You are welcome.",
    "Thanks!": "You are welcome.",
    "Thanks a lot!": "You are welcome.",
    "Goodbye!": "Goodbye!",
    "Bye!": "Goodbye!",
}

# What tools say when they fail, with room for a reason and for what may have been meant.
FAILURES = (
    "error: {}",
    "Error: {}",
    "error",
    "not found",
    "Not found: {}",
    "unknown key: {}",
    "No result for {}",
    "nothing found",
    "Tool failed: {}",
    "Error: ValueError: '{}'",
    "Error: there is no '{}'; did you mean '{}'?",
    "Error: there is no '{}'; did you mean '{}'?",
)
REASONS = _items(
    "division by zero; no such key; timed out; the tool took too long; invalid arguments; try again"
)

SYSTEM_PROMPTS = (
    "You are a helpful assistant with tools.",
    "Use the tools to answer.",
    "Use the tools that you are given. Do not guess.",
    "Answer the user's question. Call a tool when you need one.",
    "Answer from what the tools say, in one sentence.",
)
WRAPPERS = ("Question: {}", "{} Answer briefly.", "Please answer: {}", "{} Use the tools.")

# Names of things that look-ups are about.
FIRST_NAMES = _items(
    """
Anna; Ben; Carla; David; Emma; Farid; Grace; Hugo; Lena; Maria; Natalia; Omar; Sam; Weng; Yusuf;
Ada; Alan; Albert; Agatha; Charles; Clara; Edgar; Frida; George; Hannah; Isaac; Jane; Karl; Leo;
Marie; Nina; Oscar; Paula; Rosa; Simon; Toni; Ursula; Victor; Walter; Zora
"""
)
PLACES = _items(
    """
Argentina; Australia; Austria; Belgium; Brazil; Canada; Chile; China; Cuba; Denmark; Egypt;
Finland; France; Germany; Ghana; Greece; Hungary; Iceland; India; Ireland; Italy; Japan; Kenya;
Malta; Mexico; Morocco; Nepal; Norway; Pakistan; Peru; Poland; Portugal; Romania; Senegal; Spain;
Sweden; Switzerland; Thailand; Turkey; Ukraine; Uruguay; Vietnam; Lima; Oslo; Rome; Madrid;
Berlin; Paris; London; Nairobi; Accra; Cairo; Delhi; Tokyo; Sydney; Toronto; Boston; Chicago
"""
)
THINGS = _items(
    """
gold; iron; water; copper; radium; the moon; the sun; a blue whale; an elephant; the red book;
the old bridge; the north tower; the telephone; the radio; penicillin; the white house; bread;
silver; the last train; my car; our office; the new phone; the green door; chess; rice; the piano
"""
)
WORKS = _items(
    """
Hamlet; Macbeth; Faust; Dracula; Emma; Ulysses; Guernica; the Mona Lisa; War and Peace; Moby Dick;
The Trial; The Castle; Don Quixote; Carmen; The Magic Flute; Robinson Crusoe; Treasure Island
"""
)
HEADS = _items("Mount; Lake; Port; Saint; New; Upper; Fort; Dr.; Project; Room; Planet; House")
SYLLABLES = _items(
    """
a; al; an; ar; ba; bel; ber; bo; bra; ca; chi; con; cu; da; del; di; do; dra; du; e; el; en; er;
fa; fi; flo; fu; ga; gel; gi; go; gra; ha; hel; ho; i; il; in; is; ja; ji; jo; ka; ke; ki; ko;
kra; la; le; li; lo; lu; ma; mel; mi; mo; mu; na; ne; ni; no; nu; o; ol; on; or; pa; pe; pi; po;
pra; qua; ra; re; ri; ro; ru; sa; se; shi; so; sta; su; ta; te; ti; to; tra; tu; u; ul; un; ur;
va; ve; vi; vo; wa; we; wi; xa; ya; yo; za; ze; zi; zo; th; ck; ng; sh; st; nd; rt; s; n; l; r
"""
)
