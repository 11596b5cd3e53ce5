"""The commands. Each collects settings, calls one function of ``api`` and shows the result.

Nothing heavy is imported here: a command prints its first line, then imports ``api`` (and with it torch).
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import shlex
import shutil
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from anyformer.core.errors import FAILURE, INTERRUPTED, AnyformerError, SettingsError
from anyformer.core.names import default_run_name, free_folder
from anyformer.core.protocols import View
from anyformer.core.ranks import follows, is_led
from anyformer.core.settings import (
    CheckSettings,
    DemoSettings,
    EvaluateSettings,
    ExportSettings,
    GenerateSettings,
    InspectSettings,
    RepairSettings,
    ReproduceSettings,
    TrainSettings,
)
from anyformer.core.view import PlainView, QuietView, printable

if TYPE_CHECKING:
    from anyformer.api import TrainResult

_BROKEN_PIPE = 141  # 128 + SIGPIPE, as shells report it


@dataclass(frozen=True)
class Request:
    """One call of a command."""

    target: str
    """MODEL or RUN; empty where the command has none."""
    settings: Any
    """An instance of the command's settings."""
    argv: tuple[str, ...]
    """The whole command line after ``anyformer``, for the record."""
    view: View
    close_view: Callable[[], None]
    """Takes a moving line away; called before anything goes to stdout."""
    as_json: bool
    trust: bool = False
    """Approve code that comes over a network, as it is now."""
    show_source: bool = False

    @property
    def command_line(self) -> str:
        return shlex.join(["anyformer", *self.argv])

    def show(self, lines: Sequence[str]) -> None:
        """Results go to stdout; with --json that is kept for the one object."""
        self.close_view()
        if not self.as_json:
            print("\n".join(lines), flush=True)


@dataclass(frozen=True)
class Command:
    """A verb: what it takes and what it calls."""

    summary: str
    positional: str | None
    settings: type | None
    run: Callable[[Request], dict[str, Any]]
    """Returns the object that --json prints."""


def _width() -> int:
    return shutil.get_terminal_size((100, 24)).columns


def _api(request: Request) -> ModuleType:
    """Import ``anyformer.api`` and with it the heavy parts, seconds of it.

    Ctrl-C meanwhile ends the process at once: nothing is begun yet, and an exception inside the libraries' own start-up
    code would abort it with a message from C++.
    """
    request.view.status("loading PyTorch …")

    def leave(number: int, frame: Any) -> None:
        request.close_view()
        print("anyformer: interrupted", file=sys.stderr, flush=True)
        os._exit(INTERRUPTED)

    main_thread = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGINT, leave) if main_thread else None
    try:
        from anyformer import api

        return api
    finally:
        if main_thread:
            signal.signal(signal.SIGINT, before if before is not None else signal.default_int_handler)


def _needs(request: Request, what: str, usage: str) -> str:
    if not request.target:
        raise SettingsError(f"{usage.split()[1]} needs {what}", fix=usage)
    return request.target


def demo(request: Request) -> dict[str, Any]:
    settings: DemoSettings = request.settings
    request.view.line("anyformer demo · a small GPT on your Python's own standard library\n")
    api = _api(request)

    result = api.demo(settings, view=request.view, command=request.command_line)
    return _trained(request, result, "anyformer train your_model.py --data your_text.txt")


def train(request: Request) -> dict[str, Any]:
    settings: TrainSettings = request.settings
    if settings.resume == "auto":
        request.view.line(f"anyformer train · {request.target or 'the newest run'}, from where it stopped\n")
    elif settings.resume is None:
        model = _needs(request, "a model", "anyformer train MODEL --data FILE   (MODEL: model.py or example:gpt)")
        request.view.line(f"anyformer train · {model} on {settings.data} → {_planned_run(model, settings)}\n")
    else:
        request.view.line(f"anyformer train · resuming {settings.resume}\n")
    api = _api(request)
    from anyformer.ui.results import next_command

    result = api.train(
        request.target or None,
        settings=settings,
        trust=request.trust,
        view=request.view,
        command=request.command_line,
    )
    return _trained(request, result, next_command(result.run_path, result.results, result.samples))


def _planned_run(model: str, settings: TrainSettings) -> str:
    """Where the run will lie: the settings' name or model-data, with -2, -3 … where that exists."""
    return str(free_folder(Path(settings.output_dir), settings.name or default_run_name(model, settings.data)))


def _trained(request: Request, result: TrainResult, following: str) -> dict[str, Any]:
    from anyformer.ui.results import training_lines

    request.show(
        training_lines(result.run_path, result.results, result.samples, result.report_path, following, _width())
    )
    return {
        "run": str(result.run_path),
        "results": result.results,
        "findings": [finding.to_dict() for finding in result.findings],
        "report": str(result.report_path) if result.report_path else None,
        "samples": result.samples,
    }


