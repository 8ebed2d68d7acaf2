//! The list of all files of kernels, for those who compile them all.

use super::Source;
use crate::{copy, inplace, ops};

pub(crate) static ALL: &[&Source] = &[
    &copy::KERNELS,
    &inplace::cuda::KERNELS,
    &inplace::muon::cuda::KERNELS,
    &inplace::pages::KERNELS,
    &inplace::sample::KERNELS,
    &ops::activation::cuda::KERNELS,
    &ops::attention::cuda::DECODE,
    &ops::attention::cuda::FLASH_BACKWARD_KV,
    &ops::attention::cuda::FLASH_BACKWARD_Q,
    &ops::attention::cuda::FLASH_DECODE,
    &ops::attention::cuda::FLASH_FORWARD,
    &ops::attention::cuda::PAGED_DECODE,
    &ops::attention::cuda::PLAIN_BACKWARD,
    &ops::attention::cuda::PLAIN_FORWARD,
    &ops::attention::cuda::PREPARE,
    &ops::cast::cuda::KERNELS,
    &ops::dropout::cuda::KERNELS,
    &ops::embedding::cuda::KERNELS,
    &ops::gated::cuda::KERNELS,
    &ops::layer_norm::cuda::KERNELS,
    &ops::linear::cuda::KERNELS,
    &ops::linear::fp8::KERNELS,
    &ops::linear_cross_entropy::cuda::KERNELS,
    &ops::linear_q::cuda::DEQUANTIZE,
    &ops::linear_q::cuda::PRODUCT_BLOCKS,
    &ops::linear_q::cuda::PRODUCT_K,
    &ops::linear_q::cuda::PRODUCT_OWN,
    &ops::rms_norm::cuda::KERNELS,
    &ops::rope::cuda::KERNELS,
    &ops::softcap::cuda::KERNELS,
    &ops::softmax::cuda::KERNELS,
    &ops::thin::cuda::KERNELS,
];
