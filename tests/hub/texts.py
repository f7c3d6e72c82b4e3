"""Sentences, conversations and news of our own making, for the data sets of the loopback Hub.

A word is drawn for every few words of a sentence, so that rows differ from each other in all of
their runs of five words: none is a near-duplicate of another.
"""

from fractions import Fraction
from random import Random

NAMES = "Ada Bruno Carla Dmitri Elif Farah Goran Hana Ivo Jasmin Karim Lena Mato Nadia".split()
JOBS = "baker sailor nurse potter teacher farmer plumber violinist carpenter pilot clerk".split()
QUALITIES = "patient tired curious careful noisy young grumpy clever quiet proud hurried".split()
LOOKS = "heavy yellow broken tiny wooden painted borrowed rusty round folded silver damp".split()
THINGS = (
    "lamp kettle ladder bicycle drum basket clock blanket map wheel mirror engine garden boat "
    "letter window telescope violin oven fence"
).split()
ACTIONS = (
    "repaired carried painted measured sold hid washed borrowed weighed described traded lifted "
    "cleaned inspected wrapped dragged"
).split()
DOINGS = "repair paint measure move clean sell pack weigh tune polish assemble label".split()
PLACES = (
    "behind the harbour;near an old mill;under the bridge;in a crowded market;on the top floor;"
    "beside the railway;at the edge of town;in her cellar;across the frozen lake;by the orchard"
).split(";")
TIMES = (
    "before breakfast;late on Sunday;during the storm;last winter;at noon;every other week;"
    "after a long argument;on the first of May;within an hour;as the bells rang"
).split(";")
REASONS = (
    "nobody else had the key;the roof was leaking;a guest was expected;prices had doubled;"
    "the light was better;two screws were missing;rain had been forecast;the river kept rising;"
    "her cousin insisted;it smelled of smoke;the shop had closed;winter came early"
).split(";")
TOOLS = "cloth hammer brush rope knife ruler bucket spoon candle magnet sponge clamp".split()

COMPANIES = "Norvia Halden Quister Brelmont Osterby Tarnow Velluno Kestrova Mirelle Dunmoor".split()
SECTORS = "shipping paper software cement dairy telecom insurance forestry pharma steel".split()
FIGURES = (
    "quarterly profit;net sales;order intake;operating margin;free cash flow;daily output;"
    "export volume;annual turnover"
).split(";")
PERIODS = "in the first quarter;this spring;over nine months;year on year;in October".split(";")
CAUSES = (
    "after a strike in Gdansk;as fuel grew dearer;helped by a new plant;amid weak demand;"
    "following the merger talks;despite a late harvest;under its third chairman;"
    "while rivals waited;once tariffs were lifted"
).split(";")
MOVES = {
    "strong negative": ["collapsed", "was wiped out"],
    "moderately negative": ["dropped", "fell clearly"],
    "mildly negative": ["slipped", "edged down"],
    "negative": ["fell", "shrank", "declined"],
    "neutral": ["was unchanged", "stayed flat", "will be published"],
    "positive": ["rose", "grew", "improved"],
    "mildly positive": ["edged up", "ticked higher"],
    "moderately positive": ["climbed", "gained clearly"],
    "strong positive": ["soared", "doubled"],
}


def sentence(random: Random) -> str:
    """Return one sentence about an everyday matter."""
    pick = random.choice
    name, thing, time = pick(NAMES), pick(THINGS), pick(TIMES)
    shapes = [
        f"The {pick(QUALITIES)} {pick(JOBS)} {pick(ACTIONS)} a {pick(LOOKS)} {thing} "
        f"{pick(PLACES)}.",
        f"{time.capitalize()}, {name} {pick(ACTIONS)} the {thing}, since {pick(REASONS)}.",
        f"{name} {pick(ACTIONS)} {random.randint(2, 99)} {pick(LOOKS)} {thing}s with a "
        f"{pick(TOOLS)} {time}.",
        f"A {pick(LOOKS)} {thing} stood {pick(PLACES)}; {pick(REASONS)}, said the {pick(JOBS)}.",
        f"Because {pick(REASONS)}, {name} and a {pick(QUALITIES)} {pick(JOBS)} "
        f"{pick(ACTIONS)} it {time}.",
    ]
    return pick(shapes)


