//! Generation for many texts at once, over a cache in pages.

use std::collections::VecDeque;
use std::ops::ControlFlow;

use lehr_model::{Model, PagedCache, PagedGraph};
use lehr_tensor::Device;
use lehr_tensor::inplace::sample::GpuSampler;
use lehr_tokenizer::Tokenizer;

use crate::continuation::{Continuation, Finish, Generated, Limits};
use crate::generate::{Generator, Next};
use crate::{Error, Result, Sampler, Sampling};

/// A text to continue, and how.
#[derive(Clone, Debug)]
pub struct Request {
    /// Its tokens.
    pub prompt: Vec<u32>,
    /// How its tokens are chosen.
    pub sampling: Sampling,
    /// When it ends.
    pub limits: Limits,
}

/// How much is at work at once.
#[derive(Clone, Copy, Debug)]
pub struct BatchSize {
    /// At most so many texts.
    pub texts: usize,
    /// At most so many tokens of a text, with the prompt (and the model's context).
    pub capacity: usize,
    /// Pages of the cache; `None` = as many as so many texts of that length take.
    pub n_pages: Option<usize>,
}

/// A model at work on many texts. As soon as one ends, the next prompt takes its place. If the
/// pages of the cache do not suffice, the last prompt's text gives its pages back, waits, and is
/// computed again up to where it was.
///
/// Each text is the one that [`Generator`] gives, but for rounding: products of several rows may
/// add in another order.
pub struct BatchGenerator<'a> {
    model: &'a Model,
    tokenizer: &'a Tokenizer,
    /// Reads prompts and chooses the first token after each.
    one: Generator<'a>,
    cache: PagedCache,
    /// How the texts are continued on a GPU, once they are.
    on_gpu: Option<(PagedGraph, GpuSampler)>,
}

/// A text at work, or waiting for its turn.
struct Text<'r> {
    /// Which request.
    index: usize,
    request: &'r Request,
    sampler: Sampler,
    new: Continuation<'r>,
    /// All tokens, with the last one, whose keys and values are computed next.
    tokens: Vec<i32>,
}

impl Text<'_> {
    /// Appends the next token; says why the text ends if it does.
    fn go_on(&mut self, next: Next, capacity: usize) -> Option<Finish> {
        let seen = (&self.tokens[..], self.request.prompt.len());
        let limits = &self.request.limits;
        let (id, logprob) = next.choose(&mut self.sampler, seen, limits.logprobs);
        let has_room = self.tokens.len() < capacity;
        self.tokens.push(id as i32);
        self.new.push(id, logprob, has_room, &mut |_| ControlFlow::Continue(()))
    }

    /// The prompt's tokens, and those after it.
    fn parts(&self) -> (&[i32], &[i32]) {
        self.tokens.split_at(self.request.prompt.len())
    }

    fn end(self, finish: Finish) -> (usize, Generated) {
        (self.index, self.new.end(finish, &mut |_| ControlFlow::Continue(())))
    }
}

/// Who is told of a text that has ended: the number of its request and what was generated.
type OnEnd<'f> = dyn FnMut(usize, Generated) -> ControlFlow<()> + 'f;

impl<'a> BatchGenerator<'a> {
    /// Prepares the caches.
    ///
    /// # Errors
    /// If the model is an encoder, there are to be no texts at once, or there is not enough memory.
    pub fn new(model: &'a Model, tokenizer: &'a Tokenizer, size: BatchSize) -> Result<Self> {
        let BatchSize { texts, capacity, n_pages } = size;
        if texts == 0 {
            return Err(Error::EmptyBatch);
        }
        let one = Generator::new(model, tokenizer, capacity)?;
        let n_pages = n_pages.unwrap_or(usize::MAX);
        let cache = PagedCache::new(model, texts, capacity, n_pages)?;
        Ok(Self { model, tokenizer, one, cache, on_gpu: None })
    }

    /// Continues all requests and gives each to `on_end` as it ends, which may stop the rest. A
    /// request's own text depends on no other.
    ///
    /// # Errors
    /// If a prompt is empty or fills the context, a setting is out of range, the pages of the cache
    /// do not suffice for a single text, or the device fails. Prompts and settings are checked
    /// before the first text begins.
    pub fn generate(&mut self, requests: &[Request], on_end: &mut OnEnd<'_>) -> Result<()> {
        let mut waiting = VecDeque::new();
        for (index, request) in requests.iter().enumerate() {
            let text = self.text(index, request).map_err(|source| Error::InPrompt {
                number: index + 1,
                n: requests.len(),
                source: Box::new(source),
            })?;
            waiting.push_back(text);
        }
        // Log-probabilities need the logits on the host.
        let on_host = requests.iter().any(|request| request.limits.logprobs.is_some());
        let on_gpu = self.model.compute().0 != Device::Cpu && !on_host;
        if on_gpu && self.on_gpu.is_none() {
            self.on_gpu = self.prepare_gpu()?;
        }
        let ended = self.run(waiting, on_gpu, on_end);
        // Also after an error, and if the rest was stopped.
        (0..self.cache.batch()).for_each(|row| self.cache.leave(row));
        ended.map(drop)
    }