def inspect(request: Request) -> dict[str, Any]:
    model = _needs(request, "a model", "anyformer inspect MODEL   (MODEL: model.py or example:gpt)")
    api = _api(request)
    from anyformer.ui.results import plan_lines

    if request.show_source:
        lines = api.show_source(model, view=request.view)
        request.show(lines)
        return {"source": lines}
    settings: InspectSettings = request.settings
    loaded, plan = api.inspect(model, weights=settings.weights, trust=request.trust, view=request.view)
    request.show(plan_lines(loaded, plan, _width()))
    return {
        "model": loaded.provenance.to_dict(),
        "call_plan": plan.to_dict(),
        "findings": [finding.to_dict() for finding in (*loaded.findings, *plan.findings)],
    }


def check(request: Request) -> dict[str, Any]:
    model = _needs(request, "a model", "anyformer check MODEL   (MODEL: model.py or example:gpt)")
    api = _api(request)
    from anyformer.checks.text import check_lines

    settings: CheckSettings = request.settings
    report = api.check(model, settings=settings, trust=request.trust, view=request.view)
    request.show(check_lines(report, model, _width()))
    causes = [result.finding().to_dict() for result in report.results if not result.under]
    return {**report.to_dict(), "findings": causes}


def repair(request: Request) -> dict[str, Any]:
    model = _needs(request, "a model", "anyformer repair MODEL   (MODEL: model.py or gist:ID)")
    api = _api(request)
    from anyformer.ui.results import diff_text, repair_lines

    settings: RepairSettings = request.settings
    found = api.repair(model, settings=settings, trust=request.trust, view=request.view)
    if found.diff:
        request.show([diff_text(found.diff, colour=sys.stdout.isatty())])
    written = settings.write or (str(found.path) if settings.in_place else None)
    request.close_view()
    for line in repair_lines(found, model, written, _width()):  # stdout holds the diff alone, ready for patch
        request.view.line(line)
    return {
        "file": str(found.path),
        "repaired": found.needed,
        "changes": list(found.changes),
        "diff": found.diff,
        "source": found.source,
        "written": written if found.needed else None,
        "findings": [finding.to_dict() for finding in found.findings],
    }


def evaluate(request: Request) -> dict[str, Any]:
    run = _needs(request, "a run", "anyformer evaluate runs/NAME")
    settings: EvaluateSettings = request.settings
    request.view.line(f"anyformer evaluate · {run} on {settings.data or 'its own held-out text'}\n")
    api = _api(request)
    from anyformer.ui.results import evaluation_lines

    evaluation = api.evaluate(run, settings=settings, view=request.view)
    request.show(evaluation_lines(evaluation, _width()))
    record = asdict(evaluation)
    findings = [finding.to_dict() for finding in evaluation.findings]
    return {"run": str(record.pop("run_path")), **record, "findings": findings}


def generate(request: Request) -> dict[str, Any]:
    run = _needs(request, "a run", 'anyformer generate runs/NAME --prompt "Once "')
    api = _api(request)

    def write(piece: str) -> None:
        request.close_view()
        sys.stdout.write(printable(piece) if sys.stdout.isatty() else piece)
        sys.stdout.flush()

    settings: GenerateSettings = request.settings
    started = time.monotonic()
    texts = api.generate_text(run, settings=settings, on_text=None if request.as_json else write, view=request.view)
    request.show([""])  # the end of the text's last line
    characters = sum(len(text) for text in texts)
    request.view.line(f"{characters:,} characters in {time.monotonic() - started:.1f} s")
    return {"run": run, "prompt": settings.prompt, "texts": texts}


def export(request: Request) -> dict[str, Any]:
    model = _needs(request, "a run or a model", "anyformer export runs/NAME --to onnx,torchscript")
    settings: ExportSettings = request.settings
    request.view.line(f"anyformer export · {model} → {', '.join(settings.formats)}\n")
    api = _api(request)
    done = api.export(model, settings=settings, trust=request.trust, view=request.view)
    request.show([f"  {record['output_path']}" for record in done.files])
    return {
        "folder": str(done.folder),
        "files": list(done.files),
        "findings": [finding.to_dict() for finding in done.findings],
    }


def report(request: Request) -> dict[str, Any]:
    run = _needs(request, "a run", "anyformer report runs/NAME")
    api = _api(request)
    path = api.report(run)
    request.show([str(path)])
    return {"run": run, "report": str(path)}


