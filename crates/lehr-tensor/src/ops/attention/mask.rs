//! The keys that each query sees.

use std::cell::RefCell;

use super::Pages;
use crate::{DType, Device, Error, Result, Tensor};

const OP: &str = "attention";

/// The keys that each query sees: one interval of key positions per query, never a dense mask.
///
/// Query `i` of `Tq` is at key position `p = i + n_keys − Tq`: the last query is the last key. Its
/// interval `[lo, hi)` is the intersection of what the parts allow. If it is empty, the output is
/// 0.
#[derive(Clone, Debug, Default)]
pub struct Mask {
    causal: bool,
    window: Option<usize>,
    segment_starts: Option<Tensor>,
    prefix: Option<Tensor>,
    n_leading: usize,
    n_keys: Option<usize>,
    pages: Option<Pages>,
    in_bf16: bool,
}

/// A mask that a kernel computes itself.
#[derive(Clone, Copy)]
pub(super) struct Rule {
    pub(super) causal: bool,
    /// 0 = none.
    pub(super) window: i32,
    pub(super) n_keys: i32,
}

impl Mask {
    /// Every query sees the keys up to its own position.
    #[must_use]
    pub fn causal() -> Self {
        Self { causal: true, ..Self::default() }
    }

    /// Every query sees every key.
    #[must_use]
    pub fn bidirectional() -> Self {
        Self::default()
    }

    /// In training on the CPU the products of attention are in bf16. Elsewhere it changes nothing.
    #[must_use]
    pub fn in_bf16(self, in_bf16: bool) -> Self {
        Self { in_bf16, ..self }
    }

    pub(super) fn products_in_bf16(&self) -> bool {
        self.in_bf16
    }

    /// Only keys less than `window` positions away from the query are seen: `lo >= p + 1 − window`
    /// and, if bidirectional, `hi <= p + window`. A window of 1 is the query's own position.
    #[must_use]
    pub fn with_window(self, window: usize) -> Self {
        Self { window: Some(window), ..self }
    }

    /// Several texts share a row and do not see each other. `starts` is i32 `[B, Tk]`: the start of
    /// each key's segment. A segment ends where the start changes.
    #[must_use]
    pub fn with_segments(self, starts: Tensor) -> Self {
        Self { segment_starts: Some(starts), ..self }
    }

    /// The first `lengths[b]` keys (of each segment, if there are segments) are seen by every
    /// query, as in GLM and T5's prefix models. `lengths` is i32 `[B]`, or `[B, Tq]` or `[B, Tk]`
    /// with the length for the segment of each query or key; a length beyond the keys is cut off. A
    /// window still limits the interval from below. Bidirectional masks include these keys anyway.
    #[must_use]
    pub fn with_prefix(self, lengths: Tensor) -> Self {
        Self { prefix: Some(lengths), ..self }
    }

    /// Every segment has `n` more keys before its own, which all its queries see: learned keys, as
    /// in prefix tuning. The lengths of prefixes do not count them.
    ///
    /// With segments the queries are all tokens of the row, `starts` is i32 `[B, Tq]` and counts
    /// tokens, and the keys of segment `s` begin at `starts + s · n`. A row with fewer segments
    /// than another ends with keys that no query sees. Leading keys cannot be combined with a
    /// window.
    #[must_use]
    pub fn with_leading_keys(self, n: usize) -> Self {
        Self { n_leading: n, ..self }
    }

    /// Only the first `n_keys` of the `Tk` keys hold values. The others are free slots of a cache,
    /// which may contain anything.
    #[must_use]
    pub fn with_n_keys(self, n_keys: usize) -> Self {
        Self { n_keys: Some(n_keys), ..self }
    }

    /// Keys and values are in pages, and each sequence has its own number of keys. Its queries are
    /// its last tokens. There are no gradients. Pages can be combined with a prefix, of one length
    /// per sequence or query, but not with `n_keys` or segments.
    #[must_use]
    pub fn with_pages(self, pages: Pages) -> Self {
        Self { pages: Some(pages), ..self }
    }

    /// Returns the pages of keys and values, if they are paged.
    pub(super) fn pages(&self) -> Option<&Pages> {
        self.pages.as_ref()
    }

    /// Returns the intervals of `tq` queries at the end of texts of these lengths, `[B, Tq, 2]`.
    pub(super) fn intervals_at_ends(&self, lengths: &[i32], tq: usize) -> Vec<i32> {
        let of_text = |(b, &n): (usize, &i32)| {
            (0..tq).flat_map(move |i| {
                let (n, p) = (i64::from(n), i as i64 + i64::from(n) - tq as i64);
                let prefix = self.prefix_len(b, (i, tq), (p, usize::MAX));
                let (lo, hi) = self.interval(p, (0, n), prefix, 0);
                [lo as i32, hi as i32]
            })
        };
        lengths.iter().enumerate().flat_map(of_text).collect()
    }

