//! The worker pool: parallel regions that start in about a microsecond and share a machine politely.
//!
//! A region is a number of tasks. Each thread takes a run of neighbours, one by one, because what lies side by side
//! streams best from memory; whoever is done takes from the end of another's run, so that a delayed thread delays
//! nobody else. Workers look for work a little while after a region (a decode step has a hundred of them in a row),
//! then sleep. A worker that the system has put aside is not waited for: it joins a region or it does not. So that the
//! system rarely puts one aside in the middle of a task, which the others would wait for, every thread offers its core
//! to other processes now and then, between regions.
//! Which thread computes a task never changes what is computed.

use std::cell::UnsafeCell;
use std::fmt;
use std::hint;
use std::num::NonZero;
use std::ops::Range;
use std::panic::{self, AssertUnwindSafe};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Condvar, Mutex, PoisonError, TryLockError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::error::{Error, Result};

/// The most threads that a pool accepts.
pub const MAX_THREADS: usize = 1024;

/// Looks for the next region before a worker sleeps: some tens of microseconds.
const SPINS_BEFORE_SLEEP: u32 = 4_000;

/// Looks for what a thread waits for before it lets others have its core between looks.
const SPINS_BEFORE_YIELD: u32 = 1_000;

/// Looks of a worker from one time that it lets others have its core to the next.
const SPINS_A_YIELD: u32 = 100;

/// How long a thread computes before it offers its core to others: less than the time slices of schedulers, much more
/// than what the offer costs if nobody takes it.
const OFFER_INTERVAL: Duration = Duration::from_millis(1);

/// The bit of [`Shared::gate`] that says that a region is open to join; the bits below count who is inside.
const OPEN: u64 = 1 << 32;

/// A fixed set of threads that run parallel regions; the calling thread is one of them.
pub struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    /// Held while a region runs.
    turn: Mutex<Offer>,
}

/// When a thread last offered its core to others.
struct Offer(Instant);

struct Shared {
    /// [`OPEN`] and the number of workers inside the region.
    gate: AtomicU64,
    /// The region's work. Written by the caller while the gate is closed and nobody is inside; read by workers
    /// inside.
    work: UnsafeCell<Work>,
    /// The tasks of each thread that nobody has taken, the caller's first.
    runs: Vec<Run>,
    panicked: AtomicBool,
    stop: AtomicBool,
    /// Workers that sleep or are about to.
    sleepers: AtomicUsize,
    sleep: Mutex<()>,
    wake: Condvar,
}

/// A closure by its address, and how to call it.
#[derive(Clone, Copy)]
struct Work {
    closure: *const (),
    call: fn(*const (), usize),
}

/// Pieces `first..end`, the first in the lower half, on a cache line of their own.
#[repr(align(128))]
#[derive(Default)]
struct Run(AtomicU64);

impl Run {
    fn set(&self, tasks: Range<usize>) {
        let [first, end] = [tasks.start, tasks.end]
            .map(|task| u32::try_from(task).expect("a region has fewer than 2³² tasks"));
        self.0.store(u64::from(end) << 32 | u64::from(first), SeqCst);
    }

    /// Takes a task: its own thread the first, others the last.
    fn take(&self, is_own: bool) -> Option<usize> {
        #[expect(clippy::cast_possible_truncation, reason = "each is one half")]
        let split = |run: u64| (run as u32, (run >> 32) as u32);
        let (first, end) = self
            .0
            .fetch_update(SeqCst, SeqCst, |run| {
                let (first, end) = split(run);
                (first < end).then(|| if is_own { run + 1 } else { run - (1 << 32) })
            })
            .map(split)
            .ok()?;
        Some(if is_own { first } else { end - 1 } as usize)
    }
}

// SAFETY: `work` is the only field that is not `Sync`. `Pool::run` writes it while `gate` is closed and empty, and
// workers read it between joining an open gate and leaving it; both sides order through `gate`. The closure behind
// the address is `Sync` (a bound of `Pool::run`) and outlives the region (`run` closes the gate and waits).
#[expect(unsafe_code, reason = "a region lends a closure on the caller's stack to the workers")]
unsafe impl Sync for Shared {}

// SAFETY: as for `Sync`; the address in `work` is only followed inside a region.
#[expect(unsafe_code, reason = "a region lends a closure on the caller's stack to the workers")]
unsafe impl Send for Shared {}

