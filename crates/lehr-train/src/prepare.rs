//! From a recipe to a task: tokenizer, data, model.

use std::path::Path;

use lehr_data::{
    ClassLoader, Document, LabelSet, Labelled, LabelledFields, Loader, LoaderOptions,
    PretrainLoader, ReadOptions, SftLoader, read_conversations, read_documents, read_labelled,
    split_by_text, split_documents, tokenize_cached,
};
use lehr_infer::{Loaded, check_vocabulary, resolve_model, template_of, tokenizer_of};
use lehr_model::{
    Classifier, Compute, Config, FP8_SIDE_MIN, Gpt2Config, LlamaConfig, Model, RopeConfig,
};
use lehr_tokenizer::chat::{ChatTemplate, TemplateParts};
use lehr_tokenizer::{Pattern, Tokenizer, Trainer};

use crate::recipe::{DataConfig, ModelConfig, ObjectiveKind, TokenizerConfig};
use crate::{Classify, Error, LanguageModel, Objective, Recipe, Result};

/// What the loop works on.
pub struct Task {
    /// The model and its loss.
    pub objective: Box<dyn Objective>,
    /// Training batches without end.
    pub train: Box<dyn Loader>,
    /// Held-out batches, once.
    pub validation: Box<dyn Loader>,
}

/// What was found while preparing, for the user.
pub type Notes<'a> = &'a mut dyn FnMut(&str);

/// Reads the data, trains or loads the tokenizer, builds or loads the model. What takes long (the
/// tokenizer, the token shards) is kept in `cache`.
///
/// # Errors
/// If data, tokenizer or model are missing, damaged or do not fit one another.
pub fn prepare(recipe: &Recipe, cache: &Path, notes: Notes<'_>) -> Result<Task> {
    // First, because a device that cannot be used should not be found out after an hour of
    // tokenizing.
    let mut begin = |n| notes(&format!("compiling {n} files of GPU kernels, once"));
    let compute = Compute::choose_and_say(recipe.run.device, recipe.run.dtype, &mut begin)?;
    compute.note.iter().for_each(|note| notes(note));
    if recipe.run.fp8 {
        compute.check_fp8()?;
    }
    let task = match recipe.objective {
        ObjectiveKind::NextToken => prepare_next_token(recipe, cache, notes),
        ObjectiveKind::Chat => prepare_chat(recipe, cache, notes),
        ObjectiveKind::Classify => prepare_classify(recipe, cache, notes),
    }?;
    if compute.device.is_cuda() {
        notes(&format!("computing on {} in {}", compute.device, compute.dtype));
    } else if recipe.train.cuda_graph {
        notes("train.cuda_graph changes nothing: the device is the CPU");
    }
    let model = task.objective.model();
    model.to_device(compute.device, compute.dtype)?;
    if recipe.run.fp8 {
        notes(&match model.use_fp8(FP8_SIDE_MIN) {
            0 => format!("fp8 is not used: no matrix has sides of at least {FP8_SIDE_MIN}"),
            n => format!("{n} matrices are multiplied in fp8"),
        });
    }
    Ok(task)
}

/// The two loaders' options.
fn options(recipe: &Recipe) -> (LoaderOptions, LoaderOptions) {
    let (rows, len) = (recipe.train.rows, recipe.train.len);
    let train = LoaderOptions::shuffled(rows, len, recipe.run.seed);
    (train, LoaderOptions::sequential(rows, len))
}

fn prepare_next_token(recipe: &Recipe, cache: &Path, notes: Notes<'_>) -> Result<Task> {
    let data = &recipe.data;
    let read =
        ReadOptions { text_field: data.text_field.clone(), document_bytes: data.document_bytes };
    let documents = read_documents(&data.path, &read)?;
    let (train, validation) = match data.validation_path.is_empty() {
        true => split_documents(documents, data.validation_fraction, recipe.run.seed)?,
        false => (documents, read_documents(&data.validation_path, &read)?),
    };
    let bytes = |docs: &[Document]| docs.iter().map(|d| d.text.len()).sum::<usize>() as f64 / 1e6;
    notes(&format!(
        "data: {} documents of {:.2} MB to learn from, {} of {:.2} MB held out",
        train.len(),
        bytes(&train),
        validation.len(),
        bytes(&validation)
    ));
    if validation.is_empty() {
        return Err(too_small("documents", train.len()));
    }
    let tokenizer = tokenizer(recipe, cache, || train.iter().map(|d| d.text.as_str()), notes)?;
    let shards = cache.join("tokens");
    let train = tokenize_cached(&train, &tokenizer, &shards, &mut |_| ())?;
    let validation = tokenize_cached(&validation, &tokenizer, &shards, &mut |_| ())?;
    notes(&format!(
        "tokens: {} to learn from ({:.2} bytes each), {} held out",
        train.tokens(),
        train.text_bytes() as f64 / train.tokens() as f64,
        validation.tokens()
    ));
    let (train_options, validation_options) = options(recipe);
    let model = model(recipe, &tokenizer)?;
    model.check_causal("training on the next token")?;
    Ok(Task {
        objective: Box::new(LanguageModel::new(model, tokenizer, None)),
        train: Box::new(PretrainLoader::new(train, train_options)?),
        validation: Box::new(PretrainLoader::new(validation, validation_options)?),
    })
}

