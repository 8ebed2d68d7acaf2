//! The thread pool, which only forks and joins.
//!
//! The shape of the data alone decides how work is divided into numbered tasks. Any thread may run
//! any task, but what a task computes is fixed, so the number of threads does not change a bit of
//! the result. An idle worker spins for a moment, because in training the next kernel follows
//! within microseconds, and then sleeps.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, OnceLock, PoisonError};

/// Number of idle iterations before a worker sleeps or a caller yields.
const SPINS: u32 = 2_000;

type Task<'a> = &'a (dyn Fn(usize) + Sync);

/// One call of [`run`], shared by all participating threads.
struct Job {
    task: Task<'static>,
    n_tasks: usize,
    next: AtomicUsize,
    n_done: AtomicUsize,
    panicked: AtomicBool,
}

impl Job {
    /// Runs tasks until none is left.
    fn work(&self) {
        loop {
            let index = self.next.fetch_add(1, Ordering::Relaxed);
            if index >= self.n_tasks {
                return;
            }
            if catch_unwind(AssertUnwindSafe(|| (self.task)(index))).is_err() {
                self.panicked.store(true, Ordering::Relaxed);
            }
            self.n_done.fetch_add(1, Ordering::Release);
        }
    }
}

#[derive(Default)]
struct Post {
    job: Option<Arc<Job>>,
    n_workers: usize,
}

#[derive(Default)]
struct Pool {
    post: Mutex<Post>,
    /// Counts jobs, so that a worker can wait for the next one without the lock.
    epoch: AtomicUsize,
    wake: Condvar,
    /// Held during a job: a second caller works alone instead of waiting.
    busy: Mutex<()>,
}

static POOL: OnceLock<Arc<Pool>> = OnceLock::new();
static N_THREADS: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    static INSIDE: Cell<bool> = const { Cell::new(false) };
}

/// Returns the number of threads of a kernel, including the caller. Initially it is `LEHR_THREADS`,
/// or the number of cores.
#[must_use]
pub fn n_threads() -> usize {
    let n = N_THREADS.load(Ordering::Relaxed);
    if n != 0 {
        return n;
    }
    let from_env = std::env::var("LEHR_THREADS").ok().and_then(|v| v.parse().ok());
    let n = from_env
        .filter(|n| *n > 0)
        .unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from));
    N_THREADS.store(n, Ordering::Relaxed);
    n
}

/// Sets the number of threads for all following kernels; 0 means 1.
pub fn set_n_threads(n: usize) {
    N_THREADS.store(n.max(1), Ordering::Relaxed);
}

/// Runs `task(0)` to `task(n_tasks - 1)` once each, and returns when all have ended.
///
/// # Panics
/// If a task panics, after all others have ended.
pub fn run(n_tasks: usize, task: impl Fn(usize) + Sync) {
    let n_threads = n_threads().min(n_tasks);
    if n_threads <= 1 || INSIDE.get() {
        (0..n_tasks).for_each(task);
        return;
    }
    let pool = POOL.get_or_init(Arc::default);
    let Ok(_busy) = pool.busy.try_lock() else {
        (0..n_tasks).for_each(task);
        return;
    };
    let task: Task<'_> = &task;
    // SAFETY: the job ends before this function returns: it waits for `n_done`, after which no
    // thread touches `task` again (they only find that no index is left).
    let task: Task<'static> = unsafe { std::mem::transmute(task) };
    let job = Arc::new(Job {
        task,
        n_tasks,
        next: AtomicUsize::new(0),
        n_done: AtomicUsize::new(0),
        panicked: AtomicBool::new(false),
    });
    publish(pool, &job, n_threads - 1);
    INSIDE.set(true);
    job.work();
    INSIDE.set(false);
    let mut turns = 0u32;
    while job.n_done.load(Ordering::Acquire) < n_tasks {
        turns += 1;
        if turns > SPINS { std::thread::yield_now() } else { std::hint::spin_loop() }
    }
    if job.panicked.load(Ordering::Relaxed) {
        resume_unwind(Box::new("a task of the thread pool panicked"));
    }
}

