//! Printing that cannot panic.
//!
//! The reader of our output may stop reading, and a disk may be full. Then the macros of the
//! standard library panic. The macros of this file replace them: a run continues, and [`check`]
//! reports at the end what was lost.

use std::fmt::Arguments;
use std::io::{self, ErrorKind, Write};
use std::sync::OnceLock;

use crate::live;

/// The first failure of standard output.
static FAILURE: OnceLock<io::Error> = OnceLock::new();

pub(crate) fn print(text: Arguments<'_>) {
    let written = live::around(|| io::stdout().lock().write_fmt(text));
    if let Err(error) = written {
        let _ = FAILURE.set(error);
    }
}

pub(crate) fn print_error(text: Arguments<'_>) {
    // Nobody is left to tell.
    let _ = live::around(|| io::stderr().lock().write_fmt(text));
}

/// Flushes buffered output. Returns an error if output was lost that someone waits for.
pub(crate) fn check() -> anyhow::Result<()> {
    let flushed = io::stdout().flush();
    match FAILURE.get().or(flushed.as_ref().err()) {
        Some(error) if error.kind() != ErrorKind::BrokenPipe => Err(crate::fail::Hinted::error(
            format!("writing to standard output: {error}"),
            "some output is lost; free some space or write elsewhere, and run the command again",
        )),
        _ => Ok(()),
    }
}

macro_rules! print {
    ($($part:tt)*) => { $crate::out::print(format_args!($($part)*)) };
}

macro_rules! println {
    () => { $crate::out::print(format_args!("\n")) };
    ($($part:tt)*) => { $crate::out::print(format_args!("{}\n", format_args!($($part)*))) };
}

macro_rules! eprintln {
    ($($part:tt)*) => { $crate::out::print_error(format_args!("{}\n", format_args!($($part)*))) };
}
