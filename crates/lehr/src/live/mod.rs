//! The live view of a run: a few lines at the bottom of a terminal that are drawn again and again.
//!
//! It uses neither the other screen of a terminal nor its raw mode, and does not hide the cursor,
//! which waits below the view. So nothing has to be restored, however the program ends. Everything
//! that the program prints goes through [`around`], which prints above the view.

mod chart;
mod view;

use std::io::{self, IsTerminal, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, Once, PoisonError};
use std::time::{Duration, Instant};

pub(crate) use view::{Size, View, smoothed};
use view::{Times, width_of};

/// Time between two frames while steps are made.
const FRAME: Duration = Duration::from_millis(100);
/// Time between two looks at the clock and at the size of the terminal.
const TICK: Duration = Duration::from_millis(250);
/// The smallest terminal that gets a view when a run begins.
const SIZE_MIN: Size = Size { width: 40, height: 8 };

static SCREEN: Mutex<Option<Screen>> = Mutex::new(None);
/// Whether a thread panicked. Its message must stay, so nothing is drawn any more.
static PANICKED: AtomicBool = AtomicBool::new(false);

/// A view on a terminal.
struct Screen {
    view: View,
    frame: Frame,
    began: Instant,
    last_step: Instant,
    last_drawn: Instant,
}

/// The lines that are on the terminal now.
#[derive(Default)]
struct Frame {
    widths: Vec<usize>,
}

impl Frame {
    /// Moves the cursor to the first line of the view. A terminal that has become narrower has
    /// wrapped the lines.
    fn go_to_start(&self, width: usize) -> String {
        let rows = |line: &usize| line.div_ceil(width.max(1)).max(1);
        match self.widths.iter().map(rows).sum::<usize>() {
            0 => String::new(),
            n => format!("\x1b[{n}A"),
        }
    }

    /// Removes the view.
    fn clear(&mut self, width: usize) -> String {
        let text = format!("\r{}\x1b[J", self.go_to_start(width));
        self.widths.clear();
        text
    }

    /// Replaces the view by `lines`.
    fn draw(&mut self, lines: &[String], width: usize) -> String {
        let mut text = format!("\r{}", self.go_to_start(width));
        for line in lines {
            // A line is cleared after it is written, so that it does not flicker.
            text += &format!("{line}\x1b[K\r\n");
        }
        text += "\x1b[J";
        self.widths = lines.iter().map(|line| width_of(line)).collect();
        text
    }
}

impl Screen {
    fn draw(&mut self) {
        let Some(size) = size() else { return };
        let seconds = |since: Instant| since.elapsed().as_secs_f64();
        let times = Times { running: seconds(self.began), quiet: seconds(self.last_step) };
        // After a line as wide as the terminal, the cursor is at a place that differs by terminal.
        let room = Size { width: size.width.saturating_sub(1).max(1), ..size };
        let lines = self.view.render(room, times);
        write(&self.frame.draw(&lines, size.width));
        self.last_drawn = Instant::now();
    }
}

/// Returns whether standard error is a terminal that can show a view.
pub(crate) fn is_possible() -> bool {
    let is_set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    let is_dumb = std::env::var_os("TERM").is_none_or(|term| term.is_empty() || term == "dumb");
    let fits = |size: Size| size.width >= SIZE_MIN.width && size.height >= SIZE_MIN.height;
    io::stderr().is_terminal() && !is_dumb && !is_set("NO_COLOR") && size().is_some_and(fits)
}

/// Begins a view, and replaces one that is there.
pub(crate) fn begin(view: View) {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let report = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            PANICKED.store(true, Ordering::Relaxed);
            report(info);
        }));
        // Times and sizes change also when no step ends. The thread ends with the program.
        std::thread::spawn(|| {
            loop {
                std::thread::sleep(TICK);
                draw_after(4 * TICK);
            }
        });
    });
    end();
    let now = Instant::now();
    let frame = Frame::default();
    let mut screen = Screen { view, frame, began: now, last_step: now, last_drawn: now };
    screen.draw();
    *lock() = Some(screen);
}

/// Changes the view.
pub(crate) fn update(change: impl FnOnce(&mut View)) {
    if let Some(screen) = &mut *lock() {
        change(&mut screen.view);
    }
}

/// Notes that a step ended.
pub(crate) fn step_ended() {
    if let Some(screen) = &mut *lock() {
        screen.last_step = Instant::now();
    }
    draw_after(FRAME);
}

fn draw_after(pause: Duration) {
    if PANICKED.load(Ordering::Relaxed) {
        return;
    }
    if let Some(screen) = lock().as_mut().filter(|s| s.last_drawn.elapsed() >= pause) {
        screen.draw();
    }
}

