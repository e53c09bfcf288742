"""Ends commands at every call of the file layer, and looks at what is left.

`storage.files` is the one module that writes. Its module `os` is replaced by a `Layer` that counts
the calls; at a chosen one the process is killed or interrupted, or the disk is full or closed from
there on. Every try is a fork of one process that has imported everything, which saves seconds.

    python tests/helpers/crashes.py simulate kill,full 1 0
"""

import contextlib
import errno
import importlib
import json
import os
import shutil
import signal
import sys
import tempfile
import traceback
from pathlib import Path

import msgspec

from codream_secure.cli.main import entry_point
from codream_secure.models.trained import load_model
from codream_secure.runs.comparison_format import ComparisonResult
from codream_secure.runs.formats import Summary, parse, parse_row
from codream_secure.storage import files

# What commands import within functions, imported before any fork: each would take seconds for it.
# The first optimizer of a process imports the last one, which takes longer than a whole run here.
for _name in ("api.execution", "compare.comparison", "report.page", "report.progress"):
    importlib.import_module(f"codream_secure.{_name}")
for _name in ("sklearn.datasets", "torch._dynamo"):
    importlib.import_module(_name)

CALLS = ("open", "write", "fsync", "ftruncate", "replace", "rename", "mkdir", "unlink")
SIGNALS = {"kill": signal.SIGKILL} | {
    name: getattr(signal, f"SIG{name.upper()}") for name in ("int", "term", "hup")
}
FAULTS = (*SIGNALS, "full", "denied")
TINY = (
    *("--clients", "3", "--samples-per-client", "20", "--rounds", "2", "--dreams", "4"),
    *("--dream-steps", "1", "--kd-epochs", "1", "--models", "linear"),
)
PLAIN = (*TINY, "--warmup-epochs", "1", "--seed", "0")
PRIVATE = (*TINY, "--dp-eps", "8", "--dp-steps", "4", "--dp-warmup", "0.5", "--seed", "0")


