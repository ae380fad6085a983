//! One family of series after the other.

use std::fmt;

use prometheus_client::{
    encoding::{
        DescriptorEncoder, EncodeCounterValue, EncodeGaugeValue, EncodeLabelSet, MetricEncoder,
        NoLabelSet,
    },
    metrics::MetricType,
    registry::Unit,
};

/// What a family is.
pub(super) struct Family<'a> {
    /// Its name, without unit and suffix.
    pub(super) name: &'a str,
    /// What it has.
    pub(super) help: &'a str,
    /// In which unit.
    pub(super) unit: Option<Unit>,
}

impl<'a> Family<'a> {
    pub(super) fn new(name: &'a str, help: &'a str) -> Self {
        Self {
            name,
            help,
            unit: None,
        }
    }

    pub(super) fn unit(self, unit: Unit) -> Self {
        Self {
            unit: Some(unit),
            ..self
        }
    }

    /// Counts something that is no base unit, as its name says.
    pub(super) fn of(self, things: &str) -> Self {
        self.unit(Unit::Other(things.to_owned()))
    }

    /// Writes it as counters; without series there is nothing to write.
    pub(super) fn counters<L: EncodeLabelSet, N: EncodeCounterValue>(
        &self,
        encoder: &mut DescriptorEncoder<'_>,
        series: impl IntoIterator<Item = (L, N)>,
    ) -> fmt::Result {
        self.series(encoder, MetricType::Counter, series, |mut one, value| {
            one.encode_counter::<NoLabelSet, N, u64>(&value, None)
        })
    }

    /// Writes it as gauges; without series there is nothing to write.
    pub(super) fn gauges<L: EncodeLabelSet, N: EncodeGaugeValue>(
        &self,
        encoder: &mut DescriptorEncoder<'_>,
        series: impl IntoIterator<Item = (L, N)>,
    ) -> fmt::Result {
        self.series(encoder, MetricType::Gauge, series, |mut one, value| {
            one.encode_gauge(&value)
        })
    }

    fn series<L: EncodeLabelSet, N>(
        &self,
        encoder: &mut DescriptorEncoder<'_>,
        kind: MetricType,
        series: impl IntoIterator<Item = (L, N)>,
        write: impl Fn(MetricEncoder<'_>, N) -> fmt::Result,
    ) -> fmt::Result {
        let mut series = series.into_iter().peekable();
        if series.peek().is_none() {
            return Ok(());
        }
        let mut metric =
            encoder.encode_descriptor(self.name, self.help, self.unit.as_ref(), kind)?;
        for (labels, value) in series {
            write(metric.encode_family(&labels)?, value)?;
        }
        Ok(())
    }

    /// Writes it as descriptions.
    pub(super) fn infos<L: EncodeLabelSet>(
        &self,
        encoder: &mut DescriptorEncoder<'_>,
        series: impl IntoIterator<Item = L>,
    ) -> fmt::Result {
        let mut metric = encoder.encode_descriptor(self.name, self.help, None, MetricType::Info)?;
        for labels in series {
            metric.encode_info(&labels)?;
        }
        Ok(())
    }
}
