//! Signals that stop a run: Ctrl-C, and those by which a scheduler or a closed terminal ends it.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

use serde_json::json;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::ui::Style;

static STOP: AtomicBool = AtomicBool::new(false);
/// The first signal that came, 0 if none.
static SIGNAL: AtomicI32 = AtomicI32::new(0);
static PREPARATION: Mutex<Option<Preparation>> = Mutex::new(None);

/// A command that reads its data, trains its tokenizer and so on, and has nothing to save yet.
pub(crate) struct Preparation {
    pub(crate) style: Style,
    /// The run directory and the command that continues, once the directory is made.
    pub(crate) run: Option<(PathBuf, String)>,
}

/// Makes a signal stop the run after its current step, which is then saved; or end the program at
/// once while it prepares a run. A second Ctrl-C ends the program at once.
pub(crate) fn on_signals() -> &'static AtomicBool {
    static INSTALLED: OnceLock<()> = OnceLock::new();
    INSTALLED.get_or_init(|| {
        // Without handlers a signal ends the program, which loses no more than the steps since the
        // last checkpoint.
        if let Ok(mut signals) = Signals::new(signals()) {
            std::thread::spawn(move || signals.forever().for_each(on_signal));
        }
    });
    &STOP
}

/// Makes a signal run `clean_up` before it ends the program. Without handlers, the next command
/// that writes to the same place has to clean up.
pub(crate) fn before_exit(clean_up: impl Fn() + Send + 'static) {
    let Ok(mut signals) = Signals::new(signals()) else { return };
    std::thread::spawn(move || {
        if let Some(signal) = signals.forever().next() {
            clean_up();
            std::process::exit(128 + signal);
        }
    });
}

/// `nohup` ignores SIGHUP, so that a run survives its terminal. Then it stays ignored.
fn signals() -> Vec<i32> {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    let handles_hangup = mask.is_some_and(|mask| mask & (1 << (SIGHUP - 1)) == 0);
    [SIGINT, SIGTERM].into_iter().chain(handles_hangup.then_some(SIGHUP)).collect()
}

fn on_signal(signal: i32) {
    let _ = SIGNAL.compare_exchange(0, signal, Ordering::Relaxed, Ordering::Relaxed);
    // Held until the end, so that the run cannot begin meanwhile.
    let preparation = PREPARATION.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(preparation) = &*preparation {
        preparation.say_interrupted();
        std::process::exit(code());
    }
    if !STOP.swap(true, Ordering::Relaxed) {
        eprintln!("\nstopping after this step and saving (Ctrl-C again to stop at once)");
    } else if signal == SIGINT {
        // Schedulers repeat SIGTERM, people repeat Ctrl-C.
        std::process::exit(code());
    }
}

impl Preparation {
    fn say_interrupted(&self) {
        let text = "interrupted before the first step: nothing was trained, so nothing is lost";
        match (&self.run, self.style) {
            (None, _) => eprintln!("\n{text}; run the same command again"),
            (Some((dir, command)), Style::Json) => {
                let event = json!({ "event": "interrupted", "path": dir, "continue": command });
                println!("{event}");
            }
            (Some((_, command)), _) => println!("{text}\ncontinue with: {command}"),
        }
    }
}

/// Sets the preparation that is going on.
pub(crate) fn preparing(preparation: Preparation) {
    *PREPARATION.lock().unwrap_or_else(PoisonError::into_inner) = Some(preparation);
}

/// Notes that the run begins. From now on a signal stops it after its current step.
pub(crate) fn preparation_ended() {
    *PREPARATION.lock().unwrap_or_else(PoisonError::into_inner) = None;
}

/// Returns whether a signal came.
pub(crate) fn stopped() -> bool {
    STOP.load(Ordering::Relaxed)
}

/// Returns the exit code of an interrupted command: 128 and the number of the signal, as shells do.
fn code() -> i32 {
    match SIGNAL.load(Ordering::Relaxed) {
        0 => 128 + SIGINT,
        signal => 128 + signal,
    }
}

/// Returns the exit code of an interrupted command.
pub(crate) fn exit_code() -> ExitCode {
    ExitCode::from(u8::try_from(code()).unwrap_or(130))
}