def paragraph(random: Random, sentences: int) -> str:
    """Return a paragraph of that many sentences."""
    return " ".join(sentence(random) for _ in range(sentences))


def question(random: Random) -> str:
    """Return a person's question."""
    pick = random.choice
    return (
        f"How can a {pick(QUALITIES)} {pick(JOBS)} {pick(DOINGS)} the {pick(LOOKS)} "
        f"{pick(THINGS)} {pick(PLACES)} when {pick(REASONS)}?"
    )


def answer(random: Random) -> str:
    """Return an assistant's answer of two or three sentences."""
    pick = random.choice
    return (
        f"First {pick(DOINGS)} the {pick(THINGS)} with a {pick(LOOKS)} {pick(TOOLS)}, then ask "
        f"{pick(NAMES)} about the {pick(THINGS)}. {paragraph(random, random.randint(1, 2))}"
    )


def guanaco_text(random: Random) -> str:
    """Return a conversation in one string: one to three questions, the last maybe unanswered."""
    turns = [
        f"### Human: {question(random)}### Assistant: {answer(random)}"
        for _ in range(random.randint(1, 3))
    ]
    open_end = f"### Human: {question(random)}" if random.random() < 0.2 else ""
    return "".join(turns) + open_end


def dialogue(random: Random, summaries: int) -> dict[str, list[str] | str]:
    """Return a talk of two persons, its topic, and that many summaries of it."""
    pick = random.choice
    doing, look, thing, place, reason, time = (
        pick(words) for words in (DOINGS, LOOKS, THINGS, PLACES, REASONS, TIMES)
    )
    name, tool = pick(NAMES), pick(TOOLS)
    lines = [
        f"#Person1#: {name}, could you {doing} the {look} {thing} {place}?",
        f"#Person2#: I would, but {pick(REASONS)}. {sentence(random)}",
        f"#Person1#: Take the {tool}, then. We need it {time}, {reason}.",
        f"#Person2#: All right. {sentence(random)} Shall I tell the {pick(JOBS)}?",
        f"#Person1#: {pick(['Please do', 'Better not', 'Only if asked'])}, {name}.",
    ]
    ways = [
        f"#Person1# asks {name} to {doing} the {look} {thing} {place} with a {tool} {time}.",
        f"{name} agrees to {doing} a {thing} {time} because {reason}.",
        f"Since {reason}, {name} is given a {tool} for the {look} {thing}.",
    ]
    return {"dialogue": "\n".join(lines), "topic": f"{doing} a {thing}", "ways": ways[:summaries]}


def news(random: Random, label: str) -> str:
    """Return business news that has the sentiment `label`."""
    pick = random.choice
    company, figure, move = pick(COMPANIES), pick(FIGURES), pick(MOVES[label])
    sector, period, cause = pick(SECTORS), pick(PERIODS), pick(CAUSES)
    amount = f"EUR {random.randint(2, 990)}.{random.randint(0, 9)} mn"
    shapes = [
        f"{company}, a {pick(QUALITIES)} {sector} firm, said {figure} {move} to {amount} {period} "
        f"and {pick(ACTIONS)} its {pick(THINGS)} unit.",
        f"{cause.capitalize()}, the {figure} of {sector} maker {company} {move}, "
        f"{pick(NAMES)} of the {pick(THINGS)} division told {pick(COMPANIES)}.",
        f"{period.capitalize()}, {company} {figure} {move} {cause}; its {pick(LOOKS)} "
        f"{pick(THINGS)} business in {sector} counts {random.randint(3, 900)} people.",
        f"{pick(NAMES)} {pick(COMPANIES)}, {pick(JOBS)} turned {sector} analyst, sees {company}: "
        f"{figure} {move}, {amount} {cause}, a {pick(LOOKS)} {pick(THINGS)} for its owners.",
    ]
    return pick(shapes)


