//! Series that go on when netobs does not: beside what is pinned.

use log::warn;
use netobs_common::{Series, SeriesKey};

use super::Observer;
use crate::model::{
    counters::{Counters, Directions},
    exporter::{Keeper, Kept},
    lookups::Outcomes,
};

impl Keeper for Observer {
    fn kept(&self, key: SeriesKey) -> Kept {
        if self.settings.pins.is_none() {
            return Kept::default();
        }
        let series = self.host.series(key);
        let mut packets = Directions::<Counters>::default();
        packets.rx.add_record(&series.rx);
        packets.tx.add_record(&series.tx);
        Kept {
            packets,
            lookups: Outcomes::kept(&series.lookups),
            by_host: series.by_host,
        }
    }

    fn keep(&mut self, key: SeriesKey, kept: &Kept) {
        if self.settings.pins.is_none() {
            return;
        }
        let series = Series {
            rx: kept.packets.rx.record(),
            tx: kept.packets.tx.record(),
            lookups: kept.lookups.record(),
            by_host: kept.by_host,
            ..Series::default()
        };
        let result = self.host.keep_series(key, &series);
        if let Err(error) = result
            && !std::mem::replace(&mut self.series_lost, true)
        {
            warn!(
                "after a restart of netobs, series of restarted containers may go back: {error:#}"
            );
        }
    }
}
