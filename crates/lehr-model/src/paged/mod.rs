//! Keys and values of many sequences, in pages.

mod graph;
mod pool;

pub use graph::DecodeGraph;
use lehr_tensor::Tensor;
use lehr_tensor::ops::attention::Pages;

use self::pool::{PagePool, ROOT};
use crate::arch::{Layout, TokenRows};
use crate::cache::Last;
use crate::{Error, KvCache, Model, Result, Tokens};

/// Tokens of a page.
const PAGE_LEN: usize = 16;

/// A KV cache of sequences that begin, grow and end independently. Its memory is a pool of pages of
/// [`PagedCache::PAGE_LEN`] tokens. A sequence takes a page when it grows into it and releases its
/// pages when it ends. The pool grows when all pages are in use, up to a bound. So memory follows
/// the number of present tokens, not the longest possible sequence.
///
/// Full pages are kept after their sequence has ended. A later sequence with the same first tokens
/// reuses them instead of recomputing them. When pages run out, the least recently used ones are
/// evicted. Models with a bidirectional prefix reuse none, because their pages depend on later
/// tokens; nor do models that read the last keys of a sequence, because pages do not hold these.
///
/// Kwon et al. 2023, "Efficient Memory Management for Large Language Model Serving with
/// PagedAttention", <https://arxiv.org/abs/2309.06180>.
pub struct PagedCache {
    pools: KvCache,
    pages: PagePool,
    /// Largest number of pages.
    limit: usize,
    reuse: bool,
    /// Whether the model reads the last token of each sequence.
    reads_previous: bool,
    /// Sequences by row.
    sequences: Vec<Option<Sequence>>,
    /// Number of pool reallocations. Recorded work depends on the pools' addresses.
    n_moves: usize,
}

/// The bounds of a [`PagedCache`].
#[derive(Clone, Copy, Debug)]
pub struct PagedSize {
    /// Largest number of sequences.
    pub max_sequences: usize,
    /// Most tokens of a sequence, capped at the model's context.
    pub context: usize,
    /// Most pages, capped at the pages of that many sequences of that length.
    pub max_pages: usize,
    /// Whether sequences with the same first tokens share pages.
    pub reuse_prefixes: bool,
}

/// A sequence in the cache.
struct Sequence {
    /// Its pages, in order.
    pages: Vec<i32>,
    /// Number of its tokens in the cache.
    ids: Vec<i32>,
    /// Number of its findable pages, and the name of the prefix they hold.
    n_named: usize,
    name: u64,
    /// Positions of its tokens.
    layout: Layout,
    /// Keys of its last token before their offset, for models that read them.
    last_keys: Vec<Option<Tensor>>,
}

impl PagedCache {
    /// Tokens per page.
    pub const PAGE_LEN: usize = PAGE_LEN;

    /// Creates an empty cache. Memory is allocated as sequences grow.
    ///
    /// # Errors
    /// If the model is an encoder.
    pub fn new(model: &Model, size: PagedSize) -> Result<Self> {
        model.check_causal("generating texts")?;
        let spec = model.spec();
        let context = size.context.min(spec.max_positions);
        let all = size.max_sequences.saturating_mul(Self::pages_for(context));
        let pools = KvCache::in_pages(&spec, model.compute(), PAGE_LEN, context)?;
        Ok(Self {
            pools,
            pages: PagePool::default(),
            limit: size.max_pages.min(all).min(i32::MAX as usize),
            reuse: size.reuse_prefixes && !model.reads_previous_keys(),
            reads_previous: model.reads_previous_token(),
            sequences: (0..size.max_sequences).map(|_| None).collect(),
            n_moves: 0,
        })
    }

    /// Returns the number of pages for `len` tokens of a sequence.
    #[must_use]
    pub fn pages_for(n_tokens: usize) -> usize {
        n_tokens.div_ceil(PAGE_LEN)
    }

    /// Returns the largest number of sequences.
    #[must_use]
    pub fn max_sequences(&self) -> usize {
        self.sequences.len()
    }

    /// Returns the most tokens of a sequence: the context, or fewer if all pages hold fewer.
    #[must_use]
    pub fn context(&self) -> usize {
        self.pools.capacity().min(self.limit.saturating_mul(PAGE_LEN))
    }

    /// Returns the number of allocated pages.
    #[must_use]
    pub fn n_pages(&self) -> usize {
        self.pages.len()
    }

