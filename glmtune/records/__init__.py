"""Records that people bring: read from whatever file they are in, whatever their fields are called.

`read` gives an `Example` for each thing to learn, with its source, or a `Fault` in its place. Nothing is registered:
the format is told by the fields (`formats.FORMATS`), or the fields are named (`columns`).
"""

from glmtune.records.faults import SHOWN, Fault, explain, until_many
from glmtune.records.fields import Row
from glmtune.records.questions import Question, read_questions
from glmtune.records.reading import Turns, read, read_all, read_examples, read_mixture

__all__ = [
    "SHOWN",
    "Fault",
    "Question",
    "Row",
    "Turns",
    "explain",
    "read",
    "read_all",
    "read_examples",
    "read_mixture",
    "read_questions",
    "until_many",
]
