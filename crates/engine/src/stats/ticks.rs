//! How long ticks take. Only ticks that deliver something look at the clock, twice; an empty one costs nothing here.

use super::{Count, Histogram};
use crate::endpoint::Endpoint;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Upper bounds of the buckets in microseconds: 0.1 ms to 10 s.
const BOUNDS: [u64; 16] = [
    100, 200, 500, 1_000, 2_000, 5_000, 10_000, 20_000, 50_000, 100_000, 200_000, 500_000, 1_000_000, 2_000_000,
    5_000_000, 10_000_000,
];

/// Written by the thread that ticks: the right to tick passes from thread to thread with acquire and release.
#[derive(Debug, Default)]
pub(crate) struct Ticks {
    /// By bucket, the last for all that took longer.
    buckets: [Count; BOUNDS.len() + 1],
    nanos: Count,
    events: Count,
    /// When the tick that is delivering now began, in nanoseconds of the endpoint's age; 0: none is.
    since: AtomicU64,
}

impl Ticks {
    fn record(&self, took: Duration) {
        let bucket = BOUNDS.partition_point(|&bound| Duration::from_micros(bound) < took);
        self.buckets[bucket].add(1);
        self.nanos.add(usize::try_from(took.as_nanos()).unwrap_or(usize::MAX));
    }

    /// Events that were delivered.
    pub(super) fn events(&self) -> u64 {
        self.events.get()
    }

    /// How long the tick that is delivering has been doing so; none: zero.
    pub(super) fn delivering(&self, age: Duration) -> Duration {
        match self.since.load(Ordering::Relaxed) {
            0 => Duration::ZERO,
            since => age.saturating_sub(Duration::from_nanos(since)),
        }
    }

    pub(super) fn histogram(&self) -> Histogram {
        let mut count = 0;
        let bounds = BOUNDS.iter().map(|&bound| Duration::from_micros(bound));
        let mut below = |bucket: &Count| {
            count += bucket.get();
            count
        };
        let buckets = bounds.zip(&self.buckets).map(|(bound, bucket)| (bound, below(bucket))).collect();
        let count = below(&self.buckets[BOUNDS.len()]);
        Histogram { buckets, count, sum: Duration::from_nanos(self.nanos.get()) }
    }
}

/// A tick that delivers, until it is dropped.
#[derive(Debug)]
pub struct Delivery<'a> {
    endpoint: &'a Endpoint,
    began: Instant,
    ran: usize,
}

impl<'a> Delivery<'a> {
    pub(crate) fn begin(endpoint: &'a Endpoint) -> Self {
        let began = Instant::now();
        let since = u64::try_from(endpoint.age_at(began).as_nanos()).unwrap_or(u64::MAX).max(1);
        endpoint.stats.ticks.since.store(since, Ordering::Relaxed);
        Self { endpoint, began, ran: 0 }
    }

    /// So many events have run.
    pub fn ran(&mut self, events: usize) {
        self.ran += events;
    }
}

impl Drop for Delivery<'_> {
    fn drop(&mut self) {
        let ticks = &self.endpoint.stats.ticks;
        ticks.since.store(0, Ordering::Relaxed);
        // A mere nudge, of `stop()` say, is no delivery.
        if self.ran > 0 {
            ticks.events.add(self.ran);
            ticks.record(self.began.elapsed());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bound_belongs_to_its_bucket_and_counts_add_up() {
        let ticks = Ticks::default();
        let times = [0, 99_999, 100_000, 100_001, 1_000_000, 9_999_999_999, 10_000_000_000, 10_000_000_001];
        times.iter().for_each(|&nanos| ticks.record(Duration::from_nanos(nanos)));
        let Histogram { buckets, count, sum } = ticks.histogram();
        assert_eq!(buckets.len(), 16);
        let below = |micros| buckets.iter().find(|(bound, _)| *bound == Duration::from_micros(micros)).unwrap().1;
        assert_eq!((below(100), below(200), below(500), below(1_000)), (3, 4, 4, 5));
        assert_eq!((below(5_000_000), below(10_000_000), count), (5, 7, 8));
        assert_eq!(sum, Duration::from_nanos(times.iter().sum()));
        assert!(buckets.is_sorted());
    }
}