    /// Returns the number of pages without users, including those not allocated yet.
    #[must_use]
    pub fn n_available(&self) -> usize {
        self.limit.saturating_sub(self.pages.len()) + self.pages.n_available()
    }

    /// Returns the number of pages that the sequence in `row` needs for `n` more tokens.
    #[must_use]
    pub fn n_wanted(&self, row: usize, n: usize) -> usize {
        let wanted = |s: &Sequence| Self::pages_for(s.ids.len() + n).saturating_sub(s.pages.len());
        self.sequences.get(row).and_then(Option::as_ref).map_or(0, wanted)
    }

    /// Returns the number of tokens of the sequence in `row`, if there is one.
    #[must_use]
    pub fn len(&self, row: usize) -> Option<usize> {
        Some(self.sequences.get(row)?.as_ref()?.ids.len())
    }

    /// Returns whether there are no sequences.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.sequences.iter().all(Option::is_none)
    }

    /// Begins a sequence that starts with `ids`, laid out by the model ([`Model::layout`]), and
    /// returns its row. Pages of an earlier sequence may already hold its first tokens;
    /// [`PagedCache::len`] returns their number. The last of `ids` is never reused, because the
    /// caller needs the logits after it.
    ///
    /// # Errors
    /// If all rows have sequences.
    pub fn begin(&mut self, ids: &[i32], layout: Layout) -> Result<usize> {
        let Some(row) = self.sequences.iter().position(Option::is_none) else {
            let found = format!("{} sequences", self.max_sequences());
            let expected = "a row without a sequence";
            return Err(Error::Paged { doing: "beginning a sequence", found, expected });
        };
        // A page of a bidirectional prefix depends on later tokens.
        let reuse = self.reuse && layout.prefix_len == 0;
        let (pages, seen) = (Vec::new(), Vec::new());
        let last_keys = Vec::new();
        let mut new = Sequence { pages, ids: seen, n_named: 0, name: ROOT, layout, last_keys };
        let before_last = &ids[..ids.len().saturating_sub(1)];
        for page in before_last.chunks_exact(PAGE_LEN).take_while(|_| reuse) {
            let Some(found) = self.pages.reuse(new.name, page) else { break };
            new.pages.push(found.page);
            new.ids.extend_from_slice(page);
            (new.n_named, new.name) = (new.n_named + 1, found.name);
        }
        self.sequences[row] = Some(new);
        Ok(row)
    }

    /// Ends the sequence in row `row`, if there is one.
    pub fn end(&mut self, row: usize) {
        if let Some(sequence) = self.sequences.get_mut(row).and_then(Option::take) {
            self.pages.give_back(&sequence.pages);
        }
    }

    /// Runs the next tokens `ids` of the sequence in `row`. With `wants_logits`, returns the logits
    /// `[1, V]` after the last one.
    ///
    /// The first call for a sequence with a bidirectional prefix must include the whole prefix; see
    /// [`Layout::prefix_len`].
    ///
    /// # Errors
    /// If the row has no sequence, the sequence would be too long, there are too few pages, an id
    /// is outside the vocabulary, or memory runs out. The sequence is then unchanged.
    pub fn prefill(
        &mut self,
        model: &Model,
        row: usize,
        ids: &[i32],
        wants_logits: bool,
    ) -> Result<Option<Tensor>> {
        const DOING: &str = "reading a prompt";
        let Some(len) = self.len(row) else { return Err(no_sequence(DOING, row)) };
        self.reserve(DOING, &[row], ids.len())?;
        let pages = self.pages_of(&[(row, len + ids.len())])?;
        let layouts: Vec<_> = self.sequences[row].iter().map(|s| &s.layout).collect();
        let tokens = Tokens::of_texts(ids, &layouts, len)?;
        let logits = self.run((&[row], len), pages, |pools| {
            Ok(match wants_logits {
                true => Some(model.next_logits(&tokens, pools)?),
                false => {
                    model.hidden_cached(&tokens, pools)?;
                    None
                }
            })
        })?;
        self.advance(row, ids);
        Ok(logits)
    }

    /// Runs one more token for some sequences and returns the logits `[n, V]`, in the order of
    /// `next`. Each element of `next` is a row and its token.
    ///
    /// # Errors
    /// If a row has no sequence, a sequence has its maximum length, there are too few pages, an id
    /// is outside the vocabulary, or memory runs out.
    pub fn next_logits(&mut self, model: &Model, next: &[(usize, i32)]) -> Result<Tensor> {
        let lens = self.begin_step(next)?;
        let tokens = self.next_tokens(next)?;
        let grown: Vec<_> = next.iter().zip(&lens).map(|((row, _), len)| (*row, len + 1)).collect();
        let pages = self.pages_of(&grown)?;
        let longest = lens.iter().copied().max().unwrap_or(0);
        let rows: Vec<usize> = next.iter().map(|(row, _)| *row).collect();
        let logits =
            self.run((&rows, longest), pages, |pools| model.next_logits(&tokens, pools))?;
        next.iter().for_each(|(row, id)| self.advance(*row, &[*id]));
        Ok(logits)
    }

    /// Runs one more token for each of these sequences, as a batch of rows.
    fn next_tokens(&self, next: &[(usize, i32)]) -> Result<Tokens> {
        let ids: Vec<i32> = next.iter().map(|(_, id)| *id).collect();
        let (mut positions, mut block_positions, mut prefix_lens) = (vec![], vec![], vec![]);
        for sequence in next.iter().filter_map(|(row, _)| self.sequences[*row].as_ref()) {
            let place = sequence.layout.at(sequence.ids.len());
            positions.push(place.position);
            block_positions.extend(place.block_position);
            prefix_lens.push(sequence.layout.prefix_len as i32);
        }
        Tokens::packed(&TokenRows {
            ids: &ids,
            positions: &positions,
            block_positions: (!block_positions.is_empty()).then_some(&block_positions),
            segment_starts: &vec![0; ids.len()],
            prefix_lens: Some(&prefix_lens),
            batch_size: ids.len(),
            seq_len: 1,
        })
    }

    /// Checks the rows that get one more token, assigns the pages, and returns the sequences'
    /// lengths.
    fn begin_step(&mut self, next: &[(usize, i32)]) -> Result<Vec<usize>> {
        const DOING: &str = "continuing sequences";
        let mut lens = Vec::with_capacity(next.len());
        for (i, (row, _)) in next.iter().enumerate() {
            let is_new = next[..i].iter().all(|(other, _)| other != row);
            let Some(len) = self.len(*row).filter(|_| is_new) else {
                return Err(no_sequence(DOING, *row));
            };
            lens.push(len);
        }
        let rows: Vec<usize> = next.iter().map(|(row, _)| *row).collect();
        self.reserve(DOING, &rows, 1)?;
        Ok(lens)
    }

    /// Runs `work` over the pools for the sequences in `rows`, with `len` positions filled before
    /// it.
    fn run<R>(
        &mut self,
        (rows, len): (&[usize], usize),
        pages: Pages,
        work: impl FnOnce(&mut KvCache) -> Result<R>,
    ) -> Result<R> {
        let last = self.last_of(rows)?;
        self.pools.exchange_last(last);
        self.pools.set_len(len);
        self.pools.set_pages(Some(pages));
        let result = work(&mut self.pools);
        self.pools.set_pages(None);
        let last = self.pools.exchange_last(Last::default());
        if result.is_ok() {
            self.keep_last_keys(rows, &last)?;
        }
        result
    }

    /// Collects the last tokens of the sequences in `rows`, if the model reads them: none if they
    /// begin.
    fn last_of(&self, rows: &[usize]) -> Result<Last> {
        let sequences: Vec<_> =
            rows.iter().filter_map(|row| self.sequences[*row].as_ref()).collect();
        let ids = sequences.iter().map(|s| s.ids.last().copied()).collect::<Option<Vec<i32>>>();
        let (true, Some(ids)) = (self.reads_previous, ids) else { return Ok(Last::default()) };
        let n_layers = sequences.first().map_or(0, |s| s.last_keys.len());
        let layer = |layer: usize| {
            let keys = sequences.iter().map(|s| s.last_keys.get(layer).and_then(Option::as_ref));
            let keys = keys.collect::<Option<Vec<&Tensor>>>();
            Ok(keys.map(|keys| Tensor::concat(&keys, 0)).transpose()?)
        };
        let keys = (0..n_layers).map(layer).collect::<Result<_>>()?;
        Ok(Last { ids, keys })
    }

    /// Distributes the last keys of a pass over the sequences in `rows`.
    fn keep_last_keys(&mut self, rows: &[usize], last: &Last) -> Result<()> {
        for (i, row) in rows.iter().enumerate() {
            let own = |keys: &Option<Tensor>| -> Result<Option<Tensor>> {
                Ok(keys.as_ref().map(|keys| keys.slice(0, i..i + 1)).transpose()?)
            };
            let keys = last.keys.iter().map(own).collect::<Result<_>>()?;
            if let Some(sequence) = &mut self.sequences[*row] {
                sequence.last_keys = keys;
            }
        }
        Ok(())
    }

    /// Assigns each of these sequences the pages for its next `n` tokens. On failure, none gets
    /// any.
    fn reserve(&mut self, doing: &'static str, rows: &[usize], n: usize) -> Result<()> {
        let limit = self.context();
        let longest = rows.iter().filter_map(|row| self.len(*row)).max().unwrap_or(0);
        if longest + n > limit {
            return Err(Error::TooLong { what: "the number of tokens", found: longest + n, limit });
        }
        let wanted: usize = rows.iter().map(|row| self.n_wanted(*row, n)).sum();
        self.grow(wanted)?;
        let (free, all) = (self.pages.n_available(), self.limit);
        if wanted > free {
            return Err(Error::PagesFull { doing, wanted, free, all, page_len: PAGE_LEN });
        }
        for row in rows {
            for _ in 0..self.n_wanted(*row, n) {
                let page = self.pages.take();
                if let Some(sequence) = &mut self.sequences[*row] {
                    sequence.pages.extend(page);
                }
            }
        }
        Ok(())
    }

    /// Grows the pools, within the bound, if fewer than `wanted` pages are free. They grow by at
    /// least half, so copying is amortised.
    fn grow(&mut self, wanted: usize) -> Result<()> {
        /// Initial number of pages: 512 tokens.
        const FIRST: usize = 32;
        let n_pages = self.pages.len();
        let missing = wanted.saturating_sub(self.pages.n_free());
        if missing == 0 || n_pages == self.limit {
            return Ok(());
        }
        let len = (n_pages + missing.max(n_pages / 2)).max(FIRST).min(self.limit);
        // Some pools may have moved even if others ran out of memory.
        self.n_moves += 1;
        match self.pools.grow_pages(len) {
            Ok(()) => self.pages.grow_to(len),
            Err(error) if n_pages == 0 => return Err(error.into()),
            // Without memory to grow, unused contents are evicted, and sequences may have to wait.
            Err(_) => self.limit = n_pages,
        }
        Ok(())
    }

    /// Counts new tokens of a sequence and makes the pages they filled findable.
    fn advance(&mut self, row: usize, ids: &[i32]) {
        let Some(sequence) = &mut self.sequences[row] else { return };
        sequence.ids.extend_from_slice(ids);
        if !self.reuse || sequence.layout.prefix_len > 0 {
            return;
        }
        let full = sequence.ids.len() / PAGE_LEN;
        for at in sequence.n_named..full {
            let ids = &sequence.ids[at * PAGE_LEN..][..PAGE_LEN];
            sequence.name = self.pages.name(sequence.pages[at], sequence.name, ids);
        }
        sequence.n_named = full;
    }

    /// Returns the pages of the sequences in these rows with these lengths, on the device of the
    /// pools.
    fn pages_of(&self, rows: &[(usize, usize)]) -> Result<Pages> {
        let pages = |row: usize| self.sequences[row].as_ref().map_or(&[][..], |s| &s.pages[..]);
        let max = rows.iter().map(|(row, _)| pages(*row).len()).max().unwrap_or(0);
        let mut table = vec![0; rows.len() * max];
        for (to, (row, _)) in table.chunks_mut(max.max(1)).zip(rows) {
            to[..pages(*row).len()].copy_from_slice(pages(*row));
        }
        let lengths: Vec<i32> = rows.iter().map(|(_, len)| *len as i32).collect();
        let table = Tensor::from_ids(&table, [rows.len(), max])?;
        let lengths = Tensor::from_ids(&lengths, [rows.len()])?;
        Ok(Pages::new(table, lengths)?.to_device(self.pools.device())?)
    }
}

fn no_sequence(doing: &'static str, row: usize) -> Error {
    let found = format!("row {row}");
    Error::Paged { doing, found, expected: "different rows, each with a sequence" }
}
