"""Runs the commands of gpu_check.py: each with a limit, all within a fixed time, and everything they print in a log."""

import glob
import json
import os
import shlex
import signal
import site
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent

OK, FAILED, BELOW = "ok", "FAILED", "below goal"
TIME_LIMIT, CUT_OFF, NO_TIME = "FAILED (time limit)", "not finished (no time)", "not run (no time)"
NOT_THERE = "not in this binary"

# Seconds a step may take of eight minutes; what it leaves is there for those after it. Operations compile all kernels, once.
STEP_LIMITS = {"doctor": 30, "ops": 160, "goldens": 75, "parity": 90, "finetunes": 60, "options": 60}
# Seconds of one command. A shorter rest of the step's or of the whole time is no reason to call a command hung.
COMMAND_LIMITS = {"doctor": 15, "ops": 150, "golden": 25, "parity": 30}
COMMAND_LIMITS |= {"lehr": 45, "torch": 100, "kernels": 60, "decode": 45}
# Seconds that a command needs at least to be worth starting.
LEAST = 4
# Of the whole time, for stopping the last command and writing the table.
RESERVE = 6


def library_folders():
    """Where pip put CUDA's libraries, after what LEHR_CUDA_LIBS names already."""
    packages = [*site.getsitepackages(), site.getusersitepackages(), *sys.path]
    found = [folder for base in packages if base for folder in sorted(glob.glob(f"{base}/nvidia/*/lib"))]
    given = os.environ.get("LEHR_CUDA_LIBS", "").split(":")
    return ":".join(dict.fromkeys(folder for folder in [*given, *found] if folder))


@dataclass
class Ran:
    """What became of a command. `result` says why there is nothing to read from it, and is None where there may be."""

    result: str | None
    out: str = ""
    err: str = ""
    code: int | None = None
    seconds: float = 0.0

    def objects(self):
        """The JSON objects it printed, one a line."""
        found = []
        for line in self.out.splitlines():
            try:
                value = json.loads(line)
            except ValueError:
                continue
            if isinstance(value, dict):
                found.append(value)
        return found

    def reason(self):
        """Why there is no figure, where the result does not say it all."""
        if self.result not in (None, FAILED):
            return ""
        lines = [line for line in (self.err or self.out).splitlines() if line.strip()]
        errors = [line for line in lines if "error" in line.lower()]
        return (errors or lines or [f"exit code {self.code}"])[-1].strip()[:160]


class Runner:
    """Runs commands until the time is over."""

    def __init__(self, args):
        self.args = args
        self.start = time.monotonic()
        self.deadline = self.start + 60 * args.minutes - RESERVE
        args.out.mkdir(parents=True, exist_ok=True)
        self.log = (args.out / "log.txt").open("w")
        self.results = (args.out / "results.jsonl").open("w")
        self.lehr = str(args.lehr.resolve())
        # The driver, whatever the caller's environment says: an emulated GPU would prove and measure something else.
        self.env = os.environ | {"LEHR_CUDA": "driver", "LEHR_CUDA_LIBS": library_folders(), "PYTHONUNBUFFERED": "1"}
        self.background = None

    def say(self, text):
        print(f"[{time.monotonic() - self.start:4.0f} s] {text}", file=sys.stderr, flush=True)

    def left(self):
        return self.deadline - time.monotonic()

    def until(self, step):
        """When a step has to be over."""
        seconds = max(STEP_LIMITS[step] * self.args.minutes / 8, 3 * LEAST)
        return min(self.deadline, time.monotonic() + seconds)

    def record(self, step, value):
        self.results.write(json.dumps({"step": step} | value) + "\n")
        self.results.flush()

    def run(self, command, limit, until=None, env=None, cwd=ROOT):
        """Runs a command to its end or its limit; logs it."""
        command = [str(word) for word in command]
        rest = (until or self.deadline) - time.monotonic()
        if rest < LEAST:
            return Ran(NO_TIME)
        self.say(shlex.join([Path(command[0]).name, *command[1:]]))
        start = time.monotonic()
        with (
            tempfile.TemporaryFile("w+", errors="replace") as out,
            tempfile.TemporaryFile("w+", errors="replace") as err,
        ):
            try:
                process = start_process(command, out, err, self.env | (env or {}), cwd)
            except OSError as error:
                self.write_log(command, f"did not start: {error}", "", "")
                return Ran(FAILED, err=str(error))
            hung = None
            try:
                process.wait(min(limit, rest))
            except subprocess.TimeoutExpired:
                hung = TIME_LIMIT if limit <= rest else CUT_OFF
            finally:
                # Also when the program is told to end.
                stop(process)
                texts = [read_all(out), read_all(err)]
                seconds = time.monotonic() - start
                self.write_log(command, f"{hung or f'exit code {process.returncode}'}, {seconds:.1f} s", *texts)
        return Ran(hung, *texts, process.returncode, seconds)

    def run_lehr(self, words, limit, until=None):
        """Runs lehr; an option or a command that it does not know is told apart from a failure."""
        ran = self.run([self.lehr, *words], limit, until)
        # The code with which the parser of arguments ends the program; errors of lehr itself have 1.
        if ran.result is None and ran.code == 2:
            ran.result = NOT_THERE
        return ran

    def measure(self, step, words, limit, until=None):
        """Runs lehr for one JSON object: (the object or None, what became of the command)."""
        ran = self.run_lehr(words, limit, until)
        return self.object_of(step, ran), ran

    def object_of(self, step, ran):
        objects = ran.objects()
        if ran.result is None and (ran.code != 0 or not objects):
            ran.result = FAILED
        if ran.result is not None:
            return None
        self.record(step, objects[-1])
        return objects[-1]

    def write_log(self, command, end, out, err):
        said = f"{out}--- standard error\n{err}" if err else out
        self.log.write(f"$ {shlex.join(command)}\n{said}--- {end}\n\n")
        self.log.flush()

    def start_background(self, script):
        """Starts a shell's script beside the other commands."""
        log = self.background_log = tempfile.TemporaryFile("w+", errors="replace")
        self.background = start_process(["sh", "-c", script], log, log, self.env, ROOT)

    def end_background(self, seconds):
        if self.background is None:
            return
        process, self.background = self.background, None
        try:
            self.say("waiting for PyTorch's compilations")
            process.wait(max(0, min(seconds, self.left())))
            end = f"exit code {process.returncode}"
        except subprocess.TimeoutExpired:
            end = "stopped"
        finally:
            stop(process)
        self.write_log(["PyTorch's compilations in the background"], end, read_all(self.background_log), "")


def start_process(command, out, err, env, cwd):
    # A group of its own, so that its children can be ended with it.
    return subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=out, stderr=err, env=env, cwd=cwd, start_new_session=True
    )


def stop(process):
    """Ends a process and its children: first it is asked, then it is made to. Never waits long for one that cannot end."""
    for number, seconds in ((signal.SIGTERM, 1.5), (signal.SIGKILL, 1.5)):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            pass
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            continue


def read_all(file):
    file.seek(0)
    return file.read()
