"""Who does the units of a run: this process, others of this machine, or a scheduler's workers.

`base` says what an executor is, `worker` what each process has, `dispatch` hands units to workers that may die. A new
scheduler is one more module, with what `dispatch.Scheduler` asks for.
"""

from .base import Executor, Task, WorkerInfo

__all__ = ["Executor", "Task", "WorkerInfo"]
