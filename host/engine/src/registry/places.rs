//! The places at one target: taken, waited for, and handed on.
//!
//! A request that finds a place free takes it with one compare-and-swap, and gives it back with another:
//! every request to a limited target does, so this is as cheap as it gets. A lock belongs to those that
//! wait.

use std::num::NonZeroU32;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout_at};

/// One that waits, in a word.
const WAITS: u64 = 1 << 32;

#[derive(Debug)]
pub(super) struct Places {
    max: NonZeroU32,
    /// Places taken below, requests that wait for one above. Nobody waits while a place is free.
    word: AtomicU64,
    /// Held while the number of those that wait changes.
    queue: Mutex<()>,
    /// A permit for each place that was handed to one that waits and has not been taken up, in the order in
    /// which they came.
    handed: Semaphore,
}

/// What became of a request for a place.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Found {
    Place,
    /// As many wait already as may.
    FullQueue,
    /// None became free in time.
    NoneInTime,
}

fn taken(word: u64) -> u64 {
    word & (WAITS - 1)
}

fn waiting(word: u64) -> u64 {
    word / WAITS
}

impl Places {
    pub(super) fn new(max: NonZeroU32) -> Self {
        Self {
            max,
            word: AtomicU64::new(0),
            queue: Mutex::new(()),
            handed: Semaphore::new(0),
        }
    }

    fn is_free(&self, word: u64) -> bool {
        taken(word) < u64::from(self.max.get()) && waiting(word) == 0
    }

    fn change(&self, change: impl FnMut(u64) -> Option<u64>) -> Result<u64, u64> {
        let (done, seen) = (Ordering::AcqRel, Ordering::Acquire);
        self.word.fetch_update(done, seen, change)
    }

    fn queue(&self) -> MutexGuard<'_, ()> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn has_room(&self) -> bool {
        self.is_free(self.word.load(Ordering::Acquire))
    }

    pub(super) fn waiting(&self) -> u32 {
        u32::try_from(waiting(self.word.load(Ordering::Acquire))).unwrap_or(u32::MAX)
    }

    /// Takes a place that is free. Says whether there was one; it must be given back.
    pub(super) fn try_take(&self) -> bool {
        self.change(|word| self.is_free(word).then_some(word + 1))
            .is_ok()
    }

    /// Gives a place back, or hands it to the one that has waited longest.
    pub(super) fn give_back(&self) {
        let alone = |word| (waiting(word) == 0).then(|| word - 1);
        if self.change(alone).is_ok() {
            return;
        }
        let _queue = self.queue();
        let handed = self.change(|word| match waiting(word) {
            0 => Some(word - 1),
            _ => Some(word - WAITS),
        });
        if handed.is_ok_and(|before| waiting(before) > 0) {
            self.handed.add_permits(1);
        }
    }

    /// Takes a place, waiting for one until `until`, with at most `most` that wait. It must be given back.
    pub(super) async fn take(&self, most: u32, until: Instant) -> Found {
        let joined = {
            let _queue = self.queue();
            self.change(|word| {
                if self.is_free(word) {
                    Some(word + 1)
                } else {
                    (waiting(word) < u64::from(most)).then(|| word + WAITS)
                }
            })
        };
        match joined {
            Err(_) => return Found::FullQueue,
            Ok(before) if self.is_free(before) => return Found::Place,
            Ok(_) => {}
        }
        let waiting = Waiting(self);
        // It is never closed.
        match timeout_at(until, self.handed.acquire()).await {
            Ok(Ok(permit)) => {
                permit.forget();
                std::mem::forget(waiting);
                Found::Place
            }
            Ok(Err(_)) | Err(_) => Found::NoneInTime,
        }
    }
}

/// One that waits and has not taken a place up. Dropped, it leaves the queue.
struct Waiting<'a>(&'a Places);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let places = self.0;
        let queue = places.queue();
        if places.change(|word| word.checked_sub(WAITS)).is_ok() {
            // What was handed already goes to the others.
            return;
        }
        // Nobody is left without a place handed to them, so one was handed for this one.
        let is_there = places.handed.try_acquire().map(|permit| permit.forget());
        drop(queue);
        if is_there.is_ok() {
            places.give_back();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::AtomicU32;
    use std::time::Duration;

    use super::*;

    fn places(max: u32) -> Places {
        Places::new(NonZeroU32::new(max).unwrap())
    }

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(1)
    }

    #[tokio::test(start_paused = true)]
    async fn a_place_goes_to_the_one_that_has_waited_longest() {
        let places = places(1);
        assert!(places.try_take());
        let order = Mutex::new(Vec::new());
        let wait = |name| {
            let (places, order) = (&places, &order);
            async move {
                assert_eq!(places.take(5, soon()).await, Found::Place);
                order.lock().unwrap().push(name);
                places.give_back();
            }
        };
        tokio::join!(wait(1), wait(2), wait(3), async {
            assert_eq!(places.waiting(), 3);
            assert!(!places.has_room());
            places.give_back();
            assert!(!places.try_take(), "it is handed on, not free");
        });
        assert_eq!(*order.lock().unwrap(), [1, 2, 3]);
        assert!(places.has_room() && places.try_take());
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_handed_to_one_that_gives_up_goes_on() {
        let places = places(1);
        assert!(places.try_take());
        {
            let mut gives_up = Box::pin(places.take(5, soon()));
            assert!(futures_util::poll!(&mut gives_up).is_pending());
            let mut patient = Box::pin(places.take(5, soon()));
            assert!(futures_util::poll!(&mut patient).is_pending());
            places.give_back();
            drop(gives_up);
            assert_eq!(patient.await, Found::Place);
        }
        // And where nobody else waits, the place is free.
        {
            let mut gives_up = Box::pin(places.take(5, soon()));
            assert!(futures_util::poll!(&mut gives_up).is_pending());
            places.give_back();
        }
        assert_eq!(places.waiting(), 0);
        assert!(places.try_take());
    }

    #[test]
    fn under_pressure_no_place_is_lost_nor_given_twice() {
        const MAX: u32 = 3;
        let places = Arc::new(places(MAX));
        let inside = Arc::new(AtomicU32::new(0));
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(4)
            .enable_time()
            .build()
            .unwrap();
        let served: u32 = runtime.block_on(async {
            let mut tasks = tokio::task::JoinSet::new();
            for n in 0..16_u64 {
                let (places, inside) = (places.clone(), inside.clone());
                tasks.spawn(async move {
                    let mut served = 0;
                    for round in 0..2_000_u64 {
                        // Some give up at once, some after a moment, some never.
                        let patience =
                            Duration::from_micros([0, 20, 100_000][((n + round) % 3) as usize]);
                        let found = match places.try_take() {
                            true => Found::Place,
                            false => places.take(8, Instant::now() + patience).await,
                        };
                        if found == Found::Place {
                            assert!(inside.fetch_add(1, Ordering::SeqCst) < MAX);
                            if round % 4 == 0 {
                                tokio::task::yield_now().await;
                            }
                            inside.fetch_sub(1, Ordering::SeqCst);
                            places.give_back();
                            served += 1;
                        }
                    }
                    served
                });
            }
            tasks.join_all().await.into_iter().sum()
        });
        assert!(served > 1_000, "{served}");
        assert_eq!(places.word.load(Ordering::SeqCst), 0);
        assert_eq!(places.handed.available_permits(), 0);
    }
}
