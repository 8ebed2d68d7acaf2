//! Scheduling: first come, first served, and the latest request is preempted first.
//!
//! Pages are allocated as sequences grow, not reserved for their full length. So more sequences
//! share the memory, but pages can run out in the middle of a step. Then the latest sequence
//! releases its pages and waits. The earliest sequence is never preempted, so it always completes
//! and the engine cannot livelock.
//!
//! A preempted sequence keeps its tokens and the state of its sampler. Running the tokens again
//! restores the same keys and values, so preemption does not change its answer.

use lehr_model::PagedCache;

use super::sequence::{Choice, Sequence};
use super::step::on_host;
use super::{Engine, Event, PREFILL_CHUNK};
use crate::{Error, Finish, Result};

impl Engine<'_> {
    /// Admits waiting requests in order of arrival.
    ///
    /// A request needs a row of the cache, pages for its tokens and the next one, and one spare
    /// page for each running sequence. Without the spare pages, the next decoding step could
    /// preempt the new sequence and waste its prefill. If no sequence is running, the first request
    /// begins anyway: waiting would free nothing.
    ///
    /// A request that does not fit blocks those behind it. Smaller later requests must not starve
    /// it.
    pub(super) fn admit(&mut self, events: &mut Vec<Event>) {
        while let Some(first) = self.waiting.front() {
            let n_running = self.running.len();
            let wanted = PagedCache::pages_for(first.tokens.len() + 1) + n_running;
            let has_row = n_running < self.cache.max_sequences();
            if n_running > 0 && !(has_row && wanted <= self.cache.n_available()) {
                return;
            }
            let Some(mut sequence) = self.waiting.pop_front() else { return };
            if sequence.is_complete() {
                finish(sequence, Finish::Length, events);
                continue;
            }
            // `begin` shares the pages of an earlier sequence that starts with the same tokens.
            // Only full pages are shared, so no sequence ever writes into a page of another.
            match self.cache.begin(&sequence.tokens, sequence.layout.clone()) {
                Ok(row) => sequence.row = row,
                Err(error) => {
                    events.push(Event::Failed { id: sequence.id, error: error.into() });
                    continue;
                }
            }
            sequence.is_decoding = false;
            let n_reused = self.cache.len(sequence.row).unwrap_or(0);
            // After a preemption a sequence may find its own old pages. Only the first count is
            // reported.
            sequence.n_reused.get_or_insert(n_reused);
            self.running.push(sequence);
        }
    }

    /// Decodes one token of each sequence whose prompt is complete, all in one batch. Preempts the
    /// latest sequences until the batch has enough pages.
    pub(super) fn decode(&mut self, events: &mut Vec<Event>) -> Result<()> {
        let choices = loop {
            let n_running = self.running.len();
            let mut ready: Vec<_> = self.running.iter_mut().filter(|s| s.is_decoding).collect();
            if ready.is_empty() {
                return Ok(());
            }
            match self.step.next(self.model, &mut self.cache, &mut ready) {
                Ok(choices) => break choices,
                Err(error) if is_full(&error) && n_running > 1 => self.preempt_last(),
                // The error of a batch of one belongs to that request and must not end the others.
                Err(error) if ready.len() == 1 => break vec![Err(error)],
                Err(error) => return Err(error),
            }
        };
        let mut choices = choices.into_iter();
        let mut running = std::mem::take(&mut self.running).into_iter();
        for sequence in running.by_ref() {
            match sequence.is_decoding.then(|| choices.next()).flatten() {
                Some(choice) => self.accept(sequence, choice, events),
                None => self.running.push(sequence),
            }
        }
        Ok(())
    }

    /// Prefills prompts in order of arrival, up to the budget of tokens.
    ///
    /// The earliest prompt gets the whole budget, because its first token comes sooner that way.
    /// Only a bidirectional prefix may exceed the budget: it cannot be cut.
    pub(super) fn prefill(&mut self, events: &mut Vec<Event>) {
        let mut budget = self.prefill_budget;
        let mut at = 0;
        while at < self.running.len() && budget > 0 {
            let sequence = &self.running[at];
            if sequence.is_decoding {
                at += 1;
                continue;
            }
            let done = self.cache.len(sequence.row).unwrap_or(0);
            let left = sequence.tokens.len() - done;
            let n = left
                .min(budget)
                .min(PREFILL_CHUNK)
                .max(sequence.layout.prefix_len.saturating_sub(done));
            let (ids, is_last) = (&sequence.tokens[done..done + n], n == left);
            let read = self.cache.prefill(self.model, sequence.row, ids, is_last);
            match read.map_err(Error::from) {
                Ok(logits) => {
                    budget = budget.saturating_sub(n);
                    let Some(logits) = logits else { continue };
                    let mut sequence = self.running.remove(at);
                    // The host chooses the first token on every device: copying one row of logits
                    // per prompt is cheap.
                    let logits = on_host(&logits, self.n_ids);
                    let choice = logits.and_then(|logits| sequence.choose(logits));
                    // A sequence that continues is inserted at the same index again.
                    let n_before = self.running.len();
                    self.accept(sequence, choice, events);
                    at += self.running.len() - n_before;
                }
                // The latest sequence may be this one. The loop then ends at its index.
                Err(error) if is_full(&error) && self.running.len() > 1 => {
                    self.preempt_last();
                }
                Err(error) => {
                    let sequence = self.running.remove(at);
                    self.cache.end(sequence.row);
                    events.push(Event::Failed { id: sequence.id, error });
                }
            }
        }
    }

    /// Appends the chosen token to a sequence, then keeps the sequence running or ends it.
    fn accept(&mut self, mut sequence: Sequence, choice: Result<Choice>, events: &mut Vec<Event>) {
        let row = sequence.row;
        let pushed = choice.and_then(|choice| {
            let finish = sequence.push(choice, self.cache.context(), events);
            if finish.is_none() && !sequence.is_decoding {
                self.step.begin(&sequence)?;
            }
            Ok(finish)
        });
        match pushed {
            Ok(None) => {
                sequence.is_decoding = true;
                let at = self.running.partition_point(|other| other.id < sequence.id);
                self.running.insert(at, sequence);
                return;
            }
            Ok(Some(reason)) => finish(sequence, reason, events),
            Err(error) => events.push(Event::Failed { id: sequence.id, error }),
        }
        self.cache.end(row);
    }

    /// Preempts the latest sequence: releases its pages and puts it at the head of the queue, since
    /// all waiting requests arrived after it. Its tokens are run again later.
    fn preempt_last(&mut self) {
        if let Some(last) = self.running.pop() {
            self.cache.end(last.row);
            self.waiting.push_front(last);
        }
    }
}

/// Ends a sequence and reports its last text and its answer.
fn finish(sequence: Sequence, reason: Finish, events: &mut Vec<Event>) {
    let id = sequence.id;
    let (piece, generated) = sequence.end(reason);
    if !piece.is_empty() {
        events.push(Event::Text { id, piece });
    }
    events.push(Event::Finished { id, generated });
}

/// Returns whether the cache ran out of pages.
fn is_full(error: &Error) -> bool {
    matches!(error, Error::Model(lehr_model::Error::PagesFull { .. }))
}