impl Pool {
    /// A pool of `threads` threads, the caller's among them.
    ///
    /// # Errors
    /// [`Error::Threads`] for none or more than [`MAX_THREADS`]; [`Error::Spawn`] if the system refuses one.
    pub fn new(threads: usize) -> Result<Self> {
        if threads == 0 || threads > MAX_THREADS {
            return Err(Error::Threads { found: threads, max: MAX_THREADS });
        }
        let shared = Arc::new(Shared {
            gate: AtomicU64::new(0),
            work: UnsafeCell::new(Work { closure: std::ptr::null(), call: |_, _| () }),
            runs: (0..threads).map(|_| Run::default()).collect(),
            panicked: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            sleepers: AtomicUsize::new(0),
            sleep: Mutex::new(()),
            wake: Condvar::new(),
        });
        let mut pool = Self { shared, workers: Vec::new(), turn: Mutex::new(Offer::now()) };
        for started in 1..threads {
            let shared = Arc::clone(&pool.shared);
            let worker = thread::Builder::new()
                .name("nv-worker".to_owned())
                .spawn(move || shared.serve(started));
            // On an error the pool is dropped, and with it the workers that did start.
            pool.workers.push(worker.map_err(|error| Error::Spawn {
                started,
                asked_for: threads,
                kind: error.kind(),
            })?);
        }
        Ok(pool)
    }

    /// A thread for each physical core that the process may use.
    pub fn default_threads() -> usize {
        let usable = thread::available_parallelism().map_or(1, NonZero::get);
        usable.min(num_cpus::get_physical()).clamp(1, MAX_THREADS)
    }

    /// The number of threads, the caller's included.
    pub fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Calls `work` once with each of `0..tasks`, on any threads and in any order, and returns when all are done.
    ///
    /// While another region runs (a caller on another thread, or `work` itself calling back) the tasks run on the
    /// calling thread alone.
    ///
    /// # Panics
    /// If `work` does, after every thread has left it.
    pub fn run<F: Fn(usize) + Sync>(&self, tasks: usize, work: F) {
        if tasks <= 1 || self.workers.is_empty() {
            return (0..tasks).for_each(work);
        }
        let mut turn = match self.turn.try_lock() {
            Ok(turn) => turn,
            // A task of an earlier region panicked; nothing is left half-done by that.
            Err(TryLockError::Poisoned(turn)) => turn.into_inner(),
            Err(TryLockError::WouldBlock) => return (0..tasks).for_each(work),
        };
        let shared = &*self.shared;
        let lent = Work {
            closure: (&raw const work).cast(),
            call: |closure, task| {
                // SAFETY: `closure` is the address of `work`, an `F`, which `run` keeps until the gate is shut.
                #[expect(unsafe_code, reason = "the closure's type was erased a few lines above")]
                let work = unsafe { &*closure.cast::<F>() };
                work(task);
            },
        };
        // SAFETY: this thread holds `turn`, the gate is closed and nobody is inside: no one else reads or writes.
        #[expect(unsafe_code, reason = "the slot is this thread's while the gate is shut")]
        unsafe {
            *shared.work.get() = lent;
        }
        let threads = self.threads();
        for (thread, run) in shared.runs.iter().enumerate() {
            run.set(tasks * thread / threads..tasks * (thread + 1) / threads);
        }
        shared.gate.store(OPEN, SeqCst);
        if shared.sleepers.load(SeqCst) > 0 {
            let _sleep = shared.sleep.lock().unwrap_or_else(PoisonError::into_inner);
            shared.wake.notify_all();
        }

        let own = panic::catch_unwind(AssertUnwindSafe(|| shared.take_tasks(0, lent)));
        shared.close();
        turn.renew();
        // Taken before anything unwinds, so that the next region does not find it.
        let worker_panicked = shared.panicked.swap(false, SeqCst);
        if let Err(payload) = own {
            panic::resume_unwind(payload);
        }
        assert!(!worker_panicked, "a worker panicked in a parallel region");
    }
}

impl Offer {
    fn now() -> Self {
        Self(Instant::now())
    }

    /// Offers the core again if that is due. For a thread that nobody waits for.
    fn renew(&mut self) {
        if self.0.elapsed() >= OFFER_INTERVAL {
            thread::yield_now();
            *self = Self::now();
        }
    }
}

impl Shared {
    /// The life of the worker that is number `thread`.
    fn serve(&self, thread: usize) {
        let mut offer = Offer::now();
        while !self.stop.load(SeqCst) {
            if !self.join() {
                self.wait();
                continue;
            }
            // SAFETY: this worker is inside an open region, so the caller does not write `work`.
            #[expect(unsafe_code, reason = "the slot is read-only inside a region")]
            let work = unsafe { *self.work.get() };
            if panic::catch_unwind(AssertUnwindSafe(|| self.take_tasks(thread, work))).is_err() {
                self.panicked.store(true, SeqCst);
            }
            // Nothing is left to take: shut the gate, so that nobody joins in vain, and leave.
            self.gate.fetch_and(!OPEN, SeqCst);
            self.gate.fetch_sub(1, SeqCst);
            offer.renew();
        }
    }

    /// Enters the region if it is open.
    fn join(&self) -> bool {
        self.gate
            .fetch_update(SeqCst, SeqCst, |gate| (gate & OPEN != 0).then_some(gate + 1))
            .is_ok()
    }

