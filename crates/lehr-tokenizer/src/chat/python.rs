//! Python functions that chat templates expect: `json.dumps` and `strftime`.

use std::fmt::Write as _;

use minijinja::value::{Kwargs, Value, ValueKind};
use minijinja::{Error, ErrorKind};

use super::guard::is_reserved;

/// A local time, in the caller's time zone, for templates that print the date. Without one they use
/// the date they were written for, so a rendering never depends on a clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moment {
    /// Seconds since 1970-01-01 00:00:00.
    seconds: i64,
}

const DAYS: [&str; 7] =
    ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"];
const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];

impl Moment {
    /// The current local time.
    #[must_use]
    pub fn now() -> Self {
        let now = jiff::ZonedDateTime::now();
        Self::from_unix(now.timestamp().as_second() + i64::from(now.offset().seconds()))
    }

    /// Seconds from 1970-01-01 00:00:00 in the same time zone.
    #[must_use]
    pub fn seconds(self) -> i64 {
        self.seconds
    }

    /// The moment `seconds` after 1970-01-01 00:00:00.
    #[must_use]
    pub fn from_unix(seconds: i64) -> Self {
        // Years 0000 to 9999, which have four digits.
        Self { seconds: seconds.clamp(-62_167_219_200, 253_402_300_799) }
    }

    /// Year, month from 1, day from 1. Days count from 0000-03-01, so a leap day ends its year; an
    /// era is 400 years (Howard Hinnant, "chrono-compatible low-level date algorithms").
    fn date(self) -> (i64, usize, i64) {
        let day = self.seconds.div_euclid(86_400) + 719_468;
        let (era, of_era) = (day.div_euclid(146_097), day.rem_euclid(146_097));
        let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
        let of_year = of_era - (365 * year + year / 4 - year / 100);
        let month = (5 * of_year + 2) / 153;
        let day = of_year - (153 * month + 2) / 5 + 1;
        let month = if month < 10 { month + 3 } else { month - 9 };
        (era * 400 + year + i64::from(month <= 2), usize::try_from(month).unwrap_or(1), day)
    }

    /// Python's `strftime` in the C locale: the directives `a A b B d e H I j m M p S y Y %` (with
    /// `-`: without padding) and `F T D R`; others stay unchanged.
    #[must_use]
    pub fn format(self, format: &str) -> String {
        let mut out = String::new();
        let mut chars = format.chars();
        while let Some(c) = chars.next() {
            if c != '%' {
                out.push(c);
                continue;
            }
            let mut directive = chars.next().unwrap_or('%');
            let padded = directive != '-';
            if !padded {
                directive = chars.next().unwrap_or('-');
            }
            self.directive(directive, padded, &mut out);
        }
        out
    }

    fn directive(self, directive: char, padded: bool, out: &mut String) {
        let (year, month, day) = self.date();
        let second = self.seconds.rem_euclid(86_400);
        let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
        let weekday = (self.seconds.div_euclid(86_400) + 3).rem_euclid(7) as usize;
        let month_name = MONTHS[month - 1];
        let mut number = |value: i64, width: usize| {
            let width = if padded { width } else { 0 };
            write!(out, "{value:0width$}").expect("a string takes any text");
        };
        match directive {
            'd' => number(day, 2),
            'm' => number(month as i64, 2),
            'H' => number(hour, 2),
            'I' => number((hour + 11) % 12 + 1, 2),
            'M' => number(minute, 2),
            'S' => number(second, 2),
            'y' => number(year % 100, 2),
            'Y' => number(year, 4),
            'j' => {
                let first = Self { seconds: self.seconds };
                number(first.day_of_year(), 3);
            }
            'e' => write!(out, "{day:2}").expect("a string takes any text"),
            'a' => out.push_str(&DAYS[weekday][..3]),
            'A' => out.push_str(DAYS[weekday]),
            'b' => out.push_str(&month_name[..3]),
            'B' => out.push_str(month_name),
            'p' => out.push_str(if hour < 12 { "AM" } else { "PM" }),
            'F' => out.push_str(&self.format("%Y-%m-%d")),
            'T' => out.push_str(&self.format("%H:%M:%S")),
            'D' => out.push_str(&self.format("%m/%d/%y")),
            'R' => out.push_str(&self.format("%H:%M")),
            '%' => out.push('%'),
            other => out.extend(['%', other]),
        }
    }

