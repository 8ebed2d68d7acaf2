//! Keys and values of many texts, in pages.

mod graph;

pub use graph::PagedGraph;
use lehr_tensor::Tensor;
use lehr_tensor::ops::attention::Pages;

use crate::cache::Place;
use crate::{Error, KvCache, Model, Result, Tokens};

/// A KV cache of texts that join, grow and leave one by one. Its memory is a pool of pages of
/// [`PagedCache::PAGE_LEN`] tokens; a text takes a page when it grows into it and gives all back
/// when it leaves, so that memory follows the tokens that are there, not the longest text there
/// might be.
///
/// Kwon et al. 2023, "Efficient Memory Management for Large Language Model Serving with
/// PagedAttention", <https://arxiv.org/abs/2309.06180>.
pub struct PagedCache {
    pools: KvCache,
    n_pages: usize,
    /// The last is taken first.
    free: Vec<i32>,
    /// By row.
    texts: Vec<Option<Text>>,
}

/// A text in the cache.
struct Text {
    /// Numbers of its pages, in order.
    pages: Vec<i32>,
    /// Its tokens there.
    len: usize,
}

impl PagedCache {
    /// Tokens of a page.
    pub const PAGE_LEN: usize = 16;

    /// Room for `batch` texts of at most `capacity` tokens (and the model's context), which
    /// together have at most `n_pages` pages.
    ///
    /// # Errors
    /// If the model is an encoder or memory runs out.
    pub fn new(model: &Model, batch: usize, capacity: usize, n_pages: usize) -> Result<Self> {
        model.check_causal("generating texts")?;
        let spec = model.spec();
        let capacity = capacity.min(spec.max_positions);
        let n_pages = n_pages.min(batch.saturating_mul(Self::pages_for(capacity)));
        let size = [n_pages, Self::PAGE_LEN];
        let pools = KvCache::in_pages(&spec, model.compute(), size, capacity)?;
        let free = (0..n_pages as i32).rev().collect();
        Ok(Self { pools, n_pages, free, texts: (0..batch).map(|_| None).collect() })
    }

    /// Pages that so many tokens of a text take.
    #[must_use]
    pub fn pages_for(n_tokens: usize) -> usize {
        n_tokens.div_ceil(Self::PAGE_LEN)
    }

    /// Most texts at once.
    #[must_use]
    pub fn batch(&self) -> usize {
        self.texts.len()
    }

