//! One more token for each text in pages on a GPU, by work that is recorded once.

use lehr_tensor::cuda::{self, Graph};
use lehr_tensor::inplace::{self, sample::GpuSampler};
use lehr_tensor::ops::attention::Pages;
use lehr_tensor::{DType, Device, Tensor};

use super::{PagedCache, Text};
use crate::cache::Place;
use crate::decode::{check_sampler, run_or_record};
use crate::{Error, Model, Result, Tokens};

/// As [`DecodeGraph`](crate::DecodeGraph), for a [`PagedCache`]: the work covers all its rows, and
/// which pages the texts have and how long they are is read on the device, so texts may join and
/// leave between two steps. Rows without a text compute what nobody reads.
///
/// It belongs to one model and one cache.
pub struct PagedGraph {
    device: usize,
    positions: Tensor,
    pages: Pages,
    /// What table and lengths (with the new token) on the device are, if it is known; positions go
    /// with the lengths.
    known: Option<(Vec<i32>, Vec<i32>)>,
    /// With what the work chooses, and the work.
    choice: (Option<GpuSampler>, Option<Graph>),
}

impl PagedGraph {
    /// Room for the inputs; `None` on the CPU, where there is nothing to record.
    ///
    /// # Errors
    /// If memory runs out or the device fails.
    pub fn new(model: &Model, cache: &PagedCache) -> Result<Option<Self>> {
        let (Device::Cuda(device), _) = model.compute() else { return Ok(None) };
        let zeros = |shape: &[usize]| Tensor::zeros_on(Device::Cuda(device), shape, DType::I32);
        let batch = cache.batch();
        let table = zeros(&[batch, PagedCache::pages_for(cache.capacity())])?;
        let pages = Pages::new(table, zeros(&[batch])?)?;
        let positions = zeros(&[batch, 1])?;
        Ok(Some(Self { device, positions, pages, known: None, choice: (None, None) }))
    }

    /// Appends to each text the token that `sampler` chose last for its row, and chooses the next:
    /// the host waits for nothing, uploads only what changed beyond one more token for each text,
    /// and finds the ids with [`GpuSampler::read`].
    ///
    /// # Errors
    /// If a text is as long as it may be, the pages do not suffice, the sampler is for another
    /// number of texts or more ids than the vocabulary has, or the device fails.
    pub fn choose_next(
        &mut self,
        model: &Model,
        sampler: &GpuSampler,
        cache: &mut PagedCache,
    ) -> Result<()> {
        check_sampler(sampler, cache.batch(), model.spec().vocab_size)?;
        let longest = cache.texts.iter().flatten().map(|text| text.len).max().unwrap_or(0);
        let limit = cache.capacity();
        if longest >= limit {
            let (what, found) = ("the number of tokens", longest + 1);
            return Err(Error::TooLong { what, found, limit });
        }
        cache.grow("continuing texts", 0..cache.batch())?;
        let (table, mut lengths) = self.upload(cache)?;
        if self.choice.0.as_ref().is_some_and(|old| !old.is_same(sampler)) {
            self.choice = (None, None);
        }
        if self.choice.1.is_none() {
            let tokens = Tokens::causal(sampler.ids().clone(), self.positions.clone())?;
            let place = Place::Pages(self.pages.clone());
            let has_run = self.choice.0.is_some();
            cache.pools.set_len(longest);
            let ((), graph) =
                run_or_record(self.device, place, has_run, &mut cache.pools, |pools| {
                    sampler.pick(&model.next_logits(&tokens, pools)?)?;
                    Ok(inplace::advance_texts(&self.positions, self.pages.lengths())?)
                })?;
            self.choice = (Some(sampler.clone()), graph);
        }
        if let Some(graph) = &self.choice.1 {
            graph.launch()?;
        }
        (0..cache.batch()).for_each(|row| cache.advance(row));
        lengths.iter_mut().for_each(|n| *n += i32::from(*n > 0));
        self.known = Some((table, lengths));
        Ok(())
    }

    /// Brings table, lengths and positions on the device to what the cache has, with the new
    /// tokens, and gives table and lengths. What is there counts as known again after the work.
    fn upload(&mut self, cache: &PagedCache) -> Result<(Vec<i32>, Vec<i32>)> {
        let max = PagedCache::pages_for(cache.capacity());
        let mut table = vec![0; cache.batch() * max];
        for (row, text) in table.chunks_mut(max.max(1)).zip(&cache.texts) {
            let pages = text.as_ref().map_or(&[][..], |text| &text.pages[..]);
            row[..pages.len()].copy_from_slice(pages);
        }
        let length = |text: &Option<Text>| text.as_ref().map_or(0, |text| text.len as i32 + 1);
        let lengths: Vec<i32> = cache.texts.iter().map(length).collect();
        let known = self.known.take();
        if known.as_ref().is_none_or(|known| known.0 != table) {
            cuda::overwrite_ids(self.pages.table(), &table)?;
        }
        if known.is_none_or(|known| known.1 != lengths) {
            cuda::overwrite_ids(self.pages.lengths(), &lengths)?;
            let positions: Vec<i32> = lengths.iter().map(|n| (n - 1).max(0)).collect();
            cuda::overwrite_ids(&self.positions, &positions)?;
        }
        Ok((table, lengths))
    }
}
