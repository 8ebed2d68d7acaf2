//! One file per subcommand.

pub(crate) mod bench;
pub(crate) mod chat;
pub(crate) mod classify;
pub(crate) mod compute;
pub(crate) mod convert;
pub(crate) mod data;
pub(crate) mod doctor;
pub(crate) mod embed;
pub(crate) mod eval;
pub(crate) mod finetune;
pub(crate) mod generate;
pub(crate) mod inspect;
pub(crate) mod memory;
mod pass;
pub(crate) mod plan;
pub(crate) mod pretrain;
pub(crate) mod quickstart;
mod sampling;
pub(crate) mod tag;
mod train;
pub(crate) mod verify;
