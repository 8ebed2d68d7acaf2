//! Figures of this process from the operating system.

/// Returns the peak resident memory in MB of 2^20 bytes, or 0 if the system does not report it.
pub(super) fn peak_rss_mb() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"));
    let kib = line.and_then(|l| l.trim().split(' ').next()?.parse::<f64>().ok());
    kib.unwrap_or(0.0) / 1024.0
}

/// Returns the processor time of all threads in seconds, or 0 if the system does not report it.
pub(super) fn cpu_seconds() -> f64 {
    /// Linux reports in ticks of this many per second.
    const TICKS: f64 = 100.0;
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // The second field, the name in parentheses, may contain spaces.
    let Some((_, rest)) = stat.rsplit_once(')') else { return 0.0 };
    let fields = rest.split_whitespace().skip(11).take(2);
    fields.filter_map(|f| f.parse::<f64>().ok()).sum::<f64>() / TICKS
}
