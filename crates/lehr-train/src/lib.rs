//! Training: a recipe, one visible loop ([`run`]), objectives, optimisers and checkpoints.
//!
//! ```text
//! Recipe -> prepare (tokenizer, data, model) -> Task -> run -> run directory
//! ```
//!
//! The loss is normalised by the number of targets of the whole step. So gradients depend neither
//! on the micro-batch size nor on accumulation or packing. A run is a pure function of its recipe:
//! a resumed run computes the same bits as an uninterrupted one.

mod average;
pub mod checkpoint;
mod data_check;
mod error;
mod freeze;
mod inputs;
mod loss_scale;
mod metrics;
mod objective;
mod observe;
mod optim;
mod plan;
mod prepare;
pub mod recipe;
mod report;
mod run;
mod rundir;
mod schedule;
mod state;
mod tensorboard;
mod watch;
mod watchdog;

pub use data_check::{DataCheck, Preview, PreviewPart};
pub use error::{Error, Result};
pub use inputs::{InputChange, Inputs, Located, Source, locate};
pub use loss_scale::LossScale;
pub use metrics::{Metrics, read_metrics};
pub use objective::{
    Classify, Evaluation, LanguageModel, Loss, Metric, Objective, ObjectiveState, Rollout, Scores,
    Tag, evaluate, next_token_loss,
};
pub use observe::{Event, Observer, Quiet};
pub use optim::{AdamW, Muon, Optimizer, Update, optimizer_state_bytes};
pub use plan::{
    Budget, Finetuning, FinishedRun, FitData, Fitted, Fixed, LossLaw, Measured, Prediction,
    device_gflops, fit_finetune, fit_pretrain, machine_gflops, measure_step, model_of_depth,
    muon_for_width, product_gflops, sizes_of_depth,
};
pub use prepare::{Notes, Task, new_config, prepare};
pub use recipe::Recipe;
pub use report::write_report;
pub use run::{
    Enqueued, Outcome, StepEnd, StepInputs, StepNumbers, Stepper, run, run_with_storage,
};
pub use rundir::{RunDir, check_run_dir};
pub use schedule::{Stage, Stages, learning_rate, learning_rate_of};
pub use state::TrainState;
pub use watchdog::{WatchdogEvent, WatchdogKind, WatchdogState, read_watchdog_events};
