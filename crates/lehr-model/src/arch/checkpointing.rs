//! Activation checkpointing: which activations a recorded forward pass keeps for backward.

use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The policy for activations that a recorded forward pass computes and backward reads (Chen et al.
/// 2016, <https://arxiv.org/abs/1604.06174>).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ActivationCheckpointing {
    /// All of them stay in memory.
    #[default]
    None,
    /// Each block keeps its input `[B, T, D]`, and backward recomputes the other activations.
    /// Gradients have the same bits. A step takes about a third more work.
    Recompute,
    /// As `Recompute`. On a GPU the inputs of the blocks are also offloaded to host memory.
    Offload,
}

impl FromStr for ActivationCheckpointing {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "none" => Ok(Self::None),
            "recompute" => Ok(Self::Recompute),
            "offload" => Ok(Self::Offload),
            _ => Err(format!(
                "activation checkpointing is {text:?}, expected none, recompute or offload"
            )),
        }
    }
}