    /// Takes tasks until none is left: first those of `thread`, which takes them.
    fn take_tasks(&self, thread: usize, work: Work) {
        let (before, from_own) = self.runs.split_at(thread);
        for (i, run) in from_own.iter().chain(before).enumerate() {
            while let Some(task) = run.take(i == 0) {
                (work.call)(work.closure, task);
            }
        }
    }

    /// Shuts the gate and waits for those inside.
    fn close(&self) {
        let mut spins = 0;
        self.gate.fetch_and(!OPEN, SeqCst);
        while self.gate.load(SeqCst) != 0 {
            spins += 1;
            if spins < SPINS_BEFORE_YIELD {
                hint::spin_loop();
            } else {
                thread::yield_now();
            }
        }
    }

    /// Returns when there may be a region to join: soon by looking, later by sleeping.
    fn wait(&self) {
        let idle = || self.gate.load(SeqCst) & OPEN == 0 && !self.stop.load(SeqCst);
        for spins in 0..SPINS_BEFORE_SLEEP {
            if !idle() {
                return;
            }
            if spins >= SPINS_BEFORE_YIELD && spins.is_multiple_of(SPINS_A_YIELD) {
                thread::yield_now();
            } else {
                hint::spin_loop();
            }
        }
        let mut sleep = self.sleep.lock().unwrap_or_else(PoisonError::into_inner);
        self.sleepers.fetch_add(1, SeqCst);
        while idle() {
            sleep = self.wake.wait(sleep).unwrap_or_else(PoisonError::into_inner);
        }
        self.sleepers.fetch_sub(1, SeqCst);
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, SeqCst);
        drop(self.shared.sleep.lock().unwrap_or_else(PoisonError::into_inner));
        self.shared.wake.notify_all();
        for worker in self.workers.drain(..) {
            // A worker catches the panics of its tasks, so joining it cannot fail.
            let _ = worker.join();
        }
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool").field("threads", &self.threads()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;
    use std::sync::atomic::AtomicU32;

    use super::*;

    #[test]
    fn every_task_runs_once() {
        for threads in [1, 2, 3, 8] {
            let pool = Pool::new(threads).unwrap();
            for tasks in [0, 1, 2, 7, 100, 1000] {
                let counts: Vec<AtomicU32> = (0..tasks).map(|_| AtomicU32::new(0)).collect();
                pool.run(tasks, |task| {
                    counts[task].fetch_add(1, SeqCst);
                });
                assert!(
                    counts.iter().all(|count| count.load(SeqCst) == 1),
                    "{threads} threads, {tasks} tasks"
                );
            }
        }
    }

    #[test]
    fn a_region_inside_a_region_and_callers_on_many_threads_get_their_work_done() {
        let pool = Pool::new(3).unwrap();
        let total = AtomicU32::new(0);
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..50 {
                        pool.run(5, |_| pool.run(3, |_| _ = total.fetch_add(1, SeqCst)));
                    }
                });
            }
        });
        assert_eq!(total.load(SeqCst), 4 * 50 * 5 * 3);
    }

    #[test]
    fn sleeping_workers_wake() {
        let pool = Pool::new(2).unwrap();
        for _ in 0..3 {
            thread::sleep(std::time::Duration::from_millis(20));
            let total = AtomicU32::new(0);
            pool.run(64, |_| _ = total.fetch_add(1, SeqCst));
            assert_eq!(total.load(SeqCst), 64);
        }
    }

    #[test]
    fn a_panic_reaches_the_caller_and_leaves_the_pool_usable() {
        let pool = Pool::new(2).unwrap();
        for bad in 0..8 {
            let result = panic::catch_unwind(AssertUnwindSafe(|| {
                pool.run(8, |task| assert!(task != bad, "task {task}"));
            }));
            assert!(result.is_err());
        }
        let total = AtomicU32::new(0);
        pool.run(8, |_| _ = total.fetch_add(1, SeqCst));
        assert_eq!(total.load(SeqCst), 8);
    }

    #[test]
    fn a_region_in_which_all_threads_panic_leaves_the_next_one_alone() {
        let pool = Pool::new(2).unwrap();
        let both_are_inside = Barrier::new(2);
        let result = panic::catch_unwind(AssertUnwindSafe(|| {
            pool.run(2, |task| {
                both_are_inside.wait();
                panic!("task {task}");
            });
        }));
        assert!(result.is_err());
        pool.run(2, |_| ());
    }

    #[test]
    fn a_region_of_one_task_leaves_the_workers_to_others() {
        let pool = Pool::new(2).unwrap();
        let both_are_inside = Barrier::new(2);
        // Each of the two tasks inside waits for the other, which one thread alone could not give.
        pool.run(1, |_| pool.run(2, |_| _ = both_are_inside.wait()));
    }

    #[test]
    fn a_senseless_number_of_threads_is_refused() {
        assert_eq!(Pool::new(0).unwrap_err().to_string(), "threads: expected 1 to 1024, found 0");
        assert_eq!(
            Pool::new(10_000).unwrap_err().to_string(),
            "threads: expected 1 to 1024, found 10000"
        );
    }
}
