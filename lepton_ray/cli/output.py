"""What the command prints: progress and accounts for people, JSON for programs, errors without a traceback."""

import contextlib
import errno
import json
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn, TextIO

import typer
import typer.core
from rich.console import Console
from rich.markup import escape
from rich.status import Status

from lepton_ray.core.errors import LeptonError
from lepton_ray.core.extras import explain
from lepton_ray.core.files import finite
from lepton_ray.core.settings import local_path

_INTERRUPTED = 130
_LOG_EVERY_S = 10.0
_OF_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_USAGE_ERROR: Any = typer.BadParameter.__bases__[0]  # click's, which newer typers hold a copy of under no public name
_OF_PLACES = (FileNotFoundError, FileExistsError, NotADirectoryError, IsADirectoryError, PermissionError)


class RichProgress:
    """Draws a run on the terminal: a spinner while a stage works, its account when it is done.

    Elsewhere, as in a log, how far a stage is stands in lines of its own, one in ten seconds at most.
    """

    def __init__(self) -> None:
        self.console = Console(stderr=True, highlight=False, soft_wrap=True)
        self._status: Status | None = None
        self._stage = ""
        self._said_s = 0.0

    def started(self, stage: str) -> None:
        """Show the spinner."""
        self._stage, self._said_s = stage, time.monotonic()
        self._status = self.console.status(f"[bold]{stage}[/]")
        self._status.start()

    def update(self, message: str) -> None:
        """Show how far the stage is."""
        if self._status is not None:
            self._status.update(f"[bold]{self._stage}[/] {escape(message)}")
        if not self.console.is_terminal and time.monotonic() - self._said_s >= _LOG_EVERY_S:
            self._said_s = time.monotonic()
            self.console.print(f"{self._stage:<10} {message}", markup=False)

    def finished(self, stage: str, account: list[str], seconds: float, skipped: bool) -> None:
        """Print the stage's account."""
        self.stop()
        state = "[dim]done before[/]" if skipped else f"[green]done[/] in {seconds:.1f} s"
        self.console.print(f"[bold]{stage:<10}[/] {state}")
        for line in account:
            self.console.print(f"           {line}", markup=False)

    def stop(self) -> None:
        """Take the spinner away."""
        if self._status is not None:
            self._status.stop()
            self._status = None


def print_json(value: Any) -> None:
    """Print JSON to standard output; a number that is not finite becomes null, for which JSON has no other word."""
    text = json.dumps(finite(value), indent=2, ensure_ascii=False, allow_nan=False, default=str)
    typer.echo(text.encode("utf-8", "backslashreplace").decode())  # a path may hold bytes that are not UTF-8


def keep_input(output: Path | None, read: str) -> None:
    """See that ``--output`` would not be written over what is read.

    Raises:
        LeptonError: If it would.
    """
    source = local_path(read)
    with contextlib.suppress(OSError):  # one of them is not there
        if output is not None and source is not None and output.samefile(source):
            raise LeptonError(f"--output must be another file than what is read, got {str(output)!r}. Choose another")


@contextlib.contextmanager
def open_output(path: Path, mode: Literal["w", "x"]) -> Iterator[TextIO]:
    """Open the file of ``--output``, which is there, or replaced, once all of it is written; mode ``x`` keeps one that is there.

    Raises:
        LeptonError: If it cannot be written.
    """
    try:
        if mode == "x" and os.path.lexists(path):
            raise FileExistsError
        target = path.resolve()  # a link stays one
        if target.exists() and not os.access(target, os.W_OK):  # its folder may let it be replaced all the same
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        is_device = path.exists() and not path.is_file()  # or a pipe: what is written there is gone
        in_place = is_device or not os.access(target.parent, os.W_OK)
        written = path if in_place else target.with_name(f".lepton-ray-{os.getpid()}.tmp")
        stream = written.open("w", encoding="utf-8")
    except FileExistsError as error:
        raise LeptonError(
            f"--output must be a file that is not there yet, got {str(path)!r}. Remove it or choose another"
        ) from error
    except OSError as error:
        raise LeptonError(
            f"--output must be a file that can be written, got {str(path)!r} ({error.strerror}). Choose another"
        ) from error
    if in_place:
        with stream:
            yield stream
        return
    try:
        with stream:
            yield stream
        if target.exists():
            shutil.copymode(target, written)
        written.replace(target)
    except BaseException:
        written.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def only_json_on_stdout(as_json: bool) -> Iterator[None]:
    """Send what engines print while they work to standard error: Ray tells of dead workers on standard output."""
    with contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext():
        yield


