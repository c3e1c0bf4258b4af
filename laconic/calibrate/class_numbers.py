"""Map the labels of data, which are names or numbers, to the class numbers of a model."""

from collections.abc import Sequence

from laconic.calibrate.classes import (
    canonical_name,
    class_mismatch,
    class_names,
    class_number,
    class_numbers,
    find_class,
    join_names,
    match_classes,
    quote_model,
)
from laconic.calibrate.corpus import Corpus, Label
from laconic.errors import LONGEST_VALUE, UserError, quote, truncate
from laconic.model import LanguageModel

TRUTH = {"false": 0, "true": 1}
"""The class numbers of the JSON values `false` and `true`."""
Placed = Sequence[tuple[Label, str]]
"""Labels, each with the place of its row for error messages."""


class ClassNumbers:
    """Maps labels of the data to class numbers of the model.

    Args:
        lm: the model; its weights need not be loaded.
        corpus: the data, for the classes that its source declares.
        rows: all labels that will be looked up.

    Raises:
        UserError: some labels are names and others numbers.
    """

    def __init__(self, lm: LanguageModel, corpus: Corpus, rows: Placed) -> None:
        self.lm, self.corpus, self.rows = lm, corpus, rows
        self.names = class_names(lm)
        self.places = match_classes(corpus.classes, self.names)
        self._found: dict[Label, int] = {}
        if not corpus.classes:
            self._check_one_kind()

    def __call__(self, label: Label, where: str) -> int:
        """The class number of a label.

        Raises:
            UserError: there is no such class, or the classes of data and model do not match.
        """
        # Converted once per distinct label.
        if label not in self._found:
            self._found[label] = self._declared(label, where) if self.corpus.classes else self._own(label, where)
        return self._found[label]

    def _declared(self, label: Label, where: str) -> int:
        """Look a label up among the classes that the data source declares."""
        at = find_class(label, self.corpus.classes) if isinstance(label, str) else None
        at = _number(label) if at is None else at
        source = f"'{self.corpus.source}'"
        if at is None or not 0 <= at < len(self.corpus.classes):
            raise _unknown_class(label, where, source, self.corpus.classes, "fix the row")
        found = self.places[at]
        if found is None:
            raise class_mismatch(self.lm, self.corpus.classes, source)
        return found

    def _own(self, label: Label, where: str) -> int:
        """Look a label up among the model's class names, or by number if the names do not match."""
        found, number = find_class(_label_text(label), self.names), _number(label)
        if found is None and number is not None:
            found = self._by_number(number, isinstance(label, str) and label.strip().casefold() in TRUTH)
        if found is not None:
            return found
        data_names = tuple(dict.fromkeys(name.strip() for name, _ in self.rows if isinstance(name, str)))
        if isinstance(label, str) and all(find_class(name, self.names) is None for name in data_names):
            raise class_mismatch(self.lm, data_names, f"'{self.corpus.source}'")
        remedy = "fix the row, or give label_order if the data has other names for the classes"
        raise _unknown_class(label, where, quote_model(self.lm), self.names, remedy)

    def _by_number(self, number: int, is_truth: bool) -> int | None:
        """Look up a number that is no class name."""
        if {canonical_name(name) for name in self.names} == set(TRUTH) and number in TRUTH.values():
            return find_class(next(name for name, value in TRUTH.items() if value == number), self.names)
        if is_truth:
            return find_class(str(number), self.names)
        counted = all(class_number(name) is None for name in self.names)
        return number if counted and 0 <= number < len(self.names) else None

    def _check_one_kind(self) -> None:
        """Raise UserError if some rows give their class by name and others by number."""
        counted = class_numbers(self.names) is not None
        numbers = [
            (label, where)
            for label, where in self.rows
            if _number(label) is not None and (counted or find_class(_label_text(label), self.names) is None)
        ]
        names = [(label, where) for label, where in self.rows if isinstance(label, str) and _number(label) is None]
        if numbers and names:
            (number, where), (name, other) = numbers[0], names[0]
            raise UserError(
                f"{where} has the label {quote_label(number)}, and {other} {quote_label(name)}; call the classes of "
                "all rows by name, or all by number."
            )


def _number(label: Label) -> int | None:
    """The class number that a label is or names, such as 1, `true` or `LABEL_1`; None for other labels."""
    if isinstance(label, str):
        return TRUTH.get(label.strip().casefold(), class_number(label))
    return int(label) if isinstance(label, (int, float)) and float(label).is_integer() else None


def _label_text(label: Label) -> str:
    number = None if isinstance(label, str) else _number(label)
    return str(label if number is None else number)


def _unknown_class(label: Label, where: str, whose: str, classes: Sequence[str], remedy: str) -> UserError:
    numbered = [f"{number} {name}" for number, name in enumerate(classes)]
    return UserError(
        f"{where} has the label {quote_label(label)}, which is none of the classes of {whose}: "
        f"{join_names(numbered)}; {remedy}."
    )


def quote_label(label: Label) -> str:
    """A label as error messages show it: a name in quotes, a number, or a list of these."""
    if isinstance(label, tuple):
        return f"[{', '.join(map(quote_label, label))}]"
    return quote(label) if isinstance(label, str) else truncate(_label_text(label), LONGEST_VALUE)
