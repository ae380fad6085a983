//! Metrics for Prometheus: OpenMetrics, and the text format before it.

mod cadvisor;
mod families;
mod itself;
mod lookups;
mod packets;

use std::{fmt, sync::Arc};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, prometheus_text, text},
    registry::Registry,
};

use crate::model::{exporter::Exposition, process::Process};

/// How to write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Format {
    /// OpenMetrics 1.0.
    OpenMetrics,
    /// Prometheus' text format 0.0.4.
    Text,
}

impl Format {
    /// What an `Accept` header asks for: OpenMetrics where it is named and not refused.
    /// Whoever says nothing gets the text format, as from all exporters.
    #[must_use]
    pub fn accepted(accept: &str) -> Self {
        let openmetrics = accept.split(',').any(|range| {
            let mut parts = range.split(';').map(str::trim);
            let named = parts.next() == Some("application/openmetrics-text");
            // A version that is not ours, or the weight 0.
            named
                && parts.all(|part| match part.split_once('=') {
                    Some(("version", version)) => version.starts_with("1.") || version == "0.0.1",
                    Some(("q", weight)) => weight.parse().is_ok_and(|weight: f32| weight > 0.0),
                    _ => true,
                })
        });
        if openmetrics {
            Self::OpenMetrics
        } else {
            Self::Text
        }
    }

    /// The `Content-Type`.
    #[must_use]
    pub fn content_type(self) -> &'static str {
        match self {
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Self::Text => prometheus_text::CONTENT_TYPE,
        }
    }
}

/// What is written.
#[derive(Clone, Debug)]
pub struct Page {
    /// The series.
    pub exposition: Arc<Exposition>,
    /// Ourselves, where that is known.
    pub process: Option<Process>,
    /// Packets by family and protocol.
    pub classes: bool,
    /// cAdvisor's names too.
    pub cadvisor: bool,
}

impl Page {
    /// All of it.
    ///
    /// # Errors
    /// Never: a `String` takes everything.
    pub fn write(self, format: Format) -> Result<String, fmt::Error> {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(self));
        let mut page = String::new();
        match format {
            Format::OpenMetrics => text::encode(&mut page, &registry)?,
            Format::Text => prometheus_text::encode(&mut page, &registry)?,
        }
        // To Prometheus' parser it is the end of everything.
        Ok(if page.contains('\0') {
            page.replace('\0', "\u{fffd}")
        } else {
            page
        })
    }
}

impl Collector for Page {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let exposition = &*self.exposition;
        packets::encode(&mut encoder, exposition, self.classes)?;
        lookups::encode(&mut encoder, exposition)?;
        if self.cadvisor {
            cadvisor::encode(&mut encoder, &exposition.kernel)?;
        }
        itself::encode(&mut encoder, exposition, self.process.as_ref())
    }
}
