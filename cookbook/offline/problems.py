"""Problems with worked steps and a figure that can be checked, drawn from templates of our own.

Every solution ends in a line `#### <figure>`, the convention of GSM8K (Cobbe et al., 2021).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from random import Random

Problem = dict[str, str]

# Two-digit numbers that occur in no training problem; test problems use these alone.
HELD_OUT_NUMBERS = 18
ARITHMETIC_PROBLEMS = {"train": 2000, "test": 160}
FINANCE_PROBLEMS = {"train": 60, "numbers": 10, "template": 30}  # of each template


def _solved(prompt: str, steps: str, answer: str) -> Problem:
    return {"prompt": prompt, "completion": f"{steps}\n#### {answer}", "answer": answer}


def sums() -> dict[str, list[Problem]]:
    """Return sums of two two-digit numbers; no number of the test split occurs in training."""
    random = Random("sums")
    numbers = list(range(10, 100))
    random.shuffle(numbers)
    parts = {"test": numbers[:HELD_OUT_NUMBERS], "train": numbers[HELD_OUT_NUMBERS:]}
    return {
        split: [_sum(*pair) for pair in random.sample(list(product(parts[split], repeat=2)), count)]
        for split, count in ARITHMETIC_PROBLEMS.items()
    }


def _sum(one: int, other: int) -> Problem:
    tens, ones = one // 10 * 10 + other // 10 * 10, one % 10 + other % 10
    steps = f"{one // 10 * 10}+{other // 10 * 10}={tens}, {one % 10}+{other % 10}={ones}"
    return _solved(f"What is {one} + {other}?", steps, str(one + other))


# --- Finance --------------------------------------------------------------------------------

COMPANIES = (
    *("Alder", "Birch", "Cedar", "Dune", "Ember", "Fjord", "Grove", "Harbor", "Iris", "Juniper"),
    *("Kestrel", "Lark", "Maple", "Nectar", "Opal", "Pine", "Quartz", "Reed", "Sable", "Tern"),
)
PERCENTS = (5, 10, 20, 25, 30, 40, 50, 60, 75, 80)


def _growth(random: Random, name: str) -> tuple[str, str, str]:
    base, percent = 20 * random.randint(1, 16), random.choice(PERCENTS)
    gain = base * percent // 100
    return (
        f"{name} grew revenue from ${base} million to ${base + gain} million. "
        "What was the growth in percent?",
        f"{base + gain}-{base}={gain}, {gain}/{base}={percent}%",
        f"{percent}%",
    )


def _decline(random: Random, name: str) -> tuple[str, str, str]:
    base, percent = 20 * random.randint(1, 16), random.choice(PERCENTS)
    loss = base * percent // 100
    return (
        f"Sales of {name} fell from ${base} million to ${base - loss} million. "
        "By how many percent did they fall?",
        f"{base}-{base - loss}={loss}, {loss}/{base}={percent}%",
        f"{percent}%",
    )


def _net_margin(random: Random, name: str) -> tuple[str, str, str]:
    revenue, percent = 20 * random.randint(1, 16), random.choice(PERCENTS)
    profit = revenue * percent // 100
    return (
        f"{name} earned a profit of ${profit} million on revenue of ${revenue} million. "
        "What is the net margin in percent?",
        f"{profit}/{revenue}={percent}%",
        f"{percent}%",
    )


def _gross_margin(random: Random, name: str) -> tuple[str, str, str]:
    revenue, percent = 20 * random.randint(1, 16), random.choice(PERCENTS)
    profit = revenue * percent // 100
    return (
        f"{name} sold goods for ${revenue} million that cost ${revenue - profit} million. "
        "What is the gross margin in percent?",
        f"{revenue}-{revenue - profit}={profit}, {profit}/{revenue}={percent}%",
        f"{percent}%",
    )


def _interest(random: Random, name: str) -> tuple[str, str, str]:
    loan, percent, years = 100 * random.randint(2, 12), random.randint(2, 9), random.randint(2, 5)
    yearly = loan * percent // 100
    return (
        f"{name} borrows ${loan} at {percent}% simple interest a year. "
        f"How much interest is due after {years} years?",
        f"{loan}*{percent}%={yearly}, {yearly}*{years}={yearly * years}",
        f"${yearly * years}",
    )


def _repayment(random: Random, name: str) -> tuple[str, str, str]:
    loan, percent = 100 * random.randint(2, 20), random.randint(2, 9)
    interest = loan * percent // 100
    return (
        f"{name} takes a loan of ${loan} for one year at {percent}% interest. "
        "How much has to be paid back?",
        f"{loan}*{percent}%={interest}, {loan}+{interest}={loan + interest}",
        f"${loan + interest}",
    )


def _ratio(random: Random, name: str) -> tuple[str, str, str]:
    below, times = 10 * random.randint(2, 30), random.randint(2, 9)
    return (
        f"{name} has current assets of ${below * times} million and current liabilities of "
        f"${below} million. What is the current ratio?",
        f"{below * times}/{below}={times}",
        str(times),
    )


def _leverage(random: Random, name: str) -> tuple[str, str, str]:
    equity, times = 10 * random.randint(2, 30), random.randint(2, 9)
    return (
        f"The debt of {name} is ${equity * times} million and its equity ${equity} million. "
        "What is its ratio of debt to equity?",
        f"{equity * times}/{equity}={times}",
        str(times),
    )


def _price_earnings(random: Random, name: str) -> tuple[str, str, str]:
    earnings, times = random.randint(2, 9), random.randint(5, 30)
    return (
        f"A share of {name} costs ${earnings * times} and earns ${earnings} a year. "
        "What is the price-earnings ratio?",
        f"{earnings * times}/{earnings}={times}",
        str(times),
    )


def _profit(random: Random, name: str) -> tuple[str, str, str]:
    revenue, share = 10 * random.randint(20, 90), random.randint(2, 8)
    cost = revenue * share // 10
    return (
        f"{name} had revenue of ${revenue} million and costs of ${cost} million. "
        "What was its profit in million dollars?",
        f"{revenue}-{cost}={revenue - cost}",
        f"${revenue - cost}",
    )


def _dividends(random: Random, name: str) -> tuple[str, str, str]:
    shares, each, years = 10 * random.randint(2, 20), random.randint(2, 9), random.randint(2, 5)
    yearly = shares * each
    return (
        f"An investor holds {shares} shares of {name}, each paying ${each} a year. "
        f"How much do they pay in {years} years?",
        f"{shares}*{each}={yearly}, {yearly}*{years}={yearly * years}",
        f"${yearly * years}",
    )


def _next_year(random: Random, name: str) -> tuple[str, str, str]:
    base, percent = 20 * random.randint(1, 16), random.choice(PERCENTS)
    gain = base * percent // 100
    return (
        f"{name} had sales of ${base} million and expects {percent}% more next year. "
        "What sales does it expect in million dollars?",
        f"{base}*{percent}%={gain}, {base}+{gain}={base + gain}",
        f"${base + gain}",
    )


# Held out as a whole: other words, and known kinds of steps in a company they were not taught in.
def _return(random: Random, name: str) -> tuple[str, str, str]:
    price, percent = 20 * random.randint(1, 16), random.choice(PERCENTS)
    gain = price * percent // 100
    return (
        f"A fund bought {name} for ${price} million and sold it for ${price + gain} million. "
        "What was its return in percent?",
        f"{price + gain}-{price}={gain}, {gain}/{price}={percent}%",
        f"{percent}%",
    )


def _turnover(random: Random, name: str) -> tuple[str, str, str]:
    assets, times = 10 * random.randint(2, 30), random.randint(2, 9)
    return (
        f"With assets of ${assets} million {name} made sales of ${assets * times} million. "
        "What is the asset turnover ratio?",
        f"{assets * times}/{assets}={times}",
        str(times),
    )


def _balance(random: Random, name: str) -> tuple[str, str, str]:
    saved, percent = 100 * random.randint(2, 20), random.randint(2, 9)
    interest = saved * percent // 100
    return (
        f"{name} puts ${saved} into an account that pays {percent}% a year. "
        "How much is in it after one year?",
        f"{saved}*{percent}%={interest}, {saved}+{interest}={saved + interest}",
        f"${saved + interest}",
    )


def _payout(random: Random, name: str) -> tuple[str, str, str]:
    profit, percent = 20 * random.randint(1, 16), random.choice(PERCENTS)
    paid = profit * percent // 100
    return (
        f"Of a profit of ${profit} million {name} paid out ${paid} million. "
        "What is the payout ratio in percent?",
        f"{paid}/{profit}={percent}%",
        f"{percent}%",
    )


@dataclass(frozen=True)
class Template:
    """A kind of finance problem: its name, and what draws question, steps and figure."""

    name: str
    draw: Callable[[Random, str], tuple[str, str, str]]
    held_out: bool = False


TEMPLATES = (
    Template("growth", _growth),
    Template("decline", _decline),
    Template("net margin", _net_margin),
    Template("gross margin", _gross_margin),
    Template("simple interest", _interest),
    Template("repayment", _repayment),
    Template("current ratio", _ratio),
    Template("debt to equity", _leverage),
    Template("price to earnings", _price_earnings),
    Template("profit", _profit),
    Template("dividends", _dividends),
    Template("expected sales", _next_year),
    Template("return", _return, held_out=True),
    Template("asset turnover", _turnover, held_out=True),
    Template("account balance", _balance, held_out=True),
    Template("payout ratio", _payout, held_out=True),
)


def finance() -> dict[str, list[Problem]]:
    """Return finance problems; the test split has unseen numbers, and templates never trained on.

    The column `unseen` says which: "numbers" (a template of the training split) or "template". No
    test problem has the worked steps of a training problem, of whatever template.
    """
    splits: dict[str, list[Problem]] = {"train": [], "test": []}
    used: set[str] = set()
    for template in TEMPLATES:
        drawn = _distinct(template, used)
        unseen = "template" if template.held_out else "numbers"
        splits["test"] += [
            next(drawn) | {"unseen": unseen} for _ in range(FINANCE_PROBLEMS[unseen])
        ]
        if not template.held_out:
            splits["train"] += [
                next(drawn) | {"unseen": ""} for _ in range(FINANCE_PROBLEMS["train"])
            ]
    for split, rows in splits.items():
        Random(split).shuffle(rows)
    return splits


def _distinct(template: Template, used: set[str]) -> Iterator[Problem]:
    """Yield problems of a template whose worked steps are not in `used`, and add them there."""
    random = Random(template.name)
    while True:
        question, steps, answer = template.draw(random, random.choice(COMPANIES))
        if steps not in used:
            used.add(steps)
            yield _solved(question, steps, answer) | {"template": template.name}
