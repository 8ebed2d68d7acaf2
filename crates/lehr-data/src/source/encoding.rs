//! Encodings other than UTF-8, recognised to name them in errors.

pub(super) const BOM: &[u8] = b"\xEF\xBB\xBF";

/// Share of zero bytes at even or odd places from which bytes are UTF-16: Latin text has nearly
/// one in two, Chinese text with spaces and digits about one in ten.
const ZERO_PERCENT: usize = 5;

/// Returns the encoding of units of two or four bytes that the start of a file shows.
pub(super) fn wide(head: &[u8]) -> Option<&'static str> {
    match head {
        [0xFF, 0xFE, 0, 0, ..] | [0, 0, 0xFE, 0xFF, ..] => return Some("UTF-32"),
        [0xFF, 0xFE, ..] | [0xFE, 0xFF, ..] => return Some("UTF-16"),
        _ => {}
    }
    // Without a mark, the high bytes of Latin letters are zeros on one side only.
    let zeros =
        |first: usize| head.iter().skip(first).step_by(2).filter(|byte| **byte == 0).count();
    let (even, odd) = (zeros(0), zeros(1));
    let many = |n: usize| n * 100 > head.len() / 2 * ZERO_PERCENT;
    let one_sided = even.abs_diff(odd) * 10 > (even + odd) * 9;
    (one_sided && many(even.max(odd)) && head.len() >= 4).then_some("UTF-16")
}

/// Guesses the encoding of a line that is not UTF-8.
pub(super) fn narrow(line: &[u8]) -> &'static str {
    if line.contains(&0) {
        return "UTF-16, or a binary file";
    }
    // Letters of East Asian encodings are pairs that begin with a high byte, and stand side by
    // side; accented letters of Latin text stand alone.
    let runs = line.split(|byte| byte.is_ascii()).filter(|run| !run.is_empty());
    let (mut alone, mut paired) = (0, 0);
    for run in runs {
        if run.len() == 1 { alone += 1 } else { paired += run.len() }
    }
    match paired > alone {
        true => "GB18030, Shift JIS or another East Asian encoding",
        false => "Latin-1 or Windows-1252",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn encodings_are_told_apart() {
        let utf16 = |text: &str| text.encode_utf16().flat_map(u16::to_le_bytes).collect::<Vec<_>>();
        assert_eq!(wide(&utf16("\u{feff}text")), Some("UTF-16"));
        assert_eq!(wide(&utf16("plain text")), Some("UTF-16"));
        assert_eq!(wide(&utf16("你好, 世界 2")), Some("UTF-16"));
        assert_eq!(wide("plain text\0\0 with zeros".as_bytes()), None);
        assert_eq!(wide(b""), None);
        assert!(narrow(b"\xc4\xe3\xba\xc3 0,a").starts_with("GB18030"));
        assert!(narrow(b"caf\xe9 and t\xe9l\xe9").starts_with("Latin-1"));
    }
}
