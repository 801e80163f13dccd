//! What a healthy call costs: nothing on the heap, and not more where more is configured.
//!
//! A test program of its own, because it counts every allocation of the process.
#![allow(clippy::unwrap_used, unsafe_code, missing_docs)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::convert::Infallible;
use std::num::NonZeroU32;
use std::sync::Arc;

use backstop::registry::TargetSpec;
use backstop::{Call, Engine};

thread_local! {
    static COUNTED: Cell<u64> = const { Cell::new(0) };
}

struct Counting;

// SAFETY: every method hands on its arguments to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // A thread that ends may allocate when its locals are gone.
        let _ = COUNTED.try_with(|counted| counted.set(counted.get() + 1));
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(at, layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        let _ = COUNTED.try_with(|counted| counted.set(counted.get() + 1));
        // SAFETY: as the caller promises.
        unsafe { System.realloc(at, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Allocations of this thread while the work is done.
async fn allocations(work: impl Future<Output = ()>) -> u64 {
    let before = COUNTED.get();
    work.await;
    COUNTED.get() - before
}

async fn calls(engine: &Engine, call: &Call, times: u32) {
    for _ in 0..times {
        let answered = engine.execute(call.clone(), |_| async { Ok::<_, Infallible>(7) });
        assert_eq!(answered.await.unwrap().answer, 7);
    }
}

async fn cost(engine: &Engine) -> u64 {
    let call = Call::new("group", "operation");
    // The first calls make what all others find: the group's budget, how its targets stand.
    calls(engine, &call, 3).await;
    allocations(calls(engine, &call, 100)).await
}

#[tokio::test]
async fn a_healthy_call_takes_nothing_from_the_heap() {
    let engine = Engine::builder().build().unwrap();
    let registry = engine.registry();
    registry
        .register(TargetSpec::service("a", "group").priority(1))
        .unwrap();
    assert_eq!(cost(&engine).await, 0, "with one target");

    for n in 0..100 {
        let name = format!("b{n}");
        registry
            .register(TargetSpec::service(name.as_str(), "group"))
            .unwrap();
    }
    assert_eq!(cost(&engine).await, 0, "with a hundred targets");
}

#[tokio::test]
async fn nor_does_one_that_is_watched_or_limited() {
    let engine = Engine::builder().build().unwrap();
    let limited = TargetSpec::service("a", "group").concurrency(NonZeroU32::MIN, 0);
    engine.registry().register(limited).unwrap();
    let mut events = engine.subscribe();
    assert_eq!(cost(&engine).await, 0);
    assert!(events.try_recv().is_err(), "a healthy call is no event");
}

#[tokio::test]
async fn the_count_counts() {
    let one = allocations(async { drop(std::hint::black_box(Arc::new(1))) });
    assert_eq!(one.await, 1);
}