    /// Returns whether one of the `tq` queries at the end of texts of these lengths sees keys after
    /// its own, because they are in the prefix.
    pub(super) fn prefix_reaches_beyond(&self, lengths: &[i32], tq: usize) -> bool {
        lengths.iter().enumerate().any(|(b, n)| {
            let first = i64::from(*n) - tq as i64;
            self.prefix_len(b, (0, tq), (first, usize::MAX)) > first + 1
        })
    }

    /// Whether several texts share a row.
    pub(super) fn has_segments(&self) -> bool {
        self.segment_starts.is_some()
    }

    /// Number of keys that hold values.
    pub(super) fn n_keys(&self, tk: usize) -> usize {
        self.n_keys.unwrap_or(tk)
    }

    /// Returns whether the mask is more than a [`Rule`].
    pub(super) fn has_intervals(&self) -> bool {
        self.segment_starts.is_some() || self.prefix.is_some()
    }

    /// Returns whether there are leading keys.
    pub(super) fn has_leading_keys(&self) -> bool {
        self.n_leading > 0
    }

    /// The rule of a mask without segments and prefixes, checked.
    pub(super) fn rule(&self, batch: usize, tq: usize, tk: usize) -> Result<Rule> {
        self.check(batch, tq, tk)?;
        // A window beyond all keys has no effect.
        let window = self.window.and_then(|w| i32::try_from(w).ok()).unwrap_or(0);
        Ok(Rule { causal: self.causal, window, n_keys: self.n_keys(tk) as i32 })
    }

    /// Returns [`Mask::intervals`] on a GPU. All layers of a model need the same ones, so the most
    /// recent are cached.
    pub(super) fn intervals_on(
        &self,
        device: Device,
        batch: usize,
        tq: usize,
        tk: usize,
    ) -> Result<Tensor> {
        type Known = (Mask, Device, [usize; 3], Tensor);
        thread_local! {
            static LAST: RefCell<Vec<Known>> = const { RefCell::new(Vec::new()) };
        }
        /// Masks of one model at most: causal and windowed, two of each.
        const KEPT: usize = 4;
        let size = [batch, tq, tk];
        let is_known = |(mask, d, s, _): &&Known| mask.is_same(self) && *d == device && *s == size;
        let known =
            LAST.with_borrow(|last| last.iter().find(is_known).map(|known| known.3.clone()));
        if let Some(known) = known {
            return Ok(known);
        }
        let intervals = self.intervals(batch, tq, tk)?.to_device(device)?;
        LAST.with_borrow_mut(|last| {
            last.truncate(KEPT - 1);
            last.insert(0, (self.clone(), device, size, intervals.clone()));
        });
        Ok(intervals)
    }

    /// Whether both are made of the same tensors and numbers.
    fn is_same(&self, other: &Self) -> bool {
        let same = |a: &Option<Tensor>, b: &Option<Tensor>| match (a, b) {
            (Some(a), Some(b)) => a.shares_storage(b) && a.shape() == b.shape(),
            (None, None) => true,
            _ => false,
        };
        self.causal == other.causal
            && self.window == other.window
            && self.n_leading == other.n_leading
            && self.n_keys == other.n_keys
            && same(&self.segment_starts, &other.segment_starts)
            && same(&self.prefix, &other.prefix)
    }

    /// The intervals `[lo, hi)` of all queries as i32 `[B, Tq, 2]`; empty ones are `[0, 0)`.
    ///
    /// # Errors
    /// If the parts of the mask have other extents or impossible positions, or memory runs out.
    pub fn intervals(&self, batch: usize, tq: usize, tk: usize) -> Result<Tensor> {
        self.check(batch, tq, tk)?;
        let n_tokens = self.n_tokens(tq, tk);
        let mut out = Tensor::uninit([batch, tq, 2], DType::I32)?;
        let bounds = out.elements_mut::<i32>();
        for b in 0..batch {
            let starts = self.starts(b, tq, tk);
            // The number and the end of the current segment, known because positions are visited
            // from the last.
            let mut number = starts.map_or(0, |s| s.windows(2).filter(|s| s[0] != s[1]).count());
            let mut end = n_tokens as i64;
            for i in (0..tq).rev() {
                let p = i as i64 + n_tokens as i64 - tq as i64;
                let segment = match starts {
                    None => (0, n_tokens as i64),
                    Some(_) if p < 0 => (0, 0),
                    Some(starts) => {
                        let at = p as usize;
                        if at + 1 < n_tokens && starts[at + 1] != starts[at] {
                            end = p + 1;
                            number -= 1;
                        }
                        (i64::from(starts[at]), end)
                    }
                };
                let prefix = self.prefix_len(b, (i, tq), (p, tk));
                let (lo, hi) = self.interval(p, segment, prefix, number as i64);
                bounds[2 * (b * tq + i)] = lo as i32;
                bounds[2 * (b * tq + i) + 1] = hi as i32;
            }
        }
        Ok(out)
    }