def runs(request: Request) -> dict[str, Any]:
    from anyformer.runs.story import find_run, run_list, run_story, story_lines

    if request.target:
        story = run_story(find_run(request.target))
        request.show([printable(line) for line in story_lines(story)])
        told = story.pop("findings")  # of then: this command itself found nothing wrong
        return {**story, "warnings": told}
    found = run_list()
    width = max((len(one["run"]) for one in found), default=0)
    request.show(
        [
            f"  {one['run']:<{width}}  {one['state']:<11}  step {one['step']:,} of {one['total_steps'] or 0:,}"
            + ("" if one["held_out_loss"] is None else f"  held-out loss {one['held_out_loss']:.3f}")
            for one in found
        ]
        or ["no runs in runs/: anyformer train MODEL --data FILE makes one"]
    )
    return {"runs": found}


def reproduce(request: Request) -> dict[str, Any]:
    from anyformer.runs.story import find_run

    run = find_run(_needs(request, "a run", "anyformer runs reproduce NAME"))
    request.view.line(f"anyformer runs reproduce · {run}, trained anew and compared\n")
    api = _api(request)
    from anyformer.ui.results import reproduction_lines

    done = api.reproduce(run, settings=request.settings, trust=request.trust, view=request.view)
    request.show(reproduction_lines(done.findings, done.replay_path, _width()))
    return {
        "run": str(done.run_path),
        "steps": done.steps,
        "reproduced": done.reproduced,
        "exact": done.exact,
        "replay": None if done.replay_path is None else str(done.replay_path),
        "findings": [finding.to_dict() for finding in done.findings],
    }


