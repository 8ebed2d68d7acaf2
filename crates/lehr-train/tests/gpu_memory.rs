//! A GPU's arena stops growing. Alone in its process: the arena is shared by all that runs there.
//! The GPU is emulated, unless `LEHR_CUDA=driver`.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use common::{llama, recipe, run_in_memory};
use lehr_model::{DTypeChoice, DeviceChoice};
use lehr_tensor::cuda;
use lehr_train::recipe::ObjectiveKind;

#[test]
fn steps_of_one_shape_take_no_more_memory() {
    cuda::use_emulator();
    let scratch = tempfile::tempdir().unwrap();
    let mut recipe = recipe(scratch.path(), llama(32), ObjectiveKind::NextToken);
    (recipe.run.device, recipe.run.dtype) = (DeviceChoice::Cuda(0), DTypeChoice::Bf16);
    let after = |steps| {
        recipe.train.steps = steps;
        run_in_memory(&recipe);
        cuda::arena_stats(0).unwrap().high_water_bytes
    };
    let [few, many] = [3, 9].map(after);
    // The number of labels differs a little from batch to batch, and with it the buffers of the
    // loss.
    assert!(many as f64 <= 1.05 * few as f64, "{few} bytes after 3 steps, {many} after 9 more");
}
