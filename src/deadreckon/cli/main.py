"""The command: finds the verb, and turns every outcome into one clear line and an exit code."""

from __future__ import annotations

import os
import sys
from importlib import import_module
from typing import Any

import click

from deadreckon import __version__
from deadreckon.errors import DeadreckonError

# verb -> one line of help; its command lives in deadreckon.cli.<verb> under the same name and is imported when it is
# run.
_VERBS = {
    "read": "Dead subspace of a checkpoint's final norm, from its parameters alone.",
    "classify": "LayerNorm, RMSNorm or neither, from the parameters, with the evidence.",
    "diff": "What changed in the norms between two checkpoints of a model, before and after.",
    "census": "Exactly dead parameter dimensions, from shapes, ties and norms alone.",
    "measure": "Verify the dead subspace in one forward pass; compare with random-init twins.",
    "fisher": "Fisher information along the parameter steps that a norm's kernel makes dead.",
    "trace": "Where the residual stream loses a direction, block by block, and why (not a matrix trace).",
    "probe": "Screen a norm layer of your own code for directions of its output that never vary.",
    "sweep": "Verbs on many models, revisions, seeds and data from a YAML file; resumable, here or on Ray.",
    "table": "The main figures of a sweep's tasks: in the terminal, as CSV, Parquet or JSON.",
    "report": "Saved results as one HTML page: verdicts, charts, tables and where they come from.",
    "atlas": "Build or check the table of architectures that reading relies on (needs torch and transformers).",
    "reproduce": "The paper's table of 14 models, and a verdict on each of its claims.",
    "demo": "The main job on two small trained models, one LayerNorm and one RMSNorm.",
}
INTERNAL_ERROR = 70
INTERRUPTED = 130


class _Verbs(click.Group):
    """Imports a verb's module only when that verb runs: what a command imports is what it costs to start."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _VERBS:
            return None
        command: click.Command = getattr(import_module(f"deadreckon.cli.{cmd_name}"), cmd_name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Verbs"):
            formatter.write_dl(list(_VERBS.items()))


@click.group(cls=_Verbs, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@click.version_option(__version__, prog_name="deadreckon")
def cli(debug: bool) -> None:
    """Read a transformer's dead directions from its parameters, and verify them in one forward pass.

    MODEL is a directory with config.json, a .safetensors, .gguf, .onnx, .pt or .bin file, ORG/NAME[@REVISION] (a model
    on the Hugging Face hub), random:NAME (a published configuration with random weights) or demo:NAME (a small trained
    model that a package ships).

    Exit codes: 0 done; 1 it ran and a check failed; 2 bad usage or bad input; 3 could not read or reach;
    70 internal error; 130 interrupted.
    """


def main(arguments: list[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: without the program's name; those of the process by default.

    Returns:
        The exit code.

    Raises:
        DeadreckonError: only with ``--debug``, which asks for the traceback.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    debug = "--debug" in arguments
    try:
        result: Any = cli.main(arguments, prog_name="deadreckon", standalone_mode=False)
        sys.stdout.flush()
    except click.exceptions.Abort:
        return _say("interrupted", INTERRUPTED)
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except DeadreckonError as error:
        if debug:
            raise
        return _say(str(error), error.exit_code)
    except BrokenPipeError:
        # The reader of our output went away (``| head``): not our error, and no more can be said on that pipe.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:  # the last resort that keeps a traceback from the user
        if debug:
            raise
        return _say(
            f"internal error: {type(error).__name__}: {error} (run again with --debug and report it)", INTERNAL_ERROR
        )
    return result if isinstance(result, int) else 0


def _say(message: str, code: int) -> int:
    click.echo(f"deadreckon: {' '.join(message.split())}", err=True)
    return code


if __name__ == "__main__":
    sys.exit(main())