class Layer:
    """The module `os` as `storage.files` sees it: call number ``at`` meets a fault; 0: none."""

    def __init__(self, at, fault):
        self.at, self.fault, self.count = at, fault, 0

    def __getattr__(self, name):
        real = getattr(os, name)
        if name not in CALLS:
            return real

        def call(*args, **more):
            self.count += 1
            half = self._meet(name, real, args) if self.at and self.count >= self.at else None
            return real(*args, **more) if half is None else half

        return call

    def _meet(self, name, real, args):
        """Let the fault happen; return how much was written if the call goes on after it."""
        if self.fault in SIGNALS:
            if self.count == self.at:
                half = real(args[0], args[1][: len(args[1]) // 2]) if name == "write" else None
                os.kill(os.getpid(), SIGNALS[self.fault])
                return half
        elif self.fault == "full":
            if name == "write":
                real(args[0], args[1][: len(args[1]) // 2])
            creates = name == "open" and args[1] & os.O_CREAT and not Path(args[0]).exists()
            if name in ("write", "mkdir") or creates:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        elif name == "open" and not args[1] & (os.O_WRONLY | os.O_RDWR):
            pass
        elif name in ("open", "mkdir", "replace", "rename", "unlink"):
            raise OSError(errno.EACCES, os.strerror(errno.EACCES))
        return None


def call(words, told, *, at=0, fault="kill", prepare=None):
    """Run a command line in a fork.

    Returns:
        Exit code (negative: a signal), output, and the number of calls if it came to its end.
    """
    pid = os.fork()
    if pid == 0:
        if prepare:
            prepare()
        _in_fork(words, told, Layer(at, fault))
    _, status = os.waitpid(pid, 0)
    text = told.read_text(errors="replace")
    text, _, count = text.rpartition("\ncalls ")
    return os.waitstatus_to_exitcode(status), text, int(count or 0)


def _in_fork(words, told, layer):
    code = 70
    try:
        descriptor = os.open(told, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        sys.stdout, sys.stderr = (os.fdopen(n, "w", closefd=False) for n in (1, 2))
        signal.signal(signal.SIGINT, signal.default_int_handler)
        files.os = layer
        sys.argv = ["codream-secure", *map(str, words)]
        entry_point()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0 if end.code is None else 70
    except BaseException:  # noqa: BLE001 - it is what is looked for
        traceback.print_exc()
    finally:
        layer.at = 0
        with contextlib.suppress(BaseException):
            print(f"\ncalls {layer.count}")
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


class Matrix:
    """One command, ended at many calls; ``findings`` says what was wrong."""

    def __init__(self, home):
        self.home, self.told, self.findings = home, home / "told.txt", []
        self.where = ""

    def expect(self, holds, what):
        if not holds:
            self.findings.append(f"{self.where}: {what}")

    def run(self, *words, **fault):
        code, text, count = call(words, self.told, **fault)
        self.expect("Traceback" not in text, f"{words[0]}: {text[-1500:]}")
        self.expect(code not in (1, 70), f"{words[0]} ends in {code}: {text[-300:]}")
        return code, text, count

    def tries(self, faults, step, first, begin, check):
        """Begin with every fault at every ``step``-th call from ``first`` on, and check."""
        shutil.rmtree(self.home / "tried", ignore_errors=True)
        _, _, calls = begin({})
        shutil.rmtree(self.home / "tried")
        done = 0
        for at in range(1 + first, calls + 1, step):
            for fault in faults:
                self.where = f"{fault} at call {at} of {calls}"
                code, text, _ = begin({"at": at, "fault": fault})
                check(fault, code, text)
                shutil.rmtree(self.home / "tried", ignore_errors=True)
                done += 1
        return done, calls

    def ended(self, fault, code, text, *, done):
        """Check the exit code of a command that met a fault; ``done``: results there were."""
        if fault == "kill":
            self.expect(code == -signal.SIGKILL, f"killed, ended in {code}")
        elif fault in SIGNALS:
            # What comes after the results, such as a signal while the page is written, is no loss.
            self.expect(code in (130, 0), f"interrupted, ended in {code}: {text[-300:]}")
            self.expect(code == 0 or "interrupted" in text, f"no sentence: {text[-300:]}")
        else:
            lines = [line for line in text.splitlines() if line.startswith("error: ")]
            self.expect(code in ((0, 3) if done else (2,)), f"ended in {code}: {text[-300:]}")
            self.expect(code == 0 or len(lines) == 1, f"not one line: {lines}")

    def readable(self, folder):
        """Check that a run's folder can be read, and return (rows, summary)."""
        if not (folder / "config.toml").is_file():
            return [], None
        page = self.home / "page.html"
        code, text, _ = self.run("report", folder, "--out", page)
        self.expect(code == 0, f"no report: {text[-300:]}")
        lines = (folder / "metrics.jsonl").read_bytes().split(b"\n")[:-1]
        rows = [parse_row(line) for line in lines]
        self.expect([r.round for r in rows] == list(range(1, len(rows) + 1)), "rows miss")
        summary = None
        if (folder / "summary.json").is_file():
            summary = parse((folder / "summary.json").read_bytes(), Summary)
            self.expect(summary.rounds_finished >= len(rows), "the summary tells of less")
        if (folder / "models").is_dir():
            names = {path.name for path in (folder / "models").iterdir()}
            wanted = {f"client-{c}" for c in range(3)} | {"server"}
            self.expect(names == wanted, f"models {sorted(names)}")
            for name in names:
                load_model(folder / "models" / name)
        return rows, summary


def _figures(summary):
    found = msgspec.to_builtins(summary)
    return {name: found[name] for name in ("accuracy", "rounds_finished", "test_digest")}


def simulate(matrix, faults, step, first, options=PLAIN):
    """End `simulate` at its calls; each folder is read, and resumed where it has a checkpoint."""
    words = ("simulate", *options, "--checkpoint-every", "1", "--quiet")
    whole = matrix.home / "whole"
    matrix.run(*words, "--out", whole)
    wanted = _figures(matrix.readable(whole)[1])
    folder = matrix.home / "tried/run"

    def check(fault, code, text):
        rows, summary = matrix.readable(folder)
        done = bool(rows or summary) or "after round" in text
        matrix.ended(fault, code, text, done=done or code == 3)
        if summary and summary.rounds_finished == 2:
            matrix.expect(_figures(summary) == wanted, "other figures")
        resumable = (folder / "checkpoint/state").is_file()
        code, text, _ = matrix.run("simulate", "--resume", folder, "--quiet")
        if not resumable:
            matrix.expect(code == 2 and text.count("error: ") == 1, f"resume: {code} {text}")
            return
        finished = "there is nothing left to do" in text
        matrix.expect(code == (2 if finished else 0), f"resume: {code} {text[-300:]}")
        rows, summary = matrix.readable(folder)
        matrix.expect(summary is not None and len(rows) == 2, "not finished by --resume")
        if summary and options is PLAIN:
            matrix.expect(_figures(summary) == wanted, "other figures after --resume")
        if summary and summary.privacy:
            matrix.expect(summary.privacy.epsilon <= 8, "more epsilon than asked for")
        there = {path.name for path in folder.iterdir()}
        matrix.expect({"models", "report.html", "labels.png"} <= there, f"missing: {there}")
        matrix.expect(finished or not any(n.endswith(files.PART) for n in there), f"left {there}")

    return matrix.tries(
        faults, step, first, lambda fault: matrix.run(*words, "--out", folder, **fault), check
    )


def resume(matrix, faults, step, first):
    """End `simulate --resume` of an interrupted run at its calls, as `simulate` is ended."""
    words = ("simulate", *PLAIN, "--checkpoint-every", "1", "--quiet")
    whole, begun = matrix.home / "whole", matrix.home / "begun"
    _, _, calls = matrix.run(*words, "--out", whole)
    wanted = _figures(matrix.readable(whole)[1])
    # Interrupted after the first checkpoint: it has summary, models and page of one round.
    for at in range(calls):
        shutil.rmtree(begun, ignore_errors=True)
        matrix.run(*words, "--out", begun, at=at + 1, fault="int")
        if (begun / "checkpoint/state").is_file() and (begun / "report.html").is_file():
            break
    folder = matrix.home / "tried/run"

    def begin(fault):
        shutil.copytree(begun, folder)
        return matrix.run("simulate", "--resume", folder, "--quiet", **fault)

    def check(fault, code, text):
        rows, summary = matrix.readable(folder)
        # What cannot even be gone on with is bad input.
        matrix.ended(fault, code, text, done=code != 2)
        if summary:
            matrix.expect(summary.rounds_finished == len(rows), "a summary of other rounds")
        code, text, _ = matrix.run("simulate", "--resume", folder, "--quiet")
        finished = "there is nothing left to do" in text
        matrix.expect(code == (2 if finished else 0), f"resume: {code} {text[-300:]}")
        matrix.expect(_figures(matrix.readable(folder)[1]) == wanted, "other figures")

    return matrix.tries(faults, step, first, begin, check)


def compare(matrix, faults, step, first):
    """End `compare` at its calls; the same command again finishes it to the same figures."""
    given = ("--methods", "codream,fedavg", "--match", "rounds", "--trials", "2", "--quiet")
    words = ("compare", *TINY, "--warmup-epochs", "1", *given)
    matrix.run(*words, "--out", matrix.home / "whole")

    def figures(folder):
        found = parse((folder / "compare.json").read_bytes(), ComparisonResult)
        return {r.method: r.mean and (r.mean.accuracy, r.mean.bytes_up) for r in found.rows}

    wanted, folder = figures(matrix.home / "whole"), matrix.home / "tried/compared"

    def check(fault, code, text):
        done = False
        if (folder / "compare.json").is_file():
            for name, found in figures(folder).items():
                matrix.expect(found in (None, wanted[name]), f"other figures of {name}")
        if (folder / "cells").is_dir():
            for cell in (folder / "cells").iterdir():
                done |= matrix.readable(cell)[1] is not None
        matrix.ended(fault, code, text, done=done or code == 3)
        code, text, _ = matrix.run(*words, "--out", folder)
        matrix.expect(code == 0, f"again: {code} {text[-300:]}")
        matrix.expect(figures(folder) == wanted, "other figures when it is repeated")

    return matrix.tries(
        faults, step, first, lambda fault: matrix.run(*words, "--out", folder, **fault), check
    )


def report(matrix, faults, step, first):
    """End `report` at its calls: the page is the old one or the new one."""
    matrix.run("simulate", *PLAIN, "--quiet", "--out", matrix.home / "whole")
    folder = matrix.home / "tried/run"

    def begin(fault):
        shutil.copytree(matrix.home / "whole", folder, dirs_exist_ok=True)
        return matrix.run("report", folder, **fault)

    def check(fault, code, text):
        page = (folder / "report.html").read_text(encoding="utf-8").rstrip()
        matrix.expect(page.endswith("</html>"), "half a page")
        if fault in ("full", "denied"):
            matrix.ended(fault, code, text, done=code == 0)
        matrix.expect(matrix.run("report", folder)[0] == 0, "no report afterwards")

    return matrix.tries(faults, step, first, begin, check)


def audit(matrix, faults, step, first):
    """End `audit privacy` of a run at its calls: audit.json is whole, shadows are not half."""
    matrix.run("simulate", *PLAIN, "--quiet", "--out", matrix.home / "whole")
    folder = matrix.home / "tried/run"
    words = ("audit", "privacy", folder, "--only", "membership", "--shadows", "4", "--json")

    def begin(fault):
        shutil.copytree(matrix.home / "whole", folder, dirs_exist_ok=True)
        return matrix.run(*words, **fault)

    def check(fault, code, text):
        if (folder / "audit.json").is_file():
            json.loads((folder / "audit.json").read_text())
        if fault in ("full", "denied"):
            matrix.ended(fault, code, text, done=code == 0)
        matrix.readable(folder)
        matrix.expect(matrix.run(*words)[0] in (0, 1), "no audit afterwards")

    return matrix.tries(faults, step, first, begin, check)


def private(matrix, faults, step, first):
    """Do what `simulate` does under DP: no crash gives budget back."""
    return simulate(matrix, faults, step, first, PRIVATE)


COMMANDS = {one.__name__: one for one in (simulate, private, resume, compare, report, audit)}


def main(name, faults, step, first):
    """Try a command; print one line a finding, then how many ends were tried."""
    with tempfile.TemporaryDirectory() as home:
        os.chdir(home)
        matrix = Matrix(Path(home))
        wanted = FAULTS if faults == "all" else faults.split(",")
        done, calls = COMMANDS[name](matrix, wanted, int(step), int(first))
    for finding in matrix.findings:
        print(finding)
    print(f"{done} ends of {name} at {calls} calls: {len(matrix.findings)} findings")
    return bool(matrix.findings)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
