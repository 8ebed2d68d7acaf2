//! The recipe's model, new or loaded.

use std::path::Path;

use lehr_data::{Layout, LayoutRule};
use lehr_infer::{Loaded, ModelFiles, check_vocabulary, resolve_model};
use lehr_model::{Config, Gpt2Config, LehrConfig, LlamaConfig, Model, NanoChatConfig, RopeConfig};
use lehr_tokenizer::Tokenizer;

use crate::recipe::{LehrModel, ModelConfig, NanochatModel, TokenizerConfig, positive};
use crate::{Error, Recipe, Result};

/// Epsilon of the norms of new models, as in the published models of both families.
const NORM_EPS: f32 = 1e-5;
/// Base of the rotation of new Llama-type models, as in Llama 2.
const ROPE_THETA: f64 = 10_000.0;

/// Builds or loads the model; its vocabulary fits the tokenizer.
pub(super) fn prepare(recipe: &Recipe, tokenizer: &Tokenizer) -> Result<Model> {
    let mut model = match &recipe.model {
        ModelConfig::Load { path } => loaded(recipe, path, tokenizer)?,
        new => {
            let end = tokenizer.end_of_document().ok();
            Model::new(config(new, tokenizer.vocab_size(), end)?, recipe.run.seed)?
        }
    };
    set_up(recipe, &mut model);
    Ok(model)
}

fn loaded(recipe: &Recipe, path: &str, tokenizer: &Tokenizer) -> Result<Model> {
    let mut loaded = match recipe.adapter.config(recipe.run.seed) {
        None => Loaded::open_to_train(Path::new(path))?,
        Some((adapters, weights)) => Loaded::open_to_adapt(Path::new(path), &adapters, weights)?,
    };
    // The recipe's tokenizer need not be the model's own. `Loaded` has warned of that one.
    let own = loaded.model.warnings();
    if let Some(warning) = check_vocabulary(&loaded.path, tokenizer, &loaded.model)?
        && !own.contains(&warning)
    {
        loaded.model.warn(warning);
    }
    Ok(loaded.model)
}

/// Reads the files of the loaded model that checkpoints keep; `None` for a new model. Those about
/// tokens belong to its tokenizer.
pub(super) fn files(recipe: &Recipe) -> Result<Option<ModelFiles>> {
    let ModelConfig::Load { path } = &recipe.model else { return Ok(None) };
    let files = ModelFiles::read(&resolve_model(Path::new(path))?)?;
    Ok(Some(match &recipe.tokenizer {
        TokenizerConfig::Model => files,
        _ => files.with_other_tokenizer(),
    }))
}

/// Returns the layout rule by which loaders set the positions of this model's tokens.
pub(super) fn layout_rule(model: &Model) -> LayoutRule {
    let layout = model.layout_rule();
    LayoutRule::new(move |ids| {
        let ids: Vec<i32> = ids.iter().map(|id| *id as i32).collect();
        let lehr_model::Layout { positions, block_positions, prefix_len, .. } =
            layout(&ids).map_err(|e| e.to_string())?;
        Ok(Layout { positions, block_positions, prefix_len })
    })
}

/// Applies the recipe's training settings to a model.
pub(super) fn set_up(recipe: &Recipe, model: &mut Model) {
    model.set_activation_checkpointing(recipe.train.activation_checkpointing);
}

/// Returns the configuration of a new model for `vocab_size` ids. The id `end` ends a document.
///
/// # Errors
/// If the model is to be loaded.
pub fn config(model: &ModelConfig, vocab_size: usize, end: Option<u32>) -> Result<Config> {
    Ok(match *model {
        ModelConfig::Lehr(ref model) => Config::Lehr(lehr_config(model, vocab_size, end)),
        ModelConfig::Nanochat(ref model) => {
            Config::NanoChat(nanochat_config(model, vocab_size, end))
        }
        ModelConfig::Load { .. } => {
            let faults = "model.kind is load, expected a new model".to_owned();
            return Err(Error::Setting { faults });
        }
        ModelConfig::Llama {
            n_layers,
            hidden_size,
            n_heads,
            n_kv_heads,
            mlp_size,
            context,
            tie_embeddings,
            init_std,
        } => Config::Llama(LlamaConfig {
            vocab_size,
            hidden_size,
            intermediate_size: mlp_size,
            num_hidden_layers: n_layers,
            num_attention_heads: n_heads,
            num_key_value_heads: Some(n_kv_heads),
            head_dim: None,
            max_position_embeddings: context,
            rms_norm_eps: NORM_EPS,
            initializer_range: init_std,
            tie_word_embeddings: tie_embeddings,
            attention_bias: false,
            mlp_bias: false,
            hidden_act: "silu".to_owned(),
            rope: RopeConfig::with_theta(ROPE_THETA),
            bos_token_id: end,
            eos_token_id: end.map(Into::into),
            pad_token_id: None,
        }),
        ModelConfig::Gpt2 { n_layers, hidden_size, n_heads, context, init_std } => {
            Config::Gpt2(Gpt2Config {
                vocab_size,
                n_positions: context,
                n_embd: hidden_size,
                n_layer: n_layers,
                n_head: n_heads,
                n_inner: None,
                activation_function: "gelu_new".to_owned(),
                layer_norm_epsilon: NORM_EPS,
                initializer_range: init_std,
                scale_attn_weights: true,
                scale_attn_by_inverse_layer_idx: false,
                tie_word_embeddings: true,
                bos_token_id: end,
                eos_token_id: end,
            })
        }
    })
}

/// Returns the configuration of a new model of lehr's own family.
fn lehr_config(model: &LehrModel, vocab_size: usize, end: Option<u32>) -> LehrConfig {
    LehrConfig {
        lehr_version: LehrConfig::VERSION,
        vocab_size,
        hidden_size: model.hidden_size,
        intermediate_size: model.mlp_size,
        num_hidden_layers: model.n_layers,
        num_attention_heads: model.n_heads,
        num_key_value_heads: model.n_kv_heads,
        max_position_embeddings: model.context,
        rms_norm_eps: NORM_EPS,
        initializer_range: model.init_std,
        embedding_initializer_range: positive(model.embedding_init_std),
        head_initializer_range: positive(model.head_init_std),
        tie_word_embeddings: model.tie_embeddings,
        parts: model.parts(),
        rope: RopeConfig::with_theta(ROPE_THETA),
        bos_token_id: end,
        eos_token_id: end.map(Into::into),
        pad_token_id: None,
    }
}

/// Returns the configuration of a new nanochat model.
fn nanochat_config(model: &NanochatModel, vocab_size: usize, end: Option<u32>) -> NanoChatConfig {
    NanoChatConfig {
        vocab_size,
        hidden_size: model.hidden_size,
        intermediate_size: model.mlp_size,
        num_hidden_layers: model.n_layers,
        num_attention_heads: model.n_heads,
        num_key_value_heads: Some(model.n_kv_heads),
        max_position_embeddings: model.context,
        rms_norm_eps: NORM_EPS,
        initializer_range: model.init_std,
        tie_word_embeddings: model.tie_embeddings,
        final_logit_softcapping: positive(model.logit_softcap),
        rope: RopeConfig::with_theta(ROPE_THETA),
        bos_token_id: end,
        eos_token_id: end.map(Into::into),
        pad_token_id: None,
        ..NanoChatConfig::default()
    }
}