    fn day_of_year(self) -> i64 {
        let (year, month, day) = self.date();
        let leap = i64::from((year % 4 == 0 && year % 100 != 0) || year % 400 == 0);
        const BEFORE: [i64; 12] = [0, 31, 59, 90, 120, 151, 181, 212, 243, 273, 304, 334];
        BEFORE[month - 1] + day + if month > 2 { leap } else { 0 }
    }
}

/// The filter `tojson` as transformers defines it: `json.dumps` without HTML escapes.
#[expect(clippy::needless_pass_by_value, reason = "the interpreter hands keyword arguments over")]
pub(super) fn tojson(
    value: &Value,
    indent: Option<&Value>,
    options: Kwargs,
) -> Result<Value, Error> {
    let named: Option<Value> = options.get("indent")?;
    let ensure_ascii: Option<bool> = options.get("ensure_ascii")?;
    let sort_keys: Option<bool> = options.get("sort_keys")?;
    let separators: Option<Value> = options.get("separators")?;
    options.assert_all_used()?;
    let indent = match named.as_ref().or(indent) {
        Some(indent) if !indent.is_none() && !indent.is_undefined() => Some(indent_of(indent)?),
        _ => None,
    };
    let (mut item, mut key) =
        (if indent.is_some() { "," } else { ", " }.to_owned(), ": ".to_owned());
    if let Some(separators) = separators.filter(|value| !value.is_none()) {
        item = separators.get_item_by_index(0)?.to_string();
        key = separators.get_item_by_index(1)?.to_string();
    }
    let dump = Dump {
        item,
        key,
        indent,
        ensure_ascii: ensure_ascii.unwrap_or(false),
        sort_keys: sort_keys.unwrap_or(false),
    };
    let mut out = String::new();
    dump.value(value, 0, &mut out)?;
    Ok(Value::from(out))
}

/// The filter `indent` as jinja2 defines it: it keeps a line end at the end.
#[expect(clippy::needless_pass_by_value, reason = "the interpreter hands keyword arguments over")]
pub(super) fn indent(
    text: &str,
    width: Option<&Value>,
    first: Option<bool>,
    blank: Option<bool>,
    options: Kwargs,
) -> Result<String, Error> {
    let named: Option<Value> = options.get("width")?;
    let first = options.get::<Option<bool>>("first")?.or(first).unwrap_or(false);
    let blank = options.get::<Option<bool>>("blank")?.or(blank).unwrap_or(false);
    options.assert_all_used()?;
    let indent = indent_of(named.as_ref().or(width).unwrap_or(&Value::from(4)))?;
    let mut out = String::new();
    for (index, line) in text.split('\n').enumerate() {
        if index > 0 {
            out.push('\n');
        }
        if (index > 0 && (blank || !line.is_empty())) || (index == 0 && first) {
            out.push_str(&indent);
        }
        out.push_str(line);
    }
    Ok(out)
}

fn indent_of(indent: &Value) -> Result<String, Error> {
    /// A larger width would only fill the memory.
    const WIDEST: usize = 64;
    if let Some(text) = indent.as_str() {
        return Ok(text.to_owned());
    }
    let width = usize::try_from(indent.clone()).unwrap_or(0);
    if width > WIDEST {
        let reason = format!("indent is {width}, expected at most {WIDEST}");
        return Err(Error::new(ErrorKind::InvalidOperation, reason));
    }
    Ok(" ".repeat(width))
}

struct Dump {
    item: String,
    key: String,
    indent: Option<String>,
    ensure_ascii: bool,
    sort_keys: bool,
}

