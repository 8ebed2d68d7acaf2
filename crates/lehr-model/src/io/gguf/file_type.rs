//! Tensor formats of a file: one for all, or one of llama.cpp's mixes.

use lehr_tensor::quant::WeightFormat;

use WeightFormat::{BF16, F16, F32, Q4_0, Q4_K, Q5_K, Q6_K, Q8_0};

/// The formats of a file's matrices. Norms, biases and position tables are in f32.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(non_camel_case_types, reason = "the names everybody knows them by")]
pub enum FileType {
    /// 32-bit floats.
    F32,
    /// 16-bit floats, 5 bits of exponent.
    F16,
    /// 16-bit floats, 8 bits of exponent.
    BF16,
    /// 8 bits.
    Q8_0,
    /// 4 bits; the head has 6.
    Q4_0,
    /// 4 bits; the head and some value and MLP matrices have 6.
    Q4_K_M,
    /// 5 bits; the head and some value and MLP matrices have 6.
    Q5_K_M,
    /// 6 bits.
    Q6_K,
}

/// Facts about the model that the choice of formats depends on.
#[derive(Clone, Copy, Debug)]
pub(super) struct Traits {
    pub(super) n_blocks: usize,
    /// Whether the head is tied to the embedding.
    pub(super) is_tied: bool,
    /// Whether this is Llama 2 or 3 with 70 billion parameters.
    pub(super) is_70b: bool,
}

impl FileType {
    /// All file types.
    pub const ALL: [Self; 8] = [
        Self::F32,
        Self::F16,
        Self::BF16,
        Self::Q8_0,
        Self::Q4_0,
        Self::Q4_K_M,
        Self::Q5_K_M,
        Self::Q6_K,
    ];

    /// Returns the name in lower case, as on the command line.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::BF16 => "bf16",
            Self::Q8_0 => "q8_0",
            Self::Q4_0 => "q4_0",
            Self::Q4_K_M => "q4_k_m",
            Self::Q5_K_M => "q5_k_m",
            Self::Q6_K => "q6_k",
        }
    }

    /// Returns the number written as `general.file_type`.
    #[must_use]
    pub(super) fn id(self) -> u32 {
        match self {
            Self::F32 => 0,
            Self::F16 => 1,
            Self::Q4_0 => 2,
            Self::Q8_0 => 7,
            Self::Q4_K_M => 15,
            Self::Q5_K_M => 17,
            Self::Q6_K => 18,
            Self::BF16 => 32,
        }
    }

    /// Returns the format of most matrices.
    #[must_use]
    pub fn main_format(self) -> WeightFormat {
        match self {
            Self::F32 => F32,
            Self::F16 => F16,
            Self::BF16 => BF16,
            Self::Q8_0 => Q8_0,
            Self::Q4_0 => Q4_0,
            Self::Q4_K_M => Q4_K,
            Self::Q5_K_M => Q5_K,
            Self::Q6_K => Q6_K,
        }
    }

    /// Returns the format of the tensor `name` of row-major `shape`, as llama.cpp chooses it
    /// (`llama_tensor_get_type` in its `llama-quant.cpp`).
    pub(super) fn format_of(self, name: &str, shape: &[usize], traits: Traits) -> WeightFormat {
        let &[_, width] = shape else { return F32 };
        let always_f32 = ["position_embd.weight", "token_types.weight"].contains(&name);
        if always_f32 || !name.ends_with(".weight") || name.ends_with("_norm.weight") {
            return F32;
        }
        let main = self.main_format();
        if matches!(self, Self::F32 | Self::F16 | Self::BF16) {
            return main;
        }
        let is_head = name == "output.weight" || (traits.is_tied && name == "token_embd.weight");
        let wanted = match () {
            () if is_head && !width.is_multiple_of(main.block_len()) => Q8_0,
            () if is_head && main != Q8_0 => Q6_K,
            () if is_head => main,
            () if self.is_mix() => mixed(main, name, traits),
            () => main,
        };
        wanted.fallback_for(width)
    }

    fn is_mix(self) -> bool {
        matches!(self, Self::Q4_K_M | Self::Q5_K_M)
    }
}

/// Returns the format of a block's matrix in a mix.
fn mixed(main: WeightFormat, name: &str, traits: Traits) -> WeightFormat {
    let in_block = name.strip_prefix("blk.").and_then(|rest| rest.split_once('.'));
    let Some((block, stem)) = in_block else { return main };
    let block = block.parse().unwrap_or(0);
    let is_value = matches!(stem, "attn_v.weight" | "attn_qkv.weight");
    let more = (is_value || stem == "ffn_down.weight") && more_bits(block, traits.n_blocks);
    match () {
        () if more => Q6_K,
        () if is_value && traits.is_70b && main == Q4_K => Q5_K,
        () => main,
    }
}

/// Returns whether a block's most sensitive matrices get more bits: the first and last eighth, and
/// every third block between.
fn more_bits(block: usize, n_blocks: usize) -> bool {
    let eighth = n_blocks / 8;
    block < eighth || block >= 7 * n_blocks / 8 || (block - eighth) % 3 == 2
}

#[cfg(test)]
mod tests {
    use WeightFormat::{Q5_0, Q5_1};

    use super::*;

    /// Compares with the formats in the published Gemma 3 270M in Q4_K_M.
    #[test]
    fn a_mix_is_that_of_a_published_file() {
        let traits = Traits { n_blocks: 18, is_tied: true, is_70b: false };
        let of = |name: &str, shape| FileType::Q4_K_M.format_of(name, shape, traits);
        assert_eq!(of("token_embd.weight", &[262_144, 640]), Q8_0);
        assert_eq!(of("output_norm.weight", &[640]), F32);
        let more: Vec<usize> = (0..18)
            .filter(|i| of(&format!("blk.{i}.attn_v.weight"), &[256, 640]) == Q8_0)
            .collect();
        assert_eq!(more, [0, 1, 4, 7, 10, 13, 15, 16, 17]);
        for i in 0..18 {
            let down = of(&format!("blk.{i}.ffn_down.weight"), &[640, 2048]);
            assert_eq!(down, if more.contains(&i) { Q6_K } else { Q4_K });
            assert_eq!(of(&format!("blk.{i}.attn_q.weight"), &[1024, 640]), Q5_0);
            assert_eq!(of(&format!("blk.{i}.attn_output.weight"), &[640, 1024]), Q4_K);
        }
    }

    #[test]
    fn rows_that_are_no_blocks_get_another_format() {
        let traits = Traits { n_blocks: 2, is_tied: false, is_70b: false };
        let of = |file: FileType, name: &str, width| file.format_of(name, &[8, width], traits);
        assert_eq!(of(FileType::Q8_0, "blk.0.attn_q.weight", 48), F16);
        assert_eq!(of(FileType::Q4_0, "blk.0.attn_q.weight", 64), Q4_0);
        assert_eq!(of(FileType::Q4_0, "output.weight", 64), Q8_0);
        assert_eq!(of(FileType::Q4_0, "output.weight", 512), Q6_K);
        assert_eq!(of(FileType::Q6_K, "token_embd.weight", 512), Q6_K);
        assert_eq!(of(FileType::Q5_K_M, "blk.0.attn_q.weight", 96), Q5_1);
        assert_eq!(of(FileType::Q8_0, "blk.0.attn_q.bias", 64), F32);
        assert_eq!(of(FileType::F16, "position_embd.weight", 64), F32);
    }
}
