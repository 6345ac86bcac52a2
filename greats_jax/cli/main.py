"""Entry point: one command in, one exit code out, and no traceback for a mistake the user can mend.

Exit codes: 0 done, or stopped in order by a signal; 1 the run could not be done; 2 the command line or the
configuration is wrong; 130 stopped at once.
"""

import os
import sys
from collections.abc import Sequence

from greats_jax.cli.parser import build_parser
from greats_jax.cli.quiet import silence_libraries
from greats_jax.errors import ConfigError, GreatsError
from greats_jax.secrets import masked


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: Arguments after the program's name; None takes those of the process.

    Returns:
        The exit code.
    """
    arguments = build_parser().parse(argv)
    silence_libraries()
    try:
        return arguments.run(arguments)
    except KeyboardInterrupt:
        return _fail("stopped", 130)
    except ConfigError as error:
        return _explain(error, 2)
    except (GreatsError, OSError) as error:
        return _explain(error, 1)
    except Exception as error:
        # Out of memory is the one failure of the compiled program that a setting mends.
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return _explain(
            error,
            1,
            "out of memory on the device; lower data.max_length, and batch, or evaluate_batch where examples are only "
            "measured",
        )


def _explain(error: Exception, code: int, text: str | None = None) -> int:
    """Print an error as one line, and its notes below it; GREATS_DEBUG=1 shows where it came from instead."""
    if os.environ.get("GREATS_DEBUG", "") not in ("", "0"):
        raise error
    lines = [text or " ".join(str(error).split()) or type(error).__name__, *getattr(error, "__notes__", ())]
    return _fail("\n  ".join(lines), code)


def _fail(text: str, code: int) -> int:
    print(masked(f"greats: error: {text}" if code != 130 else f"greats: {text}"), file=sys.stderr)
    return code
