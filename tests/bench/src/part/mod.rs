//! The questions.

mod commands;
mod events;
mod lookups;
mod namespaces;
mod packets;
mod polling;
mod programs;

use crate::{alternate::Plan, report};

/// What a part is called, and how it is answered.
pub(crate) struct Question {
    pub(crate) name: &'static str,
    pub(crate) ask: fn(Plan) -> anyhow::Result<report::Part>,
}

/// In the order in which they are asked.
pub(crate) const ALL: &[Question] = &[
    Question {
        name: "packets",
        ask: packets::packets,
    },
    Question {
        name: "stream",
        ask: packets::stream,
    },
    Question {
        name: "requests",
        ask: packets::requests,
    },
    Question {
        name: "programs",
        ask: programs::programs,
    },
    Question {
        name: "lookups",
        ask: lookups::lookups,
    },
    Question {
        name: "namespaces",
        ask: namespaces::namespaces,
    },
    Question {
        name: "events",
        ask: events::events,
    },
    Question {
        name: "polling",
        ask: polling::polling,
    },
];