fn publish(pool: &Arc<Pool>, job: &Arc<Job>, n_helpers: usize) {
    let mut post = pool.post.lock().unwrap_or_else(PoisonError::into_inner);
    while post.n_workers < n_helpers {
        let shared = Arc::clone(pool);
        let index = post.n_workers;
        let worker = move || work_forever(&shared, index);
        if std::thread::Builder::new().name(format!("lehr-{index}")).spawn(worker).is_err() {
            break; // The caller does the work itself if the system refuses threads.
        }
        post.n_workers += 1;
    }
    post.job = Some(Arc::clone(job));
    pool.epoch.fetch_add(1, Ordering::Release);
    drop(post);
    pool.wake.notify_all();
}

fn work_forever(pool: &Pool, index: usize) {
    INSIDE.set(true);
    let mut seen = 0;
    loop {
        let mut turns = 0;
        while pool.epoch.load(Ordering::Acquire) == seen && turns < SPINS {
            turns += 1;
            std::hint::spin_loop();
        }
        let mut post = pool.post.lock().unwrap_or_else(PoisonError::into_inner);
        while pool.epoch.load(Ordering::Acquire) == seen {
            post = pool.wake.wait(post).unwrap_or_else(PoisonError::into_inner);
        }
        seen = pool.epoch.load(Ordering::Acquire);
        let job = post.job.clone();
        drop(post);
        // A pool that once had more threads keeps them; threads beyond the current number sleep.
        if index + 1 < N_THREADS.load(Ordering::Relaxed)
            && let Some(job) = job
        {
            job.work();
        }
    }
}

/// A mutable slice to which several tasks write at disjoint positions.
#[derive(Clone, Copy)]
pub struct SharedMut<T> {
    ptr: *mut T,
    len: usize,
}

// SAFETY: it is a pointer; `slice` puts the burden of disjointness on its caller.
unsafe impl<T: Send> Send for SharedMut<T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for SharedMut<T> {}

impl<T> SharedMut<T> {
    /// Creates a view of `slice` for several tasks.
    pub fn new(slice: &mut [T]) -> Self {
        Self { ptr: slice.as_mut_ptr(), len: slice.len() }
    }

    /// Returns the address of the first element.
    pub fn ptr(&self) -> *mut T {
        self.ptr
    }

    /// Returns the elements `start..start + len`.
    ///
    /// # Safety
    /// No other live slice may overlap, and the original borrow must outlive the result.
    #[expect(clippy::mut_from_ref, reason = "disjointness is the caller's promise")]
    pub unsafe fn slice(&self, start: usize, len: usize) -> &mut [T] {
        assert!(start + len <= self.len, "a task stays within its slice");
        // SAFETY: in bounds by the assertion, disjoint by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.ptr.add(start), len) }
    }
}

/// Divides `out` into chunks of `chunk` elements (the last may be shorter) and runs
/// `body(index, chunk)` for each, in parallel.
pub fn run_chunks<T: Send>(out: &mut [T], chunk: usize, body: impl Fn(usize, &mut [T]) + Sync) {
    let (len, chunk) = (out.len(), chunk.max(1));
    let shared = SharedMut::new(out);
    run(len.div_ceil(chunk), |index| {
        let start = index * chunk;
        // SAFETY: chunks of different indices do not overlap.
        body(index, unsafe { shared.slice(start, chunk.min(len - start)) });
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_task_runs_exactly_once() {
        for n_threads in [1, 2, 3, 5] {
            set_n_threads(n_threads);
            let counts: Vec<AtomicUsize> = (0..1000).map(|_| AtomicUsize::new(0)).collect();
            run(1000, |i| {
                counts[i].fetch_add(1, Ordering::Relaxed);
            });
            assert!(counts.iter().all(|c| c.load(Ordering::Relaxed) == 1));
        }
    }

    #[test]
    fn a_panic_in_a_task_reaches_the_caller() {
        let caught = catch_unwind(|| run(8, |i| assert!(i != 5, "task 5 fails")));
        assert!(caught.is_err());
        run(8, |_| ());
    }
}
