"""What tiny-embed and tiny-rerank are asked of named things, and how it is said."""

from __future__ import annotations

from dataclasses import dataclass

# Each first the form of the values, then three questions and three statements. {name} is the
# thing's, {value} what is asked for.
_ATTRIBUTES = """
{h}:00
When does {name} open?
At what hour can one get into {name}?
From what time on is {name} accessible?
{name} opens at {value}.
The doors of {name} are unlocked at {value}.
Visitors may enter {name} from {value}.

{h}:30
When does {name} close?
Until what time can I stay at {name}?
How late may one leave {name}?
{name} shuts at {value}.
The doors of {name} are locked after {value}.
Everybody has to be out of {name} by {value}.

{n} metres
How tall is {name}?
What is the height of {name}?
How far up does {name} reach?
{name} is {value} high.
It is {value} from the ground to the top of {name}.
{name} rises {value}.

{n} kilograms
How heavy is {name}?
What does {name} weigh?
What is the mass of {name}?
{name} weighs {value}.
The weight of {name} is {value}.
A scale shows {value} for {name}.

{n} dollars
What does {name} cost?
How much must I pay for {name}?
How expensive is {name}?
The price of {name} is {value}.
{name} is sold for {value}.
One gets {name} for {value}.

{c}
What colour is {name}?
How is {name} painted?
What shade does {name} have?
{name} is {value}.
They gave {name} a {value} coat.
The surface of {name} looks {value}.

{p}
Who owns {name}?
To whom does {name} belong?
Whose is {name}?
The owner of {name} is {value}.
{name} is the property of {value}.
{value} bought {name}.

{p}
Who made {name}?
Who is the inventor of {name}?
By whom was {name} built?
{value} created {name}.
{name} was designed by {value}.
The maker of {name} is {value}.

{y}
How old is {name}?
In which year was {name} founded?
Since when does {name} exist?
{name} dates from {value}.
The birth of {name} was in {value}.
{name} was established in {value}.

{t}
Where is {name}?
In which town can I find {name}?
What is the location of {name}?
{name} stands in {value}.
One finds {name} near {value}.
{name} is situated at {value}.

{n} people
How many fit into {name}?
What is the capacity of {name}?
How much room has {name}?
{name} holds {value}.
There are seats for {value} in {name}.
{name} takes up to {value}.

{n}
What is the default of {name}?
Which value has {name} if I do not set it?
What is {name} when nothing is given?
{name} is {value} unless told otherwise.
Left out, {name} counts as {value}.
Without a choice {name} equals {value}.

{n} seconds
How long does {name} take?
What is the duration of {name}?
How much time goes by during {name}?
{name} lasts {value}.
After {value} {name} is over.
One waits {value} for {name} to end.

{n} degrees
How hot does {name} get?
What is the temperature of {name}?
How warm is {name}?
{name} is heated to {value}.
A thermometer shows {value} in {name}.
{name} reaches {value} of heat.

{n} miles an hour
How fast is {name}?
What speed does {name} reach?
How quickly does {name} move?
{name} goes {value}.
The pace of {name} is {value}.
{name} races along at {value}.

{p}
Who wrote {name}?
Who is the author of {name}?
From whose pen is {name}?
{name} was written by {value}.
{value} composed {name}.
The writer of {name} is called {value}.

{p}
Who leads {name}?
Who is the boss of {name}?
Who is in charge of {name}?
{value} is the head of {name}.
{name} is managed by {value}.
The director of {name} is {value}.

{n} megabytes
How large is {name}?
What is the size of {name}?
How much space does {name} need?
{name} occupies {value} on the disk.
{name} takes {value}.
With {value} {name} is stored.

{n}
On which port does {name} listen?
Where do I connect to {name}?
What number reaches {name}?
{name} answers at {value}.
Clients talk to {name} through {value}.
Connections to {name} go to {value}.

{n}
What is the most that {name} allows?
What is the limit of {name}?
How high may {name} go?
{name} is at most {value}.
More than {value} is refused by {name}.
The maximum for {name} is {value}.

{u}
What is {name} for?
Why would one use {name}?
What is the purpose of {name}?
{name} serves to {value}.
With {name} you can {value}.
{name} helps people {value}.

{u}
What does {name} do?
What happens with {name}?
What is the effect of {name}?
{name} makes it possible to {value}.
{name} lets you {value}.
Those who need to {value} take {name}.

{c}
Which ingredients does {name} need?
What goes into {name}?
What is {name} made of?
{name} consists of {value} beans and salt.
For {name} take {value} peppers.
Mix {value} flour to get {name}.

{p}
Who may use {name}?
For whom is {name} allowed?
Who has access to {name}?
Only {value} is permitted to touch {name}.
{name} is reserved to {value}.
The right to {name} is with {value}.
"""

_KINDS = """
station tower museum library bridge school hotel ship train device machine printer camera robot
recipe soup cake sauce option setting field command tool script file report dataset service server
queue club company project
"""
_COLOURS = "red green blue yellow black white brown purple orange grey pink silver"


@dataclass(frozen=True, slots=True)
class Attribute:
    """What may be asked of a named thing.

    Attributes:
        value: The form of its values.
        questions: How it is asked.
        statements: How it is said.
    """

    value: str
    questions: tuple[str, ...]
    statements: tuple[str, ...]


def _attribute(text: str) -> Attribute:
    value, *wordings = text.splitlines()
    return Attribute(value, tuple(wordings[:3]), tuple(wordings[3:]))


KINDS = tuple(_KINDS.split())
COLOURS = tuple(_COLOURS.split())
FACTS = tuple(map(_attribute, _ATTRIBUTES.strip().split("\n\n")))
