"""Which map explains the model? Faithfulness of every map over a dataset, by removing and inserting patches."""

from .judging import JudgeResult, judge
from .summary import Between, Verdict, between, verdicts

__all__ = ["Between", "JudgeResult", "Verdict", "between", "judge", "verdicts"]
