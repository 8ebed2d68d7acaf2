use std::ops::Range;

use super::AtStart;
use crate::testing::Array;

/// One element at a time.
pub(super) fn previous_rows(
    x: &Array,
    before: Option<&Array>,
    starts: &[i32],
    channels: &Range<usize>,
    at_start: AtStart,
) -> Array {
    let (len, head) = (x.shape[1], x.last_dim());
    let width: usize = x.shape[2..].iter().product();
    let mut y = x.clone();
    for i in 0..y.data.len() {
        let (token, k) = (i / width, i % width);
        if !channels.contains(&(k % head)) {
            continue;
        }
        y.data[i] = match before {
            _ if starts[token] == 0 && token % len > 0 => x.data[i - width],
            Some(before) if starts[token] == 0 => before.data[token / len * width + k],
            _ if at_start == AtStart::Own => x.data[i],
            _ => 0.0,
        };
    }
    y
}
