//! The way errors end the program.

use std::process::ExitCode;

/// Prints the error, its causes and its hint to standard error; the exit code is 1.
pub(crate) fn report(error: &anyhow::Error) -> ExitCode {
    eprintln!("error: {error}");
    // Transparent errors repeat their source's text: say each thing once.
    let mut said = error.to_string();
    for cause in error.chain().skip(1).map(ToString::to_string) {
        if !said.contains(&cause) {
            eprintln!("  {cause}");
            said.push_str(&cause);
        }
    }
    if let Some(hint) = hint(error) {
        eprintln!("hint: {hint}");
    }
    ExitCode::FAILURE
}

fn hint(error: &anyhow::Error) -> Option<String> {
    error.chain().find_map(|cause| {
        if let Some(e) = cause.downcast_ref::<lehr_train::Error>() {
            return e.hint();
        }
        if let Some(e) = cause.downcast_ref::<lehr_eval::PerplexityError>() {
            return e.hint();
        }
        if let Some(e) = cause.downcast_ref::<lehr_infer::Error>() {
            return e.hint();
        }
        if let Some(e) = cause.downcast_ref::<lehr_model::Error>() {
            return e.hint();
        }
        if let Some(e) = cause.downcast_ref::<lehr_data::Error>() {
            return e.hint();
        }
        if let Some(e) = cause.downcast_ref::<lehr_tokenizer::Error>() {
            return e.hint();
        }
        if let Some(e) = cause.downcast_ref::<Hinted>() {
            return Some(e.hint.clone());
        }
        if cause.is::<std::io::Error>() {
            return Some("check that the path is right and may be read and written".to_owned());
        }
        cause.downcast_ref::<lehr_tensor::Error>().and_then(lehr_tensor::Error::hint)
    })
}

/// An error of the command line itself.
#[derive(Debug)]
pub(crate) struct Hinted {
    message: String,
    hint: String,
}

impl Hinted {
    pub(crate) fn error(message: impl Into<String>, hint: impl Into<String>) -> anyhow::Error {
        Self { message: message.into(), hint: hint.into() }.into()
    }
}

impl std::fmt::Display for Hinted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Hinted {}