impl Dump {
    fn value(&self, value: &Value, depth: usize, out: &mut String) -> Result<(), Error> {
        /// Messages are trees, so only a template can nest deeper.
        const DEEPEST: usize = 200;
        let refuse = |reason: String| Err(Error::new(ErrorKind::BadSerialization, reason));
        if depth > DEEPEST {
            return refuse(format!("tojson: found a value nested more than {DEEPEST} deep"));
        }
        match value.kind() {
            ValueKind::None => out.push_str("null"),
            ValueKind::Bool => out.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => number(value, out),
            ValueKind::String => self.string(value.as_str().unwrap_or_default(), out),
            ValueKind::Seq => {
                let items = value.try_iter()?.collect::<Vec<_>>();
                self.list(out, '[', ']', depth, &items, |item, out| {
                    self.value(item, depth + 1, out)
                })?;
            }
            ValueKind::Map => {
                let mut pairs = Vec::new();
                for key in value.try_iter()? {
                    let item = value.get_item(&key)?;
                    pairs.push((key, item));
                }
                if self.sort_keys {
                    pairs.sort_by(|a, b| a.0.cmp(&b.0));
                }
                self.list(out, '{', '}', depth, &pairs, |(key, item), out| {
                    match key.kind() {
                        ValueKind::String => self.string(key.as_str().unwrap_or_default(), out),
                        _ => {
                            out.push('"');
                            self.value(key, depth + 1, out)?;
                            out.push('"');
                        }
                    }
                    out.push_str(&self.key);
                    self.value(item, depth + 1, out)
                })?;
            }
            kind => {
                return refuse(format!(
                    "tojson: found a value of kind {kind}, which JSON does not have"
                ));
            }
        }
        Ok(())
    }

    fn list<T>(
        &self,
        out: &mut String,
        open: char,
        close: char,
        depth: usize,
        items: &[T],
        each: impl Fn(&T, &mut String) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let line = |out: &mut String, depth: usize| {
            if let Some(indent) = &self.indent {
                out.push('\n');
                (0..depth).for_each(|_| out.push_str(indent));
            }
        };
        out.push(open);
        for (index, item) in items.iter().enumerate() {
            if index > 0 {
                out.push_str(&self.item);
            }
            line(out, depth + 1);
            each(item, out)?;
        }
        if !items.is_empty() {
            line(out, depth);
        }
        out.push(close);
        Ok(())
    }

    fn string(&self, text: &str, out: &mut String) {
        let quoted = serde_json::to_string(text).expect("a string is JSON");
        if !self.ensure_ascii {
            out.push_str(&quoted);
            return;
        }
        for c in quoted.chars() {
            // Guards are not part of the text.
            if c.is_ascii() || is_reserved(c) {
                out.push(c);
                continue;
            }
            for unit in c.encode_utf16(&mut [0; 2]) {
                write!(out, "\\u{unit:04x}").expect("a string takes any text");
            }
        }
    }
}

/// A number as Python's `repr` writes it.
fn number(value: &Value, out: &mut String) {
    let float = if value.is_integer() { None } else { f64::try_from(value.clone()).ok() };
    let Some(float) = float else {
        out.push_str(&value.to_string());
        return;
    };
    if float.is_nan() {
        out.push_str("NaN");
    } else if float.is_infinite() {
        out.push_str(if float > 0.0 { "Infinity" } else { "-Infinity" });
    } else if float != 0.0 && !(1e-4..1e16).contains(&float.abs()) {
        let text = format!("{float:e}");
        let (mantissa, exponent) = text.split_once('e').unwrap_or((&text, "0"));
        let (sign, digits) =
            exponent.strip_prefix('-').map_or(('+', exponent), |digits| ('-', digits));
        write!(out, "{mantissa}e{sign}{digits:0>2}").expect("a string takes any text");
    } else {
        write!(out, "{float:?}").expect("a string takes any text");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_print_as_in_python() {
        // datetime(2026, 3, 9, 7, 5, 1), datetime(2000, 2, 29, 23, 59, 59) and datetime(1969, 12,
        // 31, 12)
        let text = |seconds| {
            Moment::from_unix(seconds)
                .format("%a %A %d %-d %b %B %Y-%m-%d %H:%M:%S %I %p %j %y %e|%Q %")
        };
        assert_eq!(
            text(1_773_039_901),
            "Mon Monday 09 9 Mar March 2026-03-09 07:05:01 07 AM 068 26  9|%Q %"
        );
        assert_eq!(
            text(951_868_799),
            "Tue Tuesday 29 29 Feb February 2000-02-29 23:59:59 11 PM 060 00 29|%Q %"
        );
        assert_eq!(
            text(-43_200),
            "Wed Wednesday 31 31 Dec December 1969-12-31 12:00:00 12 PM 365 69 31|%Q %"
        );
        assert_eq!(
            Moment::from_unix(0).format("%F %T %D %R"),
            "1970-01-01 00:00:00 01/01/70 00:00"
        );
    }
}