@contextlib.contextmanager
def sigterm_as_ctrl_c() -> Iterator[None]:
    """Let SIGTERM do within a block what Ctrl-C does, so that what was started is ended."""
    if threading.current_thread() is not threading.main_thread():  # no other thread may say what signals do
        yield
        return
    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt


@contextlib.contextmanager
def errors_explained(as_json: bool = False, progress: RichProgress | None = None) -> Iterator[None]:
    """Turn errors into messages and exit statuses: 2 a bad spec, 3 a gate not met, 1 anything else."""
    try:
        yield
    except LeptonError as error:
        _fail(error, str(error), error.exit_status, as_json, progress)
    except KeyboardInterrupt as error:
        _fail(error, "interrupted", _INTERRUPTED, as_json, progress)
    except typer.Exit:
        raise
    except BrokenPipeError:  # the reader, such as head, has seen enough
        sys.stderr.close()
        raise typer.Exit(1) from None
    except Exception as error:  # noqa: BLE001  the last place to explain an error; its traceback goes to a file
        if _was_interrupted(error):
            _fail(error, "interrupted", _INTERRUPTED, as_json, progress)
        if isinstance(error, ModuleNotFoundError) and (explained := explain(error, "this command")):
            _fail(error, str(explained), explained.exit_status, as_json, progress)
        if isinstance(error, _OF_PLACES) and error.filename is not None:
            what = f"{os.fsdecode(error.filename)!r} must be a place that can be used, got: {error.strerror}. Check the path"
            _fail(error, f"{what}\n{_write_details(error)}", 1, as_json, progress)
        if isinstance(error, OSError) and error.errno in _OF_ROOM:
            what = f"there must be room for what is written, got: {error.strerror}. Make room, or write elsewhere"
            _fail(error, f"{what}\n{_write_details(error)}", 1, as_json, progress)
        lines = str(error).strip().splitlines()
        message = f"unexpected {type(error).__name__}: {lines[0] if lines else ''}\n{_write_details(error)}"
        _fail(error, message, 1, as_json, progress)


def _was_interrupted(error: BaseException | None) -> bool:
    """Whether Ctrl-C is behind an error: a module that is interrupted as it is imported makes another of it."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error is not None


class Commands(typer.core.TyperGroup):
    """The commands; a wrong use of one is an error in JSON as any other where ``--json`` is given."""

    def main(self, args: Sequence[str] | None = None, *arguments: Any, **options: Any) -> Any:
        """Run the command of some arguments, those of the process by default."""
        words = sys.argv[1:] if args is None else list(args)
        if "--json" not in words:
            return super().main(words, *arguments, **options)
        try:
            status = super().main(words, *arguments, **{**options, "standalone_mode": False})
        except _USAGE_ERROR as error:
            command = error.ctx.command_path if error.ctx is not None else "lepton-ray"
            with contextlib.suppress(OSError):
                _print_error(error, f"{error.format_message().rstrip('.')}. See {command} --help", error.exit_code)
            status = error.exit_code
        except typer.Abort:  # Ctrl-C before or after what explains it
            raise KeyboardInterrupt from None
        sys.exit(status)


def _write_details(error: Exception) -> str:
    """Write an error's traceback to a file; returns where it is."""
    try:
        with tempfile.NamedTemporaryFile("w", prefix="lepton-ray-error-", suffix=".txt", delete=False) as file:
            traceback.print_exception(error, file=file)
    except OSError as fault:  # a full disk may be why there is an error at all
        return f"The details could not be written ({fault.strerror})"
    return f"The details are in {file.name}"


def _fail(error: BaseException, message: str, status: int, as_json: bool, progress: RichProgress | None) -> NoReturn:
    if progress is not None:
        progress.stop()
    if as_json:
        with contextlib.suppress(OSError):  # standard output may be what is full
            _print_error(error, message, status)
            raise typer.Exit(status) from None
    sys.stderr.write("\n".join([f"error: {message}", *getattr(error, "__notes__", [])]) + "\n")
    raise typer.Exit(status) from None


def _print_error(error: BaseException, message: str, status: int) -> None:
    notes = getattr(error, "__notes__", [])
    print_json({"error": message, "kind": type(error).__name__, "exit_status": status, "notes": notes})
