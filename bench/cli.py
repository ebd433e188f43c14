"""The command line. Nothing heavy is imported before a command needs it."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Sequence

import click

from bench.commands import (
    boards,
    cleaning,
    costing,
    estimating,
    evaluating,
    exporting,
    methods,
    plugins_writing,
    reproducing,
    running,
    studying,
    tracks,
    tuning,
)
from bench.errors import UnknownName, UserError
from bench.exits import INTERRUPTED, OK, USAGE


class _Commands(click.Group):
    """A group that answers an unknown command with the nearest one, whatever click's version."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and not args[0].startswith("-") and self.get_command(ctx, args[0]) is None:
            raise UnknownName("command", args[0], self.list_commands(ctx))
        return super().resolve_command(ctx, args)


def main(args: Sequence[str] | None = None) -> int:
    """Run a command and return the exit status; every user's error is one line on stderr.

    0 ok, 1 some runs failed, 2 usage, 3 no requested plugin could be loaded, 4 a stale or invalid
    board, 130 and 143 interrupted.
    """
    try:
        with bench.make_context("bench", list(sys.argv[1:] if args is None else args)) as context:
            status = bench.invoke(context)
        sys.stdout.flush()
        return status
    except click.exceptions.Exit as done:  # --help and --version
        return done.exit_code
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.ctx.get_help() if error.ctx else error.format_message())
        return USAGE
    except click.ClickException as error:
        return _refuse(error.format_message())
    except UserError as error:
        return _refuse(str(error))
    except (KeyboardInterrupt, click.Abort):
        click.echo("Interrupted; run the same command again to go on.", err=True)
        return INTERRUPTED
    except BrokenPipeError:  # the reader of our output, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
    except OSError as error:
        if error.strerror is None:
            raise
        if error.errno == errno.ENOSPC:
            where = f" for {error.filename}" if error.filename else ""
            return _refuse(
                f"no space is left on the disk{where}; free some (`bench clean` does, and "
                "BENCH_CACHE can be made anew), then run the same command again"
            )
        return _refuse(f"{error.filename or type(error).__name__}: {error.strerror}")


def _refuse(message: str) -> int:
    click.echo(f"Error: {' '.join(message.split())}", err=True)
    return USAGE


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="pretrain-bench")
def bench() -> None:
    """Train vision pretraining methods beside each other and render boards that can be trusted."""


COMMANDS = (
    running.run,
    running.plan,
    tuning.tune,
    tracks.track,
    running.worker,
    methods.list_,
    methods.info,
    methods.check,
    plugins_writing.new_plugin,
    estimating.estimate,
    evaluating.eval_,
    studying.study,
    costing.cost,
    boards.leaderboard,
    boards.publish,
    reproducing.reproduce,
    exporting.export,
    cleaning.clean,
    boards.doctor,
)
for command in COMMANDS:
    bench.add_command(command)
