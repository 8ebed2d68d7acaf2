"""Checks lehr on a GPU and measures it beside PyTorch, within a fixed time. `scripts/gpu-check.sh` starts it.

    python tools/bench/gpu_check.py LEHR_BINARY [OP_TESTS_BINARY] [--out DIR] [--minutes 8]

Correctness comes first (operations, golden files, training), then speed (training beside PyTorch, kernels, decoding). Every command has a
time limit, and every row of the table is there from the start as "not run (no time)", so that nothing is left out silently. The exit
code is 1 if a row of correctness failed or hung. OUT gets `table.md`, `results.jsonl` (every measurement) and `log.txt` (every command
with all it printed).

PyTorch compiles its models in the background while correctness is checked, where nothing is timed; before the first measurement that has
ended or is stopped.
"""

import argparse
import math
import os
import re
import shlex
import shutil
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path

from gpu_rows import (
    ARCHS,
    DECODES,
    FINETUNES,
    FINETUNE_PARITY,
    FINETUNE_STEPS,
    FP8,
    FP8_LIMIT,
    KERNEL_GOALS,
    N_LOSSES,
    OPTIONS,
    PARITY,
    SPEEDS,
    SPEED_GOAL,
    TURNS,
    all_rows,
    failing_lines,
    family_of,
    finite,
    kernel_table,
    median,
    peak_mb,
    quoted,
    relative,
    shape_text,
    share,
)
from gpu_run import (
    BELOW,
    COMMAND_LIMITS,
    CUT_OFF,
    FAILED,
    LEAST,
    NO_TIME,
    NOT_THERE,
    OK,
    RESERVE,
    ROOT,
    Ran,
    Runner,
)

TORCH_GPU = ROOT / "tools/bench/torch_gpu.py"


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("lehr", type=Path, help="the program lehr")
    parser.add_argument("op_tests", type=Path, nargs="?", help="the test program of the crate lehr-tensor")
    parser.add_argument("--out", type=Path, help="folder for table, measurements and log (default: gpu-check-DATE)")
    parser.add_argument("--minutes", type=float, default=8, help="ends within this time by itself (default: 8)")
    args = parser.parse_args()
    for program in filter(None, [args.lehr, args.op_tests]):
        if not os.access(program, os.X_OK):
            parser.error(f"{program} is not there or not a program")
    if args.minutes < 0.2:
        parser.error("--minutes is at least 0.2")
    args.out = args.out or Path(time.strftime("gpu-check-%Y-%m-%d-%H%M%S"))
    return args


class Ended(BaseException):
    """The time is over, or somebody wants the program to end."""


