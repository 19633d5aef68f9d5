"""Executors do the units of a run: in this process, in other local processes, or on a scheduler's workers.

`base` defines an executor, `worker` the state of each process, and `dispatch` sends units to workers that may die. To
add a scheduler, write a module that implements `dispatch.Scheduler`, and pass its executor as `run(..., scheduler=)`.
"""

from .base import Executor, Task, WorkerInfo

__all__ = ["Executor", "Task", "WorkerInfo"]
