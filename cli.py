"""The command line: the commands in the order of use, and how an error ends.

Data goes to stdout, progress and notes to stderr. Exit codes: 0 fine; 1 failed; 2 wrong usage; 3 finished, but some
images could not be read; 130 interrupted, the same command resumes.
"""

from __future__ import annotations

import os
import signal
import sys

import attlas
import click

from .commands.analyze import analyze
from .commands.compare import compare
from .commands.conform import conform
from .commands.export import export
from .commands.inspect import inspect, verify
from .commands.judge import judge
from .commands.machine import demo, doctor, models
from .commands.report import report
from .commands.run import run
from .commands.shared import INTERRUPTED, end_on, note
from .commands.show import show
from .commands.view import view
from .errors import AttlasError, no_memory


class _Commands(click.Group):
    """Lists the commands in the order of use."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)


@click.group(
    cls=_Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110, "show_default": True},
)
@click.version_option(attlas.__version__, prog_name="attlas")
def cli() -> None:
    """The atlas of attention: compute, store and analyse the attention of Vision Transformers over whole datasets.

    \b
    attlas export deit_tiny_patch16_224 -o deit.onnx  timm model to ONNX graph
    attlas show deit.onnx cat.jpg                     one picture at once
    attlas run deit.onnx IMAGES -o deit.zarr          images to attention store
    attlas analyze deit.zarr                          statistics of the dataset
    attlas view deit.zarr                             the browser walks through it
    attlas report deit.zarr -o report.html            one page with the figures

    Exit codes: 0 fine; 1 failed; 2 wrong usage; 3 finished, but some images could not be read; 130 interrupted (the
    same command resumes).
    """  # noqa: D301 - \b tells click not to rewrap


for command in (
    export,
    show,
    run,
    analyze,
    view,
    report,
    judge,
    compare,
    conform,
    inspect,
    verify,
    models,
    doctor,
    demo,
):
    cli.add_command(command)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; errors that the user can fix are one line."""
    # What a batch system sends before it kills; `run` and `view` have more to do on a signal.
    end_on(signal.SIGTERM)
    try:
        cli.main(args=arguments, prog_name="attlas", standalone_mode=False)
    except AttlasError as error:
        note(f"attlas: {error}")
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        note("attlas: interrupted; the same command goes on, or begins again where nothing could be kept")
        sys.exit(INTERRUPTED)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        sys.exit(error.exit_code)
    except click.ClickException as error:
        context = getattr(error, "ctx", None)
        hint = f" (`{context.command_path} --help` lists what it takes)" if context is not None else ""
        note(f"attlas: {error.format_message().rstrip('.')}{hint}")
        sys.exit(error.exit_code)
    except MemoryError as error:
        note(f"attlas: {no_memory(error)}; free some, and run the same command again")
        sys.exit(1)
    except BrokenPipeError:
        # The reader of stdout has closed it; the work itself is fine.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    main()
