use super::*;

fn watchdog(action: WatchdogAction) -> Watchdog {
    Watchdog(WatchdogConfig { action, window: 8, ..crate::Recipe::base().watchdog })
}

fn judge(rule: Watchdog, state: &mut WatchdogState, loss: f64) -> Verdict {
    let numbers = StepNumbers { loss, grad_norm: 1.0, ..StepNumbers::default() };
    rule.judge(state, &numbers, loss.is_finite())
}

/// A state after eight losses near 3.
fn settled(rule: Watchdog) -> WatchdogState {
    let mut state = WatchdogState::default();
    for loss in [3.2, 3.1, 3.0, 2.9, 3.1, 2.8, 3.0, 2.9] {
        assert_eq!(judge(rule, &mut state, loss), Verdict::Go);
    }
    state
}

#[test]
fn the_limit_is_the_median_and_a_multiple_of_the_deviation() {
    let rule = watchdog(WatchdogAction::Warn);
    let state = settled(rule);
    // Median 3.0; deviations 0, 0, 0.1 (four), 0.2 (two), so their median is 0.1.
    let limit = rule.limit(&state).unwrap();
    assert!((limit.loss - 3.8).abs() < 1e-9 && (limit.median - 3.0).abs() < 1e-9, "{limit:?}");
    // Equal losses do not make every other loss a spike.
    let state = WatchdogState { recent: [1_000_000; 8].into(), ..WatchdogState::default() };
    assert!((rule.limit(&state).unwrap().loss - 1.4).abs() < 1e-9);
    // Before half of the window is known, nothing is a spike.
    let state = WatchdogState { recent: [1_000_000; 3].into(), ..WatchdogState::default() };
    assert_eq!(rule.limit(&state), None);
}

#[test]
fn falling_losses_are_no_spikes() {
    let rule = watchdog(WatchdogAction::Skip);
    let mut state = WatchdogState::default();
    for step in 0..200 {
        let loss = 2.0 + 8.0 / f64::from(1 + step) + 0.1 * f64::from(step % 3);
        assert_eq!(judge(rule, &mut state, loss), Verdict::Go, "step {step}");
    }
    assert_eq!(state.recent.len(), 8);
}

#[test]
fn off_looks_at_nothing_and_stops_at_what_is_not_finite() {
    let rule = watchdog(WatchdogAction::Off);
    let mut state = settled(rule);
    assert_eq!(judge(rule, &mut state, 99.0), Verdict::Go);
    assert!(state.is_new() && rule.limit(&state).is_none());
    assert_eq!(judge(rule, &mut state, f64::NAN), Verdict::Stop("the loss is NaN".to_owned()));
}

#[test]
fn warn_reports_the_first_spike_of_a_row_and_learns_a_new_level() {
    let rule = watchdog(WatchdogAction::Warn);
    let mut state = settled(rule);
    let Verdict::Report(reason) = judge(rule, &mut state, 5.0) else { panic!("not reported") };
    assert_eq!(reason, "the loss 5.0000 is above 3.8000; the median of the last 8 steps is 3.0000");
    assert_eq!(judge(rule, &mut state, 5.0), Verdict::Go);
    assert_eq!(state.in_row, 2);
    for _ in 0..4 {
        assert_eq!(judge(rule, &mut state, 5.0), Verdict::Go);
    }
    assert_eq!((state.in_row, rule.limit(&state).unwrap().median), (0, 5.0));
    assert!(matches!(judge(rule, &mut state, f64::INFINITY), Verdict::Stop(_)));
}

#[test]
fn skip_drops_spikes_until_there_are_too_many_in_a_row() {
    let rule = watchdog(WatchdogAction::Skip);
    let mut state = settled(rule);
    let before = state.recent.clone();
    for n in 1..=rule.0.in_row_max {
        let loss = if n % 2 == 0 { 9.0 } else { f64::NAN };
        assert!(matches!(judge(rule, &mut state, loss), Verdict::Skip(_)));
        assert_eq!((state.n_skipped, state.in_row), (u64::from(n), n));
    }
    assert_eq!(state.recent, before);
    let full = state.clone();
    assert!(matches!(judge(rule, &mut state, 9.0), Verdict::Stop(_)));
    assert_eq!(judge(rule, &mut state, 3.0), Verdict::Go);
    assert_eq!((state.in_row, state.n_skipped), (0, full.n_skipped));
}

#[test]
fn the_limit_of_an_update_is_the_limit_of_a_spike() {
    let rule = watchdog(WatchdogAction::Skip);
    let mut state = settled(rule);
    let limit = rule.update_limit(&state).unwrap();
    assert_eq!(judge(rule, &mut state.clone(), limit), Verdict::Go);
    assert!(matches!(judge(rule, &mut state, limit.next_up()), Verdict::Skip(_)));
    for action in [WatchdogAction::Off, WatchdogAction::Warn, WatchdogAction::Rollback] {
        assert_eq!(watchdog(action).update_limit(&state), None);
    }
}

#[test]
fn the_state_is_exact_in_json() {
    let recent = [i64::MIN / 3, -1, 0, 10_397_208, 1_234_567_890_123].into();
    let state = WatchdogState { recent, n_skipped: 1, n_undone: 2, in_row: 3 };
    let text = serde_json::to_string(&state).unwrap();
    assert_eq!(serde_json::from_str::<WatchdogState>(&text).unwrap(), state);
}
