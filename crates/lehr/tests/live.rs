//! The live view in a pseudo-terminal: what is printed stays above it, the terminal's size may
//! change, and after Ctrl-C nothing has to be restored.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![cfg(target_os = "linux")]

mod common;

use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use common::{lehr, pretrain_args, write_text};
use rustix::pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};

/// A terminal with a program in it.
struct Session {
    master: OwnedFd,
    reader: File,
    child: Child,
    /// What the program has written.
    output: String,
}

fn resize(terminal: &OwnedFd, width: u16, height: u16) {
    let size = Winsize { ws_col: width, ws_row: height, ws_xpixel: 0, ws_ypixel: 0 };
    tcsetwinsize(terminal, size).unwrap();
}

impl Session {
    /// Begins a run of `steps` steps in a terminal of 72 × 24 characters.
    fn start(dir: &Path, steps: u64, more: &[&str], env: &[(&str, &str)]) -> Self {
        write_text(dir, 300);
        // Programs that other tests start meanwhile must not inherit the terminal.
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let master = openpt(flags).unwrap();
        grantpt(&master).unwrap();
        unlockpt(&master).unwrap();
        let terminal = ioctl_tiocgptpeer(&master, flags).unwrap();
        resize(&master, 72, 24);
        let mut command = lehr(dir);
        command.args(pretrain_args("run", steps, &["eval.every_steps=40"])).args(more);
        command.env("TERM", "xterm").env_remove("NO_COLOR").envs(env.iter().copied());
        command.stdout(terminal.try_clone().unwrap()).stderr(terminal).stdin(Stdio::null());
        let child = command.spawn().unwrap();
        // The command still holds the program's side of the terminal, which would not end.
        drop(command);
        let reader = File::from(master.try_clone().unwrap());
        Self { master, reader, child, output: String::new() }
    }

    /// Reads until the output after its first `from` bytes contains `text`.
    fn read_until(&mut self, from: usize, text: &str) {
        while !self.output[from..].contains(text) {
            assert!(self.read(), "ended without {text:?}:\n{}", self.output);
        }
    }

    /// Reads what there is. Returns whether the program still writes.
    fn read(&mut self) -> bool {
        let mut buffer = vec![0; 1 << 16];
        // A terminal whose program has ended gives an error.
        let n = self.reader.read(&mut buffer).unwrap_or(0);
        let mut bytes = buffer[..n].to_vec();
        while n > 0 && std::str::from_utf8(&bytes).is_err() {
            let mut byte = [0];
            self.reader.read_exact(&mut byte).unwrap();
            bytes.push(byte[0]);
        }
        self.output += std::str::from_utf8(&bytes).unwrap();
        n > 0
    }

    /// Reads to the end and returns the output and the exit code.
    fn finish(mut self) -> (String, Option<i32>) {
        while self.read() {}
        let status = self.child.wait().unwrap();
        assert!(!self.output.contains("panicked"), "{}", self.output);
        (std::mem::take(&mut self.output), status.code())
    }
}

/// A failed test leaves no program behind.
impl Drop for Session {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The lines that a terminal of unlimited width shows after `output`.
fn screen(output: &str) -> Vec<String> {
    let (mut rows, mut row, mut column) = (vec![Vec::<char>::new()], 0usize, 0usize);
    let mut rest = output.chars();
    while let Some(c) = rest.next() {
        match c {
            '\r' => column = 0,
            '\n' => {
                row += 1;
                rows.resize(rows.len().max(row + 1), Vec::new());
            }
            '\x1b' => {
                assert_eq!(rest.next(), Some('['));
                let mut code = String::new();
                while !code.ends_with(|c: char| c.is_ascii_alphabetic()) {
                    code.push(rest.next().unwrap());
                }
                match code.as_str() {
                    "K" => rows[row].truncate(column),
                    "J" => {
                        rows[row].truncate(column);
                        rows.truncate(row + 1);
                    }
                    // Moving up is all else: no colours, modes, hidden cursors, other screens.
                    up => row -= up.strip_suffix('A').unwrap().parse::<usize>().unwrap(),
                }
            }
            c => {
                let line = &mut rows[row];
                line.resize(line.len().max(column + 1), ' ');
                line[column] = c;
                column += 1;
            }
        }
    }
    rows.iter().map(|row| row.iter().collect()).collect()
}

fn count(lines: &[String], part: &str) -> usize {
    lines.iter().filter(|line| line.contains(part)).count()
}

#[test]
fn a_view_is_drawn_below_what_is_printed() {
    let scratch = tempfile::tempdir().unwrap();
    let (output, code) = Session::start(scratch.path(), 400, &[], &[]).finish();
    assert_eq!(code, Some(0), "{output}");
    assert!(output.matches("tokens/s").count() > 1, "one frame only: {output}");
    let lines = screen(&output);
    // Each evaluation has its line, and of all frames the last one is left.
    for step in (40..=400).step_by(40) {
        assert_eq!(count(&lines, &format!("step {step}: held-out loss")), 1, "{lines:#?}");
    }
    for part in ["step 400/400  100%", "gradient norm", "tokens/s", "held out, step 400: loss"] {
        assert_eq!(count(&lines, part), 1, "{part}: {lines:#?}");
    }
    let view = lines.iter().position(|line| line.contains("400/400")).unwrap();
    let done = lines.iter().position(|line| line.starts_with("done in")).unwrap();
    let last = lines.iter().position(|line| line.starts_with("step 400: held-out")).unwrap();
    assert!(last < view && view < done, "{lines:#?}");
}

#[test]
fn resizing_and_ctrl_c_leave_a_terminal_in_order() {
    let scratch = tempfile::tempdir().unwrap();
    let mut session = Session::start(scratch.path(), 1_000_000, &[], &[]);
    session.read_until(0, "tokens/s");
    for (width, height) in [(50, 9), (30, 5), (10, 2), (200, 50), (60, 20)] {
        resize(&session.master, width, height);
        // A frame may have begun before, so the second one from here is of the new size.
        for _ in 0..2 {
            let from = session.output.len();
            session.read_until(from, "\x1b[J");
        }
        let from = session.output.len();
        session.read_until(from, "\x1b[J");
        let frame = session.output[from..].split("\x1b[J").next().unwrap();
        let room = usize::from(width);
        for line in frame.split("\r\n").filter(|line| line.contains("\x1b[K")) {
            let shown = line.split('\x1b').next().unwrap().trim_matches('\r');
            assert!(shown.chars().count() < room.max(2), "{width}×{height}: {line:?}");
        }
    }
    let pid = session.child.id().to_string();
    assert!(Command::new("kill").args(["-INT", &pid]).status().unwrap().success());
    let (output, code) = session.finish();
    assert_eq!(code, Some(130), "{output}");
    let end = output.rsplit("\x1b[J").next().unwrap();
    assert!(end.contains("\ncontinue with: lehr pretrain --resume run"), "{output}");
}

#[test]
fn without_a_view_there_are_lines() {
    for (more, env) in
        [(&["--plain"][..], &[][..]), (&[], &[("NO_COLOR", "1")]), (&[], &[("TERM", "dumb")])]
    {
        let scratch = tempfile::tempdir().unwrap();
        let (output, code) = Session::start(scratch.path(), 40, more, env).finish();
        assert_eq!(code, Some(0), "{output}");
        assert!(!output.contains('\x1b'), "{env:?}: {output}");
        assert!(output.contains("\nstep 40/40  loss"), "{output}");
    }
}