Step = tuple[str, str, Fraction]  # a question, a calculation and its value


def word_problem(random: Random, whole: bool = True) -> tuple[str, list[Step]]:
    """Return a problem and the steps to its result, which is a fraction unless it must be whole."""
    pick, number = random.choice, random.randint
    name, job, look, place, reason = (pick(one) for one in (NAMES, JOBS, LOOKS, PLACES, REASONS))
    thing, other = random.sample(THINGS, 2)
    few, days, some, price = number(2, 9), number(3, 14), number(11, 60), number(20, 450)
    rest = some * few if whole else some * few + 1
    grown = (
        f"{name} {pick(ACTIONS)} {some} {look} {thing}s {place}, and a {pick(QUALITIES)} {job} "
        f"{few} times as many, since {reason}. How many is that in all?",
        [
            ("The others?", f"{some} * {few}", Fraction(some * few)),
            ("In all?", f"{some * few} + {some}", Fraction(some * few + some)),
        ],
    )
    paid = (
        f"A {look} {thing} costs ${price} {place}, a {other} ${some}. What must {name} pay the "
        f"{job} for {few} {thing}s and {days} {pick(LOOKS)} {other}s?",
        [
            (f"For the {thing}s?", f"{price} * {few}", Fraction(price * few)),
            (f"For the {other}s?", f"{some} * {days}", Fraction(some * days)),
            ("In all?", f"{price * few} + {some * days}", Fraction(price * few + some * days)),
        ],
    )
    shared = (
        f"Of {rest + days} {look} {thing}s, {name} gave {days} to a {job} {place}. As {reason}, "
        f"{few} {pick(QUALITIES)} guests share the others. How many has each?",
        [
            (f"How many {thing}s are left?", f"{rest + days} - {days}", Fraction(rest)),
            ("How many has each?", f"{rest} / {few}", Fraction(rest, few)),
        ],
    )
    problem, steps = pick([grown, paid, shared]) if whole else shared
    return f"{sentence(random)} {problem}", steps


def finance_problem(random: Random) -> tuple[str, str, str, str]:
    """Return a question about a table, its answer, reasoning and an answer in prose."""
    figure, other = random.sample(FIGURES, 2)
    year = random.randint(2003, 2019)
    new, old, more, less = (random.randint(20, 990) for _ in range(4))
    kinds = [
        ("by what percent did it change?", f"({new} - {old}) / {old}", f"{new / old - 1:.1%}"),
        ("what was the change, in millions?", f"{new} - {old}", str(new - old)),
        ("what is its ratio to the earlier one?", f"{new} / {old}", f"{new / old:.5f}"),
        ("was it higher than before?", f"{new} > {old}", "yes" if new > old else "no"),
    ]
    ask, work, answer = random.choices(kinds, weights=(4, 3, 3, 1))[0]
    before, after = (news(random, random.choice(list(MOVES))) for _ in range(2))
    question = (
        "Please answer the given financial question based on the context.\n"
        f"Context: {before} {sentence(random)}\n|EUR million|{year}|{year - 1}|\n"
        f"|{figure}|{new}|{old}|\n|{other}|{more}|{less}|\n{after}\n"
        f"Question: looking at {figure} in {year}, {ask}\nAnswer:"
    )
    thought = (
        f"First the table: {figure} is {new} for {year} and {old} for the year before. There is "
        f"{other} too, but nobody asks for it.\n\nHmm. {sentence(random)} That does not matter."
        f"\n\nSo I need {work}, which is {answer}. I see no trap in that."
    )
    response = (
        f"In {year}, {figure} was EUR {new} million, after EUR {old} million the year before. "
        f"From {work} follows the answer: {answer}."
    )
    return question, answer, thought, response
