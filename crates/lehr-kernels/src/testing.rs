//! What the tests of this crate share.

/// Held by tests that change, or depend on, the instruction set or the number of threads, which
/// all tests of the process share.
pub(crate) fn hold_settings() -> std::sync::MutexGuard<'static, ()> {
    static HELD: std::sync::Mutex<()> = std::sync::Mutex::new(());
    HELD.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}