    /// Returns the number of keys that are tokens of a row, without leading keys.
    fn n_tokens(&self, tq: usize, tk: usize) -> usize {
        match (self.n_leading, &self.segment_starts) {
            (0, _) => self.n_keys(tk),
            (_, Some(_)) => tq,
            (n, None) => self.n_keys(tk) - n,
        }
    }

    /// Where the segment of each token of row `b` begins.
    fn starts(&self, b: usize, tq: usize, tk: usize) -> Option<&[i32]> {
        let width = if self.n_leading == 0 { tk } else { tq };
        let starts = self.segment_starts.as_ref()?;
        Some(&starts.ids()[b * width..][..self.n_tokens(tq, tk)])
    }

    /// Length of the prefix for query `i` of row `b`, at position `p`.
    fn prefix_len(&self, b: usize, (i, tq): (usize, usize), (p, tk): (i64, usize)) -> i64 {
        let Some(lengths) = &self.prefix else { return 0 };
        let index = match *lengths.shape() {
            [_] => b,
            [_, n] if n == tk => b * tk + p.max(0) as usize,
            _ => b * tq + i,
        };
        lengths.ids().get(index).copied().map_or(0, i64::from)
    }

    /// The interval of the query at position `p` (negative if there are more queries than keys)
    /// within its segment, which is the row's segment `number`.
    fn interval(&self, p: i64, (start, end): (i64, i64), prefix: i64, number: i64) -> (i64, i64) {
        let window = self.window.map_or(i64::MAX / 2, |w| w.min(1 << 40) as i64);
        let lo = start.max(p + 1 - window);
        let hi =
            if self.causal { end.min((p + 1).max(start + prefix)) } else { end.min(p + window) };
        // The leading keys of this and of all earlier segments come before the segment's own keys.
        let n = self.n_leading as i64;
        let (lo, hi) = (lo + number * n, hi + (number + 1) * n);
        if lo < hi { (lo, hi) } else { (0, 0) }
    }

    fn check(&self, batch: usize, tq: usize, tk: usize) -> Result<()> {
        let n_keys = self.n_keys(tk);
        if n_keys > tk {
            let (value, expected) = (n_keys.to_string(), "at most the number of keys given");
            return Err(Error::Argument { op: OP, name: "n_keys", value, expected });
        }
        if self.window == Some(0) {
            let (value, expected) = ("0".to_owned(), "at least 1");
            return Err(Error::Argument { op: OP, name: "window", value, expected });
        }
        self.check_leading(batch, tq, tk)?;
        if let Some(starts) = &self.segment_starts {
            let width = if self.n_leading == 0 { tk } else { tq };
            expect_ids("segment starts", starts, &[batch, width])?;
            for (position, &start) in starts.ids().iter().enumerate() {
                let p = position % width;
                if p < n_keys && (start < 0 || start as usize > p) {
                    let index = i64::from(start);
                    return Err(Error::Index { op: OP, index, position, limit: p + 1 });
                }
            }
        }
        if let Some(lengths) = &self.prefix {
            let all: &[usize] = match *lengths.shape() {
                [_, n] if n == tq => &[batch, tq],
                [_, _] => &[batch, tk],
                _ => &[batch],
            };
            expect_ids("prefix lengths", lengths, all)?;
            if let Some(position) = lengths.ids().iter().position(|&n| n < 0) {
                let (index, limit) = (i64::from(lengths.ids()[position]), n_keys + 1);
                return Err(Error::Index { op: OP, index, position, limit });
            }
        }
        Ok(())
    }

    /// Returns an error if the number of keys does not match the leading keys of all segments.
    fn check_leading(&self, batch: usize, tq: usize, tk: usize) -> Result<()> {
        if self.n_leading == 0 {
            return Ok(());
        }
        let refuse = |value: String, expected| {
            Err(Error::Argument { op: OP, name: "leading keys", value, expected })
        };
        if let Some(window) = self.window {
            let value = format!("{} with a window of {window}", self.n_leading);
            return refuse(value, "no window, which would hide them");
        }
        let n_keys = self.n_keys(tk);
        let Some(starts) = &self.segment_starts else {
            return match self.n_leading <= n_keys {
                true => Ok(()),
                false => refuse(self.n_leading.to_string(), "at most the number of keys given"),
            };
        };
        expect_ids("segment starts", starts, &[batch, tq])?;
        let segments = |row: &[i32]| row.chunk_by(|a, b| a == b).count();
        let most = starts.ids().chunks(tq.max(1)).map(segments).max().unwrap_or(0);
        if tq + most * self.n_leading > n_keys {
            let value = format!("{} before {most} segments of {tq} tokens", self.n_leading);
            return refuse(value, "at most the number of keys given, less the tokens");
        }
        Ok(())
    }
}

fn expect_ids(what: &str, ids: &Tensor, shape: &[usize]) -> Result<()> {
    ids.expect_ids(OP)?;
    if *ids.shape() == *shape {
        return Ok(());
    }
    let expected = format!("{what} of shape {shape:?}");
    Err(Error::Rank { op: OP, found: ids.shape(), expected })
}