COMMANDS = {
    "demo": Command("Train a small GPT on the Python standard library, in minutes.", None, DemoSettings, demo),
    "inspect": Command("How a model is called, measured on the model itself.", "MODEL", InspectSettings, inspect),
    "check": Command("Is this model right? Checked from outside, before it is trained.", "MODEL", CheckSettings, check),
    "repair": Command(
        "A corrected model file, as a diff; written only where asked for.", "MODEL", RepairSettings, repair
    ),
    "train": Command("Train a model on text.", "MODEL", TrainSettings, train),
    "evaluate": Command("Held-out loss of a run, beside its baselines.", "RUN", EvaluateSettings, evaluate),
    "generate": Command("Text from a run.", "RUN", GenerateSettings, generate),
    "export": Command("Files that other programs run, each proven equal.", "RUN", ExportSettings, export),
    "report": Command("Write a run's report.html anew.", "RUN", None, report),
    "runs": Command(
        "The runs in runs/; runs show NAME tells what happened to one, runs reproduce NAME replays and compares it.",
        "RUN",
        None,
        runs,
    ),
}
ACTIONS = {  # of "runs"
    "show": COMMANDS["runs"],
    "reproduce": Command("Train a run anew from its manifest and compare.", "RUN", ReproduceSettings, reproduce),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code: 0 done, 1 failed, 2 wrong usage, 130 interrupted."""
    arguments = tuple(sys.argv[1:] if argv is None else argv)
    as_json = "--json" in arguments
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a sign that the terminal cannot show must not cost the result
            stream.reconfigure(errors="replace")
    if "--debug" not in arguments:
        # how torch's own layers would be faster, or under which of our lines it was called: between our lines it
        # hides what the user can act on
        for module in (r"torch\.nn\.(modules|functional)\b", r"anyformer\.models\.losstap"):
            warnings.filterwarnings("ignore", category=UserWarning, module=module)
        warnings.filterwarnings("ignore", category=UserWarning, message="enable_nested_tensor is True")
    try:
        code = _dispatch(arguments)
        sys.stdout.flush()
    except BrokenPipeError:
        # whoever read stdout is gone (| head); the interpreter must not try to flush it again
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _BROKEN_PIPE
    except AnyformerError as error:
        record = {"type": type(error).__name__, "what": error.what, "detail": error.detail, "fix": error.fix}
        return _failed(str(error), record, error.exit_code, arguments, as_json)
    except SystemExit as stop:
        what = f"the model's code ended the program (exit code {stop.code})"
        return _failed(what, {"type": "SystemExit", "what": what}, FAILURE, arguments, as_json)
    except KeyboardInterrupt:
        return _failed("interrupted", {"type": "KeyboardInterrupt"}, INTERRUPTED, arguments, as_json)
    except Exception as error:  # noqa: BLE001 - the outermost place: whatever it is, the user gets a message
        text = AnyformerError(
            f"unexpected {type(error).__name__}: {error}", fix="run again with --debug for the traceback"
        )
        record = {"type": type(error).__name__, "what": str(error)}
        return _failed(str(text), record, FAILURE, arguments, as_json)
    return code


def _failed(text: str, record: dict[str, str], code: int, argv: Sequence[str], as_json: bool) -> int:
    if "--debug" in argv:
        import traceback

        traceback.print_exc()
    print(f"anyformer: {printable(text)}", file=sys.stderr, flush=True)
    if as_json:
        print(_json({"error": record}))
    return code


def _dispatch(argv: tuple[str, ...]) -> int:
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(_overview())
        return 0
    if argv[0] in ("--version", "-V"):
        from anyformer import __version__

        print(f"anyformer {__version__}")
        return 0
    command = COMMANDS.get(argv[0])
    if command is None:
        raise _unknown_command(argv[0])
    return _run(argv, command)


def _run(argv: tuple[str, ...], command: Command) -> int:
    from anyformer.ui.flags import parse

    name, *rest = argv
    if name == "runs" and rest and not rest[0].startswith("-"):
        action, *rest = rest
        known = action if action in ACTIONS else "show"
        named = action in ACTIONS and rest and (not rest[0].startswith("-") or "--help" in rest)
        if not named:
            raise SettingsError(f"anyformer runs {action}: no run is named", fix=f"anyformer runs {known} NAME")
        name, command = (name if action == "show" else f"{name} {action}"), ACTIONS[action]
    try:
        parsed = parse(name, command.summary, command.positional, command.settings, rest)
    except SystemExit as done:  # --help has printed
        return int(done.code or 0)
    if parsed.print_config:
        import yaml

        print(yaml.safe_dump(asdict(parsed.settings), sort_keys=False, allow_unicode=True), end="")
        return 0
    with _view(quiet="--quiet" in rest) as (view, close):
        request = Request(
            parsed.target or "",
            parsed.settings,
            argv,
            view,
            close,
            as_json="--json" in rest,
            trust=parsed.trust,
            show_source=parsed.show_source,
        )
        # a model's own print() must not spoil the one object
        with contextlib.redirect_stdout(sys.stderr) if request.as_json else contextlib.nullcontext():
            if name in ("train", "demo") and follows(parsed.settings):
                return _followed(command, request)
            result = command.run(request)
    if request.as_json:
        print(_json({"command": name, **result}))
    blocked = any(finding["verdict"] == "fail" for finding in result.get("findings", []))
    return FAILURE if blocked else 0


def _followed(command: Command, request: Request) -> int:
    """The exit code of a process that another one speaks for: it says nothing itself."""
    spoken = sys.stderr
    with open(os.devnull, "w") as nothing, contextlib.redirect_stdout(nothing), contextlib.redirect_stderr(nothing):
        try:
            command.run(replace(request, view=QuietView(), as_json=True))
        except AnyformerError as error:
            return error.exit_code
        except KeyboardInterrupt:
            return INTERRUPTED
        except Exception:  # noqa: BLE001  (told to the first process; in full where somebody looks for it)
            import traceback

            traceback.print_exc(file=spoken if "--debug" in request.argv or is_led() else nothing)
            return FAILURE
    return 0


def _json(record: Any) -> str:
    """Strict JSON: a figure that is infinite or not a number becomes null, as JSON has neither."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {str(key): plain(item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [plain(item) for item in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return json.dumps(plain(record), ensure_ascii=False, default=str, allow_nan=False)


@contextlib.contextmanager
def _view(quiet: bool) -> Iterator[tuple[View, Callable[[], None]]]:
    """The view that fits where stderr goes, and how to take its moving line away."""
    if quiet:
        yield QuietView(), lambda: None
    elif sys.stderr.isatty() and os.environ.get("TERM") != "dumb":
        from anyformer.ui.live import RichView

        with RichView() as view:
            yield view, view.close
    else:
        yield PlainView(), lambda: None


def _overview() -> str:
    width = max(len(name) for name in COMMANDS)
    return "\n".join(
        [
            "usage: anyformer COMMAND [MODEL | RUN] [--SETTING VALUE ...]",
            "",
            "Point it at any PyTorch transformer and train it on real text.",
            "",
            *(f"  {name:<{width}}  {command.summary}" for name, command in COMMANDS.items()),
            "",
            "anyformer COMMAND --help lists a command's settings. Start with: anyformer demo",
        ]
    )


def _unknown_command(name: str) -> SettingsError:
    from difflib import get_close_matches

    near = get_close_matches(name, COMMANDS, n=1)
    fix = f"did you mean anyformer {near[0]}?" if near else "anyformer --help says what each does"
    if name.endswith(".py"):
        fix = f"anyformer train {name} --data FILE"
    return SettingsError(f"there is no command {name!r}", detail=f"commands: {', '.join(COMMANDS)}", fix=fix)
