"""How a command ends badly: one clear line on stderr and an exit code, never a traceback.

====  =====================================================================
code  meaning
====  =====================================================================
0     done
1     an expected failure of the work (exchange, data), or a failed check
2     bad input: a flag, a setting, a file
3     trading was halted to protect the account
70    a defect of this program; the traceback is in the log file named
130   interrupted from the keyboard
====  =====================================================================
"""

from __future__ import annotations

import errno
import os
import re
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator

import typer
from rich.text import Text
from typer import TyperException

from crypto_qlib.cli.asked import err
from crypto_qlib.core.errors import CryptoQlibError
from crypto_qlib.settings.load import Secrets

EXIT_DEFECT = 70
EXIT_INTERRUPTED = 130
_OUT_OF_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT})


def supervised(work: Callable[[], object]) -> int:  # noqa: PLR0911 - one return an ending
    """Run ``work`` and return the process's exit code; whatever goes wrong becomes one line on stderr."""
    try:
        code = work()
        if code == EXIT_INTERRUPTED:
            return _interrupted()
        return code if isinstance(code, int) else 0
    except (KeyboardInterrupt, typer.Abort):
        return _interrupted()
    except BrokenPipeError:
        # The reader of our output has gone (`| head`): nobody is left to tell, and nothing is wrong.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except TyperException as e:
        if e.format_message():  # empty where the help was shown instead
            say_error(e.format_message().rstrip("."), "see crypto-qlib --help")
        return getattr(e, "exit_code", 2)
    except CryptoQlibError as e:
        say_error(e.message, e.hint)
        return e.exit_code
    except Exception as e:  # noqa: BLE001 - the outermost supervisor: a defect is logged and told in one line
        return _unexpected(e)


def say_error(message: str, hint: str = "") -> None:
    """Print ``error: message — hint`` as one line on stderr."""
    line = Text("error: ", style="bold red")
    line.append(" ".join(message.split()), style="red")
    if hint:
        line.append(f" — {' '.join(hint.split())}", style="default")
    err().print(line)


def redacted(text: str, secrets: Secrets) -> str:
    """Return ``text`` with every secret, and every user and password of an address, replaced by ``***``."""
    for piece in sorted(secrets.pieces(), key=len, reverse=True):
        text = text.replace(piece, "***")
    return re.sub(r"(?<=://)[^/@\s]*:[^/@\s]*(?=@)", "***", text)


def _interrupted() -> int:
    say_error("interrupted", "run the same command again to go on where it stopped")
    return EXIT_INTERRUPTED


def _unexpected(error: Exception) -> int:
    for cause in _chain(error):
        if isinstance(cause, CryptoQlibError):
            say_error(cause.message, cause.hint)
            return cause.exit_code
        if isinstance(cause, OSError) and cause.errno in _OUT_OF_SPACE:
            say_error("the disk is full", "free some space, or choose another folder with --set store.root=PATH")
            return 1
    secrets = Secrets.from_environ(os.environ)
    trace = redacted("".join(traceback.format_exception(error)), secrets)
    with tempfile.NamedTemporaryFile("w", prefix="crypto-qlib-", suffix=".log", delete=False, encoding="utf-8") as log:
        log.write(f"crypto-qlib {redacted(' '.join(sys.argv[1:]), secrets)}\n\n{trace}")
    what = redacted(f"{type(error).__name__}: {error}", secrets)
    say_error(f"this is a defect of crypto-qlib: {what}", f"please report it with {log.name}")
    return EXIT_DEFECT


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yield the members of exception groups (task groups wrap what their tasks raise), or the error itself."""
    if isinstance(error, BaseExceptionGroup):
        for member in error.exceptions:
            yield from _chain(member)
    else:
        yield error