    /// Most tokens of a text.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.pools.capacity()
    }

    /// Pages there are.
    #[must_use]
    pub fn n_pages(&self) -> usize {
        self.n_pages
    }

    /// Pages that no text has.
    #[must_use]
    pub fn n_free(&self) -> usize {
        self.free.len()
    }

    /// Pages that the next token of each text takes, beyond those it has.
    #[must_use]
    pub fn n_wanted(&self) -> usize {
        self.texts.iter().flatten().filter(|text| text.is_full()).count()
    }

    /// Tokens of the text in row `row`, if there is one.
    #[must_use]
    pub fn len(&self, row: usize) -> Option<usize> {
        self.texts.get(row)?.as_ref().map(|text| text.len)
    }

    /// Whether there are no texts.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.texts.iter().all(Option::is_none)
    }

    /// Takes in a copy of the text in `one`, a cache of one sequence of the same model, and says in
    /// which row it is.
    ///
    /// # Errors
    /// If all rows have texts, there are not enough pages, the text is longer than texts may be, it
    /// has a bidirectional context, or memory runs out.
    pub fn join(&mut self, one: &KvCache) -> Result<usize> {
        const DOING: &str = "adding a text to the cache";
        if one.prefix_len() > 0 {
            return Err(Error::Prompt {
                reason:
                    "the tokens of its context see one another, which a cache in pages cannot keep"
                        .to_owned(),
                hint: "continue texts of this model one at a time".to_owned(),
            });
        }
        let Some(row) = self.texts.iter().position(Option::is_none) else {
            let (found, expected) = (format!("{} texts", self.batch()), "a row without a text");
            return Err(Error::Paged { doing: DOING, found, expected });
        };
        let (len, limit) = (one.len(), self.capacity());
        if len > limit {
            return Err(Error::TooLong { what: "the number of tokens", found: len, limit });
        }
        let wanted = Self::pages_for(len);
        self.check_free(DOING, wanted)?;
        let pages = self.free.split_off(self.free.len() - wanted);
        let text = Text { pages, len };
        let copied =
            self.pages_of(&[(&text, len)]).and_then(|to| Ok(self.pools.copy_text(one, &to)?));
        if let Err(error) = copied {
            self.free.extend(text.pages);
            return Err(error);
        }
        self.texts[row] = Some(text);
        Ok(row)
    }

    /// Forgets the text in row `row`, if there is one.
    pub fn leave(&mut self, row: usize) {
        if let Some(text) = self.texts.get_mut(row).and_then(Option::take) {
            self.free.extend(text.pages.into_iter().rev());
        }
    }

    /// Logits `[n, V]` after one more token of some texts, given by row; their order is that of
    /// `next`.
    ///
    /// # Errors
    /// If a row has no text, a text is as long as it may be, the pages do not suffice, an id is
    /// outside of the vocabulary, or memory runs out.
    pub fn next_logits(&mut self, model: &Model, next: &[(usize, i32)]) -> Result<Tensor> {
        const DOING: &str = "continuing texts";
        let mut longest = 0;
        for (i, (row, _)) in next.iter().enumerate() {
            let is_new = next[..i].iter().all(|(other, _)| other != row);
            let Some(len) = self.len(*row).filter(|_| is_new) else {
                let (found, expected) = (format!("row {row}"), "different rows, each with a text");
                return Err(Error::Paged { doing: DOING, found, expected });
            };
            longest = longest.max(len);
        }
        self.grow(DOING, next.iter().map(|(row, _)| *row))?;
        let texts: Vec<_> = next.iter().filter_map(|(row, _)| self.texts[*row].as_ref()).collect();
        let ids: Vec<i32> = next.iter().map(|(_, id)| *id).collect();
        let positions: Vec<i32> = texts.iter().map(|text| text.len as i32).collect();
        let grown: Vec<_> = texts.iter().map(|text| (*text, text.len + 1)).collect();
        let pages = self.pages_of(&grown)?;
        let shape = [next.len(), 1];
        let (ids, positions) =
            (Tensor::from_ids(&ids, shape)?, Tensor::from_ids(&positions, shape)?);
        let tokens = Tokens::causal(ids, positions)?;
        self.pools.set_len(longest);
        self.pools.set_place(Place::Pages(pages));
        let logits = model.next_logits(&tokens, &mut self.pools);
        self.pools.set_place(Place::End);
        let logits = logits?;
        next.iter().for_each(|(row, _)| self.advance(*row));
        Ok(logits)
    }

    /// Gives each of these texts the page that its next token takes, or none any.
    fn grow(
        &mut self,
        doing: &'static str,
        rows: impl Iterator<Item = usize> + Clone,
    ) -> Result<()> {
        let is_full = |row: &usize| self.texts[*row].as_ref().is_some_and(Text::is_full);
        let wanted: Vec<usize> = rows.filter(is_full).collect();
        self.check_free(doing, wanted.len())?;
        for row in wanted {
            if let Some(text) = &mut self.texts[row] {
                text.pages.extend(self.free.pop());
            }
        }
        Ok(())
    }

    /// Counts one more token of a text.
    fn advance(&mut self, row: usize) {
        if let Some(text) = &mut self.texts[row] {
            text.len += 1;
        }
    }

    fn check_free(&self, doing: &'static str, wanted: usize) -> Result<()> {
        let (free, all, page_len) = (self.free.len(), self.n_pages, Self::PAGE_LEN);
        match wanted <= free {
            true => Ok(()),
            false => Err(Error::PagesFull { doing, wanted, free, all, page_len }),
        }
    }

    /// The pages of these texts with these lengths, where the pools are.
    fn pages_of(&self, texts: &[(&Text, usize)]) -> Result<Pages> {
        let max = texts.iter().map(|(text, _)| text.pages.len()).max().unwrap_or(0);
        let mut table = vec![0; texts.len() * max];
        for (row, (text, _)) in table.chunks_mut(max.max(1)).zip(texts) {
            row[..text.pages.len()].copy_from_slice(&text.pages);
        }
        let lengths: Vec<i32> = texts.iter().map(|(_, len)| *len as i32).collect();
        let table = Tensor::from_ids(&table, [texts.len(), max])?;
        let lengths = Tensor::from_ids(&lengths, [texts.len()])?;
        let device = self.pools.device();
        Ok(Pages::new(table.to_device(device)?, lengths.to_device(device)?)?)
    }
}

impl Text {
    /// Whether its next token takes a new page.
    fn is_full(&self) -> bool {
        self.len == self.pages.len() * PagedCache::PAGE_LEN
    }
}
