//! Paired measurement: every contender runs a short batch, then the next one, in turn, until all have run
//! many. What disturbs the machine then disturbs all alike, and a ratio of two medians holds where the
//! medians themselves drift.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::time::{Duration, Instant};

/// How long one batch takes: long enough that the clock costs nothing, short enough that most batches
/// run undisturbed.
const BATCH: Duration = Duration::from_micros(100);

/// One of those that are compared.
pub struct Contender<'a> {
    name: &'static str,
    /// Operations of one batch; `None` finds out.
    batch: Option<u64>,
    /// Runs so many operations, and says how long they took.
    run: Box<dyn FnMut(u64) -> Duration + 'a>,
}

impl<'a> Contender<'a> {
    pub fn new(name: &'static str, run: impl FnMut(u64) -> Duration + 'a) -> Self {
        Self {
            name,
            batch: None,
            run: Box::new(run),
        }
    }

    /// Operations that are timed one by one.
    pub fn one_by_one(self) -> Self {
        Self {
            batch: Some(1),
            ..self
        }
    }

    /// A function without a future.
    pub fn plain<T>(name: &'static str, mut work: impl FnMut() -> T + 'a) -> Self {
        Self::new(name, move |times| {
            let began = Instant::now();
            for _ in 0..times {
                std::hint::black_box(work());
            }
            began.elapsed()
        })
    }

    fn calibrate(&mut self) -> u64 {
        if let Some(batch) = self.batch {
            return batch;
        }
        let mut times = 1;
        loop {
            let took = (self.run)(times);
            if took >= BATCH / 2 || times >= 1 << 24 {
                let wanted = times as f64 * BATCH.as_secs_f64() / took.as_secs_f64().max(1e-9);
                break (wanted as u64).max(1);
            }
            times *= 2;
        }
    }
}

/// What was measured of one contender: nanoseconds of an operation, one value for each batch.
#[derive(Clone)]
pub struct Sample {
    pub name: &'static str,
    sorted: Vec<f64>,
}

impl Sample {
    pub fn new(name: &'static str, mut values: Vec<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        Self {
            name,
            sorted: values,
        }
    }

    fn at(&self, share: f64) -> f64 {
        let last = self.sorted.len().saturating_sub(1);
        let place = (last as f64 * share).round() as usize;
        self.sorted.get(place).copied().unwrap_or(f64::NAN)
    }

    pub fn median(&self) -> f64 {
        self.at(0.5)
    }

    pub fn p99(&self) -> f64 {
        self.at(0.99)
    }
}

/// Measures all of them for so many rounds. `between` runs untimed after each round.
pub fn paired(
    mut contenders: Vec<Contender<'_>>,
    rounds: usize,
    mut between: impl FnMut(),
) -> Vec<Sample> {
    for contender in &mut contenders {
        // Warm first: caches, lazily made parts, the allocator.
        (contender.run)(50);
        contender.batch = Some(contender.calibrate());
    }
    let mut values = vec![Vec::with_capacity(rounds); contenders.len()];
    let many = contenders.len();
    for round in 0..rounds {
        for step in 0..many {
            // Who follows whom changes from round to round.
            let at = (step + round) % many;
            let contender = &mut contenders[at];
            let times = contender.batch.unwrap_or(1);
            let took = (contender.run)(times);
            values[at].push(took.as_nanos() as f64 / times as f64);
        }
        between();
    }
    contenders
        .iter()
        .zip(values)
        .map(|(contender, values)| Sample::new(contender.name, values))
        .collect()
}

// ---- the heap ------------------------------------------------------------------------------------

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
    static BYTES: Cell<i64> = const { Cell::new(0) };
}

/// Counts what each thread allocates. The same small tax on every contender.
pub struct Counting;

// SAFETY: every method hands on its arguments to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        note(layout.size() as i64, 1);
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        note(-(layout.size() as i64), 0);
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(at, layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        note(size as i64 - layout.size() as i64, 1);
        // SAFETY: as the caller promises.
        unsafe { System.realloc(at, layout, size) }
    }
}

fn note(bytes: i64, allocations: u64) {
    // A thread that ends may allocate when its locals are gone.
    let _ = ALLOCATIONS.try_with(|counted| counted.set(counted.get() + allocations));
    let _ = BYTES.try_with(|counted| counted.set(counted.get() + bytes));
}

/// Allocations of this thread so far.
pub fn allocations() -> u64 {
    ALLOCATIONS.get()
}

/// Bytes this thread has allocated and not given back.
pub fn bytes() -> i64 {
    BYTES.get()
}

/// Memory of the process that is in use, in bytes.
pub fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kilobytes = line.and_then(|text| text.split_whitespace().next()?.parse::<u64>().ok());
    kilobytes.unwrap_or(0) * 1024
}
