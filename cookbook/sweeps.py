"""Settings tried one after the other, in an Optuna study that a killed sweep goes on from."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from datasets import Dataset, DatasetDict

from cookbook import data
from cookbook.profiles import CookbookError, place_in_launch
from cookbook.training import write_atomically

if TYPE_CHECKING:
    import optuna

Settings = dict[str, Any]
RATE = "learning_rate"
# Bounds of what can be asked for: Optuna wants some, and the same ones for every trial.
_LEAST, _MOST = 1e-12, 1e12
APART = "rows kept apart from the training rows score this trial"  # what a trial prints


def open_study(folder: Path, name: str, *, minimize: bool = True) -> "optuna.Study":
    """Return the study of a name, whose trials are kept in `folder`, as far as it was tried.

    Raises `CookbookError` with the command that installs Optuna.
    """
    try:
        import optuna
        from optuna.storages.journal import JournalFileBackend
    except ImportError as error:
        raise CookbookError(
            "A sweep is kept by Optuna, which is not installed. Run: make install-sweep"
        ) from error
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    folder.mkdir(parents=True, exist_ok=True)
    storage = optuna.storages.JournalStorage(JournalFileBackend(str(folder / "optuna.log")))
    direction: Literal["minimize", "maximize"] = "minimize" if minimize else "maximize"
    return optuna.create_study(
        storage=storage, study_name=name, direction=direction, load_if_exists=True
    )


def tried(study: "optuna.Study") -> list[tuple[Settings, float]]:
    """Return the settings that were tried to their end, each with its value."""
    from optuna.trial import TrialState

    found = study.get_trials(deepcopy=False, states=[TrialState.COMPLETE])
    return [(dict(one.params), float(one.value)) for one in found if one.value is not None]


def try_all(
    study: "optuna.Study",
    wanted: Sequence[Settings],
    measure: Callable[[Settings], float],
    at_once: int = 1,
    passed_over: tuple[type[Exception], ...] = (),
) -> None:
    """Measure all settings that this study has not tried to their end, so many of them at once.

    What was under way when a sweep was killed is measured again. An error ends the sweep, unless it
    is one of those `passed_over`; a later sweep goes on from there.
    """
    from optuna.trial import TrialState

    def objective(trial: "optuna.Trial") -> float:
        return measure({name: _suggested(trial, name, wanted) for name in wanted[0]})

    def waiting() -> list[Settings]:
        left = study.get_trials(deepcopy=False, states=[TrialState.WAITING])
        return [one.system_attrs["fixed_params"] for one in left]

    there = [*waiting(), *(settings for settings, _ in tried(study))]
    for one in wanted:
        if one not in there:
            study.enqueue_trial(one)
    if left := waiting():
        study.optimize(objective, n_trials=len(left), n_jobs=at_once, catch=passed_over)


def _suggested(trial: "optuna.Trial", name: str, wanted: Sequence[Settings]) -> Any:
    """Return the value that a trial was told to take."""
    values = list(dict.fromkeys(one[name] for one in wanted))
    if all(isinstance(one, float) for one in values):
        return trial.suggest_float(name, _LEAST, _MOST)
    if all(isinstance(one, int) and not isinstance(one, bool) for one in values):
        return trial.suggest_int(name, -int(_MOST), int(_MOST))
    return trial.suggest_categorical(name, values)


def search_rate(
    study: "optuna.Study", begin: float, measure: Callable[[float], float], most: int
) -> float:
    """Return the learning rate of the smallest value, among `most` rates a factor of three apart.

    The first are `begin` and its neighbours, 1 and 3 in each power of ten; while the best is at an
    end, the next one beyond it follows, so that the answer does not depend on where it began.
    """
    place = _place(begin)
    wanted = [_rate(place + n) for n in (-1, 0, 1)]
    while True:
        try_all(study, [{RATE: one} for one in wanted], lambda settings: measure(settings[RATE]))
        found = {float(settings[RATE]): value for settings, value in tried(study)}
        best = min(found, key=lambda rate: found[rate])
        if min(found) < best < max(found) or len(found) >= most:
            return best
        wanted = [_rate(_place(best) + (1 if best == max(found) else -1))]


def _rate(place: int) -> float:
    power, half = divmod(place, 2)
    return float(f"{3 if half else 1}e{power}")


def _place(rate: float) -> int:
    """Return where a rate is among ..., 1e-4 (-8), 3e-4 (-7), 1e-3 (-6), ... Raises ValueError."""
    digit, _, power = f"{rate:e}".partition("e")
    if float(digit) not in (1, 3):
        raise ValueError(f"{rate} is neither 1 nor 3 of its power of ten")
    return 2 * int(power) + (float(digit) == 3)


def kept(path: Path, measure: Callable[[], Mapping[str, Any]], **given: Any) -> dict[str, Any]:
    """Return what a JSON file holds; where there is none, or it has other values than those given,
    what is measured, and keep it.

    Raises `CookbookError` in one of several processes: each would measure and keep the same.
    """
    if place_in_launch()[1] > 1:
        raise CookbookError(
            "This comparison is of trainings in one process each, and torchrun started several. "
            "Run it without: make notebook NB=02-PEFT/PEFT-Methods-Compared.ipynb"
        )
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if not found or not given.items() <= found.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        found = dict(measure())
        write_atomically(path, json.dumps(found, indent=1, sort_keys=True) + "\n")
    return found


def keep_rows_apart() -> None:
    """Let data sets be loaded without their test split from now on: rows cut from the training rows
    take its place.

    What is chosen by their scores then says nothing of the rows that will score the choice. The
    copies of notebooks that `make sweep` executes call it before they load.
    """
    load = data.load_splits

    def load_splits(source: str, *given: Any, **named: Any) -> DatasetDict:
        splits = load(source, *given, **named)
        return _cut_anew(splits, source) if "train" in splits else splits  # general text has none

    data.load_splits = load_splits


def _cut_anew(splits: DatasetDict, source: str) -> DatasetDict:
    cut = data._with_test_cut(splits["train"], source)
    if source.startswith(data.EMBEDDED):
        cut["test"] = _as_kinds_of(splits["test"], cut["test"])
    print(f"{source}: {len(cut['test'])} {APART}")
    return cut


def _as_kinds_of(test: Dataset, rows: Dataset) -> Dataset:
    """Return rows dealt to the kinds of an embedded test split (`unseen`, `finance`).

    Of training rows there is one kind, so that a sweep's several scores are all of that.
    """
    for name in test.column_names:
        kinds, own = test.unique(name), rows.unique(name)
        if len(own) == 1 and set(kinds) != set(own) and len(kinds) < len(rows):
            dealt = [kinds[place % len(kinds)] for place in range(len(rows))]
            rows = rows.remove_columns(name).add_column(name, dealt)
    return rows