    fn text<'r>(&self, index: usize, request: &'r Request) -> Result<Text<'r>> {
        self.one.check_prompt(&request.prompt)?;
        Ok(Text {
            index,
            request,
            sampler: Sampler::new(request.sampling)?,
            new: Continuation::new(self.tokenizer, &request.limits),
            tokens: request.prompt.iter().map(|id| *id as i32).collect(),
        })
    }

    fn prepare_gpu(&self) -> Result<Option<(PagedGraph, GpuSampler)>> {
        let Some(graph) = PagedGraph::new(self.model, &self.cache)? else { return Ok(None) };
        let (device, _) = self.model.compute();
        Ok(Some((graph, GpuSampler::new(device, self.cache.batch(), self.one.n_ids())?)))
    }

    /// Until all texts have ended, or somebody breaks off.
    fn run(
        &mut self,
        mut waiting: VecDeque<Text<'_>>,
        on_gpu: bool,
        on_end: &mut OnEnd<'_>,
    ) -> Result<ControlFlow<()>> {
        let mut rows: Vec<Option<Text<'_>>> = (0..self.cache.batch()).map(|_| None).collect();
        loop {
            while let Some(text) = self.next_to_join(&mut waiting, &rows) {
                if let Some((index, ended)) = self.join(text, &mut rows, on_gpu)?
                    && on_end(index, ended).is_break()
                {
                    return Ok(ControlFlow::Break(()));
                }
            }
            if rows.iter().all(Option::is_none) {
                return Ok(ControlFlow::Continue(()));
            }
            self.make_room(&mut waiting, &mut rows);
            for (index, ended) in self.step(&mut rows, on_gpu)? {
                if on_end(index, ended).is_break() {
                    return Ok(ControlFlow::Break(()));
                }
            }
        }
    }

    /// The text whose turn it is, if there is a row for it and pages for its tokens, and a page for
    /// each text that is at work: so that it need not leave again at once. If none is at work, it
    /// is its turn anyway.
    fn next_to_join<'r>(
        &self,
        waiting: &mut VecDeque<Text<'r>>,
        rows: &[Option<Text<'r>>],
    ) -> Option<Text<'r>> {
        let n_at_work = rows.iter().flatten().count();
        let wanted = PagedCache::pages_for(waiting.front()?.tokens.len() + 1) + n_at_work;
        let fits = n_at_work < rows.len() && wanted <= self.cache.n_free();
        if fits || n_at_work == 0 { waiting.pop_front() } else { None }
    }

    /// Reads the tokens of a text, chooses the next and gives the text a row, unless it has ended
    /// with that.
    fn join<'r>(
        &mut self,
        mut text: Text<'r>,
        rows: &mut [Option<Text<'r>>],
        on_gpu: bool,
    ) -> Result<Option<(usize, Generated)>> {
        if text.new.is_complete() {
            return Ok(Some(text.end(Finish::Length)));
        }
        let logits = self.one.prefill(&text.tokens)?;
        if on_gpu {
            let (prompt, generated) = text.parts();
            self.one.prepare_gpu(&text.sampler, prompt, generated)?;
        }
        let next = self.one.next_of(&logits, on_gpu)?;
        if let Some(finish) = text.go_on(next, self.cache.capacity()) {
            return Ok(Some(text.end(finish)));
        }
        let row = self.cache.join(self.one.cache())?;
        if let (Some((_, gpu)), true) = (&self.on_gpu, on_gpu) {
            let (sampling, n_drawn) = text.sampler.state();
            gpu.set(row, &sampling, n_drawn)?;
            let (prompt, generated) = text.parts();
            if sampling.has_penalty() {
                gpu.set_seen(row, prompt, generated)?;
            }
            if let Some(last) = generated.last() {
                gpu.set_id(row, *last)?;
            }
        }
        rows[row] = Some(text);
        Ok(None)
    }

    /// Makes texts wait, the last first, until there are pages for the next tokens of the others.
    /// The last one is left, and if it has no room, the next step says so.
    fn make_room<'r>(&mut self, waiting: &mut VecDeque<Text<'r>>, rows: &mut [Option<Text<'r>>]) {
        while self.cache.n_wanted() > self.cache.n_free() && rows.iter().flatten().count() > 1 {
            let index = |row: &usize| rows[*row].as_ref().map(|text| text.index);
            let Some(last) = (0..rows.len()).max_by_key(index) else { return };
            self.cache.leave(last);
            if let Some(text) = rows[last].take() {
                // Those who wait go on in the order of the requests.
                waiting.push_front(text);
            }
        }
    }

    /// One more token for each text; those that have ended with it.
    fn step(
        &mut self,
        rows: &mut [Option<Text<'_>>],
        on_gpu: bool,
    ) -> Result<Vec<(usize, Generated)>> {
        let last = |(row, text): (usize, &Option<Text<'_>>)| {
            text.as_ref().and_then(|text| Some((row, *text.tokens.last()?)))
        };
        let last: Vec<(usize, i32)> = rows.iter().enumerate().filter_map(last).collect();
        let next: Vec<Next> = match &mut self.on_gpu {
            Some((graph, gpu)) if on_gpu => {
                graph.choose_next(self.model, gpu, &mut self.cache)?;
                let ids = gpu.read()?;
                last.iter().map(|(row, _)| Next::Token(ids[*row] as u32)).collect()
            }
            _ => {
                let logits = self.cache.next_logits(self.model, &last)?.to_host()?;
                let of_row = logits.data().chunks(logits.shape().last_dim());
                of_row.map(|row| Next::Logits(row[..self.one.n_ids()].to_vec())).collect()
            }
        };
        let mut ended = Vec::new();
        for ((row, _), next) in last.into_iter().zip(next) {
            let Some(text) = &mut rows[row] else { continue };
            if let Some(finish) = text.go_on(next, self.cache.capacity()) {
                self.cache.leave(row);
                ended.extend(rows[row].take().map(|text| text.end(finish)));
            }
        }
        Ok(ended)
    }
}
