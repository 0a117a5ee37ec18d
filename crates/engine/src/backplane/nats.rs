//! NATS: core subjects for topics without history, one JetStream stream for those with.

use super::config::Config;
use super::engine::{Arrival, Engine, Failure, Inlet, Opened, Outlet, Parcel};
use crate::topics::Position;
use std::sync::Arc;

/// How to reach NATS.
#[derive(Debug)]
pub(crate) struct Nats {
    config: Arc<Config>,
}

impl Nats {
    /// `node`: this node, for what the adapter names after it.
    pub(crate) fn new(config: Arc<Config>, _node: u64) -> Self {
        Self { config }
    }
}

#[derive(Debug)]
pub(crate) struct NatsOutlet;

#[derive(Debug)]
pub(crate) struct NatsInlet;

impl Engine for Nats {
    type Outlet = NatsOutlet;
    type Inlet = NatsInlet;

    async fn connect(&self, _behind: Option<Position>) -> Result<Opened<NatsOutlet, NatsInlet>, Failure> {
        Err(Failure(format!("{:?} is not spoken yet", self.config.address.kind)))
    }
}

impl Outlet for NatsOutlet {
    async fn interest(&mut self, _changes: &[(Arc<str>, bool)]) -> Result<(), Failure> {
        Ok(())
    }

    async fn send(&mut self, _parcels: &[Parcel]) -> Result<(), Failure> {
        Ok(())
    }

    async fn finish(&mut self) -> Result<(), Failure> {
        Ok(())
    }
}

impl Inlet for NatsInlet {
    async fn next(&mut self) -> Result<Arrival, Failure> {
        std::future::pending().await
    }
}
