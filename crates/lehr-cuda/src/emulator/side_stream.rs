//! Copies of the emulated side stream, executed as late as allowed, so that a block which is reused
//! or read too early gives wrong numbers.

use std::collections::VecDeque;
use std::sync::Mutex;

use super::lock;
use crate::offload::{HostCopy, SideStream};
use lehr_kernels::Result;

#[derive(Default)]
pub(super) struct LateSideStream(Mutex<State>);

#[derive(Default)]
struct State {
    n_given: u64,
    waiting: VecDeque<(u64, HostCopy)>,
    memory: Vec<Box<[u8]>>,
}

impl SideStream for LateSideStream {
    fn lock_memory(&self, bytes: usize) -> Result<u64> {
        let mut memory = vec![0u8; bytes].into_boxed_slice();
        let address = memory.as_mut_ptr() as u64;
        lock(&self.0).memory.push(memory);
        Ok(address)
    }

    fn begin(&self, copy: HostCopy) -> Result<u64> {
        let mut state = lock(&self.0);
        state.n_given += 1;
        let ticket = state.n_given;
        state.waiting.push_back((ticket, copy));
        Ok(ticket)
    }

    fn wait(&self, ticket: u64) -> Result<()> {
        let mut state = lock(&self.0);
        // In order, as a stream does.
        while state.waiting.front().is_some_and(|(first, _)| *first <= ticket) {
            let Some((_, copy)) = state.waiting.pop_front() else { break };
            let HostCopy { host, device, bytes, to_host } = copy;
            let (from, to) = if to_host { (device, host) } else { (host, device) };
            // SAFETY: the emulated device's addresses are the host's; the caller keeps the block
            // until it has waited.
            unsafe { std::ptr::copy_nonoverlapping(from as *const u8, to as *mut u8, bytes) };
        }
        Ok(())
    }
}
