//! Shared parts of the tests of this crate.

/// A lock for tests that change, or depend on, the instruction set or the number of threads. All
/// tests of a process share both.
pub(crate) fn hold_settings() -> std::sync::MutexGuard<'static, ()> {
    static HELD: std::sync::Mutex<()> = std::sync::Mutex::new(());
    HELD.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}