class Check(Runner):
    def __init__(self, args):
        super().__init__(args)
        self.details = []
        self.is_broken = False
        self.stopped_by = None
        self.no_torch = None
        self.rows = {row.step: row for row in all_rows()}

    def set(self, step, result, figure="", peer=None):
        row = self.rows[step]
        row.result, row.figure = result, figure
        if peer is not None:
            row.peer = peer
        self.say(f"{step}: {result}  {figure}")

    # The steps, in the order of the table.

    def doctor(self):
        until = self.until("doctor")
        smi = self.run(["nvidia-smi"], COMMAND_LIMITS["doctor"], until)
        query = ["--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
        names = self.run(["nvidia-smi", *query], COMMAND_LIMITS["doctor"], until)
        ran = self.run_lehr(["doctor", "--json"], COMMAND_LIMITS["doctor"], until)
        if ran.result is None:
            ran.result = OK if ran.code == 0 else FAILED
        for text in (smi.out or smi.err, ran.out or ran.err):
            print(text, file=sys.stderr)
        card = "; ".join(names.out.split("\n")).strip("; ") if names.code == 0 else "nvidia-smi does not work"
        self.set("doctor", ran.result, "; ".join(filter(None, [card, ran.reason()])))

    def ops(self):
        crate = ROOT / "crates/lehr-tensor"
        words = ["gpu_", "--nocapture", "--test-threads=1"]
        if self.args.op_tests:
            command = [self.args.op_tests.resolve(), *words]
        elif shutil.which("cargo"):
            command = ["cargo", "test", "-p", "lehr-tensor", "--release", "--lib", "--", *words]
        else:
            return self.set("ops", "not run", "no test program was given, and there is no cargo")
        # As cargo would start it: tests find their files from there.
        place = crate if self.args.op_tests else ROOT
        env = {"CARGO_MANIFEST_DIR": str(crate)}
        ran = self.run(command, COMMAND_LIMITS["ops"], self.until("ops"), env, place)
        counts = re.search(r"test result: \w+\. (\d+) passed; (\d+) failed", ran.out)
        n_passed = int(counts[1]) if counts else 0
        if ran.result is None:
            # A filter that matches no test must not pass for success.
            ran.result = OK if ran.code == 0 and n_passed > 0 else FAILED
        if ran.result == OK:
            figure = f"tests passed: {n_passed}, in {ran.seconds:.0f} s"
        elif counts and ran.code == 0:
            figure = "no test has a name with gpu_"
        else:
            text = ran.out + ran.err
            cases = re.search(r"\d+ cases failed", text)
            figure = cases[0] if cases else ran.reason()
            if ran.result == FAILED:
                self.details.append("Operations:\n\n" + quoted(failing_lines(text)))
        self.set("ops", ran.result, figure)

    def goldens(self):
        until = self.until("goldens")
        folders = sorted(path.parent for path in ROOT.glob("crates/lehr-model/tests/golden/*/golden.safetensors"))
        n_ok, n_items, worst, faults, rest = 0, 0, (0.0, ""), [], None
        for folder in folders:
            words = ["verify", folder, folder / "golden.safetensors", "--device", "cuda", "--dtype", "f32", "--json"]
            ran = self.run_lehr(words, COMMAND_LIMITS["golden"], until)
            if ran.result in (NO_TIME, CUT_OFF, NOT_THERE):
                rest = ran.result
                break
            objects = ran.objects()
            if ran.result is not None or not objects:
                faults.append(f"{folder.name}: {ran.reason() or ran.result}")
                continue
            self.record(f"golden {folder.name}", objects[-1])
            checks = objects[-1].get("checks", [])
            n_items += len(checks)
            bad = [c for c in checks if not c.get("passed")]
            # An error that is not a number arrives as null.
            for c in checks:
                if c.get("error") is not None and c.get("limit") and c["error"] / c["limit"] >= worst[0]:
                    worst = (c["error"] / c["limit"], f"{folder.name} {c['item']}")
            if bad or ran.code != 0 or not checks or not objects[-1].get("passed"):
                faults += [f"{folder.name} {c['item']}: error {c.get('error')}, limit {c.get('limit')}" for c in bad]
                faults += [] if bad else [f"{folder.name}: exit code {ran.code}, {len(checks)} items"]
            else:
                n_ok += 1
        figure = f"{n_ok} of {len(folders)} models, {n_items} items"
        if worst[1]:
            figure += f"; nearest to its limit: {worst[1]}, {worst[0]:.2f} of it"
        if faults:
            self.details.append("Golden files:\n\n" + quoted(faults))
            figure += f"; {faults[0]}"
        if not folders:
            figure = "there are no golden files"
        done = OK if folders else FAILED
        # Before the first folder it is "not run", after it "not finished".
        rest = CUT_OFF if rest == NO_TIME and n_ok else rest
        self.set("goldens", FAILED if faults else rest or done, figure)

    def parity(self):
        until = self.until("parity")
        for arch in ARCHS:
            want, why = self.losses(arch, "cpu", "f32", until)
            for dtype, limit in PARITY.items():
                step = f"parity {arch} {dtype}"
                if want is None:
                    self.set(step, why.result, f"the run on the CPU {why.reason()}".strip())
                    continue
                pair = []
                for _ in range(2):
                    got, ran = self.losses(arch, "cuda", dtype, until)
                    if got is None:
                        self.set(step, ran.result, ran.reason())
                        break
                    pair.append(got)
                if len(pair) < 2:
                    continue
                self.set(step, *compared(pair, want, limit))

    def losses(self, arch, device, dtype, until, more=()):
        """The losses of a short training run, or None and why there are none."""
        # One step at least is a warm-up.
        words = ["bench", "step", "--config", "tiny", *ARCHS[arch], "--steps", N_LOSSES - 1, "--warmup", 1, "--json"]
        words += ["--device", device, "--dtype", dtype, *more]
        line, ran = self.measure(" ".join(["losses", arch, device, dtype, *more]), words, COMMAND_LIMITS["parity"], until)
        if line is None:
            return None, ran
        losses = line.get("losses")
        if not isinstance(losses, list) or len(losses) != N_LOSSES:
            return None, Ran(FAILED, err=f"{N_LOSSES} losses expected, found {losses!r:.80}")
        return losses, ran

    def finetunes(self):
        """Losses of a few steps of fine-tuning on the GPU, twice, beside those on the CPU."""
        until = self.until("finetunes")
        with tempfile.TemporaryDirectory() as folder:
            folder = Path(folder)
            entities = folder / "entities.conll"
            entities.write_text("".join(f"The O\nglass B-THING\nno{i} I-THING\nbroke O\n\n" for i in range(200)))
            (folder / "text.txt").write_text("".join(f"Paragraph {i}: the lens is clear, the bowl is not.\n\n" for i in range(500)))
            words = ["pretrain", "--data", folder / "text.txt", "--depth", 1, "--device", "cpu", "--out", folder / "base", "--json"]
            words += ["--set", "model.kind=llama", "--set", "train.steps=4", "--set", "schedule.warmup_steps=1"]
            base = self.run_lehr([*words, "--set", "schedule.decay_steps=1"], COMMAND_LIMITS["parity"], until)
            for task, (data, more) in FINETUNES.items():
                words = ["finetune", "--model", folder / "base", "--data", ROOT / "data" / data if data else entities, *more]
                words += ["--set", f"train.steps={FINETUNE_STEPS}", "--set", "schedule.warmup_steps=1", "--json"]
                want, why = self.step_losses(words, folder, "cpu", "f32", until)
                for dtype, limit in FINETUNE_PARITY.items():
                    runs = [self.step_losses(words, folder, "cuda", dtype, until) for _ in range(2)]
                    failed = [ran for losses, ran in [(want, why), *runs] if losses is None]
                    if failed:
                        ran = base if base.result is not None or base.code != 0 else failed[0]
                        self.set(f"finetune {task}, {dtype}", ran.result or FAILED, ran.reason())
                    else:
                        self.set(f"finetune {task}, {dtype}", *compared([losses for losses, _ in runs], want, limit))

    def step_losses(self, words, folder, device, dtype, until):
        """The losses of all steps of a run, or None and why there are none."""
        shutil.rmtree(folder / "run", ignore_errors=True)
        words = [*words, "--out", folder / "run", "--device", device, "--dtype", dtype]
        ran = self.run_lehr(words, COMMAND_LIMITS["parity"], until)
        if ran.result is None:
            losses = [event["metrics"]["loss"] for event in ran.objects() if event.get("event") == "step"]
            if ran.code == 0 and len(losses) == FINETUNE_STEPS:
                return losses, ran
            ran.result = FAILED
        return None, ran

    def options(self):
        """Whether ways to make a step change its bits, and, untimed by goals, what they cost and save at a real size."""
        until = self.until("options")
        want, why = self.losses("llama", "cuda", "bf16", until)
        size = ["bench", "step", "--device", "cuda", "--config", "gpt2", "--batch", 16, "--steps", 8, "--warmup", 3, "--json"]
        plain, _ = self.measure("step", size, COMMAND_LIMITS["lehr"], until)
        for option, words in OPTIONS.items():
            step = f"step {option}"
            got, ran = self.losses("llama", "cuda", "bf16", until, words)
            if want is None or got is None:
                ran = why if want is None else ran
                self.set(step, ran.result, ran.reason())
                continue
            figure = "equal" if got == want else f"DIFFER by up to {max(map(relative, got, want)):.1e}"
            line, _ = self.measure(step, [*size, *words], COMMAND_LIMITS["lehr"], until)
            if line is not None and plain is not None:
                ratio = line["tok_s"] / plain["tok_s"]
                figure += f"; GPT-2 124M at 16 × 1,024: {ratio:.2f} × the speed{peak_mb([line])} of{peak_mb([plain])[1:]}"
            self.set(step, OK if got == want else FAILED, figure)

    def warm_torch(self):
        """Starts PyTorch's compilations, whose results it keeps on disk, beside what is not timed."""
        probe = self.run([sys.executable, "-c", "import torch; print(torch.__version__)"], 60)
        if probe.result is not None or probe.code != 0:
            self.no_torch = f"no figure: {probe.reason() or probe.result}"
            for s in SPEEDS:
                self.rows[s.name].peer = self.no_torch
            return
        commands = [[sys.executable, str(TORCH_GPU), *s.arguments(), "--steps", "1", "--warmup", "1"] for s in SPEEDS]
        script = "\n".join(shlex.join(command) for command in commands)
        self.say("PyTorch compiles in the background")
        self.start_background(script)

    def speed(self, turn, found):
        """One turn of every configuration: lehr, then PyTorch."""
        for s in SPEEDS:
            ours, theirs = found.setdefault(s.name, ([], []))
            if turn > 0:
                # Where the first turn gave nothing, a second would not. What it took says whether another one fits.
                seconds = sum(line["seconds"] for line in ours[:1] + theirs[:1])
                if not ours or self.left() < 1.2 * seconds + LEAST:
                    continue
            words = ["bench", "step", "--device", "cuda", "--dtype", "bf16", *s.arguments()]
            line, ran = self.measure(s.name, words, COMMAND_LIMITS["lehr"])
            if line is None:
                if not ours:
                    self.set(s.name, ran.result, ran.reason())
            else:
                ours.append(line | {"seconds": ran.seconds})
            if self.no_torch is None and (turn == 0 or theirs):
                chosen = [f"--{key}={theirs[0][key]}" for key in ("mode", "loss", "attention")] if theirs else []
                ran = self.run([sys.executable, TORCH_GPU, *s.arguments(), *chosen], COMMAND_LIMITS["torch"])
                line = self.object_of(s.name, ran)
                if ran.result == FAILED and not theirs:
                    # Compiling needs a C compiler, which may be missing; uncompiled is better than no figure.
                    ran = self.run([sys.executable, TORCH_GPU, *s.arguments(), "--mode=eager"], COMMAND_LIMITS["torch"])
                    line = self.object_of(s.name, ran)
                if line is not None:
                    theirs.append(line | {"seconds": ran.seconds})
                elif not theirs:
                    self.rows[s.name].peer = f"no figure: {ran.reason() or ran.result}"
            if ours or theirs:
                self.judge_speed(s.name, ours, theirs)

    def fp8(self, found):
        """Wide matrices in 8 bits: losses and speed beside bf16."""
        words = ["bench", "step", "--device", "cuda", "--dtype", "bf16", *FP8.arguments(), "--fp8"]
        line, ran = self.measure("train fp8", words, COMMAND_LIMITS["lehr"])
        if line is None:
            return self.set("train fp8", ran.result, ran.reason())
        figure = f"{line['tok_s']:,.0f} tokens/s, {line.get('fp8_matrices', 0)} matrices in fp8"
        if line.get("fp8_refused"):
            figure += f", {line['fp8_refused']} kinds of products REFUSED by cuBLASLt"
        plain = found.get(FP8.name, ([], []))[0]
        if not plain:
            return self.set("train fp8", "no comparison", figure)
        difference = max(map(relative, line["losses"], plain[0]["losses"]))
        figure = f"{line['tok_s'] / median(plain, 'tok_s'):.2f} × bf16; {figure}; losses {difference:.1e} off"
        self.set("train fp8", OK if difference <= FP8_LIMIT else FAILED, figure)

    def judge_speed(self, step, ours, theirs):
        row = self.rows[step]
        if theirs:
            row.peer = f"{median(theirs, 'tok_s'):,.0f} tokens/s, {share(theirs, 'mfu')}{peak_mb(theirs)}"
            row.peer += f" ({theirs[0]['mode']}, loss {theirs[0]['loss']}, attention {theirs[0]['attention']})"
        if not ours:
            return
        figure = f"{median(ours, 'tok_s'):,.0f} tokens/s, {share(ours, 'mfu')}{peak_mb(ours)}"
        turns = min(len(ours), len(theirs) or len(ours))
        figure += f"; {turns} turn{'s' if turns > 1 else ''}"
        if not all(finite(line.get(key)) for line in ours for key in ("loss_first", "loss_last")):
            return self.set(step, FAILED, f"{figure}; the loss is not a number")
        if not theirs:
            return self.set(step, "no comparison", figure)
        for key in ("params", "B", "T"):
            if ours[0].get(key) != theirs[0].get(key):
                return self.set(step, FAILED, f"other work: {key} is {ours[0].get(key)} and {theirs[0].get(key)}")
        # Both start near the logarithm of the number of ids, or one of them computes something else.
        if relative(ours[0]["loss_first"], theirs[0]["loss_first"]) > 0.05:
            firsts = " and ".join(f"{lines[0]['loss_first']:.3f}" for lines in (ours, theirs))
            return self.set(step, FAILED, f"other work: first losses {firsts}")
        ratio = median(ours, "tok_s") / median(theirs, "tok_s")
        self.set(step, OK if ratio >= SPEED_GOAL else BELOW, f"**{ratio:.2f} ×**; {figure}")

    def kernels(self):
        ran = self.run_lehr(["bench", "ops", "--device", "cuda", "--json"], COMMAND_LIMITS["kernels"])
        lines = [line for line in ran.objects() if "op" in line]
        for line in lines:
            self.record("kernels", line)
        steps = [f"kernels {family}" for family in KERNEL_GOALS]
        if ran.result is None and (ran.code != 0 or not lines):
            ran.result = FAILED
        families = {}
        for line in lines:
            families.setdefault(family_of(line["op"]), []).append(line)
        for step, (family, goal) in zip(steps, KERNEL_GOALS.items()):
            measured = [line for line in families.get(family, []) if finite(line.get("share"))]
            if not measured:
                self.set(step, ran.result or "not measured", ran.reason())
                continue
            low = min(measured, key=lambda line: line["share"])
            high = max(line["share"] for line in measured)
            figure = f"{low['share']:.2f} to {high:.2f} in {len(measured)}; least: {low['op']} {low.get('dtype')} {shape_text(low)}"
            self.set(step, OK if low["share"] >= goal else BELOW, figure)
        if lines:
            self.details.append("Kernels:\n\n" + kernel_table(lines))

    def decode(self):
        for weights, batch in DECODES:
            step = f"decode 8b {weights} × {batch}"
            words = ["bench", "decode", "--device", "cuda", "--json"]
            words += ["--shape", "8b", "--weights", weights, "--batch", batch]
            line, ran = self.measure(step, words, COMMAND_LIMITS["decode"])
            if line is None:
                self.set(step, ran.result, ran.reason())
                continue
            parts = [("tok_s", "{:,.1f} tokens/s"), ("gbytes_s", "{:,.0f} GB/s"), ("share", "{:.2f} of the floor")]
            figures = [text.format(line[key]) for key, text in parts if finite(line.get(key))]
            self.set(step, OK if figures else FAILED, ", ".join(figures))

    def all_steps(self):
        found = {}
        steps = [self.doctor, self.warm_torch, self.ops, self.goldens, self.parity, self.finetunes, self.options]
        # Enough for a compilation that is nearly through; a cold one is only slower than one from disk.
        steps += [
            lambda: self.end_background(min(60, self.left() / 6)),
            lambda: self.speed(0, found),
            lambda: self.fp8(found),
            self.kernels,
            self.decode,
        ]
        # Further turns come last: a figure for everything is worth more than a second one for some.
        steps += [lambda turn=turn: self.speed(turn, found) for turn in range(1, TURNS)]
        for step in steps:
            try:
                step()
            except Exception:
                # Of this program, for instance over JSON of another shape. The other steps are worth having.
                self.is_broken = True
                self.say(traceback.format_exc())
                self.details.append("The check itself broke:\n\n" + quoted(traceback.format_exc().splitlines()))

    def stop_by(self, name):
        self.stopped_by = name
        for row in self.rows.values():
            if row.result == NO_TIME:
                row.result = "not run (stopped)"

    def table(self):
        head = ["step", "result", "figure", "goal", "PyTorch"]
        cells = [[r.step, r.result, r.figure, r.goal, r.peer] for r in self.rows.values()]
        cells = [[cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in cells]
        return "\n".join("| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *cells])

    def conclusion(self):
        rows = [row for row in self.rows.values() if row.is_correctness]
        failed = [row.step for row in rows if row.failed()]
        unknown = [row.step for row in rows if not row.failed() and row.result != OK]
        if self.is_broken:
            return "The check itself broke; its table is not complete."
        if self.stopped_by:
            return f"Ended by {self.stopped_by} before all was checked."
        if failed:
            return f"Results are WRONG or missing: {', '.join(failed)}."
        if unknown:
            return f"Nothing is wrong in what was checked, but not checked: {', '.join(unknown)}."
        return "Results are right."

    def finish(self):
        seconds = time.monotonic() - self.start
        text = f"{self.table()}\n\n{self.conclusion()} {seconds:.0f} s of {60 * self.args.minutes:.0f}.\n"
        details = "".join(f"\n{part}\n" for part in self.details)
        (self.args.out / "table.md").write_text(text + details)
        print(f"{details}\n{text}", flush=True)
        return 1 if self.is_broken or self.stopped_by or any(row.failed() for row in self.rows.values()) else 0


def compared(pair, want, limit):
    """Result and figure of two lists of losses beside those that are wanted."""
    difference = max(relative(a, b) for a, b in zip(pair[0], want, strict=True))
    equal = pair[0] == pair[1]
    figure = f"{difference:.1e}" if math.isfinite(difference) else "not a number"
    figure += f"; two runs {'equal' if equal else 'DIFFER'}"
    return OK if equal and difference <= limit else FAILED, figure


def main():
    args = arguments()
    check = Check(args)

    def end(number, _frame):
        raise Ended(signal.Signals(number).name)

    for number in (signal.SIGALRM, signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)
    # Whatever a step does, the table is printed in time.
    signal.setitimer(signal.ITIMER_REAL, max(1, 60 * args.minutes - RESERVE + 3))
    try:
        check.all_steps()
    except Ended as why:
        check.say(f"ended by {why}")
        if str(why) != "SIGALRM":
            check.stop_by(str(why))
    finally:
        for number in (signal.SIGALRM, signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)
        check.end_background(0)
    sys.exit(check.finish())


if __name__ == "__main__":
    main()
