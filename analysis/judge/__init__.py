"""Which map explains the model? Faithfulness of every map over a dataset, by removing and inserting patches."""

from .heads import HeadsResult, judge_heads
from .judging import JudgeResult, judge
from .summary import Between, Verdict, between, verdicts

__all__ = ["Between", "HeadsResult", "JudgeResult", "Verdict", "between", "judge", "judge_heads", "verdicts"]
