//! The backplane: topics of several processes and machines, joined by an engine that all of them reach.
//!
//! | module | holds |
//! |---|---|
//! | `config` | settings, and the engine's address |
//! | `engine` | the one interface that an engine's adapter implements |
//! | `redis`, `nats` | the adapters |
//! | `letter` | what a message looks like between nodes |

mod config;
mod engine;
mod letter;
mod nats;
mod redis;

pub use config::{Address, AddressError, Config, Kind, Overflow, shown};
