"""What the words and lists of a task may be: bounds that pydantic checks."""

import re
from typing import Annotated, Any, NoReturn, TypeVar

from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError

Items = TypeVar("Items", bound=tuple[str, ...])

MOST = 2**31 - 1  # that a whole number may be
LARGEST = 1e9  # that any other number may be: 32 bits hold it with its squares
MOST_SPLITS = 20
TOO_LONG = "longer than a path may be (3,000 letters, 255 bytes a part)"
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


def refuse(problem: str) -> NoReturn:
    """Refuse a value from within a dataclass or a validator."""
    raise PydanticCustomError("refused", "{problem}", {"problem": problem})


def distinct(items: Items) -> Items:
    """Refuse a list that holds something twice."""
    if len(set(items)) < len(items):
        refuse("must not name one thing twice")
    return items


def _printable(text: str) -> str:
    return refuse("must not hold control codes") if CONTROL.search(text) else text


def too_long(path: str) -> bool:
    """Whether no file system has room for such a path."""
    return len(path) > 3000 or max(len(part.encode()) for part in path.split("/")) > 255


def _possible(path: str) -> str:
    return refuse(TOO_LONG) if too_long(path) else path


def _a_method(raw: dict[str, Any]) -> dict[str, Any]:
    return raw if isinstance(raw.get("_target_"), str) else refuse("must give _target_, the class of a method")


def _split_name(text: str) -> str:
    # it is a part of file names and of metrics' names
    return text if re.fullmatch(r"\w{1,60}", text, re.ASCII) else refuse("must be letters, digits and _")


Share = Annotated[float, Field(ge=0, lt=1)]
InnerShare = Annotated[float, Field(gt=0, lt=1)]
Number = Annotated[float, Field(ge=-LARGEST, le=LARGEST, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, le=LARGEST, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, le=LARGEST, allow_inf_nan=False)]
Count = Annotated[int, Field(gt=0, le=MOST)]
Whole = Annotated[int, Field(ge=0, le=MOST)]
Name = Annotated[str, Field(min_length=1, max_length=200), AfterValidator(_printable)]
PathText = Annotated[str, Field(min_length=1), AfterValidator(_printable), AfterValidator(_possible)]
SplitName = Annotated[str, AfterValidator(_split_name)]
Splits = Annotated[tuple[SplitName, ...], Field(max_length=MOST_SPLITS), AfterValidator(distinct)]
SplitFiles = Annotated[dict[SplitName, Name], Field(min_length=1, max_length=MOST_SPLITS)]
Labels = Annotated[tuple[Name, ...], Field(min_length=2, max_length=1000), AfterValidator(distinct)]
Texts = Annotated[
    tuple[Name, ...], Field(min_length=1, max_length=2), AfterValidator(distinct)
]  # tokenizers take pairs
Columns = Annotated[tuple[Name, ...], Field(min_length=1, max_length=1000), AfterValidator(distinct)]
SplitColumns = Annotated[dict[SplitName, Columns], Field(max_length=MOST_SPLITS)]
Within = Annotated[dict[str, Any], AfterValidator(_a_method)]  # a method that another one holds: `_target_` and keys
