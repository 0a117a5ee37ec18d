//! Latencies counted in bins of one microsecond.

use std::time::Duration;

/// Latencies from here on share the last bin: a second is far outside of what any case measures.
const LAST_BIN: usize = 1_000_000;

/// Counts of latencies, one bin per microsecond.
#[derive(Debug)]
pub struct Histogram {
    bins: Vec<u32>,
    total: u64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { bins: vec![0; LAST_BIN + 1], total: 0 }
    }
}

impl Histogram {
    /// Counts `count` messages that each took `latency`.
    pub fn record(&mut self, latency: Duration, count: u32) {
        let bin = usize::try_from(latency.as_micros()).map_or(LAST_BIN, |us| us.min(LAST_BIN));
        self.bins[bin] = self.bins[bin].saturating_add(count);
        self.total += u64::from(count);
    }

    /// The latency in microseconds that `permille` of 1,000 messages did not exceed.
    #[must_use]
    pub fn percentile(&self, permille: u64) -> usize {
        // Rounded up: the p99.9 of fewer than a thousand messages is the slowest of them.
        let rank = (self.total * permille).div_ceil(1000);
        let mut seen = 0;
        for (us, &count) in self.bins.iter().enumerate() {
            seen += u64::from(count);
            if seen >= rank {
                return us;
            }
        }
        LAST_BIN
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_ranks() {
        let mut histogram = Histogram::default();
        for us in 1..=1000 {
            histogram.record(Duration::from_micros(us), 1);
        }
        assert_eq!(histogram.percentile(500), 500);
        assert_eq!(histogram.percentile(990), 990);
        assert_eq!(histogram.percentile(999), 999);
    }

    #[test]
    fn slow_messages_share_the_last_bin() {
        let mut histogram = Histogram::default();
        histogram.record(Duration::from_secs(5), 3);
        assert_eq!(histogram.percentile(500), LAST_BIN);
    }
}