/// Ends the view. Its last lines stay on the terminal.
pub(crate) fn end() {
    if let Some(mut screen) = lock().take()
        && !PANICKED.load(Ordering::Relaxed)
    {
        screen.draw();
    }
}

/// Prints something above the view, if there is one.
pub(crate) fn around<T>(print: impl FnOnce() -> T) -> T {
    let mut screen = lock();
    let Some(screen) = screen.as_mut().filter(|_| !PANICKED.load(Ordering::Relaxed)) else {
        return print();
    };
    write(&screen.frame.clear(size().map_or(usize::MAX, |size| size.width)));
    let printed = print();
    screen.draw();
    printed
}

fn lock() -> MutexGuard<'static, Option<Screen>> {
    SCREEN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Returns the size of the terminal on standard error.
fn size() -> Option<Size> {
    let (width, height) = terminal_size::terminal_size_of(io::stderr())?;
    Some(Size { width: width.0.into(), height: height.0.into() })
}

fn write(text: &str) {
    // Nobody is left to tell.
    let _ = io::stderr().lock().write_all(text.as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A terminal that knows the codes of a view.
    struct Terminal {
        rows: Vec<Vec<char>>,
        at: (usize, usize),
    }

    impl Terminal {
        fn new() -> Self {
            Self { rows: vec![Vec::new()], at: (0, 0) }
        }

        fn write(&mut self, text: &str) {
            let mut chars = text.chars();
            while let Some(c) = chars.next() {
                let (row, column) = self.at;
                match c {
                    '\r' => self.at.1 = 0,
                    '\n' => {
                        self.at.0 += 1;
                        self.rows.resize(self.rows.len().max(row + 2), Vec::new());
                    }
                    '\x1b' => {
                        let code: String = chars.by_ref().skip(1).take_while_code();
                        self.escape(&code);
                    }
                    c => {
                        let line = &mut self.rows[row];
                        line.resize(line.len().max(column + 1), ' ');
                        line[column] = c;
                        self.at.1 += 1;
                    }
                }
            }
        }

        fn escape(&mut self, code: &str) {
            let (row, column) = self.at;
            match code {
                "K" => self.rows[row].truncate(column),
                "J" => {
                    self.rows[row].truncate(column);
                    self.rows.truncate(row + 1);
                }
                up => self.at.0 -= up.strip_suffix('A').unwrap().parse::<usize>().unwrap(),
            }
        }

        fn text(&self) -> Vec<String> {
            let text = |row: &Vec<char>| row.iter().collect::<String>();
            self.rows.iter().map(text).collect()
        }
    }

    trait TakeCode {
        /// Takes characters up to and with the first letter.
        fn take_while_code(self) -> String;
    }

    impl<I: Iterator<Item = char>> TakeCode for I {
        fn take_while_code(self) -> String {
            let mut code = String::new();
            for c in self {
                code.push(c);
                if c.is_ascii_alphabetic() {
                    break;
                }
            }
            code
        }
    }

    fn lines(texts: &[&str]) -> Vec<String> {
        texts.iter().map(|text| (*text).to_owned()).collect()
    }

    #[test]
    fn frames_replace_each_other_and_text_stays_above() {
        let (mut terminal, mut frame) = (Terminal::new(), Frame::default());
        terminal.write("$ lehr\r\n");
        terminal.write(&frame.draw(&lines(&["one", "two", "three"]), 40));
        assert_eq!(terminal.text(), ["$ lehr", "one", "two", "three", ""]);
        terminal.write(&frame.draw(&lines(&["1", "2"]), 40));
        assert_eq!(terminal.text(), ["$ lehr", "1", "2", ""]);
        // The echo of Ctrl-C stands where the cursor waits.
        terminal.write("^C");
        terminal.write(&frame.clear(40));
        terminal.write("warning: a\r\n");
        terminal.write(&frame.draw(&lines(&["4", "5", "6"]), 40));
        assert_eq!(terminal.text(), ["$ lehr", "warning: a", "4", "5", "6", ""]);
    }

    #[test]
    fn lines_that_a_narrower_terminal_wrapped_are_replaced_too() {
        let mut frame = Frame::default();
        frame.draw(&lines(&["0123456789", "01234", ""]), 20);
        assert_eq!(frame.go_to_start(20), "\x1b[3A");
        // 3 rows, 2 rows and 1 row of at most 4 columns.
        assert_eq!(frame.go_to_start(4), "\x1b[6A");
        let mut terminal = Terminal::new();
        terminal.write("$ lehr\r\n0123\r\n4567\r\n89\r\n0123\r\n4\r\n\r\n");
        terminal.write(&frame.draw(&lines(&["abc"]), 4));
        assert_eq!(terminal.text(), ["$ lehr", "abc", ""]);
    }
}