fn prepare_chat(recipe: &Recipe, cache: &Path, notes: Notes<'_>) -> Result<Task> {
    let data = &recipe.data;
    let all = read_conversations(&data.path)?;
    let (train, validation) = match data.validation_path.is_empty() {
        true => {
            let text = |c: &lehr_data::Conversation| {
                c.messages.iter().map(|m| m.content.as_str()).collect::<Vec<_>>().join("\n")
            };
            split_by_text(all, text, data.validation_fraction, recipe.run.seed)?
        }
        false => (all, read_conversations(&data.validation_path)?),
    };
    if validation.is_empty() {
        return Err(too_small("conversations", train.len()));
    }
    let texts = || train.iter().flat_map(|c| c.messages.iter().map(|m| m.content.as_str()));
    let tokenizer = tokenizer(recipe, cache, texts, notes)?;
    let (train_options, validation_options) = options(recipe);
    let template = template(recipe, &tokenizer)?;
    let train_loader = SftLoader::new(&train, &tokenizer, &template, train_options)?;
    notes(&format!(
        "data: {} conversations to learn from ({} cut at {} tokens, {} without an answer left \
         out), {} held out",
        train.len(),
        train_loader.truncated(),
        recipe.train.len,
        train_loader.dropped(),
        validation.len()
    ));
    let validation = SftLoader::new(&validation, &tokenizer, &template, validation_options)?;
    let model = model(recipe, &tokenizer)?;
    model.check_causal("training on conversations")?;
    Ok(Task {
        objective: Box::new(LanguageModel::new(model, tokenizer, Some(template))),
        train: Box::new(train_loader),
        validation: Box::new(validation),
    })
}

fn prepare_classify(recipe: &Recipe, cache: &Path, notes: Notes<'_>) -> Result<Task> {
    let (train, validation) = read_labelled_split(&recipe.data, recipe.run.seed)?;
    if validation.is_empty() {
        return Err(too_small("labelled texts", train.len()));
    }
    let texts = || train.iter().map(|e| e.text.as_str());
    let tokenizer = tokenizer(recipe, cache, texts, notes)?;
    // A classifier that is trained further keeps its labels and their order.
    let continued = match &recipe.model {
        ModelConfig::Load { path } => {
            let dir = resolve_model(Path::new(path))?;
            let found =
                Classifier::is_classifier(&dir).then(|| Classifier::load(&dir)).transpose()?;
            if let Some(classifier) = &found {
                check_vocabulary(&dir, &tokenizer, classifier.model())?;
            }
            found
        }
        _ => None,
    };
    let labels = match &continued {
        Some(classifier) => LabelSet::from_names(classifier.labels().iter().cloned())?,
        None => LabelSet::learn(&train)?,
    };
    let (train_options, validation_options) = options(recipe);
    let train_loader = ClassLoader::new(&train, &labels, &tokenizer, train_options)?;
    notes(&format!(
        "data: {} labelled texts to learn from ({} cut at {} tokens), {} held out; labels: {}",
        train.len(),
        train_loader.truncated(),
        recipe.train.len,
        validation.len(),
        labels.names().join(", ")
    ));
    let validation = ClassLoader::new(&validation, &labels, &tokenizer, validation_options)?;
    let classifier = match continued {
        Some(classifier) => classifier,
        None => {
            Classifier::new(model(recipe, &tokenizer)?, labels.names().to_vec(), recipe.run.seed)?
        }
    };
    Ok(Task {
        objective: Box::new(Classify::new(classifier, tokenizer)),
        train: Box::new(train_loader),
        validation: Box::new(validation),
    })
}

fn read_labelled_split(data: &DataConfig, seed: u64) -> Result<(Vec<Labelled>, Vec<Labelled>)> {
    let fields = LabelledFields { text: data.text_field.clone(), label: data.label_field.clone() };
    let all = read_labelled(&data.path, &fields)?;
    if data.validation_path.is_empty() {
        let text = |e: &Labelled| e.text.clone();
        return Ok(split_by_text(all, text, data.validation_fraction, seed)?);
    }
    Ok((all, read_labelled(&data.validation_path, &fields)?))
}

fn too_small(what: &str, found: usize) -> Error {
    Error::Setting {
        faults: format!(
            "data.path holds {found} {what}, too few to hold some out; give data.validation_path \
             or more data"
        ),
    }
}

/// The recipe's tokenizer. One that is trained is kept in the cache for the resumed run.
fn tokenizer<'t, I: Iterator<Item = &'t str> + Send>(
    recipe: &Recipe,
    cache: &Path,
    texts: impl FnOnce() -> I,
    notes: Notes<'_>,
) -> Result<Tokenizer> {
    match &recipe.tokenizer {
        TokenizerConfig::File { path } => Ok(Tokenizer::from_file(path)?),
        TokenizerConfig::Model => {
            let ModelConfig::Load { path } = &recipe.model else {
                let faults = "tokenizer.kind is model, but no model is loaded".to_owned();
                return Err(Error::Setting { faults });
            };
            Ok(tokenizer_of(&resolve_model(Path::new(path))?)?)
        }
        TokenizerConfig::Train { vocab_size, pattern } => {
            let kept = cache.join("tokenizer.json");
            if kept.is_file() {
                return Ok(Tokenizer::from_file(&kept)?);
            }
            let mut trainer = Trainer::new(*vocab_size);
            trainer.pattern = if pattern == "gpt2" { Pattern::Gpt2 } else { Pattern::Gpt4 };
            let start = std::time::Instant::now();
            let tokenizer = trainer.train(texts())?;
            let seconds = start.elapsed().as_secs_f64();
            notes(&format!("tokenizer: {} ids in {seconds:.1} s", tokenizer.vocab_size()));
            std::fs::create_dir_all(cache).map_err(Error::io("creating", cache))?;
            tokenizer.save(&kept)?;
            Ok(tokenizer)
        }
    }
}

/// How conversations are written: as the loaded model does, if its tokenizer is kept; else as the
/// tokenizer's special tokens tell.
fn template(recipe: &Recipe, tokenizer: &Tokenizer) -> Result<ChatTemplate> {
    match (&recipe.tokenizer, &recipe.model) {
        (TokenizerConfig::Model, ModelConfig::Load { path }) => {
            Ok(template_of(&resolve_model(Path::new(path))?, tokenizer)?)
        }
        _ => Ok(ChatTemplate::for_model(tokenizer, &TemplateParts::default())?),
    }
}

/// The recipe's model, new or loaded, with a vocabulary that fits the tokenizer.
fn model(recipe: &Recipe, tokenizer: &Tokenizer) -> Result<Model> {
    let mut model = build_model(recipe, tokenizer)?;
    model.set_activation_checkpointing(recipe.train.activations);
    Ok(model)
}

fn build_model(recipe: &Recipe, tokenizer: &Tokenizer) -> Result<Model> {
    let vocab_size = tokenizer.vocab_size();
    let end = tokenizer.end_of_document().ok();
    let config = match &recipe.model {
        ModelConfig::Load { path } => return load_model(path, tokenizer),
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
            hidden_size: *hidden_size,
            intermediate_size: *mlp_size,
            num_hidden_layers: *n_layers,
            num_attention_heads: *n_heads,
            num_key_value_heads: Some(*n_kv_heads),
            head_dim: None,
            max_position_embeddings: *context,
            rms_norm_eps: 1e-5,
            initializer_range: *init_std,
            tie_word_embeddings: *tie_embeddings,
            attention_bias: false,
            mlp_bias: false,
            hidden_act: "silu".to_owned(),
            rope: RopeConfig::with_theta(10_000.0),
            bos_token_id: end,
            eos_token_id: end.map(Into::into),
            pad_token_id: None,
        }),
        ModelConfig::Gpt2 { n_layers, hidden_size, n_heads, context, init_std } => {
            Config::Gpt2(Gpt2Config {
                vocab_size,
                n_positions: *context,
                n_embd: *hidden_size,
                n_layer: *n_layers,
                n_head: *n_heads,
                n_inner: None,
                activation_function: "gelu_new".to_owned(),
                layer_norm_epsilon: 1e-5,
                initializer_range: *init_std,
                scale_attn_weights: true,
                scale_attn_by_inverse_layer_idx: false,
                tie_word_embeddings: true,
                bos_token_id: end,
                eos_token_id: end,
            })
        }
    };
    Ok(Model::new(config, recipe.run.seed)?)
}

fn load_model(path: &str, tokenizer: &Tokenizer) -> Result<Model> {
    let loaded = Loaded::open_to_train(Path::new(path))?;
    check_vocabulary(&loaded.path, tokenizer, &loaded.model)?;
    Ok(loaded.model)
}
